"""The checks of a configuration that need nothing but its values.

All problems are found and raised together, each with the value and the fix. What needs a file (a shard manifest, a
model folder) is checked by the program that reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from cpt_dist.cluster_config import cluster_problems, health_problems
from cpt_dist.config import (
    ALL,
    BISECT,
    INVALID_UTF8,
    ZERO_0_IN_BF16,
    CptConfig,
    SourceConfig,
    parse_quantity,
)
from cpt_dist.context_config import context_problems
from cpt_dist.curation_pipeline_config import PREPARE_WHAT, curation_pipeline_problems
from cpt_dist.diagnose_config import diagnose_problems, diagnose_quantities
from cpt_dist.distillation_config import distillation_problems
from cpt_dist.doctor_config import doctor_problems
from cpt_dist.errors import UserError, nearest
from cpt_dist.evaluation_schedule import EVALUATION_SCHEDULES, LOG
from cpt_dist.forgetting_config import forgetting_problems
from cpt_dist.kernels_config import ATTENTIONS, kernel_problems
from cpt_dist.long_context_config import long_context_problems
from cpt_dist.long_data_config import long_data_problems
from cpt_dist.plans_of_run import all_stages
from cpt_dist.probe_config import probe_problems, probe_quantities
from cpt_dist.replay_config import replay_problems
from cpt_dist.schedule_config import schedule_problems
from cpt_dist.stage_validation import one_of, plan_problems
from cpt_dist.strata_config import LABEL, LENGTH, strata_problems
from cpt_dist.suites_config import suites_problems
from cpt_dist.verdict_config import verdict_problems

ENGINES = ("zero", "fsdp")
PRECISIONS = ("auto", "fp32", "bf16")
ROLES = ("domain", "replay")
CAP_POLICIES = ("error", "spill", "renormalise")
PLANS = ("all", "data", "schedule", "rope")
EVALUATIONS = ("held_out", "suites", "long_context")
CHECKPOINTS = (ALL, BISECT)
LEAST_SPIKE_THRESHOLD = 4.0
CHECKPOINT_COMMANDS = ("list", "verify", "prune", "show", "name", "unname")
IMPORT_FORMATS = ("megatron", "datatrove", "mds")
CHAT_FORMATS = ("auto", "template", "plain")


def _check_cap(problems: list[str], name: str, source: SourceConfig, config: CptConfig) -> None:
    key = f"data.sources.{name}"
    one_of(problems, f"{key}.on_cap", source.on_cap, CAP_POLICIES)
    if source.max_epochs is not None and not 0 < source.max_epochs < math.inf:
        problems.append(f"{key}.max_epochs: {source.max_epochs} must be positive; null means no cap")
    if source.on_cap != "spill":
        if source.spill_to is not None:
            problems.append(f"{key}.spill_to: it is read with on_cap=spill only; set that, or take it out")
        return
    sources = {other for other in config.data.sources if other != name}
    if source.spill_to not in sources:
        problems.append(
            f"{key}.spill_to: {source.spill_to!r} is no other source; {nearest(str(source.spill_to), sources)}"
        )
        return
    problems.extend(
        f"{key}.spill_to: stage '{stage.name}' reads '{name}' but not '{source.spill_to}'; "
        f"add {source.spill_to}: 0 to its mixture"
        for stage in config.stages
        if name in stage.mixture and source.spill_to not in stage.mixture
    )


def _check_instructions(problems: list[str], name: str, source: SourceConfig) -> None:
    key = f"data.sources.{name}"
    one_of(problems, f"{key}.chat_format", source.chat_format, CHAT_FORMATS)
    pair = [source.prompt_field, source.completion_field]
    if pair.count(None) == 1:
        given, missing = ("completion", "prompt") if source.prompt_field is None else ("prompt", "completion")
        problems.append(f"{key}: {given}_field is set and {missing}_field isn't; name the field of the {missing} too")
    if source.chat_field is not None and pair != [None, None]:
        problems.append(f"{key}: chat_field and prompt_field or completion_field are set; keep one of the two forms")
    if source.chat_field is None and source.chat_format != "auto":
        problems.append(
            f"{key}.chat_format: '{source.chat_format}' is read with chat_field only; set that or take it out"
        )
    if source.import_format is not None and (source.chat_field is not None or pair != [None, None]):
        problems.append(f"{key}: import_format takes tokens over, which have no chat or prompt field; take one out")


def _check_curation(problems: list[str], name: str, source: SourceConfig) -> None:
    key = f"data.sources.{name}.curation"
    others = {
        "import_format": source.import_format,
        "chat_field": source.chat_field,
        "prompt_field": source.prompt_field,
        "grow": source.grow or None,
    }
    for other in [name for name, value in others.items() if value is not None]:
        problems.append(f"{key}: only plain text is curated, all at one time; take out {other}, or this")


def _check_strata(problems: list[str], name: str, source: SourceConfig) -> None:
    key = f"data.sources.{name}"
    for score, field in source.score_fields.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", score) or score in (LENGTH, LABEL) or not field:
            problems.append(
                f"{key}.score_fields: '{score}: {field}' is no name of a score and its field; {LENGTH} and {LABEL} are "
                "taken, letters, digits, '_' and '-' may be used"
            )
    if source.import_format is not None and (source.score_fields or source.label_field):
        problems.append(f"{key}: token data (import_format) has no score_fields or label_field; take them out")
    if source.strata is not None:
        found = strata_problems(source.strata, source.score_fields, source.label_field)
        problems.extend(f"{key}.strata.{problem}" for problem in found)


def _check_counts(problems: list[str], config: CptConfig) -> None:
    least = {
        "engine.micro_batch": (config.engine.micro_batch, 1),
        "engine.shard_size": (config.engine.shard_size, 0),
        "engine.threads": (config.engine.threads, 0),
        "model.loss_chunk_tokens": (config.model.loss_chunk_tokens, 1),
        "model.mlp_chunk_tokens": (config.model.mlp_chunk_tokens, 0),
        "data.num_workers": (config.data.num_workers, 0),
        "data.min_bytes": (config.data.min_bytes, 1),
        "data.cut_min_tokens": (config.data.cut_min_tokens, 0),
        "data.shuffle_window_shards": (config.data.shuffle_window_shards, 0),
        "data.prefetch_shards": (config.data.prefetch_shards, 0),
        "data.fetch_retries": (config.data.fetch_retries, 0),
        "checkpoint.every_steps": (config.checkpoint.every_steps, 0),
        "checkpoint.keep_last": (config.checkpoint.keep_last, 0),
        "checkpoint.keep_every": (config.checkpoint.keep_every, 0),
        "checkpoint.keep_best": (config.checkpoint.keep_best, 0),
        "checkpoint.probe_tokens": (config.checkpoint.probe_tokens, 2),
        "consolidate.workers": (config.consolidate.workers, 1),
        "import_checkpoint.workers": (config.import_checkpoint.workers, 1),
        "guards.window": (config.guards.window, 16),
        "guards.max_skips": (config.guards.max_skips, 1),
        "guards.rewind_steps": (config.guards.rewind_steps, 0),
        "guards.max_rewinds": (config.guards.max_rewinds, 0),
        "evaluation.every_steps": (config.evaluation.every_steps, 0),
        "evaluation.seq_len": (config.evaluation.seq_len, 2),
        "evaluation.bootstrap": (config.evaluation.bootstrap, 100),
        "logging.every_steps": (config.logging.every_steps, 1),
        "plan.world_size": (config.plan.world_size, 0),
        "seed": (config.seed, 0),
    }
    problems.extend(f"{key}: {value} must be at least {low}" for key, (value, low) in least.items() if value < low)
    for name in ("fetch_backoff_seconds", "fetch_timeout_seconds"):
        value = getattr(config.data, name)
        if not 0 < value < math.inf:
            problems.append(f"data.{name}: {value} must be positive and finite")
    if config.guards.spike_threshold != 0 and not config.guards.spike_threshold >= LEAST_SPIKE_THRESHOLD:
        problems.append(
            f"guards.spike_threshold: {config.guards.spike_threshold} would skip ordinary steps; "
            f"set 0 (off) or at least {LEAST_SPIKE_THRESHOLD}, such as 8"
        )
    if config.optimizer.max_grad_norm < 0:
        problems.append(f"optimizer.max_grad_norm: {config.optimizer.max_grad_norm} is negative; 0 turns clipping off")
    for key in ("beta1", "beta2"):
        if not 0 <= getattr(config.optimizer, key) < 1:
            problems.append(f"optimizer.{key}: {getattr(config.optimizer, key)} must lie within 0 to 1 (exclusive)")
    problems.extend(
        f"optimizer.lr_multipliers.{pattern}: {factor} must be finite and not negative"
        for pattern, factor in config.optimizer.lr_multipliers.items()
        if not 0 <= factor < math.inf
    )
    if not 0 <= config.data.held_out_fraction < 1:
        problems.append(f"data.held_out_fraction: {config.data.held_out_fraction} must lie within 0 to 1 (exclusive)")
    if not 0 < config.evaluation.confidence < 1:
        problems.append(f"evaluation.confidence: {config.evaluation.confidence} must lie between 0 and 1")


def _check_keep_best(problems: list[str], config: CptConfig) -> None:
    checkpoint, evaluation = config.checkpoint, config.evaluation
    if not checkpoint.keep_best:
        return
    one_of(problems, "checkpoint.keep_best_of", checkpoint.keep_best_of, ("macro", *config.data.sources))
    if not evaluation.during_training or not evaluation.every_steps:
        problems.append(
            f"checkpoint.keep_best: {checkpoint.keep_best} needs checkpoints that were evaluated; set "
            f"evaluation.during_training=true and evaluation.every_steps={checkpoint.every_steps or 'N'}"
        )


def validate(config: CptConfig, checks: Sequence[Callable[[CptConfig], list[str]]] = ()) -> None:
    """Check every value that can be checked without reading a file; raise UserError with all problems at once.

    `checks` give further problems, of files that a script wants to be judged together with the values.
    """
    problems: list[str] = []
    one_of(problems, "engine.name", config.engine.name, ENGINES)
    one_of(problems, "engine.precision", config.engine.precision, PRECISIONS)
    if config.engine.zero_stage not in (0, 1, 2, 3):
        problems.append(f"engine.zero_stage: {config.engine.zero_stage} is unknown; it is 0, 1, 2 or 3")
    elif config.engine.name == "zero" and config.engine.zero_stage == 0 and config.engine.precision == "bf16":
        problems.append(ZERO_0_IN_BF16)
    if config.engine.shard_size and config.engine.name == "zero":
        problems.append(f"engine.shard_size: {config.engine.shard_size} is read by engine=fsdp only; take it out (0)")
    one_of(problems, "model.attention", config.model.attention, ATTENTIONS)
    problems += kernel_problems(config.kernels, config.model.attention)
    if config.model.activation_offload and not config.model.activation_checkpointing:
        problems.append(
            "model.activation_offload: true moves what model.activation_checkpointing keeps; set that to true as well"
        )
    one_of(problems, "data.invalid_utf8", config.data.invalid_utf8, INVALID_UTF8)
    one_of(problems, "data.verify", config.data.verify, ("read", "open"))
    one_of(problems, "checkpoint.on_damage", config.checkpoint.on_damage, ("refuse", "previous"))
    one_of(problems, "checkpoint.verify", config.checkpoint.verify, ("whole", "sampled"))
    _check_keep_best(problems, config)
    one_of(problems, "checkpoints.what", config.checkpoints.what, CHECKPOINT_COMMANDS)
    one_of(problems, "consolidate.dtype", config.consolidate.dtype, ("fp32", "bf16"))
    one_of(problems, "import_checkpoint.dtype", config.import_checkpoint.dtype, ("fp32", "bf16"))
    one_of(problems, "plan.what", config.plan.what, PLANS)
    one_of(problems, "evaluate.what", config.evaluate.what, EVALUATIONS)
    if config.evaluate.checkpoints is not None:
        one_of(problems, "evaluate.checkpoints", config.evaluate.checkpoints, CHECKPOINTS)
        if config.evaluate.what != "held_out":
            problems.append(
                f"evaluate.checkpoints: only their held-out text is measured, but what is '{config.evaluate.what}'; "
                "leave one of the two out"
            )
    problems.extend(f"evaluation.long_context.{one}" for one in long_context_problems(config.evaluation.long_context))
    for name, source in config.data.sources.items():
        one_of(problems, f"data.sources.{name}.role", source.role, ROLES)
        _check_cap(problems, name, source, config)
        _check_instructions(problems, name, source)
        _check_strata(problems, name, source)
        if source.curation is not None:
            _check_curation(problems, name, source)
        if source.import_format is not None:
            one_of(problems, f"data.sources.{name}.import_format", source.import_format, IMPORT_FORMATS)
    one_of(problems, "prepare.what", config.prepare.what, PREPARE_WHAT)
    problems.extend(f"data.curation.{one}" for one in curation_pipeline_problems(config.data.curation))
    problems.extend(f"schedule.{one}" for one in schedule_problems(config.schedule))
    problems.extend(plan_problems(config))
    problems.extend(context_problems(config))
    problems.extend(long_data_problems(config.long_data))
    problems.extend(cluster_problems(config.cluster))
    problems.extend(verdict_problems(config.verdict))
    problems.extend(health_problems(config.health, config.engine.timeout_seconds))
    problems.extend(diagnose_problems(config.diagnose))
    problems.extend(doctor_problems(config.doctor))
    _check_counts(problems, config)
    one_of(problems, "evaluation.schedule", config.evaluation.schedule, EVALUATION_SCHEDULES)
    on_the_way = config.evaluation.every_steps > 0 or config.evaluation.schedule == LOG
    evaluations = config.evaluation.during_training and on_the_way
    problems.extend(replay_problems(config.replay, evaluations))
    roles = {name: source.role for name, source in config.data.sources.items()}
    during = config.evaluation.during_training
    read = {name for stage in all_stages(config) for name in stage.mixture}
    problems.extend(forgetting_problems(config.forgetting, roles, read, config.replay.rule, during, evaluations))
    problems.extend(distillation_problems(config.distillation, roles, read))
    problems.extend(suites_problems(config.suites))
    problems.extend(probe_problems(config.probe))
    for what, value in {
        "data.shard_tokens": config.data.shard_tokens,
        "data.cache_bytes": config.data.cache_bytes,
        "data.curation.block_bytes": config.data.curation.block_bytes,
        "prepare.report_bytes": config.prepare.report_bytes,
        "evaluation.max_tokens": config.evaluation.max_tokens,
        "consolidate.max_shard_size": config.consolidate.max_shard_size,
        "import_checkpoint.max_shard_size": config.import_checkpoint.max_shard_size,
        "evaluate.batch_tokens": config.evaluate.batch_tokens,
        **diagnose_quantities(config.diagnose),
        **probe_quantities(config.probe),
    }.items():
        try:
            parse_quantity(value, what)
        except UserError as error:
            problems.extend(error.problems)
    for check in checks:
        problems.extend(check(config))
    if problems:
        raise UserError(problems)
