"""What a curated source takes beside tables and JSON Lines, and raw files of extreme kinds."""

import io
import json
import os
import subprocess
import sys

import fsspec
import pytest

from cpt_dist.corpus.curation.curate import curate
from cpt_dist.corpus.inputs import CURATED_FORMATS, find_inputs
from cpt_dist.corpus.normalise import normalise
from cpt_dist.corpus.read import read_records
from cpt_dist.errors import UserError
from tests.corpus.test_curation import LAW, NEWS, ROOT, curated_rows, curation_config, dropped_rows

ARTICLE = "Judges of the court met on Tuesday and found that the treaty had been in force for a hundred years."
PAGE = (
    f"<html><body><nav><a href='x'>Menu</a></nav><article><p>{ARTICLE}</p><p>{LAW[0][:300]}</p></article></body></html>"
)


def pdf_of(text):
    """A PDF file of one page with a line of text, or without any."""
    shown = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode() if text else b""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(shown), shown),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    content, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"xref\n0 6\n0000000000 65535 f \n%strailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF"
    return content + end % (table, len(content))


def warc_of(pages):
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    buffer = io.BytesIO()
    writer = WARCWriter(buffer, gzip=True)
    for number, (kind, content) in enumerate(pages):
        headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.0")
        url = f"http://example.org/{number}"
        record = writer.create_warc_record(url, "response", payload=io.BytesIO(content), http_headers=headers)
        writer.write_record(record)
    return buffer.getvalue()


def records(folder):
    files, _ = find_inputs([str(folder)], "raw", CURATED_FORMATS)
    return {item.path.name: list(read_records(item)) for item in files}


def test_pages_markdown_pdf_and_web_archives_are_read_as_text(tmp_path):
    (tmp_path / "page.html").write_text(PAGE)
    (tmp_path / "empty.html").write_text("<html></html>")
    (tmp_path / "notes.md").write_text("# Title\n\n- *one*\n")
    (tmp_path / "text.pdf").write_bytes(pdf_of("Held for the appellant"))
    (tmp_path / "scan.pdf").write_bytes(pdf_of(""))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing more")
    pages = [
        ("text/html", PAGE.encode()),
        ("image/png", b"\x89PNG"),
        ("text/plain; charset=utf-8", "caf\u00e9".encode()),
    ]
    (tmp_path / "crawl.warc.gz").write_bytes(warc_of(pages))
    found = records(tmp_path)
    assert ARTICLE in found["page.html"][0].text
    assert "Menu" not in found["page.html"][0].text
    assert found["empty.html"][0].problem == found["scan.pdf"][0].problem == "no_text_field"
    assert found["notes.md"][0].text == "# Title\n\n- *one*\n"
    assert found["text.pdf"][0].text.strip() == "Held for the appellant"
    assert found["broken.pdf"][0].problem == "unreadable"
    assert [(one.index, one.problem) for one in found["crawl.warc.gz"]] == [(0, None), (1, None)]
    assert found["crawl.warc.gz"][1].text == "caf\u00e9"


def test_a_damaged_web_archive_is_named(tmp_path):
    content = warc_of([("text/plain", b"x" * 100_000)])
    (tmp_path / "cut.warc.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut.warc.gz' is damaged"):
        records(tmp_path)


def test_a_source_that_is_not_curated_says_which_formats_only_a_curated_one_takes(tmp_path):
    (tmp_path / "notes.md").write_text("# Title")
    with pytest.raises(UserError, match=r"notes.md' is of an unknown format .of a format that only a curated source"):
        find_inputs([str(tmp_path / "notes.md")], "raw")


def test_raw_files_behind_urls_are_fetched_and_named_by_their_url(tmp_path):
    system = fsspec.filesystem("memory")
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in LAW)
    system.pipe({"/bucket/law/a.jsonl": lines, "/bucket/law/b.txt": NEWS[0].encode(), "/bucket/law/c.zip": b""})
    try:
        config = curation_config(tmp_path)
        config.data.sources["law"].raw = ["memory://bucket/law"]
        curate(config)
        rows = curated_rows(tmp_path, "law")
        assert {row["file"] for row in rows} == {"memory:///bucket/law/a.jsonl", "memory:///bucket/law/b.txt"}
        assert [row["text"] for row in rows if row["file"].endswith("a.jsonl")] == [normalise(text) for text in LAW]
        assert not list((tmp_path / "curated").rglob("fetched/*"))
        config.data.sources["law"].raw = ["memory://bucket/none/*.jsonl"]
        with pytest.raises(UserError, match=r"data.sources.law.raw: 'memory://bucket/none/\*.jsonl' holds no file"):
            curate(config)
    finally:
        system.rm("/bucket", recursive=True)


def test_a_huge_document_many_tiny_ones_nul_bytes_bad_utf8_and_an_empty_source(tmp_path):
    huge = "\n\n".join(f"{number} {text}" for number in range(700) for text in LAW[:10])
    tiny = [f"tiny document {number} of many" for number in range(3000)]
    raw = [huge, "NUL\x00 \x00bytes are taken out of this text", b'{"text": "caf\xe9"}']
    config = curation_config(tmp_path, {"law": raw, "news": tiny, "empty": []}, block_bytes="100k")
    quality = {"enabled": False}
    for source in config.data.sources.values():
        source.curation = {"quality": quality, "pii": {"policy": "off"}}
    done = curate(config)
    assert [row["text"] for row in curated_rows(tmp_path, "law")] == [huge, "NUL bytes are taken out of this text"]
    assert [row["reason"] for row in dropped_rows(tmp_path, "law")] == ["invalid_utf8"]
    assert done["news"].manifest["steps"]["read"]["read"] == 3000
    assert done["news"].manifest["documents"] + len(dropped_rows(tmp_path, "news")) == 3000
    assert (done["empty"].manifest["documents"], done["empty"].drops) == (0, "no record")


MEMORY = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from cpt_dist.corpus.curation.curate import curate
from tests.corpus.test_curation import LAW, curation_config
folder = Path(sys.argv[2])
def peak(name, texts):
    config = curation_config(folder / name, {"law": texts, "news": ["other"]}, block_bytes="1M")
    config.data.sources["law"].curation = {"quality": {"enabled": False}, "language": {"detector": "none"}}
    curate(config)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
tiny = [f"tiny document {number} of so many" for number in range(30000)]
paragraphs = [f"{number} {text}" for number in range(900) for text in LAW[:12]]
small = peak("few", tiny[:3000])
many = peak("many", tiny)
huge = peak("huge", ["\\n\\n".join(paragraphs)])
print(json.dumps([small, many, huge]))
"""


@pytest.mark.distributed
def test_memory_is_bounded_by_the_block_for_many_documents_and_by_the_document_for_a_huge_one(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(ROOT), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    small, many, huge = json.loads(done.stdout.splitlines()[-1])
    raw_megabytes = (tmp_path / "huge" / "raw" / "law.jsonl").stat().st_size / 2**20
    assert many - small < 40
    assert huge - small < 15 * raw_megabytes
