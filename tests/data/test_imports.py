"""Promises of the importers: the tokens are the ones that the other program wrote, or the file is refused by name."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash
from pyarrow import parquet
from tokenizers import Tokenizer

from cpt_dist.config import CptConfig, DataConfig, SourceConfig
from cpt_dist.corpus.inputs import InputFile
from cpt_dist.corpus.token_files import find_token_files, read_token_documents
from cpt_dist.data.journal import Journal
from cpt_dist.data.prepare import prepare
from cpt_dist.data.shards import Source, read_held_out
from cpt_dist.errors import UserError
from cpt_dist.validation import validate
from tests.helpers.token_files import write_datatrove, write_mds, write_megatron
from tests.helpers.tokenizer import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(3)
DOCUMENTS = [[*RNG.integers(2, 250, size=length).tolist(), 0] for length in (*range(1, 40), 300)]

WRITERS = {
    "megatron": [
        lambda folder: write_megatron(folder / "a", DOCUMENTS, "int32"),
        lambda folder: write_megatron(folder / "a", DOCUMENTS, "uint16", sequences_per_document=3),
        lambda folder: write_megatron(folder / "a", DOCUMENTS, "int64"),
    ],
    "datatrove": [
        lambda folder: write_datatrove(folder / "a.ds", DOCUMENTS, 2),
        lambda folder: write_datatrove(folder / "a.ds", DOCUMENTS, 4),
    ],
    "mds": [
        lambda folder: write_mds(folder / "a", DOCUMENTS, "ndarray:uint32"),
        lambda folder: write_mds(folder / "a", DOCUMENTS, "ndarray"),
        lambda folder: write_mds(folder / "a", DOCUMENTS, "bytes"),
        lambda folder: write_mds(folder / "a", DOCUMENTS, "ndarray:int64", compress=True),
    ],
}
CASES = [(name, writer) for name, writers in WRITERS.items() for writer in writers]


def import_config(folder, import_format, raw, **data):
    if not (folder / "tokenizer").exists():
        tiny_tokenizer(folder / "tokenizer")
    settings = {"shards": str(folder / "shards"), "tokenizer": str(folder / "tokenizer"), "shard_tokens": "400"}
    source = SourceConfig(raw=[str(raw)], licence="MIT", import_format=import_format)
    return CptConfig(data=DataConfig(sources={"x": source}, **settings | {"held_out_fraction": 0.0} | data))


def tokens_of(source):
    """Every document's tokens, in the order of the shards."""
    found = []
    for shard in range(len(source.shard_tokens)):
        offsets = source.doc_offsets(shard).astype(int)
        found += [source.tokens(shard, a, b).tolist() for a, b in itertools.pairwise(offsets)]
    return found


@pytest.mark.parametrize(("import_format", "writer"), CASES)
def test_imported_tokens_are_those_of_the_file(tmp_path, import_format, writer):
    (done,) = prepare(import_config(tmp_path, import_format, writer(tmp_path)))
    assert tokens_of(Source.open(done.folder)) == DOCUMENTS


@pytest.mark.parametrize(("import_format", "writer"), CASES)
def test_reading_goes_on_at_any_document_and_tells_its_place(tmp_path, import_format, writer):
    path = writer(tmp_path)
    path = path if path.is_file() else path / "index.json"
    (item,) = find_token_files([str(path)], import_format, "raw")
    for start in (0, 5, 7, 39, 40):
        rest = list(read_token_documents(item, "tokens", start))
        assert [document.tokens.tolist() for document in rest] == DOCUMENTS[start:]
        assert [document.index for document in rest] == list(range(start, 40))
    for document in read_token_documents(item, "tokens"):
        if document.byte is not None:
            raw = Path(document.file).read_bytes()[document.byte :]
            assert raw.startswith(document.tokens.tobytes())


def test_an_id_is_the_hash_of_the_tokens_and_bytes_are_those_of_the_decoded_text(tmp_path):
    (done,) = prepare(import_config(tmp_path, "datatrove", write_datatrove(tmp_path / "a.ds", DOCUMENTS)))
    source = Source.open(done.folder)
    decoder = Tokenizer.from_file(str(tmp_path / "tokenizer/tokenizer.json"))
    assert source.doc_ids(0)[3].tobytes() == xxhash.xxh3_128_digest(np.array(DOCUMENTS[3], "<u4").tobytes())
    text = decoder.decode(DOCUMENTS[3][:-1], skip_special_tokens=False)
    assert source.doc_bytes(0)[3] == len(text.encode())
    row = {
        name: column[3]
        for name, column in parquet.read_table(done.folder / "provenance-00000.parquet").to_pydict().items()
    }
    assert (row["file"], row["record"], row["byte"]) == (str(tmp_path / "a.ds"), 3, 2 * sum(map(len, DOCUMENTS[:3])))
    assert (done.manifest["pipeline"]["import_format"], done.manifest["pipeline"]["normalisation"]) == (
        "datatrove",
        None,
    )


def test_held_out_documents_are_decoded_and_duplicates_are_counted(tmp_path):
    raw = write_datatrove(tmp_path / "a.ds", [*DOCUMENTS, DOCUMENTS[5]])
    (done,) = prepare(import_config(tmp_path, "datatrove", raw, held_out_fraction=0.3))
    held_out = list(read_held_out(done.folder))
    trained = tokens_of(Source.open(done.folder))
    assert done.manifest["counts"]["dropped"] == {"duplicate": 1}
    assert len(held_out) + len(trained) == len(DOCUMENTS)
    decoder = Tokenizer.from_file(str(tmp_path / "tokenizer/tokenizer.json"))
    left = [d for d in DOCUMENTS if d not in trained]
    assert sorted(d.text for d in held_out) == sorted(decoder.decode(d[:-1], skip_special_tokens=False) for d in left)


