import json
import pickle
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from cpt_dist.data.prepare import prepare
from cpt_dist.data.shards import Source, read_held_out, tokenizer_fingerprint
from cpt_dist.errors import UserError
from cpt_dist.files import fingerprint
from tests.helpers.corpora import corpus_config
from tests.helpers.tokenizer import tiny_tokenizer

TEXTS = [f"document {index} " + "ü" * (index % 7) for index in range(60)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A source of several shards and held-out files."""
    config = corpus_config(tmp_path_factory.mktemp("prepared"), {"legal": TEXTS}, shard_tokens="300")
    return prepare(config)[0].folder


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "legal")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A source whose one shard has three blocks."""
    texts = [f"{index} " * 20_000 for index in range(10, 36)]
    folder = tmp_path_factory.mktemp("large")
    return prepare(corpus_config(folder, {"legal": texts}, held_out_fraction=0))[0].folder


def flip(path, at, mask=1):
    content = bytearray(path.read_bytes())
    content[at] ^= mask
    path.write_bytes(content)


def reread(source):
    for shard, num_tokens in enumerate(source.shard_tokens):
        source.tokens(shard, 0, num_tokens), source.doc_offsets(shard), source.doc_ids(shard), source.doc_bytes(shard)


def test_a_source_gives_what_safetensors_reads(prepared):
    source = Source.open(prepared)
    assert len(source.shard_tokens) > 2
    for shard, num_tokens in enumerate(source.shard_tokens):
        plain = load_file(prepared / f"shard-{shard:05d}.safetensors")
        np.testing.assert_array_equal(source.tokens(shard, 3, 20), plain["tokens"][3:20])
        np.testing.assert_array_equal(source.doc_offsets(shard), plain["doc_offsets"])
        np.testing.assert_array_equal(source.doc_ids(shard), plain["doc_id"])
        np.testing.assert_array_equal(source.doc_bytes(shard), plain["doc_bytes"])
        assert (len(plain["tokens"]), plain["doc_offsets"][-1]) == (num_tokens, num_tokens)
        assert source.tokens(shard, 0, 1).dtype == np.uint16
        assert np.all(plain["tokens"][plain["doc_offsets"][1:] - 1] == source.separator_id)


def test_a_vocabulary_of_65536_is_stored_as_u32(tmp_path):
    tiny_tokenizer(tmp_path / "tokenizer", vocab_size=65536)
    source = Source.open(prepare(corpus_config(tmp_path, {"x": TEXTS}))[0].folder)
    assert source.tokens(0, 0, 1).dtype == np.uint32


def test_tokens_outside_a_shard_are_an_index_error(prepared):
    source = Source.open(prepared)
    with pytest.raises(IndexError):
        source.tokens(0, 0, int(source.shard_tokens[0]) + 1)


def test_a_pickled_source_reads_the_same_and_verifies_again(folder):
    source = Source.open(folder, verify="open")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.tokens(1, 0, 50), source.tokens(1, 0, 50))
    worker = pickle.dumps(source)
    flip(folder / "shard-00001.safetensors", 400)
    with pytest.raises(UserError, match="block 0 has checksum"):
        pickle.loads(worker).tokens(1, 0, 50)


def test_the_pickle_holds_no_tokens(large):
    source = Source.open(large, verify="open")
    assert len(pickle.dumps(source)) < 10_000


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_one_flipped_byte_anywhere_is_refused_by_name(large, tmp_path_factory, position, mask):
    folder = shutil.copytree(large, tmp_path_factory.mktemp("flipped") / "legal")
    shard = folder / "shard-00000.safetensors"
    at = int(position * shard.stat().st_size)
    flip(shard, at, mask)
    pattern = rf"source 'legal': {shard.name} block {at >> 20} has checksum \w{{16}} but its manifest says \w{{16}}; "
    with pytest.raises(UserError, match=pattern) as caught:
        reread(Source.open(folder))
    assert len(caught.value.problems) == 1
    assert "launch/prepare.py" in caught.value.problems[0]
    with pytest.raises(UserError, match=pattern):
        Source.open(folder, verify="open")
    shutil.rmtree(folder)


@pytest.mark.parametrize("section", ["tokens", "doc_offsets", "doc_id", "doc_bytes"])
def test_a_flip_in_each_section_is_refused(folder, section):
    shard = folder / "shard-00001.safetensors"
    content = shard.read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    first, last = json.loads(content[8 : 8 + header_bytes])[section]["data_offsets"]
    for at in (first, last - 1):
        flip(shard, 8 + header_bytes + at)
        with pytest.raises(UserError, match=r"shard-00001.safetensors block 0 has checksum"):
            Source.open(folder)
        flip(shard, 8 + header_bytes + at)
    Source.open(folder)


