"""Keys of a config that have moved: the table, and how the config of an earlier run is brought up to date.

Until the trainer's flags had Lightning's names, all of training stood in one group `trainer`. `result.json` of such a
run is read as if it had been written today; on the command line an old key is answered with the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ima.core.moved_names import current_names

# Old key -> new key. Of keys that only moved the value stays as it is.
MOVED_KEYS: dict[str, str] = {
    "trainer.epochs": "trainer.max_epochs",
    "trainer.clip_norm": "trainer.gradient_clip_val",
    "trainer.log_every_num_steps": "trainer.log_every_n_steps",
    "trainer.micro_batch_size": "trainer.accumulate_grad_batches",
    "trainer.batch_size": "loader.batch_size",
    "trainer.eval_batch_size": "loader.eval_batch_size",
    "trainer.num_workers": "loader.num_workers",
    "trainer.cache_features": "loader.cache_features",
    "trainer.cache_dtype": "loader.cache_dtype",
    "trainer.max_tokens": "loader.max_tokens",
    "trainer.loss_on": "loader.loss_on",
    "trainer.temperature": "loader.temperature",
    "trainer.batches": "loader.batches",
    "trainer.group_lengths": "loader.group_lengths",
    "trainer.lr": "optimizer.lr",
    "trainer.llm_lr": "optimizer.llm_lr",
    "trainer.weight_decay": "optimizer.weight_decay",
    "trainer.warmup_ratio": "scheduler.warmup_ratio",
    "trainer.warmup_from": "scheduler.warmup_from",
    "trainer.final_ratio": "scheduler.final_ratio",
    "trainer.save_every_num_steps": "callbacks.checkpoint.every_num_steps",
    "trainer.generate_every_num_epochs": "evaluation.generate_every_num_epochs",
    "trainer.generate_samples": "evaluation.num_generated",
    "trainer.eval_samples": "evaluation.num_samples",
    "trainer.tracks": "evaluation.tracks",
    "trainer.fast": "llm.fast",
}
# What the defaults of the old class were, where they are not those of the new one.
OLD_DEFAULTS = {"epochs": 6, "clip_norm": 1.0, "log_every_num_steps": 1, "lr": 2e-3, "weight_decay": 0.02, "devices": 1}
OLD_TRAINER = "ima.config.settings.Training"
STAGE = {"epochs": "max_epochs"}


def nodes_of_today() -> dict[str, dict[str, Any]]:
    """The groups that the old `trainer` has become, as their default choices have them."""
    return {
        "loader": {"_target_": "ima.config.settings.Loader"},
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True},
        "scheduler": {"_target_": "ima.pipeline.schedule.WarmupCosine", "_partial_": True},
        "trainer": {"_target_": "lightning.pytorch.Trainer"},
        "callbacks": {"checkpoint": {"_target_": "ima.pipeline.callbacks.Checkpointer"}},
        "evaluation": {"_target_": "ima.config.settings.Evaluation"},
    }


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with today's keys and today's names of classes; one of today is given back as it is."""
    named = current_names(config)
    old = named.get("trainer")
    is_old = isinstance(old, Mapping) and old.get("_target_", OLD_TRAINER) == OLD_TRAINER and "loader" not in named
    if isinstance(old, Mapping) and is_old:
        out = {name: value for name, value in named.items() if name != "trainer"} | split(old)
        fast = old.get("fast")
        if fast is not None and isinstance(out.get("llm"), Mapping):
            out["llm"] = {**out["llm"], "fast": fast}
        named = out
    if isinstance(named.get("stage"), Mapping):
        named = {**named, "stage": {name: renamed_stage(node) for name, node in named["stage"].items()}}
    return dict(named)


def split(old: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The old node `trainer` as the nodes of today."""
    nodes = nodes_of_today()
    for name, value in (OLD_DEFAULTS | dict(old)).items():
        if name in ("_target_", "fast"):
            continue
        if name == "micro_batch_size":
            value = None if value is None else max(1, int(old.get("batch_size", 16)) // max(1, int(value)))
            if value is None:
                continue
        *path, last = MOVED_KEYS.get("trainer." + name, "trainer." + name).split(".")
        node: dict[str, Any] = nodes
        for part in path:
            node = node[part]
        node[last] = value
    return nodes


def renamed_stage(node: Any) -> Any:
    """A node of `stage` with today's keys."""
    if not isinstance(node, Mapping):
        return node
    gone = ("save_every_num_steps",)
    return {STAGE.get(str(key), str(key)): value for key, value in node.items() if key not in gone}
