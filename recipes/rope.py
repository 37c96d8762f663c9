"""Recipe "RoPE": python -m recipes.rope

A model trained at one length is scored at up to four times that length, with its RoPE left alone (none) and changed
by position interpolation (PI), NTK-aware scaling, YaRN and another base frequency (ABF): at once, and after a short
training at the longer length. The base frequency of the tiny model is 500, so that half of its dimensions turn round
within the trained length, as they do in large models.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
from rich.table import Table

from cpt_dist.config import RopeConfig, StageConfig
from cpt_dist.console import output_console
from cpt_dist.model.folder import read_model_config
from cpt_dist.model.rope import stage_ropes
from recipes.arms import Options, make_arm, mean_losses, options, score
from recipes.judge import Claim, conclude
from recipes.material import read_documents, tokens_of, write_model, write_tokens

ARMS = {"none": "none", "PI": "linear", "NTK": "ntk", "YaRN": "yarn", "ABF": "abf"}
LENGTH, FACTOR, THETA = 128, 4, 500.0
EXPLODED = 0.1
"""Nats per token beyond the trained length above those within it that count as failing."""


def borders() -> tuple[int, ...]:
    """Within the trained length, up to twice it, up to four times it; the first 16 tokens of a text are left out."""
    return (0, 16, LENGTH, 2 * LENGTH, FACTOR * LENGTH)


def rope_keys(model: Path, kind: str) -> dict | None:
    """The keys of config.json for a RoPE of this type at the longest length; None where it stays."""
    stage = StageConfig(tokens="1", batch_tokens="1", seq_len=FACTOR * LENGTH, rope=RopeConfig(type=kind))
    rope = None if kind == "none" else stage_ropes(read_model_config(model), [stage])[0]
    return None if rope is None else rope.config_changes


def longer(model: Path, folder: Path) -> Path:
    """The same model that declares the longer positions, so that it can be trained there with its RoPE left alone."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    config = read_model_config(folder) | {"max_position_embeddings": FACTOR * LENGTH}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def measure(seed: int, tokens: Path, documents: list[np.ndarray], given: Options) -> dict[str, np.ndarray]:
    """Nats per token [buckets] of each arm, `none zero-shot` and so on, of one seed."""
    folder = given.out / f"seed{seed}"
    start = write_model(folder / "start", seed, LENGTH, THETA, given.hidden, given.layers)
    schedule = {"name": "wsd", "peak_lr": 3e-3, "warmup": 0.05, "decay": 0.3, "min_lr_ratio": 0.1}
    base = make_arm(folder / "base", start, tokens, seed, given.steps, LENGTH, schedule)
    found = {}
    tune = {"name": "linear", "peak_lr": 1e-3, "warmup": 0.1, "min_lr_ratio": 0.1}
    for name, kind in ARMS.items():
        found[f"{name} zero-shot"] = mean_losses(score(base, documents, borders(), rope_keys(base, kind)))
        first = longer(base, folder / "base_longer") if kind == "none" else base
        rope = {} if kind == "none" else {"rope": {"type": kind}}
        steps = max(4, given.steps // 4)
        tuned = make_arm(folder / name, first, tokens, seed, steps, FACTOR * LENGTH, tune, **rope)
        found[f"{name} tuned"] = mean_losses(score(tuned, documents, borders()))
    return found


def claims(found: list[dict[str, np.ndarray]]) -> list[Claim]:
    """What the sources say, on the measured losses of each seed."""

    def over_seeds(worse: str, better: str, bucket: int) -> tuple[float, ...]:
        return tuple(float(one[worse][bucket] - one[better][bucket]) for one in found)

    short, last = 1, len(borders()) - 2
    yarn, xiong = "YaRN, arXiv 2309.00071", "Xiong et al., arXiv 2309.16039"
    beyond = tuple(float(one["none zero-shot"][last] - one["none zero-shot"][short]) for one in found)
    listed = [
        Claim("zero-shot, unchanged RoPE fails at 2x to 4x of its length", "PI, arXiv 2306.15595", beyond, EXPLODED),
        Claim("zero-shot at 2x to 4x, NTK beats PI", yarn, over_seeds("PI zero-shot", "NTK zero-shot", last)),
        Claim("zero-shot at 2x to 4x, NTK beats none", yarn, over_seeds("none zero-shot", "NTK zero-shot", last)),
        Claim(
            "zero-shot, PI costs within the trained length", yarn, over_seeds("PI zero-shot", "none zero-shot", short)
        ),
    ]
    for name in ("PI", "YaRN", "ABF"):
        differences = over_seeds("none tuned", f"{name} tuned", last)
        source = yarn if name == "YaRN" else xiong
        listed.append(Claim(f"tuned, {name} beats none at 2x to 4x", source, differences))
    return listed


def main(words: list[str] | None = None) -> list[str]:
    """Run the recipe; the outcome of each claim."""
    given = options("rope", 200, words)
    train_on, held_out = read_documents(given.text, 3_000_000, FACTOR * LENGTH + 1)
    tokens = write_tokens(given.out / "text" / "tokens.ds", [tokens_of(one) for one in train_on])
    documents = [tokens_of(one) for one in held_out[: given.num_documents]]
    found = []
    console = output_console()
    for seed in range(given.seeds):
        console.print(f"seed {seed}")
        found.append(measure(seed, tokens, documents, given))
    edges = borders()
    table = Table(title=f"Nats per token, mean of {given.seeds} seeds; trained at {LENGTH} tokens")
    table.add_column("RoPE")
    for start, stop in itertools.pairwise(edges[1:]):
        table.add_column(f"{start} to {stop - 1}", justify="right")
    for name in found[0]:
        table.add_row(name, *(f"{np.mean([one[name][b] for one in found]):.3f}" for b in range(1, len(edges) - 1)))
    measured = {"borders": edges, "losses": [{k: v.tolist() for k, v in one.items()} for one in found]}
    return conclude("rope", claims(found), table, measured | {"steps": given.steps}, given.out, console)


if __name__ == "__main__":
    main()
