"""What Lightning's and Transformers' users write, and the key that it is here; only for the tail of a refusal."""

from __future__ import annotations

from collections.abc import Iterable

from ima.core.moved_keys import MOVED_KEYS

# Their word -> (key here, what differs). Words that are keys here do not stand in the table.
SYNONYMS: dict[str, tuple[str, str]] = {
    "learning_rate": ("optimizer.lr", ""),
    "max_lr": ("optimizer.lr", ""),
    "min_lr": ("scheduler.final_ratio", "the last learning rate as a share of optimizer.lr"),
    "lr_scheduler_type": ("scheduler", "cosine or none, or a yaml file of your own"),
    "lr_scheduler": ("scheduler", "cosine or none, or a yaml file of your own"),
    "optim": ("optimizer", "adamw, or a yaml file of your own"),
    "adam_beta1": ("optimizer.betas", "[0.9,0.999]"),
    "adam_epsilon": ("optimizer.eps", ""),
    "warmup_steps": ("scheduler.warmup_ratio", "a share of all steps"),
    "per_device_train_batch_size": ("loader.batch_size", "of one step, shared by all devices"),
    "train_batch_size": ("loader.batch_size", "of one step, shared by all devices"),
    "per_device_eval_batch_size": ("loader.eval_batch_size", ""),
    "gradient_accumulation_steps": ("trainer.accumulate_grad_batches", "passes that loader.batch_size is split into"),
    "micro_batch_size": ("trainer.accumulate_grad_batches", "passes that loader.batch_size is split into"),
    "num_train_epochs": ("trainer.max_epochs", ""),
    "num_epochs": ("trainer.max_epochs", ""),
    "epochs": ("trainer.max_epochs", ""),
    "num_steps": ("trainer.max_steps", ""),
    "max_grad_norm": ("trainer.gradient_clip_val", ""),
    "clip_norm": ("trainer.gradient_clip_val", ""),
    "fp16": ("llm.dtype", "float16, bfloat16 or float32; of the adapter's passes: trainer.precision"),
    "bf16": ("llm.dtype", "float16, bfloat16 or float32; of the adapter's passes: trainer.precision"),
    "torch_dtype": ("llm.dtype", "float16, bfloat16 or float32"),
    "default_root_dir": ("output_dir", ""),
    "save_dir": ("output_dir", ""),
    "run_name": ("name", ""),
    "experiment_name": ("name", ""),
    "random_seed": ("seed", ""),
    "manual_seed": ("seed", ""),
    "resume_from_checkpoint": ("resume", "the same command goes on by itself"),
    "ckpt_path": ("resume", "the same command goes on by itself; init=<run> starts from another run's adapter"),
    "overwrite_output_dir": ("overwrite", ""),
    "report_to": ("logger", "wandb, offline or none"),
    "logging_steps": ("trainer.log_every_n_steps", ""),
    "save_steps": ("callbacks.checkpoint.every_num_steps", ""),
    "every_n_train_steps": ("callbacks.checkpoint.every_num_steps", ""),
    "eval_steps": ("alignment.every_num_steps", "or every_num_epochs"),
    "max_eval_samples": ("evaluation.num_samples", ""),
    "dataloader_num_workers": ("loader.num_workers", ""),
    "gpus": ("trainer.devices", "with trainer.accelerator=gpu"),
    "num_gpus": ("trainer.devices", "with trainer.accelerator=gpu"),
    "nnodes": ("trainer.num_nodes", ""),
    "device": ("trainer.accelerator", "auto, cpu, gpu or mps"),
    "group_by_length": ("loader.group_lengths", ""),
    "max_seq_length": ("loader.max_tokens", ""),
    "model_max_length": ("loader.max_tokens", ""),
    "model_name_or_path": ("llm.path", "with llm=hf"),
    "model_name": ("llm.path", "with llm=hf"),
    "dataset_name": ("data", "data=hf_caption or hf_qa with data.path=<name>"),
    "use_peft": ("llm.train", "lora"),
    "lora_r": ("llm.lora_rank", "with llm.train=lora"),
}


def synonym(word: str, place: str = "", allowed: Iterable[str] = ()) -> str:
    """'here it is optimizer.lr' for the last part of a key in `place`; "" where nothing is known of it. allowed: names
    that the place knows: what is meant may be one of them (a stage has max_epochs of its own)."""
    name = word.lower().replace("-", "_")
    moved = MOVED_KEYS.get(f"{place}.{name}", "")
    key, note = SYNONYMS.get(name, ("", ""))
    key, note = (moved, "" if moved != key else note) if moved else (key, note)
    if place and key.rpartition(".")[2] in set(allowed):
        key = f"{place}.{key.rpartition('.')[2]}"
    return f"here it is {key}" + (f" ({note})" if note else "") if key else ""
