"""One micro-batch: the tokens with what can't be told from them, and labels, positions and sources made from that.

What is made from other fields is made on first use, on the device of those, so a batch costs one pass over its tokens
to read and a quarter of the bytes to move. Batches are filled in by `batches.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch

IGNORE_INDEX = -100
"""Label of a token that isn't to predict anything."""
_NO_SOURCE = -1


@dataclass
class Batch:
    """T tokens in `pieces` document pieces of `rows` rows, flattened, without padding."""

    input_ids: torch.Tensor
    """int64 [T]."""
    cu_seqlens: torch.Tensor
    """int32 [pieces + 1]: piece i has the tokens [cu_seqlens[i], cu_seqlens[i + 1])."""
    doc_ids: torch.Tensor
    """uint8 [pieces, 16]: id of the document that each piece is of."""
    doc_lengths: torch.Tensor
    """int32 [pieces]: tokens of the whole document that each piece is of."""
    sample_ids: torch.Tensor
    """int64 [rows]: global index n of each row."""
    row_sources: torch.Tensor
    """int64 [rows]: source of each row, an index into `SampleOrder.source_names`."""
    row_bounds: torch.Tensor
    """int64 [rows + 1]: row i has the tokens [row_bounds[i], row_bounds[i + 1]); in a filler none has any."""
    skipped_pieces: torch.Tensor
    """int64 [rows]: pieces that each row lost because their documents were taken down."""
    skipped_tokens: torch.Tensor
    """int64 [rows]: tokens of those pieces."""
    continued: torch.Tensor
    """int64 [2, n]: place and label of each last token of a piece whose document goes on elsewhere."""
    unlabelled: torch.Tensor
    """int64 [2, n]: first token, and one past the last, of each run that has no labels."""
    position_runs: torch.Tensor
    """int64 [2, n]: first token of each run of positions, from 0 on, and its position. None: pieces count from 0."""

    @cached_property
    def labels(self) -> torch.Tensor:
        """int64 [T]: the token after input_ids[t] in its document, -100 where there is none. Already shifted."""
        labels = torch.empty_like(self.input_ids)
        labels[:-1] = self.input_ids[1:]
        labels[self.cu_seqlens[1:].long() - 1] = IGNORE_INDEX
        labels[self.continued[0]] = self.continued[1]
        if self.unlabelled.numel():
            steps = labels.new_zeros(self.num_tokens + 1)
            ones = torch.ones_like(self.unlabelled[0])
            steps.index_add_(0, self.unlabelled[0], ones).index_add_(0, self.unlabelled[1], -ones)
            labels.masked_fill_(steps[:-1].cumsum(0) > 0, IGNORE_INDEX)
        return labels

    @cached_property
    def position_ids(self) -> torch.Tensor:
        """int64 [T]: 0, 1, … within each piece, or within each row (`StageConfig.positions`)."""
        counting = torch.arange(self.num_tokens, device=self.input_ids.device)
        if self.position_runs.numel():
            begins, positions = self.position_runs
            return counting + self._spread(positions - begins, begins)
        begins = self.cu_seqlens[:-1].long()
        return counting - self._spread(begins, begins)

    @cached_property
    def source_ids(self) -> torch.Tensor:
        """int64 [T]: index into `SampleOrder.source_names`; -1 in a filler."""
        if self.is_filler:
            return torch.full_like(self.input_ids, _NO_SOURCE)
        return self._spread(self.row_sources, self.row_bounds[:-1])

    def _spread(self, values: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
        """[T]: each value from its place in `begins` to the next one's."""
        lengths = torch.diff(begins, append=torch.full_like(begins[:1], self.num_tokens))
        return values.repeat_interleave(lengths, output_size=self.num_tokens)

    @cached_property
    def is_filler(self) -> bool:
        """Whether no token of it is of a row: it has no rows, or rows of which everything was taken down."""
        return not int(self.row_bounds[-1])

    @property
    def num_tokens(self) -> int:
        """Input tokens."""
        return self.input_ids.numel()

    @property
    def num_target_tokens(self) -> int:
        """Tokens that have a label."""
        if self.unlabelled.numel():
            return int((self.labels != IGNORE_INDEX).sum())
        return self.num_tokens - len(self.doc_ids) + self.continued.shape[1]

    def joined_tokens(self, length: int) -> torch.Tensor:
        """int64 [rows]: tokens of each row that lie in documents of fewer than `length` tokens.

        With `length` the stage's seq_len, these fill the row only because documents were joined; the others are of
        documents that really are that long, or longer.
        """
        bounds = self.cu_seqlens.long()
        short = torch.diff(bounds) * (self.doc_lengths < length)
        before = torch.cat([short.new_zeros(1), short.cumsum(0)])
        return torch.diff(before[torch.searchsorted(bounds, self.row_bounds)])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device; what is made from its fields is made there."""
        if torch.device(device) == self.input_ids.device:
            return self
        return Batch(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by torch's DataLoader)."""
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))
