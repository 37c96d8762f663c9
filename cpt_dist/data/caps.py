"""Repetition caps: where a source would be read too often, and what the shares are from there on.

Everything is found before a run from the order's closed form, by bisection over n; nothing is counted while training.
That repeated text loses its worth after about four epochs is from Muennighoff et al. 2023 ("Scaling Data-Constrained
Language Models", arXiv 2305.16264).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cpt_dist.config import SourceConfig
from cpt_dist.data.stage_counts import Knots
from cpt_dist.data.view_names import source_of
from cpt_dist.errors import UserError

MANY_EPOCHS = 4.0
"""Epochs up to which repeated text is worth almost as much as new text (arXiv 2305.16264, section 5)."""


@dataclass(frozen=True)
class Cap:
    """A source is read at most `max_epochs` times, over all stages and sequence lengths together.

    A cap is there because repeated text loses its worth, so it holds for each stratum and generation of a source, not
    for their mean: a stratum with three times its share is repeated three times as often.
    """

    max_epochs: float
    policy: str = "error"
    """error, spill (its share goes to `spill_to`) or renormalise (the other shares grow in proportion)."""
    spill_to: str | None = None


@dataclass(frozen=True)
class BoundCap:
    """A cap that binds: from sample `n` on the source gives none."""

    source: str
    n: int


def caps_from_config(sources: Mapping[str, SourceConfig]) -> dict[str, Cap]:
    """The caps of the validated `data.sources`."""
    return {
        name: Cap(float(source.max_epochs), source.on_cap, source.spill_to)
        for name, source in sources.items()
        if source.max_epochs is not None
    }


def last_allowed(epochs: Callable[[int], Fraction], limit: Fraction, num_samples: int) -> int | None:
    """The largest n of 0 … num_samples whose `epochs` are at most `limit`; None where that is all of them."""
    if epochs(num_samples) <= limit:
        return None
    low, high = 0, num_samples
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if epochs(middle) <= limit else (low, middle)
    return low


def without_capped(
    knots: Knots,
    names: Sequence[str],
    capped: Sequence[str],
    caps: Mapping[str, Cap],
    views: Callable[[str], Sequence[str]] = lambda source: [source],
) -> Knots:
    """The schedule with the shares of `capped` sources (in the order in which they were capped) given on.

    `views` gives the strata and generations of the source that a share is spilled to; those that aren't capped take it
    in proportion to their shares, or evenly where these are 0. Raises UserError where no source with a share is left.
    """
    progress, shares = knots
    index = {name: number for number, name in enumerate(names)}
    changed = [list(row) for row in shares]
    for name in capped:
        if name not in index:
            continue
        heirs = [index[heir] for heir in _heirs(name, capped, caps, views) if heir in index]
        for row in changed:
            joint = sum(row[heir] for heir in heirs)
            parts = [row[heir] / joint if joint else 1 / len(heirs) for heir in heirs]
            for heir, part in zip(heirs, parts, strict=True):
                row[heir] += row[index[name]] * part
            row[index[name]] = 0.0
    for at, row in zip(progress, changed, strict=True):
        if sum(row) <= 0:
            raise UserError(
                f"at progress {at:.4g} every source with a share has reached its max_epochs ({', '.join(capped)}); "
                "raise a cap, shorten the stage or add a source"
            )
    return progress, changed


def _heirs(
    name: str, capped: Sequence[str], caps: Mapping[str, Cap], views: Callable[[str], Sequence[str]]
) -> list[str]:
    """Where a capped source's share goes; none: to all others. A heir that is capped itself hands on to its own."""
    seen = set()
    cap: Cap | None = caps[name]
    while cap is not None and cap.policy == "spill" and cap.spill_to is not None and cap.spill_to not in seen:
        seen.add(cap.spill_to)
        open_views = [view for view in views(cap.spill_to) if view not in capped]
        if open_views:
            return open_views
        cap = caps.get(views(cap.spill_to)[0])
    return []


def refusal(source: str, cap: Cap, n: int, stage: str, progress: float, planned_epochs: float) -> str:
    """The line that says where a cap of policy error binds, and what can be done."""
    return (
        f"source '{source}' reaches its max_epochs of {cap.max_epochs:g} at sample {n} (stage '{stage}', progress "
        f"{progress:.4f}); the plan reads it {planned_epochs:.2f} times. Lower its share or the stage's tokens, give "
        f"more text, raise data.sources.{source_of(source)}.max_epochs, or set on_cap there to spill or renormalise"
    )


def many_epochs_warning(source: str, epochs: float) -> str:
    """The line that warns of a source that is read more than `MANY_EPOCHS` times."""
    return (
        f"source '{source}' is read {epochs:.2f} times; beyond about {MANY_EPOCHS:g} epochs repeated text is worth "
        "much less than new text (Muennighoff et al. 2023, arXiv 2305.16264): lower its share, or set its max_epochs"
    )
