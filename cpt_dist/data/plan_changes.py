"""Which changes of a plan leave the samples alone that were read: a longer last stage, another future of a fork.

While the shares of a stage don't move with its progress, the first samples of it are the same whatever its length, as
quotas then depend on the ratios of the shares alone (docs/mixtures.md). Everything here is about identities of stages
as JSON values (`StagePlan.identity`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def is_steady(stage: Mapping[str, Any]) -> bool:
    """Whether the stage's shares are the same at each progress."""
    return stage.get("curriculum") is None and not any(_moves(share) for share in stage["mixture"].values())


def _moves(share: Any) -> bool:
    if isinstance(share, Mapping):
        return any(_moves(inner) for inner in (share.get("share", 0), *(share.get("strata") or {}).values()))
    return isinstance(share, (list, tuple))


def starts_of(stages: Sequence[Mapping[str, Any]]) -> list[int]:
    """First sample of each stage, and the number of all samples at the end."""
    starts = [0]
    for stage in stages:
        starts.append(starts[-1] + int(stage["num_samples"]))
    return starts


def with_lengths(stages: Sequence[dict[str, Any]], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """The stages with other numbers of samples; those behind the last of `lengths` as they are."""
    known = dict(enumerate(lengths))
    return [{**stage, "num_samples": known.get(number, stage["num_samples"])} for number, stage in enumerate(stages)]


def as_long_as(
    saved: dict[str, Any], now: Mapping[str, Any], done: int, ledger: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A saved stage with the length that it has now, where its first `done` samples don't hang on it.

    `ledger` are the effects of the run's entries, whose shares may move too.
    """
    steady = is_steady(saved) and is_steady(now)
    steady = steady and not any(_moves(share) for entry in ledger for share in entry["weights"].values())
    if done == 0 or (steady and now["num_samples"] >= done):
        return {**saved, "num_samples": now["num_samples"]}
    return saved
