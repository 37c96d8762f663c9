"""Which held-out documents an evaluation scores, and the tokens by which a model sees them.

Documents are texts, not tokens: two models with different tokenizers are compared on the same characters. The
choice is made once, with the base model's tokenizer, and depends on nothing but the documents and the budget. This
module neither loads a model nor reads a shard.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from cpt_dist.data.tokenizer import DocumentTokenizer


class HeldOut(Protocol):
    """A held-out document as `cpt_dist.data.shards.read_held_out` gives it."""

    @property
    def id(self) -> str: ...

    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class EvaluationText:
    """A text that is scored: a whole document, or the beginning of one (`is_prefix`)."""

    id: str
    text: str
    is_prefix: bool = False

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return len(self.text.encode())


class DocumentEncoder:
    """A model folder's tokenizer, and the token that stands before each document: its BOS if it adds one, else the
    separator.

    Raises UserError where `cpt_dist.data.tokenizer.DocumentTokenizer`, which makes the tokens, does.
    """

    def __init__(self, folder: str | Path, separator: str | None = None) -> None:
        self._tokenizer = DocumentTokenizer(folder, separator)
        self._decoder = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.fingerprint = self._tokenizer.fingerprint
        bos_id = self._tokenizer.bos_id
        self.separator_id = self._tokenizer.separator_id
        self.context_id = self._tokenizer.separator_id if bos_id is None else bos_id
        self._num_leading = 0 if bos_id is None else 1

    def text_tokens(self, text: str) -> list[int]:
        """Tokens of the text alone."""
        return self._tokenizer.encode_batch([text])[0][self._num_leading : -1]

    def encode(self, text: str) -> np.ndarray:
        """The context token and the text's tokens, int64 [1 + text tokens]."""
        return np.array([self.context_id, *self.text_tokens(text)], dtype=np.int64)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, special ones spelled out."""
        return self._decoder.decode(tokens, skip_special_tokens=False)

    def keeps(self, text: str) -> bool:
        """Whether the text can be read back from its tokens; where it can't, bits per byte flatter the model."""
        return self.decode(self.text_tokens(text)) == text


def choose_texts(documents: Iterable[HeldOut], encoder: DocumentEncoder, max_tokens: int) -> list[EvaluationText]:
    """Whole documents in the order given until the next one would exceed `max_tokens` text tokens.

    Documents come in the order of their id, a hash of their text, so the choice is as good as random. Only if the
    very first one is longer than the budget, its longest beginning of whole characters within the budget is taken,
    and marked; its bytes are those of that beginning. Documents without a token are left out.
    """
    chosen: list[EvaluationText] = []
    used = 0
    for document in documents:
        num_tokens = len(encoder.text_tokens(document.text))
        if used + num_tokens > max_tokens:
            if not chosen:
                beginning = _beginning(document.text, encoder, max_tokens)
                chosen.append(EvaluationText(document.id, beginning, is_prefix=True))
            break
        if num_tokens:
            chosen.append(EvaluationText(document.id, document.text))
            used += num_tokens
    return [item for item in chosen if item.text]


def _beginning(text: str, encoder: DocumentEncoder, max_tokens: int) -> str:
    """A beginning of `text`, in whole characters, with as many tokens as fit into `max_tokens` when encoded itself.

    Found by bisection over the number of characters, because a byte-level token may end within one, and a cut word
    may need more tokens than it had as part of the text.
    """
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if len(encoder.text_tokens(text[:middle])) <= max_tokens:
            fits = middle
        else:
            too_long = middle
    return text[:fits]
