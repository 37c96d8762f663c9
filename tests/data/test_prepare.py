import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer

from cpt_dist.config import CptConfig
from cpt_dist.corpus.normalise import document_id, normalise
from cpt_dist.data.documents import is_held_out
from cpt_dist.data.prepare import prepare
from cpt_dist.data.shards import Source, read_held_out
from cpt_dist.errors import UserError
from cpt_dist.work_folder import locked
from tests.helpers.corpora import corpus_config, write_jsonl
from tests.helpers.tokenizer import BOS, EOS, tiny_tokenizer

TEXTS = [f"document number {index}" for index in range(40)]

RAW = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(["twice", "twice\r\n", "twice\n", " \n\t", "", "ab"]),
    st.sampled_from([b'{"text": "caf\xe9"}', b'{"text": "\\ud800"}', b"{", b'{"body": "x"}', b'{"text": 1}', b"  "]),
)


def documents(folder, tokenizer):
    """(hex id, text) of each training document, its text decoded from its tokens without the separator."""
    source, decoder = Source.open(folder), Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    found = []
    for shard in range(len(source.shard_tokens)):
        offsets, ids = source.doc_offsets(shard), source.doc_ids(shard)
        for index in range(len(ids)):
            tokens = source.tokens(shard, int(offsets[index]), int(offsets[index + 1]))
            found.append((ids[index].tobytes().hex(), decoder.decode(tokens[:-1].tolist(), skip_special_tokens=False)))
    return found


def expected_fate(line, seen, policy, min_bytes, fraction):
    """What a reader of docs/prepare.md would say becomes of a line."""
    if isinstance(line, bytes):
        if not line.strip():
            return None
        if b"caf" in line or b"ud800" in line:
            if policy == "drop":
                return "invalid_utf8"
            line = "caf\ufffd" if b"caf" in line else "\ufffd"
        else:
            return "invalid_json" if line == b"{" else "no_text_field"
    text = normalise(line)
    if not text.strip():
        return "empty"
    if len(text.encode()) < min_bytes:
        return "too_short"
    if text in seen:
        return "duplicate"
    seen.add(text)
    return "held_out" if is_held_out(document_id(text), fraction) else "kept"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(RAW, max_size=30),
    st.lists(RAW, max_size=30),
    st.sampled_from(["drop", "replace"]),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.3, 0.7]),
    st.integers(1, 100),
)
def test_every_record_is_accounted_for(tmp_path_factory, first, second, policy, min_bytes, fraction, shard_tokens):
    # A document that is surely kept, so that no source is empty: the id of "kept 6" is above 0.7.
    lines = {"a": [*first, "kept 6"], "b": [*second, "kept 7"]}
    folder = tmp_path_factory.mktemp("prepare")
    config = corpus_config(
        folder,
        lines,
        invalid_utf8=policy,
        min_bytes=min_bytes,
        held_out_fraction=fraction,
        shard_tokens=str(shard_tokens),
    )
    seen = set()
    for done in prepare(config):
        fates = Counter(expected_fate(line, seen, policy, min_bytes, fraction) for line in lines[done.folder.name])
        fates.pop(None, None)
        counts = done.manifest["counts"]
        assert counts["read"] == counts["kept"] + counts["held_out"] + sum(counts["dropped"].values())
        assert {"kept": counts["kept"], "held_out": counts["held_out"], **counts["dropped"]} == {
            "kept": 0,
            "held_out": 0,
            **fates,
        }
        kept = documents(done.folder, folder / "tokenizer")
        held_out = [(document.id, document.text) for document in read_held_out(done.folder)]
        assert (len(kept), len(held_out)) == (counts["kept"], counts["held_out"])
        assert all(doc_id == document_id(text).hex() for doc_id, text in kept + held_out)
        assert all(is_held_out(bytes.fromhex(doc_id), fraction) for doc_id, _ in held_out)
    assert is_held_out(document_id("kept 6"), 0.7) is False
    assert is_held_out(document_id("kept 7"), 0.7) is False


def test_a_duplicate_across_sources_stays_in_the_first(tmp_path):
    first, second = prepare(corpus_config(tmp_path, {"z": TEXTS[:30], "a": TEXTS[20:]}))
    assert first.manifest["counts"]["dropped"] == {}
    assert second.manifest["counts"]["dropped"] == {"duplicate": 10}


def test_duplicates_of_a_source_that_is_complete_already_are_found(tmp_path):
    prepare(corpus_config(tmp_path, {"z": TEXTS[:30]}))
    first, second = prepare(corpus_config(tmp_path, {"z": TEXTS[:30], "a": TEXTS[20:]}))
    assert first.was_complete
    assert second.manifest["counts"]["dropped"] == {"duplicate": 10}


