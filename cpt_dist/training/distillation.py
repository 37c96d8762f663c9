"""Learning without forgetting (Li and Hoiem, arXiv 1606.09282): a part of a run's tokens is held to a frozen teacher.

The loss of a step is its mean nll plus weight x temperature² x the mean of KL(teacher ‖ model) over its distilled
tokens; both means are over the whole step, so ranks, micro-batches and packing change nothing. A step without distilled
tokens is one without distillation, and the teacher isn't asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from cpt_dist.config import CptConfig
from cpt_dist.data.batch import IGNORE_INDEX, Batch
from cpt_dist.data.shards import Source
from cpt_dist.distillation_config import ALL_TOKENS
from cpt_dist.engine.base import Engine
from cpt_dist.engine.teacher import StepDistillation, Teacher
from cpt_dist.errors import UserError
from cpt_dist.forgetting_config import REPLAY_ROLE
from cpt_dist.training.load_together import load_for
from cpt_dist.training.teacher_files import said_of_the_teacher, teacher_folder, teacher_positions


class Distillation:
    """Which tokens of a run are distilled, and how much that counts."""

    def __init__(self, config: CptConfig, sources: Sequence[Source]) -> None:
        """`sources` are those of the run's order. Raises UserError where none is of the kind that is distilled."""
        assert config.distillation is not None
        self._config = config.distillation
        self._positions = teacher_positions(config)
        everything = self._config.tokens == ALL_TOKENS
        self._sources = torch.tensor([everything or source.role == REPLAY_ROLE for source in sources])
        if not self._sources.any():
            raise UserError(
                "distillation.tokens: no source was prepared with role replay, so nothing would be distilled; prepare "
                "them again, or set it to all"
            )

    def tokens_of(self, batch: Batch) -> torch.Tensor:
        """bool [tokens] of a micro-batch, on the CPU: the predicted tokens of the chosen sources.

        Beyond the positions that the teacher knows it judges nothing.
        """
        if batch.is_filler:
            return torch.zeros(batch.num_tokens, dtype=torch.bool)
        distilled = (batch.labels != IGNORE_INDEX) & self._sources[batch.source_ids]
        return distilled if self._positions is None else distilled & (batch.position_ids < self._positions)

    def count(self, batch: Batch) -> int:
        """Distilled tokens of a micro-batch."""
        return int(self.tokens_of(batch).sum())

    def of_step(self, num_tokens: int) -> StepDistillation | None:
        """The distillation of a step of `num_tokens` distilled tokens over all ranks; None where there is none."""
        if not num_tokens:
            return None
        return StepDistillation(self.tokens_of, num_tokens / self._config.weight, self._config.temperature)


def add_teacher(engine: Engine, config: CptConfig) -> None:
    """Load the teacher that `config` asks for, if it does, and spread it over the ranks beside the engine's model.

    Raises UserError where it doesn't load, or the model can't be distilled from it.
    """
    if config.distillation is None:
        return
    device, dtype = engine.world.device, engine.compute_dtype
    settings = replace(
        config.model, path=teacher_folder(config), activation_checkpointing=False, activation_offload=False
    )
    with said_of_the_teacher():
        model = load_for(engine.world, settings, config.kernels, (device.type, dtype), sharded=True)
    engine.model.head.check_teacher(model.head, device.type, dtype)
    engine.teacher = Teacher(model, config.engine, engine.world, dtype)
