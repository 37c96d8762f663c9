"""The typed schema of every configuration group.

Hydra composes the files under `configs/` into these dataclasses, so a misspelt key or a value of the wrong type
fails before anything heavy is imported. What the values must satisfy is in `validation.py`. Each field carries its
explanation as the literal below it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from cpt_dist.cluster_config import ClusterConfig, HealthConfig
from cpt_dist.curation_pipeline_config import CurationPipelineConfig
from cpt_dist.curriculum_config import CurriculumConfig
from cpt_dist.diagnose_config import DiagnoseConfig
from cpt_dist.distillation_config import DistillationConfig
from cpt_dist.doctor_config import DoctorConfig
from cpt_dist.errors import UserError
from cpt_dist.forgetting_config import ForgettingConfig
from cpt_dist.fork_config import ForkConfig
from cpt_dist.gate_config import GateConfig
from cpt_dist.kernels_config import KernelsConfig
from cpt_dist.logging_config import LoggingConfig
from cpt_dist.long_context_config import LongContextConfig
from cpt_dist.long_data_config import LongDataConfig
from cpt_dist.probe_config import ProbeConfig
from cpt_dist.program_configs import (
    CheckpointsConfig,
    ConsolidateConfig,
    EvaluateConfig,
    ImportCheckpointConfig,
    PlanConfig,
    PrepareConfig,
)
from cpt_dist.replay_config import ReplayConfig
from cpt_dist.rope_config import RopeConfig
from cpt_dist.schedule_config import ScheduleConfig
from cpt_dist.strata_config import StrataConfig
from cpt_dist.suites_config import SuitesConfig
from cpt_dist.verdict_config import VerdictConfig

INVALID_UTF8 = ("drop", "replace")
CONCAT = "concat"
BEST_FIT = "best_fit"
STRUCTURAL = "structural"
PACKINGS = (CONCAT, BEST_FIT, STRUCTURAL)
CARRY, RESET = "carry", "reset"
RESTART = "restart"
POSITIONS = (RESTART, "continue")
ALL, BISECT = "all", "bisect"
ZERO_0_IN_BF16 = (
    "engine.zero_stage: 0 keeps no fp32 master weights when it computes in bf16; "
    "use engine=zero1 (the same, with less memory), or engine.precision=fp32"
)


@dataclass
class ModelConfig:
    path: str = MISSING
    """Folder of a Hugging Face causal language model: config.json, safetensors weights, a fast tokenizer."""
    attention: str = "auto"
    """How packed documents attend: sdpa_per_document (any device), flash_attn or triton (GPU), native (CPU, fp32), or
    auto, which takes the first of flash_attn, triton, native and sdpa_per_document that can run and says so."""
    activation_checkpointing: bool = False
    """Recompute each decoder layer in the backward pass instead of keeping its activations."""
    activation_offload: bool = False
    """With activation_checkpointing: keep the layers' inputs in pinned host memory until the backward pass, which
    leaves hidden size x tokens x layers free on a GPU. Not measured on a GPU; on a CPU it changes nothing."""
    mlp_chunk_tokens: int = 0
    """Tokens that go through the MLP of a layer at one time, computed again in the backward pass, such as 4096; the
    whole row's [tokens, intermediate size] never exists. 0: the row at once."""
    loss_chunk_tokens: int = 512
    """Tokens whose logits exist at one time in the loss; memory is this times the vocabulary size."""


