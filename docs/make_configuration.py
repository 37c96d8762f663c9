"""Write docs/configuration.md from the schema: python docs/make_configuration.py (a test compares them)."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from cpt_dist import config, curation_config, curation_pipeline_config

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Configuration

Written by `python docs/make_configuration.py` from `cpt_dist/config.py`.

A run is composed by Hydra from the groups under `configs/`. Values are changed on the command line: `group.key=value`;
files are chosen as `group=file`. A file of your own lies in a folder like `configs/`, given as `--config-dir=FOLDER`.
`--cfg job` prints the result without running anything.

```sh
python launch/train.py experiment=demo --cfg job
python launch/train.py experiment=demo engine=zero2 schedule=cosine schedule.peak_lr=5e-5 --cfg job
```

Counts of tokens and bytes take decimal units: `20B`, `1.5M`, `500k`, `5GB`, `4096`.
"""
CURATION_STEPS = {
    "repair": curation_config.RepairConfig,
    "language": curation_config.LanguageConfig,
    "quality": curation_config.QualityConfig,
    "quality.perplexity": curation_config.PerplexityConfig,
    "quality.relevance": curation_config.RelevanceConfig,
    "pii": curation_config.PiiConfig,
    "cleaning": curation_config.CleaningConfig,
    "joining": curation_config.JoiningConfig,
    "chunking": curation_config.ChunkingConfig,
}
"""Settings of steps, which lie below a dictionary: a profile and what differs from it."""


CURATION = {
    "curation": curation_pipeline_config.CurationPipelineConfig,
    "curation.near_duplicates": curation_pipeline_config.NearDuplicatesConfig,
    "curation.paragraph_duplicates": curation_pipeline_config.ParagraphDuplicatesConfig,
    "curation.decontamination": curation_pipeline_config.DecontaminationConfig,
    "curation.slurm": curation_pipeline_config.SlurmCurationConfig,
}


def explanations(schema: type) -> dict[str, str]:
    """Field name -> the literal below it."""
    (definition,) = ast.parse(inspect.getsource(schema)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, literal in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(literal, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(literal.value, ast.Constant)
            found[field.target.id] = " ".join(str(literal.value.value).split())
    return found


def default_of(field: dataclasses.Field) -> str:
    """A field's default as YAML, or that it has none."""
    if field.default == MISSING:
        return "required"
    if field.default is dataclasses.MISSING:
        assert field.default_factory is not dataclasses.MISSING
        made = field.default_factory()
        return f"`{json.dumps(made)}`" if isinstance(made, list | dict) and made else "empty"
    return f"`{OmegaConf.to_yaml({'value': field.default}).split(': ', 1)[1].strip()}`"


def page() -> str:
    """The whole page."""
    sections = [("run", config.CptConfig)]
    first = {"model": config.ModelConfig, "kernels": config.KernelsConfig, "data": config.DataConfig}
    for name, schema in first.items():
        sections.append((name, schema))
    sections += [
        ("data.sources.NAME", config.SourceConfig),
        ("data.sources.NAME.strata", config.StrataConfig),
        *((f"data.sources.NAME.curation.{name}", schema) for name, schema in CURATION_STEPS.items()),
        *((f"data.{name}", schema) for name, schema in CURATION.items()),
        ("engine", config.EngineConfig),
        ("optimizer", config.OptimizerConfig),
        ("schedule", config.ScheduleConfig),
        ("stages.N", config.StageConfig),
        ("stages.N.curriculum", config.CurriculumConfig),
        ("stages.N.rope", config.RopeConfig),
        ("stages.N.gate", config.GateConfig),
        ("alternatives.NAME", config.AlternativeConfig),
        ("fork", config.ForkConfig),
        ("long_data", config.LongDataConfig),
        ("replay", config.ReplayConfig),
        ("forgetting", config.ForgettingConfig),
        ("distillation", config.DistillationConfig),
        ("checkpoint", config.CheckpointConfig),
        ("checkpoints", config.CheckpointsConfig),
        ("guards", config.GuardsConfig),
        ("evaluation", config.EvaluationConfig),
        ("evaluation.long_context", config.LongContextConfig),
        ("logging", config.LoggingConfig),
        ("consolidate", config.ConsolidateConfig),
        ("import_checkpoint", config.ImportCheckpointConfig),
        ("evaluate", config.EvaluateConfig),
        ("verdict", config.VerdictConfig),
        ("suites", config.SuitesConfig),
        ("probe", config.ProbeConfig),
        ("plan", config.PlanConfig),
        ("diagnose", config.DiagnoseConfig),
        ("doctor", config.DoctorConfig),
        ("cluster", config.ClusterConfig),
        ("health", config.HealthConfig),
    ]
    parts = [HEAD]
    for name, schema in sections:
        texts = explanations(schema)
        rows = [
            f"| `{field.name}` | {default_of(field)} | {texts[field.name]} |"
            for field in dataclasses.fields(schema)
            if field.name in texts
        ]
        choices = sorted(path.stem for path in (ROOT / "configs" / name).glob("*.yaml"))
        files = f"Files: {', '.join(f'`{choice}`' for choice in choices)}.\n\n" if choices else ""
        parts.append(f"## {name}\n\n{files}| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "configuration.md").write_text(page(), encoding="utf-8")
