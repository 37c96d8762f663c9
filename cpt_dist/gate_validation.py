"""What a gate's measurements need elsewhere in the configuration, checked before anything is read.

A measurement that can't be made would only be missed when the stage is over, so each is named here with the setting
that it lacks.
"""

from __future__ import annotations

from collections.abc import Iterator

from cpt_dist.config import CptConfig
from cpt_dist.gate_config import HELD_OUT, LONG_TASKS, POSITIONS, SUITES, GateConfig


def measurement_problems(gate: GateConfig, config: CptConfig) -> list[str]:
    """What the configuration lacks for the measurements of `gate`, one line each."""
    makers = {HELD_OUT: _held_out, SUITES: _suites, POSITIONS: _documents, LONG_TASKS: _haystack}
    return [problem for name, make in makers.items() if gate.margins.get(name) for problem in make(config)]


def _held_out(config: CptConfig) -> Iterator[str]:
    if not config.evaluation.during_training:
        yield (
            "evaluation.during_training is false, so nothing is evaluated inside the job; set it to true, or take the "
            "gate out"
        )
    if config.data.sources and not config.data.held_out_fraction:
        yield "data.held_out_fraction is 0, so there is no held-out text; raise it"


def _suites(config: CptConfig) -> Iterator[str]:
    if not config.suites.run:
        yield (
            "margins.suites: suites.run names no suite, so none is asked; set suites.run=[FILE.yaml, …], or take "
            "suites out of the gate"
        )


def _documents(config: CptConfig) -> Iterator[str]:
    if not config.evaluation.long_context.documents and not (config.data.sources and config.data.held_out_fraction):
        yield (
            "its long-context evaluation has no documents, since data.held_out_fraction is 0; raise that, or set "
            "evaluation.long_context.documents=[FILE, …]"
        )


def _haystack(config: CptConfig) -> Iterator[str]:
    if config.evaluation.long_context.haystack != "noise":
        yield from _documents(config)
