"""The model's fast tokenizer as prepare uses it: text in, token ids of a whole document out.

It needs the `tokenizers` library alone, not transformers. Text is text: a document that spells out a special token
such as <|endoftext|> gets the tokens of those characters, not the special token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from cpt_dist.data.cuts import Cuts, find_cuts
from cpt_dist.data.shards import tokenizer_fingerprint
from cpt_dist.data.unit_tokens import UnitText, UnitTokens, is_worth_it, unit_pattern
from cpt_dist.errors import UserError, nearest

_PROBE = "a"


def _special_name(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


class DocumentTokenizer:
    """Makes a document's tokens: [BOS, where the tokenizer itself adds one] text [separator].

    Raises UserError where the folder has no readable tokenizer.json, and where the separator is neither given nor
    the eos_token of tokenizer_config.json, or isn't in the vocabulary.
    """

    def __init__(self, folder: str | Path, separator: str | None = None) -> None:
        folder = Path(folder)
        self.fingerprint = tokenizer_fingerprint(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        settings = _read_settings(folder)
        self.bos_id = self._find_bos(settings)
        self.separator_id = self._find_separator(separator, settings, folder)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.folder = folder
        self._rendering: Tokenizer | None = None
        self.settings = settings
        """Content of tokenizer_config.json."""
        self.vocab_size = max(vocabulary.values()) + 1
        """One past the largest token id."""
        self.dtype: type[np.unsignedinteger] = np.uint16 if self.vocab_size < 65536 else np.uint32
        pattern = unit_pattern(self._tokenizer) if is_worth_it() else None
        self._units = UnitTokens(self._tokenizer, pattern, self.dtype) if pattern else None

    def _find_bos(self, settings: dict[str, Any]) -> int | None:
        name = _special_name(settings.get("bos_token"))
        if settings.get("add_bos_token") is True and name is not None:
            return self._tokenizer.token_to_id(name)
        if settings.get("add_bos_token") is False:
            return None
        with_special = self._tokenizer.encode(_PROBE, add_special_tokens=True).ids
        plain = self._tokenizer.encode(_PROBE, add_special_tokens=False).ids
        before = next((i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain), 0)
        return with_special[0] if before > 0 else None

    def _find_separator(self, given: str | None, settings: dict[str, Any], folder: Path) -> int:
        name = given if given is not None else _special_name(settings.get("eos_token"))
        if name is None:
            path = folder / "tokenizer_config.json"
            raise UserError(f"'{path}' names no eos_token; set data.separator to the token that ends a document")
        found = self._tokenizer.token_to_id(name)
        if found is None:
            added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
            key = "data.separator" if given is not None else "eos_token"
            raise UserError(f"{key}: '{name}' is not in the vocabulary of '{folder}'; {nearest(name, added)}")
        return found

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, BOS and separator included; on all cores unless TOKENIZERS_PARALLELISM=false."""
        start = [] if self.bos_id is None else [self.bos_id]
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[*start, *encoding.ids, self.separator_id] for encoding in encodings]

    def encode_with_cuts(self, texts: Sequence[str], min_tokens: int) -> list[tuple[Sequence[int] | np.ndarray, Cuts]]:
        """The tokens of each text as `encode_batch` makes them, and where it may be cut.

        Only documents of more than `min_tokens` tokens have such places; 0: none has. They are offsets in the tokens.
        """
        # A token has a byte at least: a text of fewer bytes needs no offsets, which cost time. Nor does a single line.
        maybe_long = [bool(min_tokens) and len(text.encode()) + 2 > min_tokens and "\n" in text for text in texts]
        found = self._units.encode(texts, maybe_long) if self._units else [None] * len(texts)
        triples = list(zip(texts, maybe_long, found, strict=True))
        left = [(text, long) for text, long, units in triples if units is None]
        short = iter(self.encode_batch([text for text, long in left if not long]))
        encodings = self._tokenizer.encode_batch([text for text, long in left if long], add_special_tokens=False)
        with_offsets = iter(encodings)
        result: list[tuple[Sequence[int] | np.ndarray, Cuts]] = []
        for text, long, units in triples:
            if units is not None:
                result.append(self._cut_units(text, units, min_tokens))
            else:
                result.append(self._cut(text, next(with_offsets), min_tokens) if long else (next(short), Cuts()))
        return result

    def _cut_units(self, text: str, units: UnitText, min_tokens: int) -> tuple[np.ndarray, Cuts]:
        start = [] if self.bos_id is None else [self.bos_id]
        body = np.frombuffer(units.ids, self.dtype)
        tokens = np.concatenate([np.array(start, self.dtype), body, np.array([self.separator_id], self.dtype)])
        if not len(units.ends) or len(tokens) <= min_tokens:
            return tokens, Cuts()
        return tokens, find_cuts(text, units.ends).shifted(len(start))

    def _cut(self, text: str, encoding: Encoding, min_tokens: int) -> tuple[list[int], Cuts]:
        start = [] if self.bos_id is None else [self.bos_id]
        tokens = [*start, *encoding.ids, self.separator_id]
        if len(tokens) <= min_tokens:
            return tokens, Cuts()
        ends = np.fromiter((end for _, end in encoding.offsets), dtype=np.int64, count=len(encoding.ids))
        return tokens, find_cuts(text, ends).shifted(len(start))

    def encode_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text alone, without BOS and separator."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_rendered(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of a rendered conversation, in which special tokens are spelled out, and the characters of each."""
        if self._rendering is None:
            self._rendering = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            self._rendering.no_truncation()
            self._rendering.no_padding()
        encoding = self._rendering.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    @property
    def added_tokens(self) -> list[str]:
        """The tokens that the tokenizer finds as a whole where special tokens are looked for."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    def decode_batch(self, documents: Sequence[np.ndarray]) -> list[str]:
        """The text of each document's tokens, without a BOS at its start and separators at its end.

        Where the tokens don't spell valid UTF-8, U+FFFD stands for what is broken.
        """
        return self._tokenizer.decode_batch([self._body(document) for document in documents], skip_special_tokens=False)

    def _body(self, tokens: np.ndarray) -> list[int]:
        body = tokens.tolist()
        while body and body[-1] == self.separator_id:
            body.pop()
        return body[1:] if body and self.bos_id is not None and body[0] == self.bos_id else body


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"'{path}' is no JSON ({error}); fetch it again") from error