@dataclass
class SourceConfig:
    raw: list[str] = MISSING
    """Files, folders or globs: .jsonl(.gz|.zst), .txt, .parquet, or a folder saved by `datasets`."""
    role: str = "domain"
    """domain (what the model shall learn) or replay (what it must not forget)."""
    licence: str = "unknown"
    """Licence of the text, carried into the manifest and the provenance."""
    text_field: str = "text"
    """Field of a JSONL record or column of a table that holds the text."""
    chat_field: str | None = None
    """Instruction data, instead of text_field: field with a conversation, a list of {role, content}. The assistant's
    turns are what the model is trained on, the others are what it reads."""
    chat_format: str = "auto"
    """chat_field: template (the chat template of data.tokenizer), plain (docs/data.md), or auto, which takes the
    template where the tokenizer has one."""
    prompt_field: str | None = None
    """Instruction data, instead of text_field: field with what the model reads. Needs completion_field."""
    completion_field: str | None = None
    """Field with what the model is trained on, which follows the prompt as it is."""
    language: str = "unknown"
    """Language of the text, carried into the provenance."""
    max_epochs: float | None = None
    """How often the source may be read over the whole run, such as 4 or 0.5; null: no cap."""
    on_cap: str = "error"
    """What happens where the plan reads it more often: error (before the run), spill (from there on its share goes to
    `spill_to`) or renormalise (the other shares grow in proportion)."""
    spill_to: str | None = None
    """on_cap=spill: the source that takes the share; every stage that reads this one must name it, with share 0 if
    need be."""
    import_format: str | None = None
    """The files of `raw` hold tokens, made with data.tokenizer, that are taken over as they are: megatron (.idx with
    .bin), datatrove (.ds with .ds.index) or mds (folders with an index.json)."""
    import_column: str = "tokens"
    """mds: name of the column that holds a document's tokens."""
    score_fields: dict[str, str] = field(default_factory=dict)
    """Score -> field of a raw record that holds it as a number; stored in the shards as float16."""
    label_field: str | None = None
    """Field of a raw record that holds the document's label, a short text such as code or math."""
    strata: StrataConfig | None = None
    """How the source is parted by a score, length or label (docs/mixtures.md); read by training, not by prepare."""
    curation: dict[str, Any] | None = None
    """How prepare makes the raw text fit to train on before it's tokenised (docs/curation.md), such as
    {profile: legal}; {} for the defaults, null: not at all."""
    grow: bool = False
    """Let prepare append what is new in `raw` to a complete source, as its next generation (docs/data.md)."""


@dataclass
class DataConfig:
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Name of each source and where its raw text lies."""
    shards: str = MISSING
    """Folder of the token shards: one sub-folder a source, written by launch/prepare.py. To read from, also a URL:
    s3://, gs://, https://, file:// (docs/streaming.md)."""
    tokenizer: str = "${model.path}"
    """Folder whose tokenizer.json makes the tokens."""
    separator: str | None = None
    """Token put at the end of each document; default: the tokenizer's eos_token."""
    held_out_fraction: float = 0.02
    """Share of documents, chosen by the hash of their text, that is kept for evaluation and never trained on."""
    shard_tokens: str = "64M"
    """Tokens in a shard before the next one begins."""
    invalid_utf8: str = "drop"
    """A record that isn't valid UTF-8: drop it, or replace the bad bytes by U+FFFD. Either is counted."""
    min_bytes: int = 1
    """Documents with fewer bytes after normalisation are dropped, and counted."""
    cut_min_tokens: int = 512
    """Ends of paragraphs and lines are recorded in documents of more tokens, for packing=structural; less than the
    shortest seq_len. 0 records none."""
    curation: CurationPipelineConfig = field(default_factory=CurationPipelineConfig)
    """How sources that ask for it (data.sources.NAME.curation) are curated together (docs/curation.md)."""
    num_workers: int = 0
    """Loader processes of a rank that assemble batches ahead; the batches are the same for any number."""
    take_down: str | None = None
    """File of documents that are no longer trained on, one id of 32 hexadecimal characters a line. It acts from the
    start or the resume that first sees it, and for good (docs/data.md)."""
    verify: str = "read"
    """Check of shard content against the manifest: read (each block when first read) or open (all at the start)."""
    shuffle_window_shards: int = 0
    """Rows are drawn from this many shards of a source at a time, so that a cache of these shards suffices; 0: from
    all of them."""
    prefetch_shards: int = 2
    """Shards behind a URL that each source fetches beyond the window, ahead of their first use; without a window all
    that the stage needs are fetched ahead. 0 turns fetching ahead off."""
    cache: str = "~/.cache/cpt_dist/shards"
    """Folder of what is fetched from a URL, shared by all processes of a host; a local disk."""
    cache_bytes: str = "50GB"
    """Most that the cache holds; what was used longest ago is removed first."""
    fetch_retries: int = 6
    """Further attempts at a part of a file that could not be fetched or came damaged."""
    fetch_backoff_seconds: float = 0.5
    """Longest wait before the first further attempt; doubled for each one, up to 30."""
    fetch_timeout_seconds: float = 60.0
    """An attempt (at most 8 MiB) that takes longer has failed."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the fsspec file system, such as {anon: true}. They are saved with the run: keep keys out of them,
    in the environment."""


