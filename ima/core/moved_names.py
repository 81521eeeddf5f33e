"""Names of modules, classes and functions that have moved: the table, and how a name from a file is brought up to date.

Configs, `result.json` files, mask headers and folders of people's own code keep the dotted names of the day they were
written. `current_name` gives today's name; `ima.core.moved_imports` lets old import statements go on working. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Old dotted name -> new dotted name. A key is a module, a package (everything below it moves along) or one name inside
# a module; the longest key that fits decides. Where the old module's name is that of another module or package today
# (`ima.config`), list the names inside it instead of the module.
MOVED: dict[str, str] = {
    "ima.report.write_report": "ima.report.build.write_report",
    "ima.report.write_csv": "ima.report.collect.write_csv",
    "ima.runs.results.read_result": "ima.runs.record.read_result",
    "ima.sweep.refuse_ranks": "ima.sweep.process.refuse_ranks",
    "ima.sweep.run.refuse_ranks": "ima.sweep.process.refuse_ranks",
    "ima.pipeline.run.evaluation_folder": "ima.runs.find.evaluation_folder",
    "ima.sweep.alone_in": "ima.sweep.run.alone_in",
    "ima.sweep.page": "ima.sweep.run.page",
    "ima.adapters": "ima.models.adapters.base",
    "ima.adapters.LinearAdapter": "ima.models.adapters.linear.LinearAdapter",
    "ima.adapters.MlpAdapter": "ima.models.adapters.linear.MlpAdapter",
    "ima.adapters.PerceiverAdapter": "ima.models.adapters.query.PerceiverAdapter",
    "ima.adapters.PoolAdapter": "ima.models.adapters.linear.PoolAdapter",
    "ima.adapters.QueryAdapter": "ima.models.adapters.query.QueryAdapter",
    "ima.adapters_video": "ima.models.adapters.video",
    "ima.alignment.lanes": "ima.alignment.streaming.work_queue",
    "ima.alignment.lanes.Lanes": "ima.alignment.streaming.work_queue.WorkQueue",
    "ima.alignment.passes": "ima.alignment.streaming.layer_pass",
    "ima.alignment.passes.Pass": "ima.alignment.streaming.layer_pass.LayerPass",
    "ima.alignment.proxy": "ima.report.correlation",
    "ima.alignment.scales": "ima.alignment.reference_pass",
    "ima.alignment.stats": "ima.alignment.streaming.statistics",
    "ima.alignment.stats.SiteStats": "ima.alignment.streaming.site_stats.SiteStats",
    "ima.alignment.stretches": "ima.alignment.streaming.chunks",
    "ima.alignment.suite": "ima.alignment.measurement",
    "ima.alignment.suite.Suite": "ima.alignment.measurement.Measurement",
    "ima.alignment.suite.write_suite": "ima.alignment.measurement.write_measurement",
    "ima.alignment.sums": "ima.alignment.cone_file",
    "ima.alignment.sums.Sums": "ima.alignment.cone_file.ConeSums",
    "ima.alignment.vocabulary": "ima.alignment.logit_lens",
    "ima.assets": "ima.core.assets.registry",
    "ima.bench": "ima.cli.bench",
    "ima.cache": "ima.core.cache",
    "ima.callbacks": "ima.pipeline.callbacks",
    "ima.callbacks.Recorder": "ima.pipeline.recorder.Recorder",
    "ima.charts": "ima.pipeline.loggers.wandb_charts",
    "ima.check": "ima.config.validate",
    "ima.checkpoint": "ima.pipeline.checkpoint",
    "ima.checkpoint.last_checkpoint": "ima.runs.folders.last_checkpoint",
    "ima.checkpoint.weight_sum": "ima.models.llm.tuning.weight_sum",
    "ima.checkpoint.write_tensors": "ima.core.tensor_file.write_tensors",
    "ima.cli.run_script": "ima.cli.scripts.run_script",
    "ima.collect": "ima.cli.collect",
    "ima.compare": "ima.runs.compare",
    "ima.compose": "ima.config.compose",
    "ima.config.EvaluateConfig": "ima.config.roots.EvaluateConfig",
    "ima.config.MANAGEMENT": "ima.runs.identity.MANAGEMENT",
    "ima.config.ROOTS": "ima.config.roots.ROOTS",
    "ima.config.STACKED": "ima.runs.identity.STACKED",
    "ima.config.TrainConfig": "ima.config.roots.TrainConfig",
    "ima.config.check_together": "ima.config.roots.check_together",
    "ima.config.config_hash": "ima.runs.identity.config_hash",
    "ima.config.groups_of": "ima.config.roots.groups_of",
    "ima.config.run_config": "ima.runs.find.run_config",
    "ima.config.run_folder": "ima.runs.find.run_folder",
    "ima.dashboard": "ima.pipeline.loggers.wandb",
    "ima.data.corpora.spoilt": "ima.data.corpora.controls",
    "ima.data.draws": "ima.core.keyed_random",
    "ima.data.export": "ima.cli.export_data",
    "ima.data.features": "ima.data.feature_cache",
    "ima.data.files": "ima.data.decode",
    "ima.debian": "ima.core.assets.debian",
    "ima.demo": "ima.cli.demo",
    "ima.doctor": "ima.cli.doctor",
    "ima.encoders": "ima.models.encoders",
    "ima.encoders.ct2": "ima.models.formats.ctranslate2",
    "ima.encoders.onnx": "ima.models.formats.onnx",
    "ima.entries": "ima.report.entry_table",
    "ima.environment": "ima.core.environment",
    "ima.errors": "ima.core.errors",
    "ima.evaluation": "ima.pipeline.evaluator",
    "ima.fitting": "ima.pipeline.fit",
    "ima.folders": "ima.runs.folders",
    "ima.grid": "ima.sweep.grid",
    "ima.install": "ima.cli.install",
    "ima.interventions.auto": "ima.interventions.skip.auto",
    "ima.interventions.blocks": "ima.interventions.hooks",
    "ima.interventions.choose": "ima.interventions.skip.select",
    "ima.interventions.cost": "ima.interventions.flops",
    "ima.interventions.engine": "ima.interventions.skip.engine",
    "ima.interventions.entropy": "ima.interventions.skip.entropy",
    "ima.interventions.exit": "ima.interventions.skip.exit",
    "ima.interventions.latency": "ima.pipeline.plan_seconds",
    "ima.interventions.lean": "ima.interventions.skip.fast_path",
    "ima.interventions.mask": "ima.interventions.prune.intervention",
    "ima.interventions.published": "ima.interventions.paper_modes",
    "ima.interventions.rows": "ima.interventions.skip.token_index",
    "ima.interventions.skip.Skip": "ima.interventions.skip.plan.Skip",
    "ima.lit": "ima.pipeline.lightning_module",
    "ima.lit.KnownRanks": "ima.pipeline.ranks.KnownRanks",
    "ima.llava": "ima.models.llava",
    "ima.llava.export": "ima.cli.export_llava.export",
    "ima.llm": "ima.models.llm",
    "ima.llm.fast": "ima.models.llm.acceleration.blocks",
    "ima.llm.fast_block": "ima.models.llm.acceleration.nodes",
    "ima.llm.fast_check": "ima.models.llm.acceleration.self_check",
    "ima.llm.fast_weights": "ima.models.llm.acceleration.weights",
    "ima.llm.frozen.Generation": "ima.models.llm.pass_context.Generation",
    "ima.llm.frozen.Running": "ima.models.llm.pass_context.PassContext",
    "ima.llm.gguf": "ima.models.formats.gguf",
    "ima.llm.known": "ima.models.llm.facts",
    "ima.llm.known.Known": "ima.models.llm.facts.LlmFacts",
    "ima.llm.known.known": "ima.models.llm.facts.llm_facts",
    "ima.lmm": "ima.models.hf_multimodal",
    "ima.lmm.LmmEvaluator": "ima.pipeline.hf_evaluator.LmmEvaluator",
    "ima.masks": "ima.interventions.prune",
    "ima.masks.__main__": "ima.cli.masks",
    "ima.masks.bits": "ima.interventions.prune.mask",
    "ima.masks.groups": "ima.interventions.prune.select",
    "ima.masks.making": "ima.interventions.prune.builder",
    "ima.masks.making.Maker": "ima.interventions.prune.builder.MaskBuilder",
    "ima.masks.tasks": "ima.pipeline.calibration",
    "ima.measures": "ima.pipeline.streams",
    "ima.measuring": "ima.pipeline.evaluate",
    "ima.media": "ima.core.media",
    "ima.models.adapters.base.LinearAdapter": "ima.models.adapters.linear.LinearAdapter",
    "ima.models.adapters.base.MlpAdapter": "ima.models.adapters.linear.MlpAdapter",
    "ima.models.adapters.base.PerceiverAdapter": "ima.models.adapters.query.PerceiverAdapter",
    "ima.models.adapters.base.PoolAdapter": "ima.models.adapters.linear.PoolAdapter",
    "ima.models.adapters.base.QueryAdapter": "ima.models.adapters.query.QueryAdapter",
    "ima.nodes": "ima.config.values",
    "ima.parts": "ima.pipeline.assemble",
    "ima.parts.Channel": "ima.pipeline.parts.EncoderAdapter",
    "ima.parts.Parts": "ima.pipeline.parts.Parts",
    "ima.parts.Stream": "ima.pipeline.parts.TaskStream",
    "ima.parts.build": "ima.config.instantiation.build",
    "ima.parts.keyed": "ima.core.errors.prefix_errors",
    "ima.parts.spread": "ima.pipeline.parts.spread",
    "ima.parts.tupled": "ima.config.instantiation.lists_to_tuples",
    "ima.pipeline.assemble.build": "ima.config.instantiation.build",
    "ima.progress": "ima.core.progress",
    "ima.provenance": "ima.core.provenance",
    "ima.ready": "ima.pipeline.prepare",
    "ima.report.__main__": "ima.cli.report",
    "ima.report.decoded": "ima.report.page.decoded",
    "ima.report.drawing": "ima.report.figures.drawing",
    "ima.report.figures_alignment": "ima.report.figures.alignment",
    "ima.report.figures_compare": "ima.report.figures.compare",
    "ima.report.figures_cones": "ima.report.figures.cones",
    "ima.report.figures_full": "ima.report.figures.full",
    "ima.report.figures_masks": "ima.report.figures.masks",
    "ima.report.figures_mixture": "ima.report.figures.mixture",
    "ima.report.figures_places": "ima.report.figures.places",
    "ima.report.figures_reservoir": "ima.report.figures.reservoir",
    "ima.report.figures_retained": "ima.report.figures.retained",
    "ima.report.figures_skip": "ima.report.figures.skip",
    "ima.report.figures_task": "ima.report.figures.task",
    "ima.report.figures_variants": "ima.report.figures.variants",
    "ima.report.maps": "ima.report.figures.maps",
    "ima.report.figures.all": "ima.report.figures.order",
    "ima.report.page.page": "ima.report.page.html",
    "ima.report.page.page.page": "ima.report.page.html.page_html",
    "ima.report.panels": "ima.report.figures.panels",
    "ima.report.samples": "ima.report.page.samples",
    "ima.report.series": "ima.report.curves",
    "ima.report.style": "ima.report.figures.style",
    "ima.report.tables": "ima.report.page.tables",
    "ima.report.words": "ima.report.page.words",
    "ima.results": "ima.runs.results",
    "ima.results.replace_atomic": "ima.core.files.replace_atomic",
    "ima.results.to_json": "ima.core.files.to_json",
    "ima.results.write_atomic": "ima.core.files.write_atomic",
    "ima.results.write_json": "ima.core.files.write_json",
    "ima.run": "ima.pipeline.run",
    "ima.run.find_adapter": "ima.runs.find.find_adapter",
    "ima.samples": "ima.pipeline.predictions",
    "ima.schema": "ima.core.signatures",
    "ima.settings": "ima.config.settings",
    "ima.splice": "ima.models.splice",
    "ima.stages": "ima.pipeline.stages",
    "ima.sweep.submit": "ima.cli.submit",
    "ima.tasks.guess": "ima.tasks.prior",
    "ima.tasks.metrics.intervals": "ima.core.resampling",
    "ima.tasks.probe": "ima.tasks.pope",
    "ima.turns": "ima.core.timing",
    "ima.types": "ima.core.types",
    "ima.workspace": "ima.cli.wandb_workspace",
}

# Modules that were commands (`python -m <module>`) -> the command of `python -m ima` that they are today.
COMMANDS: dict[str, str] = {
    "ima.alignment.cones": "cones",
    "ima.alignment.proxy": "correlate",
    "ima.assets": "assets",
    "ima.bench.__main__": "bench",
    "ima.collect": "collect",
    "ima.compare": "compare",
    "ima.data.export": "export-data",
    "ima.demo": "demo",
    "ima.doctor": "doctor",
    "ima.llava": "export-llava",
    "ima.masks.__main__": "masks",
    "ima.report.__main__": "report",
    "ima.sweep.submit": "submit",
    "ima.workspace": "wandb",
}


def current_name(target: str, moved: Mapping[str, str] | None = None) -> str:
    """Today's dotted name of `target`; a name that has not moved is given back as it is."""
    table = MOVED if moved is None else moved
    key = target
    while key:
        if key in table:
            return target if is_within(target, table[key]) else table[key] + target[len(key) :]
        key = key.rpartition(".")[0]
    return target


def is_within(name: str, place: str) -> bool:
    """Whether a dotted name is `place` or lies below it."""
    return name == place or name.startswith(f"{place}.")


def current_names(value: Any, moved: Mapping[str, str] | None = None) -> Any:
    """A copy of nested plain values in which every `_target_` has its current name."""
    if isinstance(value, Mapping):
        return {
            key: current_name(item, moved)
            if key == "_target_" and isinstance(item, str)
            else current_names(item, moved)
            for key, item in value.items()
        }
    return [current_names(item, moved) for item in value] if isinstance(value, list) else value
