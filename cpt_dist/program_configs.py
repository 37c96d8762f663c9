"""The groups that one program under `launch/` reads and training doesn't; a part of the schema of `config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ConsolidateConfig:
    step: str = "latest"
    """Step of the checkpoint: a number, latest, or a name given by launch/checkpoints.py."""
    out: str = "${run_dir}/model"
    """Folder of the Hugging Face model."""
    dtype: str = "fp32"
    """Type of the written weights: fp32 or bf16."""
    fp32_names: list[str] = field(default_factory=list)
    """Patterns of tensors that are written in fp32 whatever `dtype` is, such as '*.norm.weight' or '*router*'."""
    max_shard_size: str = "5GB"
    """Largest safetensors file."""
    workers: int = 2
    """Processes that convert and write; each takes some tens of MB."""
    check_logits: bool = True
    """Build the written model with transformers and compare its logits with the training model's."""


@dataclass
class ImportCheckpointConfig:
    source: str = ""
    """Folder of another trainer's checkpoint. In launch/import_checkpoint.py as plain from=FOLDER."""
    model: str = ""
    """Folder with the config.json and the tokenizer of that model, such as its base. There as plain model=FOLDER."""
    out: str = ""
    """Folder of the Hugging Face model. There as plain out=FOLDER."""
    dtype: str = "fp32"
    """Type of the written weights: fp32 or bf16."""
    fp32_names: list[str] = field(default_factory=list)
    """Patterns of tensors that are written in fp32 whatever `dtype` is."""
    max_shard_size: str = "5GB"
    """Largest safetensors file."""
    workers: int = 2
    """Processes that convert and write."""
    check_logits: bool = True
    """Build the written model with transformers and compute logits with it, which must be finite."""


@dataclass
class EvaluateConfig:
    what: str = "held_out"
    """What launch/evaluate.py measures: held_out (bits per byte of every source, and `suites` where it names any),
    suites alone, or long_context. There also as plain what=…, like base=FOLDER, adapted=FOLDER (or model=FOLDER),
    out=FOLDER, suites=[…] and checkpoints=all."""
    checkpoints: str | None = None
    """Measure the held-out text of the run's checkpoints instead of the adapted model (docs/verdict.md): all of them,
    or bisect: those that finding the first regressed one needs."""
    base: str = "${model.path}"
    """Model before adaptation."""
    adapted: str = "${consolidate.out}"
    """Model after adaptation."""
    out: str = "${run_dir}"
    """Folder of report.json, report.md and report.html."""
    batch_tokens: str = "2k"
    """Tokens scored in one forward pass."""


@dataclass
class PrepareConfig:
    what: str = "shards"
    """What launch/prepare.py makes: shards (curated first, where a source asks for it), curate (no further than that),
    or report (of what curation did, after it if it isn't done yet). There also as plain what=report."""
    out: str = "${data.curation.folder}/report"
    """what=report: folder of report.json, report.md and report.html."""
    report_bytes: str = "256MB"
    """what=report: text of a source, and of each step's dropped documents, that is tokenised to count its tokens; more
    of it is counted in proportion to bytes."""


@dataclass
class PlanConfig:
    what: str = "all"
    """What launch/plan.py shows: all (the whole run), data (what is read of each source, in detail), schedule (steps,
    batches, learning rate) or rope. There also as plain what=data."""
    out: str = "${run_dir}/plan"
    """Folder of plan.json, the figure and the page. There also as plain out=FOLDER."""
    world_size: int = 0
    """Ranks that the run is planned for, which tells rows and accumulation of a rank; 0: not known. There also as
    plain world_size=8."""


@dataclass
class CheckpointsConfig:
    what: str = "list"
    """What launch/checkpoints.py does: list, verify, prune, show, name or unname; there also as plain words."""
    step: str = ""
    """show, verify, name: step of the checkpoint, latest, or its name. There also as a plain word."""
    name: str = ""
    """name, unname: what the checkpoint is called; a named one is never removed. There also as a plain word."""
