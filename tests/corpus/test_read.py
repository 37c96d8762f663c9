import gzip
import json

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from cpt_dist.corpus import read
from cpt_dist.corpus.inputs import InputFile, find_inputs
from cpt_dist.corpus.read import read_records
from cpt_dist.errors import UserError

TEXTS = ["first", "zweiter Text\nmit Zeile", "третий", "fourth"]
JSONL = "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(TEXTS)).encode()


def write_dataset(path):
    from datasets import Dataset

    Dataset.from_dict({"text": TEXTS}).save_to_disk(path)


WRITERS = {
    "a.jsonl": lambda path: path.write_bytes(JSONL),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(JSONL[:50]) + gzip.compress(JSONL[50:])),
    "a.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(JSONL[:50]) + zstandard.compress(JSONL[50:])),
    "a.parquet": lambda path: parquet.write_table(pa.table({"text": TEXTS, "n": range(4)}), path, row_group_size=2),
    "dictionary.parquet": lambda path: parquet.write_table(
        pa.table({"text": pa.array(TEXTS).dictionary_encode()}), path
    ),
    "saved": write_dataset,
}


def records(path, **arguments):
    inputs, _ = find_inputs([str(path)], "raw")
    return [record for item in inputs for record in read_records(item, **arguments)]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_records_in_order(tmp_path, name):
    WRITERS[name](tmp_path / name)
    found = records(tmp_path / name)
    assert [(r.text, r.index, r.file, r.problem) for r in found] == [
        (text, index, str(tmp_path / name), None) for index, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_reading_can_begin_at_any_record(tmp_path, name, start):
    WRITERS[name](tmp_path / name)
    assert records(tmp_path / name, start=start) == records(tmp_path / name)[start:]


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n")
    assert [(r.text, r.byte) for r in records(tmp_path / "a.txt")] == [("one\r\n\r\ntwo\n", 0)]


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))), st.integers(1, 9))
def test_lines_and_their_byte_offsets_are_found_for_any_block_size(tmp_path_factory, lines, block_bytes):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    content = "\n".join(lines).encode()
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "READ_BYTES", block_bytes)
        found = list(read._lines(path))
    assert b"\n".join(line for _, line in found) == content.removesuffix(b"\n")
    assert all(content[at : at + len(line)] == line for at, line in found)


BAD_LINES = [
    (b'{"text": "ok"}', "ok", None),
    (b'{"text": "caf\xe9"}', "caf\ufffd", "invalid_utf8"),
    (b'{"text": "half \\ud83d"}', "half \ufffd", "invalid_utf8"),
    (b'{"text": "pair \\ud83d\\ude00"}', "pair \U0001f600", None),
]


@pytest.mark.parametrize(("line", "replaced", "problem"), BAD_LINES)
def test_invalid_utf8_is_dropped_or_replaced_by_policy_and_marked(tmp_path, line, replaced, problem):
    (tmp_path / "a.jsonl").write_bytes(line + b"\n")
    (dropped,) = records(tmp_path / "a.jsonl", policy="drop")
    (kept,) = records(tmp_path / "a.jsonl", policy="replace")
    assert (dropped.text, dropped.problem) == (None if problem else replaced, problem)
    assert (kept.text, kept.problem, kept.repaired) == (replaced, None, problem is not None)


def test_invalid_utf8_in_text_and_parquet_is_noticed(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    parquet.write_table(pa.table({"text": bad}), tmp_path / "b.parquet")
    assert [r.problem for r in records(tmp_path)] == ["invalid_utf8", "invalid_utf8"]
    assert [r.text for r in records(tmp_path, policy="replace")] == ["caf\ufffd", "caf\ufffd"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "cut', "invalid_json"),
        (b"1" * 5000, "invalid_json"),
        (b"[" * 200_000, "invalid_json"),
        (b'{"body": "x"}', "no_text_field"),
        (b'{"text": 3}', "no_text_field"),
        (b'{"text": null}', "no_text_field"),
        (b'"text"', "no_text_field"),
    ],
)
def test_a_line_without_usable_text_is_a_record_with_its_reason(tmp_path, line, problem):
    (tmp_path / "a.jsonl").write_bytes(line + b"\n\n" + b'{"text": "next"}')
    found = records(tmp_path / "a.jsonl")
    assert [(r.problem, r.index, r.byte) for r in found] == [(problem, 0, 0), (None, 2, len(line) + 2)]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "saved/data-00000-of-00001.arrow"])
def test_a_truncated_file_is_refused_by_name(tmp_path, name):
    top = tmp_path / name.split("/")[0]
    WRITERS[top.name](top)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UserError, match=f"'{top}' is damaged or cut off"):
        records(top)


def test_a_table_without_the_column_names_the_nearest(tmp_path):
    parquet.write_table(pa.table({"texts": TEXTS}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has no column 'text'; did you mean 'texts'"):
        records(tmp_path / "a.parquet")


def test_a_column_that_is_no_text_is_refused(tmp_path):
    parquet.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="holds int64, not text"):
        records(tmp_path / "a.parquet")


def test_a_null_in_a_table_has_no_text(tmp_path):
    parquet.write_table(pa.table({"text": ["x", None]}), tmp_path / "a.parquet")
    assert [r.problem for r in records(tmp_path / "a.parquet")] == [None, "no_text_field"]


def test_folders_and_globs_are_sorted_and_each_file_is_taken_once(tmp_path):
    for name in ("b/2.txt", "b/1.jsonl", "a/3.txt", "a/notes.md", "a/.hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    inputs, ignored = find_inputs([str(tmp_path / "b"), f"{tmp_path}/*/*.txt", str(tmp_path)], "raw")
    assert inputs == [
        InputFile(tmp_path / "a/3.txt", "text"),
        InputFile(tmp_path / "b/1.jsonl", "jsonl"),
        InputFile(tmp_path / "b/2.txt", "text"),
    ]
    assert ignored == [tmp_path / "a/notes.md"]


def test_all_input_mistakes_are_reported_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").touch()
    (tmp_path / "splits/train").mkdir(parents=True)
    (tmp_path / "splits/dataset_dict.json").touch()
    paths = ["missing.txt", "empty", "a.pdf", "*.csv", "splits"]
    with pytest.raises(UserError) as caught:
        find_inputs([str(tmp_path / path) for path in paths], "data.sources.x.raw")
    expected = ["does not exist", "holds no file of a known", "unknown format", "no file matches", "several splits"]
    assert [e in p for e, p in zip(expected, caught.value.problems, strict=True)] == [True] * 5


def test_a_source_without_files_is_refused():
    with pytest.raises(UserError, match="names no file"):
        find_inputs([], "data.sources.x.raw")