def test_the_split_depends_on_the_text_alone(tmp_path):
    (done,) = prepare(corpus_config(tmp_path / "one", {"a": TEXTS}))
    (again,) = prepare(corpus_config(tmp_path / "two", {"b": TEXTS[::-1]}, shard_tokens="100"))
    assert [d.id for d in read_held_out(done.folder)] == [d.id for d in read_held_out(again.folder)] != []


def test_provenance_leads_from_each_document_to_its_raw_line(tmp_path):
    config = corpus_config(tmp_path, {"law": [b"{", *TEXTS]}, shard_tokens="200")
    (done,) = prepare(config)
    raw = (tmp_path / "raw/law.jsonl").read_bytes()
    rows = [
        row
        for entry in done.manifest["provenance"]
        for row in parquet.read_table(done.folder / entry["file"]).to_pylist()
    ]
    assert [row["doc_id"] for row in rows] == [doc_id for doc_id, _ in documents(done.folder, tmp_path / "tokenizer")]
    for row in rows:
        text = json.loads(raw[row["byte"] :].split(b"\n")[0])["text"]
        assert row == {
            "doc_id": document_id(text).hex(),
            "source": "law",
            "file": str(tmp_path / "raw/law.jsonl"),
            "record": raw[: row["byte"]].count(b"\n"),
            "byte": row["byte"],
            "licence": "CC0-1.0",
            "language": "en",
            "tokens": len(text) + 1,
            "bytes": len(text),
        }


@pytest.mark.parametrize("adds_bos", [False, True])
def test_bos_is_added_only_where_the_tokenizer_does(tmp_path, adds_bos):
    tiny_tokenizer(tmp_path / "tokenizer", adds_bos=adds_bos)
    (done,) = prepare(corpus_config(tmp_path, {"a": ["text"]}, held_out_fraction=0))
    tokens = Source.open(done.folder).tokens(0, 0, done.manifest["tokens"]).tolist()
    assert [token == 1 for token in tokens] == [adds_bos, *[False] * (len(tokens) - 1)]
    assert done.manifest["tokenizer"]["bos_id"] == (1 if adds_bos else None)


def test_add_bos_token_of_the_settings_wins(tmp_path):
    tiny_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True}))
    (done,) = prepare(corpus_config(tmp_path, {"a": ["text"]}, held_out_fraction=0))
    assert done.manifest["tokenizer"]["bos_id"] == 1


def test_a_special_token_spelt_out_in_a_document_is_text(tmp_path):
    (done,) = prepare(corpus_config(tmp_path, {"a": [f"a{EOS}b{BOS}"]}, held_out_fraction=0))
    tokens = Source.open(done.folder).tokens(0, 0, done.manifest["tokens"]).tolist()
    assert [token for token in tokens if token < 2] == [0] == tokens[-1:]


def test_truncation_saved_in_the_tokenizer_cuts_no_document(tmp_path):
    folder = tiny_tokenizer(tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))
    (done,) = prepare(corpus_config(tmp_path, {"a": ["x" * 30]}, held_out_fraction=0))
    assert done.manifest["tokens"] == 31


@pytest.mark.parametrize(
    ("eos", "separator", "message"),
    [
        (None, None, "names no eos_token; set data.separator"),
        ("</s>", None, "eos_token: '</s>' is not in the vocabulary"),
        (EOS, "<|ende|>", r"data.separator: '<\|ende\|>' is not in the vocabulary of .* did you mean '<\|end\|>'"),
    ],
)
def test_an_unknown_separator_is_refused(tmp_path, eos, separator, message):
    config = corpus_config(tmp_path, {"a": TEXTS}, separator=separator)
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    with pytest.raises(UserError, match=message):
        prepare(config)


def test_the_separator_can_be_another_token(tmp_path):
    (done,) = prepare(corpus_config(tmp_path, {"a": TEXTS}, separator=BOS))
    assert Source.open(done.folder).separator_id == 1


def test_a_complete_unchanged_source_is_left_alone(tmp_path):
    config = corpus_config(tmp_path, {"a": TEXTS})
    (before,) = prepare(config)
    times = {path: path.stat().st_mtime_ns for path in before.folder.iterdir()}
    (after,) = prepare(config)
    assert (before.was_complete, after.was_complete) == (False, True)
    assert times == {path: path.stat().st_mtime_ns for path in after.folder.iterdir()}


