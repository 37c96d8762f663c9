"""Adaptive replay: from the rise of held-out bits per byte, with its interval, to a decision about the shares.

Everything here is a function of values; nothing is measured, saved or remembered (`training/adaptive_replay.py` does
that). `bounded` is a controller with a dead band, since a share that follows noise costs training and gains nothing;
`exponential` is the update of DoReMi (Xie et al. 2023, arXiv 2305.10429, algorithm 1), which Sheared LLaMA (Xia et al.
2023, arXiv 2310.06694, algorithm 1) uses with reference losses, held inside the same bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cpt_dist.replay_config import ReplayConfig


@dataclass(frozen=True)
class Rise:
    """How much a source's held-out bits per byte have risen since the start, as a part of what they were."""

    value: float
    low: float | None
    high: float | None
    """Interval of the value; None where the documents are too few for one."""


@dataclass(frozen=True)
class Decision:
    """New shares and why; shares of all sources sum to 1."""

    shares: dict[str, float]
    replay_share: float
    reason: str


def decide(
    replay: ReplayConfig,
    shares: Mapping[str, float],
    replay_sources: Sequence[str],
    rises: Mapping[str, Rise],
    steps_since_change: int | None,
) -> Decision | None:
    """The decision that `rises` ask for, or None: dwell not over, nothing certain, or bounds reached.

    `shares` are the present shares of tokens of all sources, `steps_since_change` the steps since the last decision
    (None: there was none).
    """
    if steps_since_change is not None and steps_since_change < replay.dwell_steps:
        return None
    if replay.rule == "bounded":
        return _bounded(replay, shares, replay_sources, rises)
    if replay.rule == "exponential":
        return _exponential(replay, shares, replay_sources, rises)
    return None


def raised(
    replay: ReplayConfig,
    shares: Mapping[str, float],
    replay_sources: Sequence[str],
    steps_since_change: int | None,
    why: str,
) -> Decision | None:
    """The joint share of the replay sources up by `max_step`, up to `high`, for the reason `why`; else as `decide`.

    None where the last decision is less than `dwell_steps` ago, so that its effect can show, or the bound is reached.
    """
    if steps_since_change is not None and steps_since_change < replay.dwell_steps:
        return None
    present = sum(shares[name] for name in replay_sources)
    target = min(replay.high, present + replay.max_step)
    if target - present < 1e-4:
        return None
    changed = with_replay_share(shares, replay_sources, target)
    return Decision(changed, target, f"replay {present:.4f} -> {target:.4f}: retention budget exceeded, {why}")


def _bounded(
    replay: ReplayConfig, shares: Mapping[str, float], replay_sources: Sequence[str], rises: Mapping[str, Rise]
) -> Decision | None:
    """Up by a step if a replay source has surely risen too far, down if all of them surely have room.

    The step grows with the excess and is `max_step` from twice the tolerance (or from no rise at all) on.
    """
    present = sum(shares[name] for name in replay_sources)
    lows = {name: rises[name].low for name in replay_sources if name in rises}
    highs = {name: rises[name].high for name in replay_sources if name in rises}
    risen = {name: low for name, low in lows.items() if low is not None and low > replay.tolerance}
    band = replay.hysteresis * replay.tolerance
    if risen:
        worst = max(risen, key=lambda name: risen[name])
        step = replay.max_step * min(1.0, (risen[worst] - replay.tolerance) / replay.tolerance)
        target = present + step
        reason = f"'{worst}' has surely risen by {risen[worst]:.3%} or more, {replay.tolerance:.3%} are accepted"
    elif (
        highs and len(highs) == len(replay_sources) and all(high is not None and high < band for high in highs.values())
    ):
        worst = max(highs, key=lambda name: highs[name] or 0.0)
        highest = highs[worst] or 0.0
        step = replay.max_step * min(1.0, (band - highest) / replay.tolerance)
        target = present - step
        reason = f"no replay source has risen by more than {highest:.3%} ('{worst}'), {band:.3%} leave room"
    else:
        return None
    target = min(replay.high, max(replay.low, target))
    # A share outside the bounds comes back at the rate that holds for every change.
    target = min(present + replay.max_step, max(present - replay.max_step, target))
    if abs(target - present) < 1e-4 or (target > present) != bool(risen):
        return None
    changed = with_replay_share(shares, replay_sources, target)
    return Decision(changed, target, f"replay {present:.4f} -> {target:.4f}: {reason}")


def _exponential(
    replay: ReplayConfig, shares: Mapping[str, float], replay_sources: Sequence[str], rises: Mapping[str, Rise]
) -> Decision | None:
    """Shares times exp(rate x excess), normalised, smoothed, and held inside bounds and rate limit.

    The excess is max(value - tolerance, 0), and only where the interval says that there is a rise; so noise alone
    changes nothing. Where nothing has surely risen, the shares stay.
    """
    excess = {}
    for name in shares:
        rise = rises.get(name)
        certain = rise is not None and rise.low is not None and rise.low > 0
        excess[name] = max(rise.value - replay.tolerance, 0.0) if rise is not None and certain else 0.0
    if not any(excess.values()):
        return None
    present = sum(shares[name] for name in replay_sources)
    # exp of more than a few hundred is no number; differences of exponents are what counts.
    top = max(excess.values())
    grown = {name: share * math.exp(replay.rate * (excess[name] - top)) for name, share in shares.items()}
    total = sum(grown.values())
    active = [name for name, share in shares.items() if share > 0]
    even = replay.uniform / len(active)
    mixed = {name: (1 - replay.uniform) * grown[name] / total + (even if name in active else 0.0) for name in shares}
    wanted = sum(mixed[name] for name in replay_sources)
    target = min(replay.high, max(replay.low, wanted))
    target = min(present + replay.max_step, max(present - replay.max_step, target))
    changed = with_replay_share(mixed, replay_sources, target)
    if max(abs(changed[name] - shares[name]) for name in shares) < 1e-4:
        return None
    worst = max(excess, key=lambda name: excess[name])
    over = f"'{worst}' is {excess[worst]:.3%} over the tolerance"
    return Decision(changed, target, f"replay {present:.4f} -> {target:.4f}: exponential update, {over}")


def with_replay_share(
    shares: Mapping[str, float], replay_sources: Sequence[str], replay_share: float
) -> dict[str, float]:
    """`shares` with the joint share of `replay_sources` set; ratios inside each of the two groups stay.

    A group whose shares are all 0 is shared evenly.
    """
    result = {}
    for members, joint in (
        ([name for name in shares if name in replay_sources], replay_share),
        ([name for name in shares if name not in replay_sources], 1 - replay_share),
    ):
        total = sum(shares[name] for name in members)
        for name in members:
            result[name] = joint * (shares[name] / total if total > 0 else 1 / len(members))
    return {name: result[name] for name in shares}
