"""The one interface of all engines.

An engine owns how parameters, gradients and optimizer state are spread over the ranks. It does not know schedules,
stages, files or samples: the trainer hands it batches and a learning rate, the checkpoint store takes the tensors
that it names.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from cpt_dist.data.batch import Batch
from cpt_dist.engine.context.parallel import ContextAxis, OwnPart
from cpt_dist.engine.distributed import World
from cpt_dist.engine.flat_shard import FlatShard
from cpt_dist.engine.piecewise_adamw import MOMENTS
from cpt_dist.engine.teacher import StepDistillation, Teacher
from cpt_dist.engine.updates import UpdateHistory
from cpt_dist.model.loss_head import SoftTargets
from cpt_dist.model.packed import PackedCausalLM

__all__ = ["MOMENTS", "Engine"]


class Engine(ABC):
    """A model and its optimizer, spread over the ranks of `world`."""

    name: str
    world: World
    model: PackedCausalLM
    compute_dtype: torch.dtype
    updates: UpdateHistory
    """How often each parameter was updated, and which are trained; the trainer counts the steps into it."""
    teacher: Teacher | None = None
    """What the model is distilled from, if it is."""

    @cached_property
    def context(self) -> ContextAxis:
        """Which ranks share rows with this one."""
        return ContextAxis(self.world)

    @abstractmethod
    def forward_backward(
        self, batch: Batch, divisor: int, last: bool, distillation: StepDistillation | None = None
    ) -> torch.Tensor:
        """Add the gradients of one micro-batch.

        The loss is the sum of the batch's nll divided by `divisor`, the number of target tokens of the whole
        optimizer step over all ranks and micro-batches, so that accumulation and world size change nothing. `last`
        marks the step's last micro-batch. Every rank must call it equally often, ranks that share rows with the same
        batch. Returns the nll [tokens] in fp32, 0 for tokens that another rank computed (`context`).

        With `distillation` (needs `teacher`; on all ranks or none) the loss has the teacher's part as well, divided by
        a number of the whole step of its own, and the KL of this rank's tokens is added to `distillation.kl`.
        """

    @abstractmethod
    def step(self, learning_rate: float, accept: Callable[[float], bool] = math.isfinite) -> float:
        """Clip the gradients, make one AdamW step, drop the gradients. Returns the global L2 norm before clipping.

        Where `accept` says no to that norm (the same value on every rank; inf or nan where a gradient isn't finite),
        weights and moments stay as they are and the gradients are dropped all the same.
        """

    @abstractmethod
    def nll(
        self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        """The nll [tokens] in fp32, without gradients, of inputs as in a `Batch`.

        Every rank must call it equally often, with inputs of its own; those that share rows (`context.now`) with the
        same. Tokens that another rank computed are 0, so a sum over all ranks counts each once.
        """

    @abstractmethod
    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The logits [tokens, vocab] in fp32 of one document [tokens], the same on every rank."""

    @abstractmethod
    def logits_at(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        """The logits [n, vocab] in fp32, without gradients, of the tokens `at` [n] of inputs as in a `Batch`.

        Every rank must call it equally often, with inputs of its own.
        """

    @abstractmethod
    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Every master weight (`model.<name>`) and Adam moment (`optimizer.exp_avg.<name>`, …) in fp32.

        The names are those of the Hugging Face model, the shapes the whole tensors'; each value is something that
        torch.distributed.checkpoint saves, and fills in place on a load: a plain tensor, a DTensor or a FlatShard.
        """

    @abstractmethod
    def state_loaded(self, tensors: dict[str, torch.Tensor], updates: UpdateHistory) -> None:
        """Take over `tensors`, a result of `state_tensors` that a checkpoint has filled, after `updates`."""

    @abstractmethod
    def _follow_updates(self) -> None:
        """Give the optimizer the step counts and the frozen parameters of `updates`."""

    def set_trainable(self, patterns: Sequence[str]) -> None:
        """Train the parameters that `patterns` take in (`updates.matches`) and no other from the next step on.

        A frozen one keeps weight and moments bit by bit, and its gradient counts in no norm. Its gradient is computed
        and its moments stay in memory all the same.
        """
        self.updates.trainable = tuple(patterns)
        self._follow_updates()

    def reset_optimizer(self) -> None:
        """Set all moments and step counts to 0, as at the start of a run."""
        tensors = self.state_tensors()
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                (tensor.local if isinstance(tensor, FlatShard) else tensor).zero_()
        self.updates.reset()
        self.state_loaded(tensors, self.updates)

    def _named_frozen(self) -> list[torch.nn.Parameter]:
        return [parameter for name, parameter in self._named_parameters() if not self.updates.trains(name)]

    def _named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(self.model.hf_name(name), parameter) for name, parameter in self.model.named_parameters()]

    def _to_device(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.world.device, non_blocking=True) for name, tensor in tensors.items()}

    def _own_part(self, batch: Batch) -> OwnPart:
        borders = batch.cu_seqlens.tolist()  # here, where reading them waits for no device
        batch = batch.to(self.world.device, non_blocking=True)  # labels and positions are made there
        inputs = {
            "input_ids": batch.input_ids,
            "labels": batch.labels,
            "position_ids": batch.position_ids,
            "cu_seqlens": batch.cu_seqlens,
        }
        return self.context.now.part(self.model, borders, inputs)

    def _soft_targets(self, batch: Batch, part: OwnPart, step: StepDistillation | None) -> SoftTargets | None:
        if step is None:
            return None
        assert self.teacher is not None
        # Parts of its own: attention across ranks keeps things of the model that it computes.
        shared = self._own_part(batch) if part.tokens is not None else None
        targets = self.teacher.soft_targets(batch, shared, step, self.model.head)
        targets.divisor /= self.world.size  # as that of the nll
        return targets

    @staticmethod
    def _add_kl(step: StepDistillation | None, kl: list[torch.Tensor]) -> None:
        if step is not None:
            step.kl += float(kl[0].sum(dtype=torch.float64))

    def _own_part_of(self, **inputs: torch.Tensor) -> OwnPart:
        """As `_own_part`, from the fields of a batch."""
        borders = inputs["cu_seqlens"].tolist()
        return self.context.now.part(self.model, borders, self._to_device(**inputs))

    def _document_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return self._to_device(
            input_ids=input_ids,
            position_ids=torch.arange(len(input_ids)),
            cu_seqlens=torch.tensor([0, len(input_ids)], dtype=torch.int32),
        )
