"""The ledger as a user asks it, on a run directory with real shards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cpt_dist.config import StageConfig
from cpt_dist.corpus.normalise import document_id
from cpt_dist.data.ledger import Ledger, main
from cpt_dist.data.ledger_entry import write_ledger
from cpt_dist.data.prepare import prepare
from cpt_dist.data.shards import read_held_out
from cpt_dist.data.take_down import TakeDown
from cpt_dist.errors import UserError
from tests.helpers.corpora import corpus_config

TEXTS = {name: [f"{name} text number {i} " + "x" * (i % 50) for i in range(120)] for name in ("law", "news")}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of 40 steps of which 15 are done."""
    folder = tmp_path_factory.mktemp("ledger")
    config = corpus_config(folder, TEXTS, shard_tokens="1500")
    config.data.sources["news"].licence = "MIT"
    finished = prepare(config)
    mixture = {"law": 0.6, "news": 0.4}
    config.stages = [StageConfig(name="main", tokens="10240", seq_len=64, batch_tokens="256", mixture=mixture)]
    config.run_dir, config.model.path = str(folder / "run"), ""
    (folder / "run").mkdir()
    OmegaConf.save(OmegaConf.structured(config), folder / "run/config.yaml")
    fingerprints = {done.folder.name: done.manifest["fingerprint"] for done in finished}
    records = [{"kind": "run", "step": 0, "sources": fingerprints}, {"kind": "step", "step": 15}]
    (folder / "run/metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"kind": "st')
    return folder / "run"


def ask(tmp_path, *words):
    main([*words, f"json={tmp_path}/answer.json"])
    return json.loads((tmp_path / "answer.json").read_text())


def test_steps_are_answered_with_every_document_and_its_origin(run_dir, tmp_path, capsys):
    answer = ask(tmp_path, f"run_dir={run_dir}", "steps=3-5")
    assert sum(source["samples"] for source in answer["sources"].values()) == 12
    assert sum(source["tokens"] for source in answer["sources"].values()) == sum(
        d["tokens"] for d in answer["documents"]
    )
    for document in answer["documents"]:
        line = Path(document["file"]).read_text().splitlines()[document["record"]]
        assert document["document"] == document_id(json.loads(line)["text"]).hex()
        assert document["licence"] == {"law": "CC0-1.0", "news": "MIT"}[document["source"]]
        assert {reading["step"] for reading in document["read"]} <= {3, 4, 5}
    assert "MIT" in capsys.readouterr().out


def test_a_document_is_answered_with_when_and_how_often_it_was_read(run_dir, tmp_path):
    first = ask(tmp_path, f"run_dir={run_dir}", "steps=1")["documents"][0]
    (place,) = ask(tmp_path, f"run_dir={run_dir}", f"document={first['document']}")["places"]
    assert first["read"][0] in place["read"]
    assert all(reading["step"] <= 15 for reading in place["read"])
    assert all(reading["step"] > 15 for reading in place["planned"])
    assert place["times_read"] == sum(reading["tokens"] for reading in place["read"]) / place["tokens"]
    everything = ask(tmp_path, f"run_dir={run_dir}", "steps=1-40")
    (same,) = [d for d in everything["documents"] if d["document"] == first["document"]]
    assert place["read"] + place["planned"] == same["read"]


def test_the_last_step_done_has_read_and_the_next_has_not(run_dir, tmp_path):
    for step, done, other in ((15, "read", "planned"), (16, "planned", "read")):
        for document in ask(tmp_path, f"run_dir={run_dir}", f"steps={step}")["documents"]:
            (place,) = ask(tmp_path, f"run_dir={run_dir}", f"document={document['document']}")["places"]
            assert step in {reading["step"] for reading in place[done]}
            assert step not in {reading["step"] for reading in place[other]}


def test_a_text_is_found_by_its_content(run_dir, tmp_path):
    first = ask(tmp_path, f"run_dir={run_dir}", "steps=1")["documents"][0]
    line = Path(first["file"]).read_text().splitlines()[first["record"]]
    (tmp_path / "text.txt").write_text(json.loads(line)["text"])
    assert ask(tmp_path, f"run_dir={run_dir}", f"text={tmp_path}/text.txt")["document"] == first["document"]


def test_a_held_out_document_is_said_to_be_one(run_dir, tmp_path):
    held_out = next(read_held_out(run_dir.parent / "shards/news"))
    answer = ask(tmp_path, f"run_dir={run_dir}", f"document={held_out.id}")
    assert (answer["held_out_by"], answer["places"]) == ("news", [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=1"], "run_dir is missing"),
        (["run_dir=RUN"], "give one of steps=FIRST-LAST, document=ID and text=FILE"),
        (["run_dir=RUN", "step=1"], "there is no key 'step'; did you mean 'steps'?"),
        (["run_dir=RUN", "steps=a"], "steps: 'a' is neither a step nor FIRST-LAST"),
        (["run_dir=RUN", "steps=5-99"], "steps: 5-99 must rise within 1 to 40"),
        (["run_dir=RUN", "document=xyz"], "document: 'xyz' is no id; it has 32 hexadecimal characters"),
        (["run_dir=RUN", "document=" + "0" * 32], r"searched: law \(\d+ documents\), news \(\d+ documents\)"),
        (["run_dir=nowhere", "steps=1"], "run_dir: 'nowhere/config.yaml' does not exist"),
        (["run_dir=RUN", "steps=1", "shards=nowhere"], "source 'law': 'nowhere/law/manifest.json' does not exist"),
    ],
)
def test_a_mistake_is_named(run_dir, words, message):
    with pytest.raises(UserError, match=message):
        main([word.replace("RUN", str(run_dir)) for word in words])


def test_help_says_what_to_type(capsys):
    main(["--help"])
    assert "python -m cpt_dist.data.ledger run_dir=… steps=1200-1220 | document=ID" in capsys.readouterr().out


def test_shards_made_again_are_refused_by_name(run_dir, tmp_path):
    config = corpus_config(tmp_path, {**TEXTS, "news": TEXTS["news"][:90]}, shard_tokens="1500")
    prepare(config)
    with pytest.raises(UserError, match=r"source 'news': the run read .* made again"):
        Ledger.open(run_dir, str(tmp_path / "shards"))


def test_an_altered_provenance_table_is_refused_by_name(run_dir, tmp_path):
    import shutil

    shutil.copytree(run_dir.parent / "shards", tmp_path / "shards")
    path = tmp_path / "shards/law/provenance-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"source 'law': provenance-00000\.parquet has checksum"):
        Ledger.open(run_dir, str(tmp_path / "shards")).of_steps(1, 40)


@pytest.mark.e2e
def test_the_command_answers_without_torch_and_names_a_mistake_in_one_line(run_dir):
    code = "import sys, runpy; sys.argv = sys.argv[1:]\n"
    code += "try: runpy.run_module('cpt_dist.data.ledger', run_name='__main__')\n"
    code += "finally: print('torch' in sys.modules)"
    words = [sys.executable, "-c", code, "ledger"]
    done = subprocess.run([*words, f"run_dir={run_dir}", "steps=1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "False"), done.stderr
    done = subprocess.run([*words, f"run_dir={run_dir}", "steps=x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n"), done.stderr.startswith("error: steps")) == (2, 1, True)


def test_a_document_that_was_taken_down_is_said_to_be_and_has_no_later_readings(run_dir, tmp_path, capsys):
    ledger = Ledger.open(run_dir)
    reading = next(r for r in ledger.of_steps(1, 5)["documents"] if r["tokens"] > 1)
    doc_id = reading["document"]
    before = ask(tmp_path, f"run_dir={run_dir}", f"document={doc_id}")["places"][0]
    assert before["planned"]
    write_ledger(run_dir / "ledger.jsonl", [TakeDown(60, frozenset([bytes.fromhex(doc_id)]))])
    try:
        capsys.readouterr()
        answer = ask(tmp_path, f"run_dir={run_dir}", f"document={doc_id}")
    finally:
        (run_dir / "ledger.jsonl").unlink()
    assert answer["taken_down_from"] == 60
    assert "taken down from sample 60 on" in capsys.readouterr().out
    assert answer["places"][0]["planned"] == []
    assert answer["places"][0]["read"] == before["read"]
