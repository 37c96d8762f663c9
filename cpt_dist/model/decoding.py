"""Continuing several documents token by token, with the keys and values of what was read kept.

`KeptDocuments` takes the place of a batch's borders: in the first forward the documents attend as they always do, and
what their layers attended to is kept; in each later one every document brings one token. Only attention differs, so
any model that trains on packed documents also decodes, in one process that holds all of its weights. The idea of a
cache beside the model rather than in it is that of flash-attn's `flash_attn_with_kvcache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from cpt_kernels import Backend
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cpt_dist.model.attention import Documents, Heads
from cpt_dist.model.packed import PackedCausalLM


@dataclass
class KeptDocuments(Documents):
    """Borders of documents whose keys and values are kept; made by `Continuation`."""

    capacity: int = 0
    """Tokens that the longest document may grow to."""
    lengths: Tensor = field(default_factory=lambda: torch.empty(0))
    """int64 [documents], tokens kept of each, with those of the forward that is being made."""
    keys: list[Tensor] = field(default_factory=list)
    """Of each layer, [documents, heads, capacity, head_dim]."""
    values: list[Tensor] = field(default_factory=list)
    layer: int = 0
    """The layer whose attention comes next."""

    def attend(self, backend: Backend, heads: Heads) -> Tensor:
        """As `Documents.attend`; after the first forward each document has one query."""
        query, key, value, scaling, _, window = heads
        number, self.layer = self.layer, self.layer + 1
        if number == len(self.keys):
            self.keys.append(self._padded(key))
            self.values.append(self._padded(value))
            return super().attend(backend, heads)
        keys, values = self.keys[number], self.values[number]
        rows = torch.arange(len(self.lengths), device=key.device)
        keys[rows, :, self.lengths - 1] = key.transpose(0, 1)
        values[rows, :, self.lengths - 1] = value.transpose(0, 1)
        longest = int(self.lengths.max())
        places = torch.arange(longest, device=key.device)[None]
        seen = places < self.lengths[:, None]
        if window is not None:
            seen &= places >= self.lengths[:, None] - window
        attended = scaled_dot_product_attention(
            query.transpose(0, 1)[:, :, None],
            keys[:, :, :longest],
            values[:, :, :longest],
            attn_mask=seen[:, None, None],
            scale=scaling,
            enable_gqa=True,
        )
        return attended[:, :, 0]

    def _padded(self, flat: Tensor) -> Tensor:
        """[heads, tokens, head_dim] of all documents -> [documents, heads, capacity, head_dim]."""
        kept = flat.new_zeros(len(self.lengths), flat.shape[0], self.capacity, flat.shape[2])
        borders = self.cu_seqlens.tolist()
        for row, (start, stop) in enumerate(pairwise(borders)):
            kept[row, :, : stop - start] = flat[:, start:stop]
        return kept


class Continuation:
    """Documents under a model in eval mode that grow by a token at a time."""

    def __init__(self, model: PackedCausalLM, device: torch.device | str, texts: Sequence[Sequence[int]], new: int):
        """`texts` are the tokens of each document (at least one), of which each may get `new` more."""
        lengths = torch.tensor([len(text) for text in texts], device=device)
        borders = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        plain = Documents.of(borders, int(borders[-1]), model.attention)
        self._model, self._device = model, device
        self._documents = KeptDocuments(
            plain.cu_seqlens, plain.runs, plain.longest, plain.backend, capacity=plain.longest + new, lengths=lengths
        )
        self._texts = texts

    def start(self) -> Tensor:
        """Logits [documents, vocab] in fp32 of what follows each document."""
        positions = torch.cat([torch.arange(len(text)) for text in self._texts])
        return self._forward(torch.tensor([token for text in self._texts for token in text]), positions)

    def go_on(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Logits [rows, vocab] in fp32 of what follows the documents `rows` and their next `tokens`.

        `rows` are places among the documents of the call before; the others are dropped.
        """
        kept = self._documents
        if len(rows) < len(kept.lengths):
            chosen = torch.tensor(list(rows), device=self._device)
            kept.lengths = kept.lengths[chosen]
            for layers in (kept.keys, kept.values):
                layers[:] = [layer[chosen] for layer in layers]
        positions = kept.lengths.clone()
        kept.lengths = kept.lengths + 1
        return self._forward(torch.tensor(list(tokens)), positions)

    @torch.no_grad()
    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        kept = self._documents
        first = not kept.keys
        at = kept.cu_seqlens[1:].long() - 1 if first else torch.arange(len(tokens), device=self._device)
        kept.layer = 0
        logits = self._model(tokens.to(self._device), None, positions.to(self._device), kept, at=at.to(self._device))
        assert isinstance(logits, Tensor)
        return logits
