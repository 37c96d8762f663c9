"""The context axis of the mesh: neighbouring ranks that read the same rows and take a part of the tokens each.

Parameters, gradients and optimizer state are spread over all ranks whatever this axis is; the loss of a rank is its
share of the global sum, so gradients add up over both axes. Without sharing everything passes through unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import pad

from cpt_dist.config import CptConfig
from cpt_dist.context_config import ULYSSES, stage_context
from cpt_dist.data.batch import IGNORE_INDEX
from cpt_dist.engine.context.attention import METHODS, SharedDocuments
from cpt_dist.engine.context.split import SequenceSplit, split_sequence
from cpt_dist.engine.distributed import World
from cpt_dist.model import flops
from cpt_dist.model.attention import Documents
from cpt_dist.model.packed import PackedCausalLM


@dataclass(frozen=True)
class OwnPart:
    """What of a micro-batch this rank computes."""

    inputs: dict[str, Any]
    """Arguments of `PackedCausalLM.forward`."""
    tokens: Tensor | None = None
    """int64 [tokens of the rank]: which tokens they are; None: all."""
    num_tokens: int = 0
    """Of the micro-batch."""
    padded_tokens: int = 0
    """With those that were padded, behind the last."""

    def whole(self, nll: Tensor) -> Tensor:
        """[num_tokens]: the `nll` of this rank's tokens, 0 for those of the others."""
        if self.tokens is None:
            return nll
        room = nll.new_zeros(self.padded_tokens)
        return room.index_copy_(0, self.tokens, nll)[: self.num_tokens]


class ContextParallel:
    """This rank's place on the context axis, and on the data axis that is left."""

    def __init__(self, world: World, size: int = 1, method: str = "all_gather") -> None:
        """`size` ranks share each row. To be made on every rank at the same time."""
        self.size, self.method = size, method
        self.rank, self.data_rank, self.data_size = world.rank % size, world.rank // size, world.size // size
        self._device = world.device
        if size > 1:
            shape = (self.data_size, size)
            mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=("data", "context"))
            self._group = mesh.get_group("context")

    @property
    def counts(self) -> bool:
        """Whether this rank counts the rows that its group shares: one of them does."""
        return self.rank == 0

    def split(self, borders: list[int], model: PackedCausalLM) -> SequenceSplit:
        """How the documents between `borders` are dealt out."""
        return split_sequence(borders, self.size, flops.windows(model.config), whole_parts=self.method == ULYSSES)

    def part(self, model: PackedCausalLM, borders: list[int], inputs: dict[str, Tensor]) -> OwnPart:
        """This rank's part of a micro-batch of documents between `borders`.

        `inputs` are input_ids, labels, position_ids and cu_seqlens of the whole, on the device. Tokens that are padded
        to make equal parts are a document of their own, without labels.
        """
        if self.size == 1:
            return OwnPart(inputs)
        split = self.split(borders, model)
        padding = split.borders[-1] - split.num_tokens
        own = [torch.arange(start, stop) for start, stop in split.parts[self.rank]]
        tokens = torch.cat(own).to(self._device, non_blocking=True)
        fills = {"input_ids": 0, "labels": IGNORE_INDEX, "position_ids": 0}
        parts: dict[str, Any] = {
            name: pad(inputs[name], (0, padding), value=fill).index_select(0, tokens) for name, fill in fills.items()
        }
        method = METHODS[self.method](split, self._group, self._device)
        cu_seqlens = torch.tensor(split.borders, dtype=torch.int32)
        whole = Documents.of(cu_seqlens, split.borders[-1], model.attention)
        parts["cu_seqlens"] = SharedDocuments(
            cu_seqlens.to(self._device), whole.runs, whole.longest, whole.backend, method=method
        )
        return OwnPart(parts, tokens, split.num_tokens, split.borders[-1])


class ContextAxis:
    """The context parallelism of each stage; its groups are made once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._made = {(1, "all_gather"): ContextParallel(world)}
        self.now = self._made[1, "all_gather"]

    def enter(self, config: CptConfig, index: int) -> None:
        """Share rows as stage `index` says. To be called on every rank at the same time."""
        size = stage_context(config, index)
        key = (size, config.engine.context_parallel_method if size > 1 else "all_gather")
        if key not in self._made:
            self._made[key] = ContextParallel(self._world, *key)
        self.now = self._made[key]
