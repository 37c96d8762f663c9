"""How often each parameter was updated since the optimizer's state was last reset, and which ones are trained now.

Adam's bias correction needs a parameter's own number of updates, and a parameter that was frozen for a stage has fewer
than its neighbours. A checkpoint keeps the number of updates under each list of patterns, a line a stage, from which
every engine and world size derives every parameter's count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from cpt_dist.errors import UserError

EVERYTHING = ("*",)


def matches(patterns: Sequence[str], name: str) -> bool:
    """Whether the last of `patterns` that fits `name` takes it in; one that begins with "!" takes it out."""
    taken = False
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            taken = not pattern.startswith("!")
    return taken


@dataclass
class UpdateHistory:
    """Updates since the last reset, in spans of one list of patterns each, and the patterns of what is trained now."""

    spans: list[tuple[tuple[str, ...], int]] = field(default_factory=list)
    trainable: tuple[str, ...] = EVERYTHING

    @classmethod
    def from_trainer(cls, trainer: dict[str, Any]) -> UpdateHistory:
        """That of a checkpoint's trainer.json; a version without it trained everything and never reset anything."""
        saved = trainer.get("updates", [[list(EVERYTHING), trainer["optimizer_steps"]]])
        return cls([(tuple(patterns), int(steps)) for patterns, steps in saved])

    def state(self) -> list[list[Any]]:
        """As JSON, for a checkpoint."""
        return [[list(patterns), steps] for patterns, steps in self.spans]

    def trains(self, name: str) -> bool:
        """Whether the parameter `name` is trained now."""
        return matches(self.trainable, name)

    def steps_of(self, name: str) -> int:
        """Updates of the parameter `name` since the last reset."""
        return sum(steps for patterns, steps in self.spans if matches(patterns, name))

    def count(self) -> None:
        """Note one update of what is trained now."""
        if self.spans and self.spans[-1][0] == self.trainable:
            self.spans[-1] = (self.trainable, self.spans[-1][1] + 1)
        else:
            self.spans.append((self.trainable, 1))

    def reset(self) -> None:
        """Begin at 0, for every parameter."""
        self.spans.clear()


def check_trainable(patterns_of_stages: Iterable[tuple[str, Sequence[str]]], names: Sequence[str]) -> None:
    """Raise UserError for each (stage, patterns) with a pattern that fits no parameter of `names`, or that trains none.

    A tied head has the name of the embedding that it is.
    """
    known = ", ".join(names[:3])
    problems = []
    for stage, patterns in patterns_of_stages:
        problems += [
            f"stage '{stage}' trainable: '{pattern}' fits no parameter (there are {known}, …); correct the pattern"
            for pattern in patterns
            if not any(fnmatchcase(name, pattern.removeprefix("!")) for name in names)
        ]
        if not any(matches(patterns, name) for name in names):
            problems.append(f"stage '{stage}' trainable: {list(patterns)} leaves nothing to train; take in a parameter")
    if problems:
        raise UserError(problems)