def test_a_killed_import_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    raw = write_megatron(tmp_path / "a", DOCUMENTS)
    (whole,) = prepare(import_config(tmp_path, "megatron", raw, shards=str(tmp_path / "whole")))
    add, times = Journal.add, iter(range(99))

    def dying(journal, line):
        add(journal, line)
        if next(times) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(import_config(tmp_path, "megatron", raw))
    monkeypatch.undo()
    (resumed,) = prepare(import_config(tmp_path, "megatron", raw))
    assert resumed.manifest["fingerprint"] == whole.manifest["fingerprint"]


def test_a_changed_token_file_is_noticed(tmp_path):
    raw = write_megatron(tmp_path / "a", DOCUMENTS)
    prepare(import_config(tmp_path, "megatron", raw))
    write_megatron(tmp_path / "a", [DOCUMENTS[0][::-1], *DOCUMENTS[1:]])
    with pytest.raises(UserError, match="prepared with other settings or inputs"):
        prepare(import_config(tmp_path, "megatron", raw))


def cut(path, num_bytes):
    path.write_bytes(path.read_bytes()[:num_bytes])


def rewrite(path, at, content):
    raw = bytearray(path.read_bytes())
    raw[at : at + len(content)] = content
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("import_format", "damage", "message"),
    [
        ("megatron", lambda p: rewrite(p / "a.idx", 0, b"X"), r"a\.idx' does not begin with MMIDIDX"),
        ("megatron", lambda p: rewrite(p / "a.idx", 17, b"\x06"), r"a\.idx' has version 1 and dtype code 6"),
        ("megatron", lambda p: cut(p / "a.idx", 20), r"a\.idx' has 20 bytes, fewer than its header"),
        ("megatron", lambda p: cut(p / "a.idx", 200), r"a\.idx' has 200 bytes, too few for 40 sequences"),
        ("megatron", lambda p: cut(p / "a.bin", 200), r"a\.bin' has 200 bytes, fewer than its index says"),
        ("megatron", lambda p: (p / "a.bin").unlink(), r"data\.sources\.x\.raw: '.*a\.idx' lacks 'a\.bin' beside it"),
        ("datatrove", lambda p: cut(p / "a.ds", 201), r"a\.ds' has 201 bytes, but its index says \d+ tokens"),
        ("datatrove", lambda p: cut(p / "a.ds.index", 201), r"a\.ds\.index' has 201 bytes, no multiple of 8"),
        ("mds", lambda p: cut(p / "a/shard.00001.mds", 200), r"shard\.00001\.mds' has 200 bytes but its index says"),
        (
            "mds",
            lambda p: rewrite(p / "a/shard.00001.mds", 0, b"\x05"),
            r"shard\.00001\.mds' does not hold the 7 samples",
        ),
        ("mds", lambda p: cut(p / "a/index.json", 50), r"a/index\.json' is no index of MDS shards"),
        ("mds", lambda p: (p / "a/shard.00001.mds").unlink(), r"shard\.00001\.mds' is missing"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, import_format, damage, message):
    raw = WRITERS[import_format][0](tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        prepare(import_config(tmp_path, import_format, raw))


def test_tokens_of_another_tokenizer_a_wrong_column_and_a_wrong_format_are_refused(tmp_path):
    raw = write_datatrove(tmp_path / "a.ds", [*DOCUMENTS, [5, 259, 6]])
    with pytest.raises(
        UserError, match=r"a\.ds' document 40 has token ids 5 to 259, but data\.tokenizer has 259 tokens"
    ):
        prepare(import_config(tmp_path, "datatrove", raw))
    config = import_config(tmp_path, "mds", write_mds(tmp_path / "b", DOCUMENTS), shards=str(tmp_path / "other"))
    config.data.sources["x"].import_column = "input_ids"
    with pytest.raises(UserError, match="columns name, tokens, number but no 'input_ids'; set import_column"):
        prepare(config)
    config.data.sources["x"].import_format = "megatrom"
    with pytest.raises(
        UserError, match=r"data\.sources\.x\.import_format: 'megatrom' is unknown; did you mean 'megatron'"
    ):
        validate(config)


@pytest.mark.e2e
def test_the_command_imports(tmp_path):
    write_megatron(tmp_path / "a", DOCUMENTS)
    tiny_tokenizer(tmp_path / "tokenizer")
    words = [
        "data.tokenizer=tokenizer",
        "data.shards=shards",
        "+data.sources={x: {raw: [a.idx], import_format: megatron}}",
    ]
    command = [sys.executable, str(ROOT / "launch/prepare.py"), *words, "data.held_out_fraction=0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tokens_of(Source.open(tmp_path / "shards/x")) == DOCUMENTS


def test_a_folder_with_a_merged_index_is_one_input(tmp_path):
    write_mds(tmp_path / "a/0", DOCUMENTS)
    (tmp_path / "a/index.json").write_text("{}")
    assert find_token_files([str(tmp_path)], "mds", "raw") == [InputFile(tmp_path / "a", "mds")]
