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
from cpt_dist.errors import UserError

MANY_EPOCHS = 4.0
"""Epochs up to which repeated text is worth almost as much as new text (arXiv 2305.16264, section 5)."""


@dataclass(frozen=True)
class Cap:
    """A source is read at most `max_epochs` times, over all stages and sequence lengths together."""

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


def without_capped(knots: Knots, names: Sequence[str], capped: Sequence[str], caps: Mapping[str, Cap]) -> Knots:
    """The schedule with the shares of `capped` sources (in the order in which they were capped) given on.

    Raises UserError where no source with a share is left.
    """
    progress, shares = knots
    index = {name: number for number, name in enumerate(names)}
    changed = [list(row) for row in shares]
    for name in capped:
        if name not in index:
            continue
        heir = _heir(name, capped, caps)
        for row in changed:
            if heir is not None and heir in index:
                row[index[heir]] += row[index[name]]
            row[index[name]] = 0.0
    for at, row in zip(progress, changed, strict=True):
        if sum(row) <= 0:
            raise UserError(
                f"at progress {at:.4g} every source with a share has reached its max_epochs ({', '.join(capped)}); "
                "raise a cap, shorten the stage or add a source"
            )
    return progress, changed


def _heir(name: str, capped: Sequence[str], caps: Mapping[str, Cap]) -> str | None:
    """Where a capped source's share goes; None: to all others. A heir that is capped itself hands on to its own."""
    seen = {name}
    heir = caps[name].spill_to if caps[name].policy == "spill" else None
    while heir in capped and heir is not None:
        if heir in seen:
            return None
        seen.add(heir)
        heir = caps[heir].spill_to if caps[heir].policy == "spill" else None
    return heir


def refusal(source: str, cap: Cap, n: int, stage: str, progress: float, planned_epochs: float) -> str:
    """The line that says where a cap of policy error binds, and what can be done."""
    return (
        f"source '{source}' reaches its max_epochs of {cap.max_epochs:g} at sample {n} (stage '{stage}', progress "
        f"{progress:.4f}); the plan reads it {planned_epochs:.2f} times. Lower its share or the stage's tokens, give "
        f"more text, raise data.sources.{source}.max_epochs, or set on_cap there to spill or renormalise"
    )


def many_epochs_warning(source: str, epochs: float) -> str:
    """The line that warns of a source that is read more than `MANY_EPOCHS` times."""
    return (
        f"source '{source}' is read {epochs:.2f} times; beyond about {MANY_EPOCHS:g} epochs repeated text is worth "
        "much less than new text (Muennighoff et al. 2023, arXiv 2305.16264): lower its share, or set its max_epochs"
    )
