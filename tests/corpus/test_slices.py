"""Wherever a raw file is cut, its parts together hold each record once, in order and under its number in the file."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from cpt_dist.corpus.inputs import InputFile
from cpt_dist.corpus.read import LINES_END, read_records
from cpt_dist.corpus.slices import plan_blocks, read_slice
from tests.helpers.corpora import write_jsonl

LINES = ["a", "", "text of more words", b"", "caf\u00e9", b"   ", b"{", "line\nbreak", "z" * 40]


@pytest.mark.parametrize("last_line_ends", [True, False])
def test_json_lines_cut_at_any_byte_are_read_once(tmp_path, last_line_ends):
    path = write_jsonl(tmp_path / "raw.jsonl", LINES)
    if not last_line_ends:
        path.write_bytes(path.read_bytes()[:-1])
    item = InputFile(Path(path), "jsonl")
    whole = [(one.index, one.byte, one.text, one.problem) for one in read_records(item)]
    for block_bytes in range(1, path.stat().st_size + 2):
        found, lines = [], 0
        for block in plan_blocks([item], block_bytes):
            end = 0
            for part in block.slices:
                for one in read_slice(part, "text", "drop"):
                    if one.problem == LINES_END:
                        end = one.index
                    else:
                        found.append((one.index + lines, one.byte, one.text, one.problem))
            lines += end
        assert found == whole, block_bytes


def test_parquet_is_cut_between_row_groups_and_small_files_are_grouped(tmp_path):
    texts = [f"text {number}" for number in range(20)]
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=3)
    small = [write_jsonl(tmp_path / f"b{number}.jsonl", [f"small {number}"]) for number in range(5)]
    items = [InputFile(tmp_path / "a.parquet", "parquet"), *(InputFile(Path(path), "jsonl") for path in small)]
    blocks = plan_blocks(items, 150)
    assert len(blocks) > 3
    records = [one for block in blocks for part in block.slices for one in read_slice(part, "text", "drop")]
    kept = [(one.index, one.text) for one in records if one.problem != LINES_END]
    assert kept == [*enumerate(texts), *((0, f"small {number}") for number in range(5))]
    assert max(len(block.slices) for block in blocks) > 1
