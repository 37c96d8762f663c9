"""Finds personal data and secrets with patterns that run in linear time, and puts typed placeholders in their place.

Patterns only propose (google-re2: no text makes them slow); checks decide (`pii_checks.py`). A placeholder depends on
the value alone, never on what was seen before, so the same text always gets the same form, in any process and order.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from cpt_dist.corpus.step import CuratedDocument, Dropped
from cpt_dist.corpus.steps import pii_checks as checks
from cpt_dist.corpus.steps.pii_checks import Hit
from cpt_dist.corpus.steps.repair import with_counts
from cpt_dist.curation_config import DROP, MASK, OFF, PiiConfig
from cpt_dist.errors import UserError

_BEFORE_BYTES, _AFTER_BYTES = 40, 8


@dataclass(frozen=True)
class Detector:
    """A pattern of RE2 and the check that its hits must pass."""

    type: str
    pattern: str
    check: Callable[[Hit], bool]
    needs: tuple[bytes, ...] = ()
    """The pattern is tried only on text with one of these in it; empty: on all."""


_KEYS = {
    (b"AKIA", b"ASIA"): r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    (b"gh", b"glpat-"): r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,}|glpat-[A-Za-z0-9_-]{20,}",
    (b"xox",): r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    (b"AIza",): r"AIza[A-Za-z0-9_-]{35}",
    (b"hf_", b"npm_"): r"(?:hf_|npm_)[A-Za-z0-9]{34,}",
    (b"_live_", b"sk-"): r"(?:sk|rk)_live_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}",
    (b"SG.",): r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",
    (b"pypi-AgE", b"dop_v1_"): r"pypi-AgE[A-Za-z0-9_-]{50,}|dop_v1_[a-f0-9]{64}",
}
_PRIVATE_KEY = r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[A-Za-z0-9+/=\s:,-]*?-----END [A-Z0-9 ]*PRIVATE KEY-----"
_JWT = r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
_URL_PASSWORD = r"""[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@'"<>]*:[^\s/@'"<>]+@"""
_EMAIL = r"[A-Za-z0-9._%+'-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+[A-Za-z]{2,24}"
_E164 = r"\+[0-9]{1,3}(?:[ .-]?(?:\(0\)|\([0-9]{1,4}\)|[0-9]{1,8})){1,6}"
_NANP = (
    r"(?:\+?1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[.-][0-9]{4}"
    r"|[2-9][0-9]{2} [2-9][0-9]{2} [0-9]{4}"
)
DETECTORS = (
    Detector("private_key", _PRIVATE_KEY, checks.is_whole, (b"PRIVATE KEY",)),
    Detector("jwt", _JWT, checks.stands_alone, (b"eyJ",)),
    *(Detector("api_key", pattern, checks.is_secret, needs) for needs, pattern in _KEYS.items()),
    Detector("url_password", _URL_PASSWORD, checks.is_password, (b"://",)),
    Detector("email", _EMAIL, checks.is_email, (b"@",)),
    Detector("iban", r"[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}", checks.stands_alone),
    Detector("credit_card", r"[2-6][0-9]{3}(?:[ -]?[0-9]){8,14}[0-9]", checks.is_credit_card),
    Detector("us_ssn", r"[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}", checks.is_us_ssn, (b"-",)),
    Detector("ipv6", r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}", checks.is_public_ipv6, (b":",)),
    Detector("ipv4", r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}", checks.is_public_ipv4, (b".",)),
    Detector("phone", _E164, checks.is_international_phone, (b"+",)),
    Detector("phone", _NANP, checks.is_north_american_phone),
    Detector("phone", r"\(?0[0-9]{1,4}\)?(?:[ /-]?[0-9]{2,8}){1,4}", checks.is_national_phone, (b"0",)),
)
"""In order: where two hits overlap the one that begins first counts, then the one of the earlier detector."""


@lru_cache(maxsize=1)
def _patterns() -> tuple[Any, ...]:
    import re2

    return tuple(re2.compile(detector.pattern.encode()) for detector in DETECTORS)


@lru_cache(maxsize=1)
def _any_pattern() -> Any:
    """What any detector's pattern finds: one pass over the text of the many documents that have nothing of the kind."""
    import re2

    # Not re2.Set, which says "nothing" where its memory doesn't suffice.
    return re2.compile(b"|".join(b"(?:%s)" % detector.pattern.encode() for detector in DETECTORS))


@dataclass(frozen=True)
class Found:
    """A hit: its type and where it stands in the UTF-8 form of the text."""

    type: str
    start: int
    end: int


def _hits(detector: Detector, pattern: Any, data: bytes) -> Iterator[Found]:
    start = 0
    while (match := pattern.search(data, start)) is not None:
        begin, end = match.span()
        start = end
        text = data[begin:end].decode("utf-8")
        if detector.type == "iban":
            found = checks.cut_iban(text)
            if found is None:
                # An IBAN may begin inside of what only looked like one, as in 'NO IBAN GB82 …'.
                start = begin + 1
                continue
            text, end = found, begin + len(found)
            start = end
        elif detector.type == "email":
            text = text.lstrip("'.%+-_")
            begin = end - len(text)
        elif detector.type == "ipv6":
            text = text.rstrip(":") if not text.endswith("::") else text
            end = begin + len(text)
        hit = Hit(text, data[max(begin - _BEFORE_BYTES, 0) : begin], data[end : end + _AFTER_BYTES])
        if detector.check(hit):
            yield Found(detector.type, begin, end)


def find_pii(data: bytes, types: Sequence[str] | None = None) -> list[Found]:
    """Hits of the built-in detectors (of `types`, or all) in UTF-8 text, in order and without overlaps."""
    found: list[tuple[int, int, Found]] = []
    if _any_pattern().search(data) is None:
        return []
    for index, (detector, pattern) in enumerate(zip(DETECTORS, _patterns(), strict=True)):
        is_wanted = types is None or detector.type in types
        if is_wanted and (not detector.needs or any(literal in data for literal in detector.needs)):
            found.extend((hit.start, index, hit) for hit in _hits(detector, pattern, data))
    chosen: list[Found] = []
    for _, _, hit in sorted(found, key=lambda item: item[:2]):
        if not chosen or hit.start >= chosen[-1].end:
            chosen.append(hit)
    return chosen


def placeholder(type: str, value: bytes, key: bytes | None) -> str:
    """[EMAIL], or with a key [EMAIL-1a2b3c4d]: 32 bits of keyed BLAKE2b (RFC 7693) of the value."""
    if key is None:
        return f"[{type.upper()}]"
    return f"[{type.upper()}-{hashlib.blake2b(value, digest_size=4, key=key[:64]).hexdigest()}]"


def secret_key(variable: str | None) -> bytes | None:
    """The key that an environment variable holds; UserError where it is named and isn't there.

    It is read when it's needed, not when a step is made: a pickled step must not hold it.
    """
    if variable is None:
        return None
    value = os.environ.get(variable, "")
    if not value:
        raise UserError(f"pii.key_variable: the environment has no '{variable}'; export it, or set key_variable=null")
    return value.encode()


@dataclass(frozen=True)
class Pii:
    """Masks, counts or drops by the source's policy; counts pii_TYPE, and pii_TYPE_masked where text was changed."""

    settings: PiiConfig
    name: str = "pii"
    _policies: Mapping[str, str] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        types = dict.fromkeys(detector.type for detector in DETECTORS)
        policies = {type: self.settings.policies.get(type, self.settings.policy) for type in types}
        object.__setattr__(self, "_policies", {type: policy for type, policy in policies.items() if policy != OFF})

    def __call__(self, document: CuratedDocument) -> CuratedDocument | Dropped:
        """The document with placeholders and counts, or Dropped("pii")."""
        data = document.text.encode("utf-8")
        hits = find_pii(data, tuple(self._policies))
        if not hits:
            return document
        numbers = Counter(hit.type for hit in hits)
        for type, number in sorted(numbers.items()):
            if self._policies[type] == DROP and number >= self.settings.drop_from:
                return Dropped("pii", f"{number} x {type}")
        masked = [hit for hit in hits if self._policies[hit.type] == MASK]
        added = {f"pii_{type}": number for type, number in numbers.items()}
        added |= {f"pii_{type}_masked": number for type, number in Counter(hit.type for hit in masked).items()}
        counts = with_counts(document, added)
        if not masked:
            return replace(document, counts=counts)
        key, parts, end = secret_key(self.settings.key_variable), [], 0
        for hit in masked:
            parts += [data[end : hit.start], placeholder(hit.type, data[hit.start : hit.end], key).encode()]
            end = hit.end
        return replace(document, text=b"".join([*parts, data[end:]]).decode("utf-8"), counts=counts)
