"""What a gate can measure with the model in training; a further kind is a function here and a name in `gate_config`.

A measurement is made on all ranks together and gives the same on each: what of it -> items, less being better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from cpt_dist.evaluation.non_inferiority import Measured
from cpt_dist.gate_config import HELD_OUT
from cpt_dist.training.held_out import HeldOut
from cpt_dist.training.run import Run

Measurement = Callable[[Run], Mapping[str, Measured]]


def held_out(run: Run) -> dict[str, Measured]:
    """Bits and bytes of each held-out document, by source."""
    scores = HeldOut(run).scores(run)
    return {
        name: Measured(one.nll / math.log(2), one.num_bytes.astype(np.float64)) for name, one in sorted(scores.items())
    }


MEASURES: dict[str, Measurement] = {HELD_OUT: held_out}
"""One for each name of `gate_config.MEASUREMENTS`."""