@dataclass
class EngineConfig:
    name: str = "fsdp"
    """fsdp (PyTorch FSDP2) or zero (DeepSpeed ZeRO)."""
    zero_stage: int = 3
    """What ZeRO shards: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters. Read by name: zero."""
    shard_size: int = 0
    """fsdp: ranks that share one copy of the state (HSDP; neighbours, so those of a host); 0: all ranks. It divides
    their number."""
    precision: str = "auto"
    """Compute type: bf16, fp32, or auto (bf16 only where the hardware multiplies it fast). Master weights are fp32."""
    micro_batch: int = 1
    """Rows (sequences) that a rank takes through the model at one time."""
    context_parallel: int = 1
    """Ranks (neighbours) that share each row, a part of its tokens each; it divides the number of ranks."""
    context_parallel_method: str = "all_gather"
    """How they attend to each other's tokens: all_gather (of keys and values), ring, or ulysses (deals out heads)."""
    offload: bool = False
    """Keep optimizer state and master weights in host memory."""
    timeout_seconds: float = 1800.0
    """A collective that takes longer ends the job."""
    threads: int = 0
    """CPU threads of a rank; 0 shares the host's cores among its ranks."""


@dataclass
class OptimizerConfig:
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.95
    """Decay of AdamW's mean of squared gradients."""
    epsilon: float = 1e-8
    """AdamW's denominator offset."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms and biases have none."""
    lr_multipliers: dict[str, float] = field(default_factory=dict)
    """Pattern of parameter names, such as "*embed_tokens*" -> factor of the learning rate for the parameters that it
    matches; the first that matches counts."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global L2 norm; 0 turns clipping off."""


@dataclass
class StageConfig:
    name: str = "main"
    """Name of the stage in metrics, checkpoints and the report."""
    tokens: str | None = None
    """Tokens of the stage, such as 20B or 500k; rounded up to whole steps. Either this or epochs."""
    seq_len: int = 2048
    """Tokens in a row."""
    batch_tokens: str = MISSING
    """Tokens of an optimizer step over all ranks; a multiple of seq_len."""
    mixture: dict[str, Any] = field(default_factory=dict)
    """Source name -> its share of tokens, or a list of [progress, share] points joined by straight lines.
    Shares are normalised at every point; two points at one progress make a step. A source with strata also takes
    {share: …, strata: {name: …}}; without that its strata are read in proportion to their tokens. With
    {share: …, length_upsampling: {min_tokens: 4096, factor: 5}}, or a list of such, tokens of long documents count more
    often inside the source (docs/long_context.md)."""
    epochs: Any = None
    """Instead of tokens: how often the stage reads its domain sources, taken together, such as 2 or 0.5; or source ->
    epochs, the first of which to be reached ends the stage. In whole steps, never more than asked (docs/stages.md)."""
    curriculum: CurriculumConfig | None = None
    """How the shares come to `mixture` over the stage (docs/mixtures.md); default: they are those of `mixture`."""
    packing: str = CONCAT
    """How documents become rows: concat (laid end to end and cut every seq_len), best_fit (one that fits into a row is
    never cut; arXiv 2404.10830) or structural (best_fit that cuts longer ones at ends of paragraphs and lines)."""
    positions: str = RESTART
    """Position ids: restart at 0 with every piece of a document, or continue to the end of the row (for long-context
    stages on short documents). Attention stays within a document either way."""
    schedule: ScheduleConfig | None = None
    """Learning rate of this stage; default: the run's `schedule`."""
    rope: RopeConfig | None = None
    """RoPE from this stage on (docs/long_context.md); default: that of the stage before, at first the base model's."""
    context_parallel: int | None = None
    """Ranks that share each row of this stage; default: `engine.context_parallel`."""
    optimizer: str = CARRY
    """Adam's moments and step counts at the start of the stage: carry (go on with them) or reset (to 0)."""
    trainable: list[str] = field(default_factory=lambda: ["*"])
    """Patterns of names of the parameters that the stage trains; the last that fits counts, and one with a leading !
    takes out: ["*", "!*embed_tokens*"]. The others stay as they are, bit by bit."""
    gate: GateConfig | None = None
    """What must hold at the stage's end (docs/stages.md)."""
    consolidate: bool = False
    """Write the model of the stage's end to run_dir/stage_models/NAME, beside training, as `consolidate` says."""
    keep: bool = False
    """Keep the checkpoint of the stage's end, under the name of the stage."""


@dataclass
class AlternativeConfig:
    stages: list[StageConfig] = field(default_factory=list)
    """What a gate's fork puts in the place of its own stage and all after it."""


