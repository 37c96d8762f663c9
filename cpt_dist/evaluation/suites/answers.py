"""What a model says to prompts: how likely given answers are, and which text it goes on with.

It works on tokens and asks a callable for logits at a few places, so a model that is sharded over ranks answers
without a copy: work is dealt out over the ranks, every rank makes the same number of forwards (those without work make
a filler), and sums over ranks give every rank all answers. A model that one process holds whole may keep the keys and
values of what it continues (`Decoding`); a training engine recomputes them for each token and is left as it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cpt_dist.errors import UserError
from cpt_dist.evaluation.bits_per_byte import SumOverRanks

Logits = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""logits(input_ids [T], position_ids [T], cu_seqlens [pieces+1], at [n]) -> logits [n, vocab] in fp32 at those places;
pieces must not see each other."""
_MOST_PLACES = 512


class Decoding(Protocol):
    """Sequences that are continued, with their keys and values kept."""

    def start(self) -> torch.Tensor:
        """Logits [sequences, vocab] in fp32 of what follows each."""

    def go_on(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Logits [rows, vocab] after the sequences at `rows` of the call before got one of `tokens` each."""


Decode = Callable[[Sequence[Sequence[int]], int], Decoding]
"""decode(tokens of each sequence, most tokens that each may get)."""
Grow = Callable[[int, torch.Tensor], bool]


@dataclass(frozen=True)
class _Piece:
    """Tokens of one sequence, and the places in it whose logits are wanted."""

    tokens: Sequence[int]
    places: range


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; without it, the likeliest is taken."""

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Answerer:
    """A model as `logits`, and this process's part of the work."""

    logits: Logits
    max_positions: int
    """Longest input of the model; what is longer loses its beginning."""
    batch_tokens: int = 2048
    """Tokens in one forward; a longer sequence has one to itself."""
    rank: int = 0
    world_size: int = 1
    sum_over_ranks: SumOverRanks = lambda values: values
    decode: Decode | None = None
    """Used by a single rank to continue texts; without it each token costs a forward over all tokens before it."""

    def log_likelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[np.ndarray, np.ndarray]:
        """(log-likelihood in nats float64 [pairs], greedy bool [pairs]) of answers after contexts, both in tokens.

        Contexts and answers have at least one token each. `greedy` says that each answer token was the likeliest one.
        The same on every rank, which must all call it with the same pairs. Raises UserError for an answer that is
        longer than the model's positions.
        """
        pieces: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for index, (context, answer) in enumerate(pairs):
            if len(answer) > self.max_positions:
                raise UserError(f"an answer of {len(answer)} tokens exceeds the model's {self.max_positions} positions")
            tokens = (*context, *answer)[-(self.max_positions + 1) :][:-1]
            pieces.setdefault((tokens, len(answer)), []).append(index)
        keys = list(pieces)
        forwards = _forwards(
            [_Piece(tokens, range(len(tokens) - length, len(tokens))) for tokens, length in keys], self.batch_tokens
        )
        found = np.zeros((2, len(pairs)), dtype=np.float64)
        for start in range(0, len(forwards), self.world_size):
            mine = start + self.rank
            numbers, chosen = forwards[mine] if mine < len(forwards) else ([], [])
            logits = self._ask(chosen)
            totals, likeliest = logits.logsumexp(dim=-1), logits.argmax(dim=-1)
            first = 0
            for number, piece in zip(numbers, chosen, strict=True):
                rows = slice(first, first + len(piece.places))
                first = rows.stop
                for index in pieces[keys[number]]:
                    wanted = torch.tensor(list(pairs[index][1]))
                    values = logits[rows].gather(1, wanted[:, None])[:, 0] - totals[rows]
                    found[0, index] = float(values.double().sum())
                    found[1, index] = float((likeliest[rows] == wanted).all())
        found = self.sum_over_ranks(found)
        return found[0], found[1] > 0.5

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop: Callable[[int, list[int]], bool],
        sampling: Sequence[Sampling] | None = None,
    ) -> list[list[int]]:
        """The tokens with which the model goes on after each prompt (at least one token), at most `max_new_tokens`.

        `stop(index, new tokens)` says after each token whether that is enough; the token that made it so is kept.
        `sampling`, one for each prompt, draws at random: the same seed and logits give the same tokens, whatever else
        is asked beside. The same on every rank. Raises UserError where no position is left for a prompt.
        """
        if max_new_tokens >= self.max_positions:
            raise UserError(
                f"{max_new_tokens} new tokens leave no room for a prompt in the model's {self.max_positions} positions"
            )
        mine = range(self.rank, len(prompts), self.world_size)
        texts = {index: list(prompts[index])[-(self.max_positions - max_new_tokens) :] for index in mine}
        new: dict[int, list[int]] = {index: [] for index in mine}
        generators = {index: torch.Generator().manual_seed(sampling[index].seed) for index in mine} if sampling else {}

        def grow(index: int, row: torch.Tensor) -> bool:
            """Append the next token by its logits [vocab]; whether more are wanted."""
            drawn = _draw(row, sampling[index], generators[index]) if sampling is not None else int(row.argmax())
            new[index].append(drawn)
            return len(new[index]) < max_new_tokens and not stop(index, new[index])

        if self.decode is not None and self.world_size == 1:
            self._continue_kept(self.decode, texts, new, max_new_tokens, grow)
        else:
            self._continue_recomputed(texts, new, grow)
        table = np.zeros((len(prompts), max_new_tokens + 1), dtype=np.float64)
        for index, tokens in new.items():
            table[index, 0] = len(tokens)
            table[index, 1 : len(tokens) + 1] = tokens
        return [row[1 : int(row[0]) + 1].astype(int).tolist() for row in self.sum_over_ranks(table)]

    def _continue_kept(
        self, decode: Decode, texts: dict[int, list[int]], new: dict[int, list[int]], most: int, grow: Grow
    ) -> None:
        """Let every text grow, as many at a time as have room for their tokens in `batch_tokens`."""
        for group in _groups(texts, most, self.batch_tokens):
            decoding = decode([texts[index] for index in group], most)
            active, logits = group, decoding.start().to("cpu")
            while True:
                rows = [row for row, index in enumerate(active) if grow(index, logits[row])]
                active = [active[row] for row in rows]
                if not active:
                    break
                logits = decoding.go_on(rows, [new[index][-1] for index in active]).to("cpu")

    def _continue_recomputed(self, texts: dict[int, list[int]], new: dict[int, list[int]], grow: Grow) -> None:
        """Let every text grow with forwards over all of its tokens, equally many on every rank."""
        active = list(texts)
        while True:
            pieces = [_Piece(seq := texts[i] + new[i], range(len(seq) - 1, len(seq))) for i in active]
            forwards = _forwards(pieces, self.batch_tokens)
            rounds = self._most(len(forwards))
            if not rounds:
                return
            wanted = []
            for number in range(rounds):
                numbers, chosen = forwards[number] if number < len(forwards) else ([], [])
                rows = self._ask(chosen)
                wanted += [active[place] for row, place in enumerate(numbers) if grow(active[place], rows[row])]
            active = wanted

    def _most(self, count: int) -> int:
        """The largest `count` of all ranks."""
        counts = np.zeros(self.world_size, dtype=np.float64)
        counts[self.rank] = count
        return int(self.sum_over_ranks(counts).max())

    def _ask(self, pieces: Sequence[_Piece]) -> torch.Tensor:
        """Logits at all places of `pieces`, one after the other, on the CPU; without pieces a filler's."""
        pieces = pieces or [_Piece([0, 0], range(1))]
        ends = list(itertools.accumulate(len(piece.tokens) for piece in pieces))
        starts = [0, *ends[:-1]]
        with torch.no_grad():
            return self.logits(
                torch.tensor([token for piece in pieces for token in piece.tokens]),
                torch.cat([torch.arange(len(piece.tokens)) for piece in pieces]),
                torch.tensor([0, *ends], dtype=torch.int32),
                torch.tensor([s + p for s, piece in zip(starts, pieces, strict=True) for p in piece.places]),
            ).to("cpu")


