"""Attention over tokens that several ranks hold, as the attention function of a model calls it.

Each method has this rank's queries, keys and values and gives its attended tokens; packed documents are kept apart by
the same borders as on one process. What a backend computes is in `cpt_dist/model/attention.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from cpt_kernels import Backend
from torch import Tensor

from cpt_dist.engine.context.blocks import KERNELS
from cpt_dist.engine.context.collectives import ExchangeHeads, GatherTokens
from cpt_dist.engine.context.ring import Piece, RingAttention, pieces
from cpt_dist.engine.context.split import SequenceSplit
from cpt_dist.model.attention import RING, Documents, Heads


class SharedAttention(ABC):
    """One method, for one micro-batch; `split` says which of its tokens are on this rank of `group`."""

    features: frozenset[str] = frozenset()
    """What it needs of a backend."""

    def __init__(self, split: SequenceSplit, group: dist.ProcessGroup, device: torch.device) -> None:
        self.split, self.group, self.device = split, group, device

    @abstractmethod
    def attend(self, backend: Backend, heads: Heads, documents: Documents) -> Tensor:
        """The tokens of this rank: -> [tokens of this rank, heads, head_dim]."""


@dataclass(kw_only=True)
class SharedDocuments(Documents):
    """The borders of a micro-batch of which this rank has a part."""

    method: SharedAttention

    @property
    def features(self) -> frozenset[str]:
        return self.method.features

    def attend(self, backend: Backend, heads: Heads) -> Tensor:
        return self.method.attend(backend, heads, self)


class GatheredAttention(SharedAttention):
    """Keys and values of all ranks on each rank (Llama 3, arXiv 2407.21783, section 3.3.2)."""

    def __init__(self, split: SequenceSplit, group: dist.ProcessGroup, device: torch.device) -> None:
        super().__init__(split, group, device)
        self._places = torch.from_numpy(split.order()).to(device)
        self._parts = []
        for span in split.parts[group.rank()]:
            first_key = split.document_of(span[0])[0]
            borders = torch.tensor(split.borders_within(span), dtype=torch.int32)
            documents = Documents.of(borders, span[1] - span[0], keys_before=span[0] - first_key)
            documents.cu_seqlens = borders.to(device)
            self._parts.append((span[1] - span[0], slice(first_key, span[1]), documents))

    def attend(self, backend: Backend, heads: Heads, documents: Documents) -> Tensor:
        own = torch.stack([heads.key.transpose(0, 1), heads.value.transpose(0, 1)], dim=1)
        gathered = cast(Tensor, GatherTokens.apply(own, self._places, self.group))
        keys, values = gathered.permute(1, 2, 0, 3)
        attended, at = [], 0
        for length, seen, borders in self._parts:
            part = heads._replace(query=heads.query[:, at : at + length], key=keys[:, seen], value=values[:, seen])
            attended.append(backend.function(part, borders))
            at += length
        return torch.cat(attended)


class UlyssesAttention(SharedAttention):
    """Each rank attends with some of the heads over all tokens (DeepSpeed-Ulysses, arXiv 2309.14509)."""

    def attend(self, backend: Backend, heads: Heads, documents: Documents) -> Tensor:
        query, key, value = (ExchangeHeads.apply(part, self.group, True) for part in heads.parts)
        attended = backend.function(heads._replace(query=query, key=key, value=value), documents)
        return cast(Tensor, ExchangeHeads.apply(attended.transpose(0, 1), self.group, False)).transpose(0, 1)


class RingedAttention(SharedAttention):
    """Keys and values go round; no rank holds more than its own and those of two others on their way."""

    features = frozenset({RING})

    def __init__(self, split: SequenceSplit, group: dist.ProcessGroup, device: torch.device) -> None:
        super().__init__(split, group, device)
        self._rounds: dict[int | None, list[list[Piece]]] = {}

    def _rounds_within(self, window: int | None) -> list[list[Piece]]:
        if window not in self._rounds:
            rank, size = self.group.rank(), self.group.size()
            others = [(rank - step) % size for step in range(size)]
            self._rounds[window] = [list(pieces(self.split, rank, other, window)) for other in others]
        return self._rounds[window]

    def attend(self, backend: Backend, heads: Heads, documents: Documents) -> Tensor:
        if heads.dropout:
            raise ValueError("a ring has no dropout: its blocks are computed anew in the backward pass")
        scale = heads.query.shape[-1] ** -0.5 if heads.scaling is None else heads.scaling
        tokens_first = [part.transpose(0, 1) for part in heads.parts]
        rounds, kernel = self._rounds_within(heads.window), KERNELS[backend.name]
        return cast(Tensor, RingAttention.apply(*tokens_first, rounds, scale, kernel, self.group))


METHODS: dict[str, type[SharedAttention]] = {
    "all_gather": GatheredAttention,
    "ring": RingedAttention,
    "ulysses": UlyssesAttention,
}
