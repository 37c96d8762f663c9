"""The pipeline of curation as a whole: the fate of every raw record, whatever runs it and however often it's killed."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pyarrow import parquet

from cpt_dist.config import SourceConfig
from cpt_dist.corpus.curation.curate import curate
from cpt_dist.corpus.normalise import document_id, is_held_out, normalise
from cpt_dist.curation_pipeline_config import DecontaminationConfig
from cpt_dist.data.curated import with_curated_sources
from cpt_dist.data.prepare import prepare
from cpt_dist.errors import UserError
from tests.helpers.corpora import corpus_config, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    f"{start}{end}" for start in ("ba", "ko", "mi", "tu", "re", "lo") for end in ("n", "rt", "sk", "m", "pel", "gan")
]


def essay(seed, words=120):
    """A text of random words, in paragraphs of thirty."""
    chosen = random.Random(seed).choices(WORDS, k=words)
    return "\n\n".join(" ".join(chosen[at : at + 30]) for at in range(0, words, 30))


def changed(text, words, seed=0):
    """`text` with so many words replaced."""
    parts = text.split(" ")
    for place in random.Random(seed).sample(range(len(parts)), words):
        parts[place] = "changed"
    return " ".join(parts)


LAW = [essay(index) for index in range(40)]
NEWS = [essay(1000 + index) for index in range(20)]
SOURCES = {
    "law": [*LAW, LAW[3], changed(LAW[7], 2), b"{", b'{"text": 5}', "   ", LAW[5] + "\x00"],
    "news": [*NEWS, LAW[9], changed(LAW[11], 2)],
}


def curation_config(root, sources=SOURCES, tasks=1, held_out=0.0, **curation):
    config = corpus_config(root, sources, held_out_fraction=held_out)
    for name, source in config.data.sources.items():
        source.curation = {}
        source.role = "domain" if name == "law" else "replay"
    settings = {"folder": str(Path(root) / "curated"), "tasks": tasks, "block_bytes": "5000"}
    config.data.curation = dataclasses.replace(config.data.curation, **settings | curation)
    return config


def rows_of(files):
    return [row for path in sorted(files) for row in parquet.read_table(path).to_pylist()]


def curated_rows(folder, source):
    return rows_of((folder / "curated" / source).glob("part-*.parquet"))


def dropped_rows(folder, source):
    return rows_of((folder / "curated" / source).glob("dropped-*.parquet"))


def files_below(folder):
    """Every file but the times of change of raw files."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "times.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a curation by one task, and its manifests."""
    folder = tmp_path_factory.mktemp("curated")
    return folder, {name: found.manifest for name, found in curate(curation_config(folder)).items()}


def test_every_raw_record_is_kept_or_dropped_once_and_found_by_its_origin(done):
    folder, manifests = done
    for name, texts in SOURCES.items():
        kept, dropped = curated_rows(folder, name), dropped_rows(folder, name)
        assert sorted(row["record"] for row in [*kept, *dropped]) == list(range(len(texts)))
        assert all(row["text"] == normalise(texts[row["record"]]) for row in kept)
        raw = (folder / "raw" / f"{name}.jsonl").read_bytes()
        for row in kept:
            line = raw[row["byte"] :].split(b"\n", 1)[0]
            assert normalise(json.loads(line)["text"]) == row["text"]
            assert row["id"] == document_id(row["text"]).hex()
        steps = manifests[name]["steps"]
        assert steps["read"]["read"] == len(texts)
        assert manifests[name]["documents"] == len(kept) == list(steps.values())[-1]["kept"]


def test_duplicates_go_in_favour_of_the_domain_and_say_of_what(done):
    folder, _ = done
    law = {row["record"]: row for row in dropped_rows(folder, "law")}
    news = {row["record"]: row for row in dropped_rows(folder, "news")}
    assert {record: row["reason"] for record, row in law.items()} == {
        40: "duplicate", 42: "invalid_json", 43: "no_text_field", 44: "empty", 45: "duplicate",
        **{record: "near_duplicate" for record in law if record in (7, 41)},
    }  # fmt: skip
    assert len({7, 41} & law.keys()) == 1
    assert {record: row["reason"] for record, row in news.items()} == {20: "duplicate", 21: "near_duplicate"}
    assert news[20]["detail"] == "of a document in 'law'"
    assert news[21]["detail"].endswith(f"like {document_id(normalise(LAW[11])).hex()} in 'law'")


def test_a_complete_curation_is_left_alone_and_other_settings_are_refused_by_name(done):
    folder, _ = done
    before = files_below(folder)
    config = curation_config(folder, tasks=3)
    curate(config)
    assert files_below(folder) == before
    config.data.curation.near_duplicates.threshold = 0.6
    with pytest.raises(UserError, match=r"near_duplicates.threshold was 0.75 and is now 0.6"):
        curate(config)


def test_the_raw_files_of_a_damaged_source_are_named(tmp_path):
    config = curation_config(tmp_path)
    broken = write_jsonl(tmp_path / "raw" / "broken.jsonl", ["x"]).with_suffix(".jsonl.gz")
    broken.write_bytes(b"no gzip")
    config.data.sources["law"].raw.append(str(broken))
    with pytest.raises(UserError, match=r"broken.jsonl.gz' is damaged"):
        curate(config)


KILLED = """
import os, signal, sys
root, raw, target, number, workers = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
sys.path.insert(0, root)
from cpt_dist.corpus.curation.curate import curate
from tests.corpus.test_curation import config_of_all_stages
replace, renames = os.replace, 0
def killed(*names):
    global renames
    renames += 1
    if renames == number: os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)
