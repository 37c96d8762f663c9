"""A frozen teacher beside the model that trains: its last hidden states of the tokens that are distilled.

It is sharded by FSDP2 under either engine: DeepSpeed knows only the modules that it was given, and a model without
gradients and optimizer needs nothing of ZeRO but the gathering of weights. It reads no more than it has to: of each
document's piece the tokens up to the last distilled one, and pieces without one not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn.functional import pad

from cpt_dist.config import EngineConfig
from cpt_dist.data.batch import Batch
from cpt_dist.engine.context.parallel import OwnPart
from cpt_dist.engine.distributed import World
from cpt_dist.engine.mesh import state_mesh
from cpt_dist.engine.weights_from_first import sharded_from_first
from cpt_dist.model.loss_head import LossHead, SoftTargets
from cpt_dist.model.packed import PackedCausalLM


@dataclass
class StepDistillation:
    """What one optimizer step distils; on every rank the same, but for the KL."""

    tokens_of: Callable[[Batch], Tensor]
    """bool [tokens] of a micro-batch, on the CPU: which are distilled."""
    divisor: float
    """Distilled tokens of the whole step over all ranks and micro-batches, over the weight of the distillation."""
    temperature: float
    kl: float = 0.0
    """Sum of KL(teacher ‖ model), in nats, over the tokens that this rank has computed so far."""


@dataclass(frozen=True)
class NeededPieces:
    """What of a micro-batch a teacher reads, as the fields of a `Batch`."""

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    at: Tensor
    """int64 [n]: places of the distilled tokens among these."""


def needed_pieces(batch: Batch, distilled: Tensor) -> NeededPieces:
    """Each piece up to the last of its `distilled` tokens (bool [tokens]), which see nothing behind themselves."""
    bounds = batch.cu_seqlens.long()
    before = torch.cat([bounds.new_zeros(1), distilled.cumsum(0)])
    until_end = before[bounds[1:]].repeat_interleave(bounds.diff(), output_size=batch.num_tokens)
    kept = until_end > before[:-1]
    lengths = torch.cat([bounds.new_zeros(1), kept.cumsum(0)])[bounds].diff()
    borders = torch.cat([bounds.new_zeros(1), lengths[lengths > 0].cumsum(0)])
    at = distilled[kept].nonzero()[:, 0]
    return NeededPieces(batch.input_ids[kept], batch.position_ids[kept], borders.to(torch.int32), at)


class Teacher:
    """A model without gradients, its weights in the compute dtype and sharded over all ranks."""

    def __init__(self, model: PackedCausalLM, config: EngineConfig, world: World, dtype: torch.dtype) -> None:
        """`model` (whole on rank 0, whole or on the meta device on the others) becomes sharded in place."""
        self.model, self._device = model, world.device
        model.requires_grad_(False).eval()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        self._sharded = world.size > 1 or config.offload
        self._head_holder = model
        if not self._sharded:
            model.to(world.device)
        else:
            with sharded_from_first(model, world, config.offload):
                self._shard(config, world)

    def _shard(self, config: EngineConfig, world: World) -> None:
        offload: OffloadPolicy = CPUOffloadPolicy() if config.offload else OffloadPolicy()
        settings: dict[str, Any] = {"mesh": state_mesh(world, config.shard_size), "offload_policy": offload}
        model, head = self.model, self.model.head
        for layer in model.decoder_layers():
            fully_shard(layer, **settings)
        if not model.tied_names():  # a tied head's weight is the embedding's, in the root's group
            fully_shard(head, **settings)
            self._head_holder = head  # type: ignore[assignment]
        fully_shard(model, **settings)
        register_fsdp_forward_method(model, "hidden_states")

    def flops_per_token(self, seq_len: int) -> float:
        """Operations of its forward pass per token of documents of `seq_len` tokens: a third of those of training."""
        return self.model.flops_per_token(seq_len) / 3

    @torch.no_grad()
    def soft_targets(
        self, batch: Batch, shared: OwnPart | None, step: StepDistillation, student: LossHead
    ) -> SoftTargets:
        """What it says of the distilled tokens of a micro-batch; every rank calls it equally often.

        `shared` is this rank's part where ranks share rows, made for this call alone; `student` the head that learns.
        """
        distilled = step.tokens_of(batch)
        if shared is None:
            hidden, at = self._own_pieces(batch, distilled)
        else:
            assert shared.tokens is not None
            mask = pad(distilled.to(self._device), (0, shared.padded_tokens - shared.num_tokens))
            at = mask[shared.tokens].nonzero()[:, 0]
            inputs = {name: value for name, value in shared.inputs.items() if name != "labels"}
            hidden = self._hidden_states(**inputs)[at]
        softening = student.softening(self.model.head, step.temperature)
        return SoftTargets(at, hidden, self._whole_head, softening, step.divisor)

    def _own_pieces(self, batch: Batch, distilled: Tensor) -> tuple[Tensor, Tensor]:
        at = distilled.nonzero()[:, 0].to(self._device, non_blocking=True)
        if not len(at):
            if self._sharded:  # the other ranks gather weights from this one
                one = torch.zeros(1, dtype=torch.int64)
                self._on_device(one, one, torch.tensor([0, 1], dtype=torch.int32))
            weight = self.model.head.weight
            return torch.empty(0, self.model.head.in_features, dtype=weight.dtype, device=self._device), at
        needed = needed_pieces(batch, distilled)
        hidden = self._on_device(needed.input_ids, needed.position_ids, needed.cu_seqlens)
        return hidden[needed.at.to(self._device, non_blocking=True)], at

    def _on_device(self, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        moved = (tensor.to(self._device, non_blocking=True) for tensor in (input_ids, position_ids, cu_seqlens))
        return self._hidden_states(*moved)

    def _hidden_states(self, *arguments: Any, **named: Any) -> Tensor:
        hidden = self.model.hidden_states(*arguments, **named)
        if self._sharded:
            # The root keeps its weights for a backward pass that never comes.
            cast(FSDPModule, self.model).reshard()
        return hidden

    @contextmanager
    def _whole_head(self) -> Iterator[Tensor]:
        holder = cast(FSDPModule, self._head_holder)
        if self._sharded:
            holder.unshard()
        yield self.model.head.weight
        if self._sharded:
            holder.reshard()