def test_a_raw_file_rewritten_with_the_same_content_counts_as_unchanged(tmp_path):
    prepare(corpus_config(tmp_path, {"a": TEXTS}))
    (after,) = prepare(corpus_config(tmp_path, {"a": TEXTS}))
    assert after.was_complete


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_bytes": 3}, "pipeline.min_bytes was 1 and is now 3"),
        ({"held_out_fraction": 0.5}, "pipeline.held_out_fraction was 0.2 and is now 0.5"),
        ({"shard_tokens": "1M"}, "pipeline.shard_tokens was 64000000 and is now 1000000"),
        ({"invalid_utf8": "replace"}, 'pipeline.invalid_utf8 was "drop" and is now "replace"'),
        ({"separator": BOS}, "tokenizer.separator_id was 0 and is now 1"),
    ],
)
def test_a_folder_of_other_settings_is_refused_with_what_differs(tmp_path, change, message):
    prepare(corpus_config(tmp_path, {"a": TEXTS}))
    with pytest.raises(UserError, match=f"{message}; choose another data.shards or remove the folder"):
        prepare(corpus_config(tmp_path, {"a": TEXTS}, **change))


def test_changed_raw_text_is_refused(tmp_path):
    prepare(corpus_config(tmp_path, {"a": TEXTS}))
    with pytest.raises(UserError, match=r"pipeline.inputs\..*a.jsonl.xxh3 was .* and is now "):
        prepare(corpus_config(tmp_path, {"a": TEXTS[::-1]}))


def test_a_new_source_before_a_complete_one_is_refused(tmp_path):
    prepare(corpus_config(tmp_path, {"a": TEXTS}))
    with pytest.raises(UserError, match=r"the sources before it.new was null and is now"):
        prepare(corpus_config(tmp_path, {"new": TEXTS[:20], "a": TEXTS}))


def test_a_folder_that_holds_other_files_is_refused(tmp_path):
    config = corpus_config(tmp_path, {"a": TEXTS})
    (tmp_path / "shards/a").mkdir(parents=True)
    (tmp_path / "shards/a/thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds files that launch/prepare.py didn't write \(thesis.tex\)"):
        prepare(config)


def test_a_folder_that_another_process_writes_is_refused(tmp_path):
    config = corpus_config(tmp_path, {"a": TEXTS})
    (tmp_path / "shards/a").mkdir(parents=True)
    with locked(tmp_path / "shards/a"), pytest.raises(UserError, match=r"another launch/prepare.py is writing"):
        prepare(config)


def test_a_source_of_which_nothing_is_kept_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(
        UserError, match=r"nothing is left to train on \(read 2, held out 0, dropped: empty 1, no_text_field 1\)"
    ):
        prepare(corpus_config(tmp_path, {"a": ["", b'{"body": "x"}']}))
    assert not (tmp_path / "shards/a").exists()


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing is left to train on \(read 0"):
        prepare(corpus_config(tmp_path, {"a": []}))


def test_a_mistake_mended_after_a_first_failure_needs_no_clean_up(tmp_path):
    config = corpus_config(tmp_path, {"a": TEXTS})
    raw = tmp_path / "raw/a.jsonl.zst"
    raw.write_bytes(b"no zstd")
    config.data.sources["a"].raw = [str(raw)]
    with pytest.raises(UserError, match="is damaged or cut off"):
        prepare(config)
    config.data.sources["a"].raw = [str(write_jsonl(tmp_path / "raw/a.jsonl", TEXTS))]
    assert prepare(config)[0].manifest["counts"]["read"] == len(TEXTS)


def test_all_mistakes_in_the_sources_are_reported_at_once(tmp_path):
    config = corpus_config(tmp_path, {"a": TEXTS, "b/c": TEXTS})
    config.data.sources["a"].raw = ["missing.txt"]
    with pytest.raises(UserError) as caught:
        prepare(config)
    assert ["missing.txt" in caught.value.problems[0], "'b/c'" in caught.value.problems[1]] == [True, True]


def test_no_source_is_a_mistake():
    with pytest.raises(UserError, match=r"data.sources is empty"):
        prepare(CptConfig())


def test_replaced_utf8_is_counted_and_printed(tmp_path, capsys):
    config = corpus_config(tmp_path, {"a": [b'{"text": "caf\xe9"}', *TEXTS]}, invalid_utf8="replace")
    assert prepare(config)[0].manifest["counts"]["repaired_utf8"] == 1
    assert "invalid UTF-8 replaced in 1 records" in capsys.readouterr().out
