"""The same prompts continued by both models, for reading side by side.

A greedy continuation and some random ones with the same seeds; each is cut by tokens of the model that made it, and
the prompt by its tokens. Nothing is scored here: it is what a person looks at before believing a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from cpt_dist.errors import UserError
from cpt_dist.evaluation.suites.answers import Sampling
from cpt_dist.evaluation.suites.suite_file import first_few, read_jsonl
from cpt_dist.evaluation.suites.text_model import TextModel
from cpt_dist.suites_config import SuitesConfig


@dataclass(frozen=True)
class Continuations:
    """What a model makes of a prompt."""

    greedy: str
    samples: list[str]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a JSONL file. Raises UserError with the lines that have none."""
    where = f"suites.prompts '{path}'"
    rows = read_jsonl(where, path)
    problems = [
        f"{where}: line {number}: it needs the one field prompt, with a text"
        for number, row in rows
        if set(row) != {"prompt"} or not isinstance(row["prompt"], str) or not row["prompt"]
    ]
    if problems:
        raise UserError(first_few(problems))
    return [row["prompt"] for _, row in rows]


def continue_prompts(prompts: Sequence[str], model: TextModel, config: SuitesConfig, seed: int) -> list[Continuations]:
    """Both kinds of continuation of each prompt; a sample's seed is that of `seed`, the prompt and its number."""
    stops: list[list[str]] = [[] for _ in prompts]
    greedy = model.generate(prompts, config.max_new_tokens, stops)
    samples: list[list[str]] = [[] for _ in prompts]
    for number in range(config.num_samples):
        seeds = [xxhash.xxh3_64_intdigest(f"{seed}/{number}/{text}".encode()) >> 1 for text in prompts]
        sampling = [Sampling(one, config.temperature, config.top_p) for one in seeds]
        for mine, text in zip(samples, model.generate(prompts, config.max_new_tokens, stops, sampling), strict=True):
            mine.append(text)
    return [Continuations(*pair) for pair in zip(greedy, samples, strict=True)]