@dataclass
class CheckpointConfig:
    every_steps: int = 500
    """Steps between checkpoints; the last step always makes one. 0: only the last."""
    keep_last: int = 3
    """Newest checkpoints that are kept; 0 keeps all."""
    keep_every: int = 0
    """Checkpoints whose step is a multiple of it are kept as well; 0: none for this reason."""
    keep_best: int = 0
    """So many checkpoints with the lowest held-out bits per byte are kept as well, of those evaluated at their step."""
    keep_best_of: str = "macro"
    """keep_best: bits per byte of the source of this name, or macro, the mean over sources."""
    asynchronous: bool = True
    """Write behind training, which stops only while its state is copied into host memory (12 bytes a parameter, shared
    among the ranks; without room for it the save stops training). False: training waits for the disk."""
    verify: str = "whole"
    """Check of a checkpoint before it is loaded: whole (every byte) or sampled (sizes and a sixteenth of the bytes)."""
    probe_tokens: int = 64
    """Tokens of the fixed text whose logits are kept beside the weights, for the check after consolidation."""
    on_damage: str = "refuse"
    """A damaged newest checkpoint: refuse, or previous (take the one before it)."""


@dataclass
class GuardsConfig:
    spike_threshold: float = 0.0
    """A step is bad, too, whose loss or log gradient norm lies so many robust standard deviations (1.4826 x median
    absolute deviation) above the median of the last good steps; 0: only numbers that aren't finite are bad."""
    window: int = 128
    """Good steps that a spike is measured against; begun anew with each stage, and in force from half of it on."""
    max_skips: int = 3
    """Bad steps in a row; each is skipped, the last makes the run go back to a checkpoint."""
    rewind_steps: int = 100
    """Steps before the first bad one that are skipped with it after going back."""
    max_rewinds: int = 2
    """Times that the run goes back from one place before it stops with a report."""


@dataclass
class EvaluationConfig:
    every_steps: int = 0
    """Steps between evaluations of held-out text inside training; 0: at the start and end only (schedule=log: every
    2.5% of the run)."""
    schedule: str = "steps"
    """When held-out text is scored inside training: steps (every `every_steps`), or log (after steps 1, 2, 4, 8, … of
    the first 5% of the run, where the stability gap is, then every `every_steps`)."""
    max_tokens: str = "8k"
    """Held-out tokens of each source scored by an evaluation; documents are taken in the order of their id."""
    seq_len: int = 1024
    """Window of an evaluation; longer documents are scored in windows that overlap by half."""
    bootstrap: int = 10000
    """Resamples of documents behind each confidence interval."""
    confidence: float = 0.95
    """Level of the confidence intervals."""
    during_training: bool = True
    """Score held-out text inside the training job (at its start, its end and every `every_steps`)."""
    long_context: LongContextConfig = field(default_factory=LongContextConfig)
    """What launch/evaluate.py what=long_context measures."""


@dataclass
class CptConfig:
    run_dir: str = MISSING
    """Everything that a run writes (docs/run_directory.md)."""
    seed: int = 0
    """Seed of the sample order and of all random numbers."""
    model: ModelConfig = field(default_factory=ModelConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    stages: list[StageConfig] = field(default_factory=list)
    alternatives: dict[str, AlternativeConfig] = field(default_factory=dict)
    """Name -> another end of the plan, for a gate's fork."""
    control_arm: bool = False
    """Train the control arm of this configuration instead: the same tokens, schedule and seed on the replay sources
    alone, without curricula, gates, adaptive replay, budgets, distillation and caps (docs/verdict.md). It needs its own
    run_dir."""
    long_data: LongDataConfig = field(default_factory=LongDataConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    forgetting: ForgettingConfig = field(default_factory=ForgettingConfig)
    distillation: DistillationConfig | None = None
    """Hold the model to a frozen teacher, such as its own base model, while it trains (docs/training.md); null: not."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    consolidate: ConsolidateConfig = field(default_factory=ConsolidateConfig)
    import_checkpoint: ImportCheckpointConfig = field(default_factory=ImportCheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    suites: SuitesConfig = field(default_factory=SuitesConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    diagnose: DiagnoseConfig = field(default_factory=DiagnoseConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
    stop_after_stage: str | None = None
    """End, with exit code 0, when this stage is done; later stages are left to a later job."""
    start_at_stage: str | None = None
    """Begin with this stage, with the weights of model.path or of fork.run_dir's checkpoint: the samples of earlier
    stages are left out. Read by the first start."""
    fork: ForkConfig = field(default_factory=ForkConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    health: HealthConfig = field(default_factory=HealthConfig)


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_quantity(text: str | int | float, what: str) -> int:
    """A count such as 20B, 1.5M, 500k, 2_000 or 5GB (decimal units, case ignored) as an int.

    Raises UserError that names `what` and the value.
    """
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:e[0-9]+)?) *([kmbgt]?)b?", str(text).strip().lower())
    value = float(match[1].replace("_", "")) * _UNITS[match[2]] if match else math.nan
    if not value >= 1 or value != int(value):
        raise UserError(f"{what}: '{text}' is not a whole positive count; write it like 20B, 1.5M, 500k or 4096")
    return int(value)