def _groups(texts: dict[int, list[int]], most: int, budget: int) -> list[list[int]]:
    """The texts, by length, in groups of which each has at most `budget` places when all have grown by `most`."""
    groups: list[list[int]] = []
    for index in sorted(texts, key=lambda index: len(texts[index])):
        size = len(texts[index]) + most  # of the longest so far, which all others are padded to
        if not groups or (len(groups[-1]) + 1) * size > budget:
            groups.append([])
        groups[-1].append(index)
    return groups


def _forwards(pieces: Sequence[_Piece], batch_tokens: int) -> list[tuple[list[int], list[_Piece]]]:
    """Pieces in order, with their numbers, in groups of at most `batch_tokens` tokens and `_MOST_PLACES` places."""
    groups: list[tuple[list[int], list[_Piece]]] = []
    tokens = places = 0
    for number, piece in enumerate(pieces):
        tokens += len(piece.tokens)
        places += len(piece.places)
        if not groups or tokens > batch_tokens or places > _MOST_PLACES:
            groups.append(([], []))
            tokens, places = len(piece.tokens), len(piece.places)
        groups[-1][0].append(number)
        groups[-1][1].append(piece)
    return groups


def _draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token from the likeliest ones that together have the probability `top_p` (Holtzman et al. 2020)."""
    values, order = torch.softmax(logits.double() / sampling.temperature, dim=-1).sort(descending=True)
    before = values.cumsum(0) - values
    values = torch.where(before < sampling.top_p, values, torch.zeros_like(values))
    return int(order[torch.multinomial(values, 1, generator=generator)])
