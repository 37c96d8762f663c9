"""Tokens of text put together from those of its words, each of which the tokenizer itself encodes once.

Byte-pair tokenizers cut text by a regular expression before they encode it, and most of their time goes into that. All
known expressions cut between a character and white space behind it, so what stands between two such places (a unit:
white space with the word behind it) has the same tokens in any text. Where a tokenizer isn't known to be of this kind
there is no `UnitTokens`, and the library does all of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

MOST_UNITS = 1 << 18
"""Known units beyond which all are forgotten: about 60 MB."""
LONGEST_UNIT = 64
"""Characters of the longest unit that is remembered; longer ones hardly come again."""
FEWEST_UNITS = 1 / 12
"""Units for each character below which a text (in a script without spaces, say) is left to the library."""
JOINED_UNITS = 256
"""Units that are encoded as one text when they are new; that they don't touch each other is what makes them units."""
MOST_CORES = 8
"""The library encodes on all cores, units are put together on one; up to so many that takes less time as well."""

# A match of the second family may hold the line ends behind punctuation, so a unit goes on over those.
_UNIT = re.compile(r"\s*\S+|\s+")
_UNIT_OVER_LINES = re.compile(r"\s*\S+(?:[\r\n]\s*\S*)*|\s+")
_AMBIGUOUS = "\x1c\x1d\x1e\x1f\u180e"
"""White space to Python and not to the regular expressions of tokenizers, or the other way round."""
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_EXPRESSIONS = {_CONTRACTIONS + digits + _REST for digits in (r"\p{N}", r"\p{N}{1,3}")}
"""Of Llama 3, Qwen 2 and those after them."""


@dataclass(frozen=True)
class UnitText:
    """A text's tokens, without any that mark its beginning and end."""

    ids: bytes
    """In the token type of `UnitTokens`, one after another."""
    ends: np.ndarray
    """[tokens] i64: one past the last character of each token; empty where they weren't asked for."""


def unit_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """What finds a text's units, or None for a tokenizer whose tokens of a unit may depend on what stands around it."""
    model = tokenizer.model
    if not isinstance(model, models.BPE) or model.dropout:
        return None
    normalizer = _settings(tokenizer.normalizer)
    if normalizer and normalizer["type"] != "NFC":  # white space takes part in no composition
        return None
    # Special tokens aren't looked for in text; others that reach over white space would join units.
    for token in tokenizer.get_added_tokens_decoder().values():
        joins = token.lstrip or token.rstrip or token.single_word or re.search(r"\s", token.content)
        if joins and not token.special:
            return None
    return _pattern_of(_settings(tokenizer.pre_tokenizer))


def _settings(part: Any) -> dict[str, Any]:
    return json.loads(part.__getstate__()) if part is not None else {}


def _pattern_of(before: dict[str, Any]) -> re.Pattern[str] | None:
    parts = before.get("pretokenizers", [before])
    *first, last = parts
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"]:
        # GPT-2's expression; the cuts around digits that may come before it depend on the digits alone.
        return _UNIT if all(part["type"] == "Digits" for part in first) else None
    if len(first) != 1 or first[0]["type"] != "Split":
        return None
    split = first[0]
    is_known = split["pattern"].get("Regex") in _EXPRESSIONS
    return _UNIT_OVER_LINES if is_known and split["behavior"] == "Isolated" and not split["invert"] else None


def is_worth_it() -> bool:
    """Whether one core that puts units together is faster than all cores that this process may use for the library."""
    return os.environ.get("TOKENIZERS_PARALLELISM") == "false" or len(os.sched_getaffinity(0)) <= MOST_CORES


class UnitTokens:
    """Encodes texts unit by unit and remembers the units, at most MOST_UNITS and those of one call."""

    def __init__(self, tokenizer: Tokenizer, pattern: re.Pattern[str], dtype: type[np.unsignedinteger]) -> None:
        self._tokenizer, self._pattern, self._dtype = tokenizer, pattern, dtype
        self._is_over_lines = pattern is _UNIT_OVER_LINES
        self._ids: dict[str, bytes] = {}
        self._ends: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str], with_ends: Sequence[bool]) -> list[UnitText | None]:
        """Each text's tokens, with the ends of those it is asked for; None for a text that the library should do."""
        if len(self._ids) > MOST_UNITS:
            self._ids.clear()
            self._ends.clear()
        parts = [self._units(text) for text in texts]
        missing = set().union(*(units for units in parts if units)).difference(self._ids)
        self._learn(sorted(missing))
        found = [
            None if units is None else self._joined(units, ends) for units, ends in zip(parts, with_ends, strict=True)
        ]
        for unit in missing:
            if len(unit) > LONGEST_UNIT:
                del self._ids[unit], self._ends[unit]
        return found

    def _units(self, text: str) -> list[str] | None:
        if any(character in text for character in _AMBIGUOUS):
            return None
        units = self._pattern.findall(text)
        return None if len(units) < FEWEST_UNITS * len(text) else units

    def _learn(self, units: list[str]) -> None:
        """Encode units, most of them many at a time: a call for each would take as long as its text."""
        joined: list[str] = []
        alone: list[str] = []
        for unit in units:
            fits = unit[0].isspace() and not unit[-1].isspace() and not (self._is_over_lines and unit[0] in "\r\n")
            (joined if fits else alone).append(unit)
        groups = [joined[at : at + JOINED_UNITS] for at in range(0, len(joined), JOINED_UNITS)]
        groups += [[unit] for unit in alone]
        encodings = self._tokenizer.encode_batch(["".join(group) for group in groups], add_special_tokens=False)
        width = np.dtype(self._dtype).itemsize
        for group, encoding in zip(groups, encodings, strict=True):
            ids = np.array(encoding.ids, self._dtype).tobytes()
            ends = np.array([end for _, end in encoding.offsets], np.int64)
            stops = np.cumsum(np.fromiter(map(len, group), np.int64, len(group)))
            places = np.searchsorted(ends, stops, side="right")
            numbers = np.diff(places, prepend=0)
            own_ends = (ends - np.repeat(np.concatenate([[0], stops[:-1]]), numbers)).tobytes()
            first = 0
            for unit, place in zip(group, places.tolist(), strict=True):
                self._ids[unit] = ids[width * first : width * place]
                self._ends[unit] = own_ends[8 * first : 8 * place]
                first = place

    def _joined(self, units: list[str], with_ends: bool) -> UnitText:
        ids = b"".join(map(self._ids.__getitem__, units))
        if not with_ends:
            return UnitText(ids, np.empty(0, np.int64))
        parts = list(map(self._ends.__getitem__, units))
        lengths = np.fromiter(map(len, units), np.int64, len(units))
        numbers = np.fromiter(map(len, parts), np.int64, len(units)) >> 3
        ends = np.frombuffer(b"".join(parts), np.int64) + np.repeat(np.cumsum(lengths) - lengths, numbers)
        return UnitText(ids, ends)
