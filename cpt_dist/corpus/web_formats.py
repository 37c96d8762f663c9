"""Text of HTML pages, PDF files and web archives, one record a page, file or response.

Each format is read by a library of its own that is installed by an extra; what has no text is a record with that
reason. Layout is gone afterwards, so the text is what the library makes of it: paragraphs, lists and tables of a page
without its menus, the text of a PDF page by page.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpt_dist.corpus.read import INVALID_UTF8, NO_TEXT, Record, check_whole
from cpt_dist.errors import UserError

UNREADABLE = "unreadable"
"""A file or page that its library can't read, such as an encrypted PDF."""
_PAGE_BREAK = "\n\n"
_MISSING = "'{}' needs {}; pip install 'cpt_dist[{}]'"


def _page_text(path: Path, page: bytes | str) -> str | None:
    """The main text of an HTML page; None where there is none."""
    try:
        from trafilatura import extract
    except ImportError as error:
        raise UserError(_MISSING.format(path, "trafilatura", "web")) from error
    return extract(page, include_comments=False, include_tables=True, deduplicate=False) or None


def read_html(path: Path, policy: str, start: int = 0) -> Iterator[Record]:
    """The page of an HTML file as one record; its encoding is found by trafilatura."""
    if start:
        return
    text = _page_text(path, path.read_bytes())
    yield _record(path, 0, 0, text, policy)


def read_warc(path: Path, policy: str, start: int = 0) -> Iterator[Record]:
    """The HTML and plain text responses (and conversions, as in WET files) of a web archive, in its order.

    Records of other kinds and of other types are passed over. Memory is bounded by the largest response. Raises
    UserError for a damaged archive.
    """
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise UserError(_MISSING.format(path, "warcio", "web")) from error
    check_whole(path)  # warcio takes a compressed archive that is cut off for one that ends
    try:
        with open(path, "rb") as handle:
            index = -1
            for one in ArchiveIterator(handle):
                kind = _kind(one)
                if kind is None:
                    continue
                index += 1
                if index < start:
                    continue
                content = one.content_stream().read()
                one.raw_stream.read()  # what may follow the last chunk of a chunked response
                if one.raw_stream.limit > 0:  # warcio itself takes the end of the file for that of the response
                    raise EOFError(f"a response ends {one.raw_stream.limit} bytes too early")
                text = _page_text(path, content) if kind == "text/html" else content.decode("utf-8", "replace")
                yield _record(path, index, None, text, policy)
    except (ArchiveLoadFailed, EOFError, gzip.BadGzipFile, OSError) as error:
        raise UserError(f"'{path}' is damaged or cut off ({error}); fetch it again") from error


def _kind(record: Any) -> str | None:
    """text/html or text/plain for a record with such text, else None."""
    if record.rec_type == "conversion":
        return "text/plain"
    if record.rec_type != "response" or record.http_headers is None:
        return None
    kind = (record.http_headers.get_header("Content-Type") or "").split(";")[0].strip().lower()
    return {"text/html": "text/html", "application/xhtml+xml": "text/html", "text/plain": "text/plain"}.get(kind)


def read_pdf(path: Path, policy: str, start: int = 0) -> Iterator[Record]:
    """The text of a PDF file as one record, its pages parted by a blank line; a scan has none."""
    if start:
        return
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise UserError(_MISSING.format(path, "pypdf", "pdf")) from error
    try:
        pages = [page.extract_text() for page in PdfReader(path).pages]
    except (PyPdfError, ValueError, KeyError, TypeError, RecursionError):
        yield Record(str(path), 0, None, None, UNREADABLE)
        return
    yield _record(path, 0, None, _PAGE_BREAK.join(text for text in pages if text.strip()) or None, policy)


def _record(path: Path, index: int, byte: int | None, text: str | None, policy: str) -> Record:
    if text is None:
        return Record(str(path), index, byte, None, NO_TEXT)
    if "\ufffd" in text and policy == "drop":
        return Record(str(path), index, byte, None, INVALID_UTF8)
    return Record(str(path), index, byte, text, repaired="\ufffd" in text)


READERS = {"html": read_html, "warc": read_warc, "pdf": read_pdf}
"""Format -> its reader (path, policy for invalid UTF-8, first record)."""