def test_only_the_blocks_that_are_read_are_verified(large, tmp_path):
    folder = shutil.copytree(large, tmp_path / "legal")
    flip(folder / "shard-00000.safetensors", (2 << 20) + 17)
    source = Source.open(folder)
    source.tokens(0, 0, 1000)
    with pytest.raises(UserError, match="block 2 has checksum"):
        source.tokens(0, 0, int(source.shard_tokens[0]))


@pytest.mark.parametrize("num_bytes", [-1, 1])
def test_a_shard_of_another_size_is_refused(folder, num_bytes):
    path = folder / "shard-00002.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:num_bytes] if num_bytes < 0 else content + b"x")
    with pytest.raises(UserError, match=rf"{path.name} has {len(content) + num_bytes} bytes but its manifest says"):
        Source.open(folder)


def test_a_missing_shard_is_refused(folder):
    (folder / "shard-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"shard-00001.safetensors cannot be read \(No such file"):
        Source.open(folder)


def test_a_regenerated_shard_of_the_same_size_is_refused(folder, tmp_path):
    texts = [text.replace("document", "DOCUMENT") for text in TEXTS]
    other = prepare(corpus_config(tmp_path / "other", {"legal": texts}, shard_tokens="300", held_out_fraction=0))[0]
    entry = json.loads((folder / "manifest.json").read_text())["shards"][0]
    content = (other.folder / "shard-00000.safetensors").read_bytes()
    (folder / "shard-00000.safetensors").write_bytes(content.ljust(entry["bytes"], b"\0")[: entry["bytes"]])
    with pytest.raises(UserError, match=r"shard-00000.safetensors block 0 has checksum"):
        Source.open(folder)


def test_a_folder_without_manifest_is_not_complete(folder):
    (folder / "manifest.json").unlink()
    for read in (Source.open, read_held_out):
        with pytest.raises(UserError, match=r"does not exist, so it is not complete; run launch/prepare.py"):
            read(folder)


def test_an_altered_manifest_is_refused_with_both_fingerprints(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tokens"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"was altered: it says {manifest['fingerprint']}, its content gives \w+"):
        Source.open(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no JSON"), ("[]", "has format None"), ('{"format": "mds"}', "has format 'mds'")],
)
def test_a_manifest_of_another_format_is_refused(folder, content, message):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Source.open(folder)


def test_another_tokenizer_is_refused_with_both_fingerprints(folder, tmp_path):
    other = tokenizer_fingerprint(tiny_tokenizer(tmp_path / "other", vocab_size=300))
    made_with = json.loads((folder / "manifest.json").read_text())["tokenizer"]["fingerprint"]
    assert Source.open(folder, made_with).name == "legal"
    with pytest.raises(UserError, match=f"were made with tokenizer {made_with}, not {other}"):
        Source.open(folder, other)


def test_the_tokenizer_fingerprint_ignores_padding_and_truncation_only(tmp_path):
    before = tokenizer_fingerprint(tiny_tokenizer(tmp_path))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 5}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content, indent=7))
    assert tokenizer_fingerprint(tmp_path) == before
    content["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_fingerprint(tmp_path) != before


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist"), ("x", "no JSON"), ("{}", "no tokenizer")])
def test_a_folder_without_tokenizer_is_refused(tmp_path, content, message):
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message):
        tokenizer_fingerprint(tmp_path)


def test_held_out_documents_come_in_the_order_of_their_id(folder):
    entries = json.loads((folder / "manifest.json").read_text())["held_out"]
    found = list(read_held_out(folder))
    assert len(entries) > 1
    assert len(found) == sum(entry["documents"] for entry in entries)
    assert [d.id for d in found] == sorted(d.id for d in found)
    assert {d.text for d in found} < set(TEXTS)


def test_an_altered_held_out_file_is_refused(folder):
    flip(folder / "held_out-00001.jsonl.zst", 20)
    with pytest.raises(UserError, match=r"held_out-00001.jsonl.zst has checksum \w+ but its manifest says \w+"):
        read_held_out(folder)


def test_the_manifest_fingerprint_is_that_of_its_content(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    said = manifest.pop("fingerprint")
    assert re.fullmatch(r"[0-9a-f]{32}", said)
    assert fingerprint(manifest) == said == Source.open(folder).fingerprint