os.replace = killed
curate(config_of_all_stages(raw, folder=target, tasks=8, workers=workers))
"""


def config_of_all_stages(root, **curation):
    """Every optional stage and kind of file: joining, chunks, repeated paragraphs, spans of evaluation items."""
    config = curation_config(root, {"law": SOURCES["law"], "news": joinable(NEWS)}, **curation)
    items = write_jsonl(Path(root) / "items.jsonl", [" ".join(LAW[2].split()[50:70])])
    config.data.curation.decontamination = DecontaminationConfig(
        [str(items)], action="spans", margin_characters=10, min_piece_characters=20
    )
    config.data.curation.paragraph_duplicates.enabled = True
    config.data.sources["news"].curation = {"joining": {"by": "book"}, "chunking": {"max_characters": 1500}}
    return config


def joinable(texts):
    """Raw lines of which every three are of one book, but for the last one."""
    lines = [{"text": text, "book": f"book {number // 3}"} for number, text in enumerate(texts[:-1])]
    return [*(json.dumps(line).encode() for line in lines), texts[-1]]


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def processes_of_session(session):
    """Processes that still run of a program that was started in a session of its own."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            pass
    return found


@pytest.mark.distributed
def test_eight_tasks_killed_and_resumed_give_the_files_of_one_task(tmp_path):
    (tmp_path / "one").mkdir()
    curate(config_of_all_stages(tmp_path / "one", tasks=1))
    expected = files_below(tmp_path / "one" / "curated")
    assert {name.split("-")[0] for name in expected if "-" in name} >= {"law/part", "law/removed", "news/members"}
    target = tmp_path / "curated"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    started = [sys.executable, "-c", KILLED, str(ROOT), str(tmp_path / "one"), str(target)]
    assert (
        subprocess.run([*started, "20", "1"], env=environment, timeout=120, check=False).returncode == -signal.SIGKILL
    )
    with subprocess.Popen([*started, "0", "2"], env=environment, start_new_session=True) as running:
        wait_until(lambda: list(target.glob("work/score/*/*.json")) or running.poll() is not None)
        running.kill()
    wait_until(lambda: not processes_of_session(running.pid))
    curate(config_of_all_stages(tmp_path / "one", folder=str(target), tasks=8, workers=2))
    assert files_below(target) == expected


def test_evaluation_items_and_held_out_texts_are_kept_out(tmp_path):
    item = {"question": " ".join(LAW[2].split()[10:30]), "choices": ["yes", "no"], "answer": 1}
    evaluation = tmp_path / "items.jsonl"
    evaluation.write_text(json.dumps(item) + "\n")
    held_out = write_jsonl(tmp_path / "gold.jsonl", [changed(LAW[4], 2)])
    config = curation_config(tmp_path)
    config.data.curation.decontamination.files = [str(evaluation)]
    config.data.curation.decontamination.held_out = [str(held_out)]
    curate(config)
    found = {row["record"]: row for row in dropped_rows(tmp_path, "law")}
    assert found[2]["reason"] == "contaminated"
    assert found[2]["detail"].startswith(f"{evaluation}:0: ")
    assert " ".join(item["question"].split()[:13]) in found[2]["detail"]
    assert found[4]["reason"] == "near_duplicate"
    assert found[4]["detail"].endswith("in '@held_out'")


