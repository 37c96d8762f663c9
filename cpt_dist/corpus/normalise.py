"""One canonical form of a document's text, and the id that is the hash of that form.

It changes how characters are encoded, never what the text says: words, newlines and indentation stay. The form is
Unicode NFC (Unicode Standard Annex 15) with line ends as in section 5.8 of the Unicode Standard.
"""

from __future__ import annotations

import re
import unicodedata

import xxhash

# Every control character that ends a line becomes one LF; to delete it instead would join two words.
_LINE_END = re.compile("\r\n|[\r\v\f\x85]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_EITHER = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_EITHER_IN_ASCII = bytes(code for code in range(0x80) if _EITHER.match(chr(code)))


def normalise(text: str) -> str:
    """`text` with LF line ends, without control characters other than LF and TAB, in Unicode NFC.

    CR LF, CR, VT, FF and NEL each become one LF. Idempotent: controls go first, because one between a letter and
    its accent would hide a composition from NFC.
    """
    if text.isascii():  # has one canonical form; to look for bytes takes a hundredth of the time of a pattern
        data = text.encode("ascii")
        if len(data.translate(None, _EITHER_IN_ASCII)) == len(data):
            return text
        return _CONTROL.sub("", _LINE_END.sub("\n", text))
    if _EITHER.search(text):
        text = _CONTROL.sub("", _LINE_END.sub("\n", text))
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def document_id(text: str) -> bytes:
    """The 16 bytes (big endian) of xxh3-128 over the UTF-8 form of normalised `text`."""
    return xxhash.xxh3_128_digest(text.encode("utf-8"))


def is_held_out(doc_id: bytes, fraction: float) -> bool:
    """Whether a document is kept for evaluation: a pure function of its id, so it's the same in every corpus."""
    return int.from_bytes(doc_id[:8], "big") < int(fraction * 2**64)
