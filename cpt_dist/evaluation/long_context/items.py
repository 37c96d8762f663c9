"""Prompts of an exact length: a task's draft, filled up until not one more word fits.

The length is that of the prompt with its context token and of room for the answer, counted with the model's own
tokenizer on the finished text, so it is never above the budget. The same seed, task, length and number give the same
bytes, whatever else is made.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.long_context.haystack import Haystack
from cpt_dist.evaluation.long_context.tasks import MAKERS, Draft

SPARE_ANSWER_TOKENS = 8
MAX_INTERPOLATIONS = 8
LEAST_UNIT_TOKENS = 0.5
"""Bounds a guess where neighbouring numbers of units happen to have the same tokens."""


class TooShortError(ValueError):
    """The task needs more tokens than the length has."""


@dataclass(frozen=True)
class Item:
    """One prompt."""

    task: str
    length: int
    """The budget in tokens."""
    index: int
    prompt: str
    lead: str
    """What stands between the prompt and an answer."""
    answers: tuple[str, ...]
    candidates: tuple[str, ...]
    """Continuations to choose from, the first one right."""
    num_tokens: int
    """Of the prompt with its context token."""
    answer_tokens: int
    """Room for the answer; num_tokens + answer_tokens <= length."""
    depth: float | None
    """Share of the prompt's tokens before the needle that is asked for, as it came out; None without a single one."""

    @property
    def id(self) -> str:
        """Name of the item within an evaluation."""
        return f"{self.task}/{self.length}/{self.index}"


def make_item(
    task: str,
    length: int,
    index: int,
    encoder: DocumentEncoder,
    haystack: Haystack,
    seed: int,
    depths: Sequence[float] = (0.5,),
) -> Item:
    """Item number `index` of a task at a length; its needle lies at `depths[index % len(depths)]` of the filler.

    Raises TooShortError where question and needles alone exceed the length, KeyError for an unknown task.
    """
    generator = random.Random(xxhash.xxh3_64_intdigest(f"{seed}/{task}/{length}/{index}".encode()))
    draft = MAKERS[task](generator, haystack, depths[index % len(depths)])
    expected = draft.lead + ", ".join(draft.answers)
    answer_tokens = 2 * len(encoder.text_tokens(expected)) + SPARE_ANSWER_TOKENS
    prompt, num_tokens, place = fill(draft, length - answer_tokens, encoder)
    depth = None
    if draft.depth is not None:
        depth = (1 + len(encoder.text_tokens(prompt[:place]))) / num_tokens
    return Item(
        task,
        length,
        index,
        prompt,
        draft.lead,
        draft.answers,
        draft.candidates,
        num_tokens,
        answer_tokens,
        depth,
    )


def assemble(draft: Draft, num_units: int, num_words: int = 0) -> tuple[str, int]:
    """The prompt with `num_units` units and `num_words` words of the next one, and where its first needle begins.

    A needle stands before unit round(depth * num_units); the place is in characters.
    """
    units = draft.units(num_units + (num_words > 0))
    if num_words:
        units = [*units[:num_units], " ".join(units[num_units].split()[:num_words])]
    before: dict[int, list[int]] = {}
    for number, needle in enumerate(draft.needles):
        before.setdefault(round(needle.depth * num_units), []).append(number)
    pieces: list[str] = []
    first_piece = 0
    for position in range(len(units) + 1):
        for number in before.get(position, ()):
            if number == 0:
                first_piece = len(pieces)
            pieces.append(draft.needles[number].text)
        pieces.extend(units[position : position + 1])
    place = len(draft.head) + sum(len(piece) + len(draft.joiner) for piece in pieces[:first_piece])
    return f"{draft.head}{draft.joiner.join(pieces)}\n{draft.tail}", place


def fill(draft: Draft, budget: int, encoder: DocumentEncoder) -> tuple[str, int, int]:
    """The longest prompt of at most `budget` tokens: (prompt, its tokens, place of the first needle in characters).

    The number of units is found by interpolation between one that fits and one that doesn't, since a count of tokens
    costs time in proportion to the length. Raises TooShortError where the least prompt doesn't fit.
    """

    def size(num_units: int, num_words: int = 0) -> int:
        return 1 + len(encoder.text_tokens(assemble(draft, num_units, num_words)[0]))

    least = draft.least_units
    fits, used = least, size(least)
    if used > budget:
        raise TooShortError(f"it needs {used} tokens for question and needles, and {budget} are there")
    step = 16
    per_unit = max(LEAST_UNIT_TOKENS, (size(least + step) - used) / step)
    too_many: int | None = None
    tries = 0
    while too_many is None or too_many - fits > 1:
        guess = fits + max(1, int((budget - used) / per_unit))
        if too_many is not None:
            guess = min(guess, too_many - 1) if tries < MAX_INTERPOLATIONS else (fits + too_many) // 2
        tries += 1
        found = size(guess)
        per_unit = max(LEAST_UNIT_TOKENS, (found - used) / (guess - fits))
        if found <= budget:
            fits, used = guess, found
        else:
            too_many = guess
    words = 0
    if draft.divisible:
        num_words = len(draft.units(fits + 1)[fits].split())
        words = bisect_right(range(1, num_words), budget, key=lambda count: size(fits, count))
    prompt, place = assemble(draft, fits, words)
    return prompt, size(fits, words), place
