"""One arm of a recipe: a model, a text and a stage become another model, through the programs' own functions.

prepare, train and consolidate are those of launch/, called in this process one after the other; what they print goes
into the arm's folder. An arm that is there whole is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from cpt_dist.checkpoint.consolidate import consolidate_run
from cpt_dist.config import CptConfig, ModelConfig
from cpt_dist.data.prepare import prepare
from cpt_dist.evaluation.long_context.positions import PositionScores, score_positions
from cpt_dist.evaluation.scorers import packed_scorer
from cpt_dist.model.load import load_model
from cpt_dist.model.rope_switch import set_rope
from cpt_dist.training.trainer import train
from cpt_dist.validation import validate

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Options:
    """What every recipe takes from the command line."""

    seeds: int
    steps: int
    """Optimizer steps of a model that is trained from nothing."""
    text: tuple[str, ...]
    out: Path
    quick: bool

    @property
    def hidden(self) -> int:
        """Width of the models."""
        return 32 if self.quick else 64

    @property
    def layers(self) -> int:
        """Layers of the models."""
        return 1 if self.quick else 2

    @property
    def num_documents(self) -> int:
        """Held-out documents that are scored."""
        return 6 if self.quick else 40


def options(name: str, steps: int, words: Sequence[str] | None = None) -> Options:
    """From the command line: --seeds, --steps, --text, --out, --quick."""
    parser = argparse.ArgumentParser(prog=f"python -m recipes.{name}")
    parser.add_argument("--seeds", type=int, default=3, help="seeds; fewer than 2 decide nothing")
    parser.add_argument("--steps", type=int, default=steps, help="steps of a model trained from nothing")
    parser.add_argument("--text", nargs="*", default=[], help="files of your own instead of Python's standard library")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes") / name, help="folder of everything written")
    parser.add_argument("--quick", action="store_true", help="a few steps of a smaller model: shows that it runs")
    given = parser.parse_args(words)
    if given.seeds < 1 or given.steps < 4:
        parser.error("--seeds must be at least 1 and --steps at least 4")
    return Options(given.seeds, 6 if given.quick else given.steps, tuple(given.text), given.out, given.quick)


def make_arm(
    folder: Path, model: Path, tokens: Path, seed: int, steps: int, seq_len: int, schedule: dict[str, Any], **stage: Any
) -> Path:
    """Train `model` on the token file for `steps` steps of 4,096 tokens and give the folder of the trained model."""
    out = folder / "model"
    mapping = {
        "run_dir": str(folder / "run"),
        "seed": seed,
        "model": {"path": str(model)},
        "data": {
            "shards": str(tokens.parent / "shards"),
            "held_out_fraction": 0.0,
            "sources": {"text": {"raw": [str(tokens)], "import_format": "datatrove"}},
        },
        "schedule": schedule,
        "stages": [
            {
                "tokens": str(steps * BATCH_TOKENS),
                "seq_len": seq_len,
                "batch_tokens": str(BATCH_TOKENS),
                "mixture": {"text": 1.0},
                **stage,
            }
        ],
        "checkpoint": {"every_steps": 0, "asynchronous": False},
        "evaluation": {"during_training": False},
        "engine": {"precision": "fp32", "threads": 1, "micro_batch": BATCH_TOKENS // seq_len},
        "logging": {"peak_tflops": 1.0},
        "consolidate": {"out": str(out), "workers": 1, "check_logits": False},
    }
    recorded = folder / "arm.json"
    if recorded.is_file() and json.loads(recorded.read_text(encoding="utf-8")) == mapping:
        return out
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), mapping))
    assert isinstance(config, CptConfig)
    validate(config)
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with open(folder / "log.txt", "w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        prepare(config)
        train(config)
        consolidate_run(config)
        log.write(f"{time.perf_counter() - begin:.1f} s\n")
    recorded.write_text(json.dumps(mapping), encoding="utf-8")
    return out


def training_losses(folder: Path) -> np.ndarray:
    """float64 [steps]: the training loss of each step of an arm, in nats per token."""
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "step"]
    return np.array([record["loss"] for record in steps])


def score(
    model: Path, documents: Sequence[np.ndarray], borders: Sequence[int], rope: dict[str, Any] | None = None
) -> PositionScores:
    """Loss by position of held-out documents (tokens, the end token last) after an end token, with `rope` if given."""
    loaded = load_model(replace(ModelConfig(), path=str(model))).eval()
    if rope is not None:
        set_rope(loaded, rope)
    encoded = [np.concatenate([one[-1:], one[:-1]]).astype(np.int64) for one in documents]
    return score_positions(encoded, packed_scorer(loaded), borders)


def mean_losses(scores: PositionScores) -> np.ndarray:
    """float64 [buckets]: nats per token over all documents."""
    return scores.nll.sum(axis=0) / scores.tokens.sum(axis=0)