def test_nothing_that_is_trained_on_resembles_what_prepare_holds_out(tmp_path):
    texts = [text for index in range(30) for text in (essay(index), changed(essay(index), 2))]
    config = curation_config(tmp_path, {"law": texts, "news": NEWS}, held_out=0.5)
    curate(config)
    for row in dropped_rows(tmp_path, "law"):
        pair = [document_id(normalise(text)) for text in texts[row["record"] // 2 * 2 :][:2]]
        if any(is_held_out(one, 0.5) for one in pair):
            kept = pair[1 - row["record"] % 2]
            assert is_held_out(kept, 0.5)


def test_shards_of_a_curated_source_lead_back_to_the_raw_text(tmp_path):
    config = curation_config(tmp_path, held_out=0.2)
    curated, fingerprints = with_curated_sources(config, curate(config))
    done = {one.folder.name: one for one in prepare(curated, fingerprints)}
    raw = tmp_path / "raw" / "law.jsonl"
    table = parquet.read_table(done["law"].folder / "provenance-00000.parquet").to_pylist()
    assert {row["file"] for row in table} == {str(raw)}
    lines = raw.read_bytes().split(b"\n")
    for row in table:
        assert document_id(normalise(json.loads(lines[row["record"]])["text"])).hex() == row["doc_id"]
    counts = done["law"].manifest["counts"]
    assert counts["read"] == len(curated_rows(tmp_path, "law"))
    assert done["law"].manifest["pipeline"]["curation"] == fingerprints["law"]


def test_chunks_join_to_their_document_and_lie_on_one_side_of_the_split(tmp_path):
    config = curation_config(tmp_path, {"law": LAW, "news": NEWS}, held_out=0.5)
    config.data.sources["law"].curation = {"chunking": {"max_characters": 300}, "quality": {"enabled": False}}
    folders = curate(config)
    rows = curated_rows(tmp_path, "law")
    assert folders["law"].manifest["steps"]["chunking"]["pieces"] == len(rows) > 2 * len(LAW)
    for record, text in enumerate(LAW):
        pieces = [row for row in rows if row["record"] == record]
        assert "".join(piece["text"] for piece in pieces) == normalise(text)
        assert {piece["parent"] for piece in pieces} == {document_id(normalise(text)).hex()}
    shards = next(one for one in prepare(*with_curated_sources(config, folders)) if one.folder.name == "law")
    trained = {row["record"] for row in rows_of(shards.folder.glob("provenance-*.parquet"))}
    assert trained == {n for n, text in enumerate(LAW) if not is_held_out(document_id(normalise(text)), 0.5)}


def test_documents_that_cleaning_made_equal_are_one_in_the_shards(tmp_path):
    texts = [f"{LAW[0]}\n\nWrite to {name}@example-law.org about it." for name in ("anna", "bert")]
    config = curation_config(tmp_path, {"law": texts, "news": NEWS})
    config.data.curation.near_duplicates.enabled = False
    config.data.sources["law"].curation = {"quality": {"enabled": False}, "pii": {"policy": "mask"}}
    folders = curate(config)
    assert [row["count.pii_email"] for row in curated_rows(tmp_path, "law")] == [1, 1]
    law = next(one for one in prepare(*with_curated_sources(config, folders)) if one.folder.name == "law")
    assert law.manifest["counts"]["dropped"] == {"duplicate": 1}


def test_a_source_that_was_not_asked_to_be_curated_is_prepared_as_before(tmp_path):
    config = curation_config(tmp_path)
    config.data.sources["news"].curation = None
    curated, fingerprints = with_curated_sources(config, curate(config))
    assert fingerprints.keys() == {"law"}
    assert curated.data.sources["news"] == config.data.sources["news"]


def test_repeated_paragraphs_are_cut_from_all_but_the_first_document(tmp_path):
    shared = essay(99, 30)
    config = curation_config(tmp_path, {"law": [f"{LAW[0]}\n\n{shared}", f"{shared}\n\n{LAW[1]}"], "news": [shared]})
    config.data.curation.paragraph_duplicates.enabled = True
    config.data.curation.paragraph_duplicates.min_bytes = 20
    with pytest.raises(UserError, match="source 'news': curation leaves nothing"):
        with_curated_sources(config, curate(config))
    assert [row["text"] for row in curated_rows(tmp_path, "law")] == [f"{LAW[0]}\n\n{shared}", LAW[1]]
    assert dropped_rows(tmp_path, "news")[0]["reason"] == "duplicate_paragraphs"


def test_a_curated_source_is_plain_text():
    from cpt_dist.config import CptConfig
    from cpt_dist.validation import validate

    config = CptConfig(run_dir="run")
    config.data.sources = {"law": SourceConfig(raw=["x"], curation={}, import_format="mds")}
    with pytest.raises(UserError, match=r"data.sources.law.curation: only plain text .* import_format"):
        validate(config)
