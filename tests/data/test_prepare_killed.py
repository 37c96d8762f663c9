"""prepare is killed (SIG    kill_at(folder, "journal", 3, "after")
) at each of its writes in turn; the rerun must give what an unkilled run gives."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_dist.data.prepare import prepare
from cpt_dist.data.shards import Source
from cpt_dist.data.tokenizer import DocumentTokenizer
from cpt_dist.errors import UserError
from tests.helpers.corpora import corpus_config

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"document number {index}" for index in range(48)]
TEXTS[5] = "a long document of several paragraphs\n\n" * 4
SOURCES = {"a": [*TEXTS[:36], b"{", "", TEXTS[0]], "b": [*TEXTS[30:], b"{"]}
SETTINGS = {"shard_tokens": "120", "cut_min_tokens": 60}

# Counts renames and journal lines; dies before, after, or (journal) in the middle of the one with the given number.
DRIVER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cpt_dist.data import journal, prepare as module
from tests.helpers.corpora import corpus_config
from tests.data.test_prepare_killed import SETTINGS, SOURCES
folder, kind, number, when = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
calls = {"rename": 0, "journal": 0}
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
def wrapped(name, original):
    def call(*arguments):
        calls[name] += 1
        here = kind == name and calls[name] == number
        if here and when == "before": kill()
        if here and when == "middle":
            with open(arguments[0].path, "ab") as handle: handle.write(b'{"shard": {"fi')
            kill()
        original(*arguments)
        if here and when == "after": kill()
    return call
os.replace = wrapped("rename", os.replace)
journal.Journal._append = wrapped("journal", journal.Journal._append)
module.prepare(corpus_config(folder, SOURCES, **SETTINGS))
"""


def content(folder):
    """Every file but the journals, which hold times of this machine."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "journal.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all runs, since raw file names are part of the output."""
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def unkilled(folder):
    for done in prepare(corpus_config(folder, SOURCES, **SETTINGS)):
        assert len(done.manifest["shards"]) > 1
    assert sum(paragraphs.size for paragraphs, _ in map(Source.open(folder / "shards" / "a").cuts, range(3))) == 3
    expected = content(folder / "shards")
    (folder / "shards").rename(folder / "unkilled")
    return expected


def kill_at(folder, kind, number, when):
    """Prepare anew in a process that kills itself; the folder of an earlier run is moved out of the way."""
    if (folder / "shards").exists():
        (folder / "shards").rename(folder / f"earlier-{len(list(folder.iterdir()))}")
    command = [sys.executable, "-c", DRIVER, str(ROOT), str(folder), kind, str(number), when]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()


POINTS = [
    ("rename", 1, "before"),
    ("rename", 2, "after"),
    ("rename", 3, "after"),
    ("rename", 5, "before"),
    ("rename", 13, "after"),
    ("journal", 1, "after"),
    ("journal", 3, "middle"),
    ("journal", 3, "after"),
    ("journal", 6, "after"),
]


@pytest.mark.parametrize(("kind", "number", "when"), POINTS)
def test_a_killed_run_leaves_nothing_complete_and_its_rerun_gives_the_same_bytes(folder, unkilled, kind, number, when):
    kill_at(folder, kind, number, when)
    assert content(folder / "shards") != unkilled
    assert not all((folder / "shards" / name / "manifest.json").exists() for name in SOURCES)
    for name in SOURCES:
        if not (folder / "shards" / name / "manifest.json").exists():
            with pytest.raises(UserError, match="not complete"):
                Source.open(folder / "shards" / name)
    prepare(corpus_config(folder, SOURCES, **SETTINGS))
    assert content(folder / "shards") == unkilled
    assert all(done.was_complete for done in prepare(corpus_config(folder, SOURCES, **SETTINGS)))


def test_a_rerun_does_not_tokenise_finished_parts_again(folder, unkilled, monkeypatch):
    kill_at(folder, "journal", 3, "after")
    lines = (folder / "shards/a/journal.jsonl").read_text().splitlines()
    finished = json.loads(lines[-1])["counts"]["kept"]
    original, seen = DocumentTokenizer.encode_with_cuts, []
    monkeypatch.setattr(
        DocumentTokenizer,
        "encode_with_cuts",
        lambda self, texts, cuts: seen.extend(texts) or original(self, texts, cuts),
    )
    done = prepare(corpus_config(folder, SOURCES, **SETTINGS))
    assert finished > 0
    assert len(seen) == sum(source.manifest["counts"]["kept"] for source in done) - finished


def test_other_settings_do_not_go_on_with_a_killed_run(folder, unkilled):
    kill_at(folder, "journal", 3, "after")
    with pytest.raises(UserError, match=r"pipeline.min_bytes was 1 and is now 4"):
        prepare(corpus_config(folder, SOURCES, **SETTINGS, min_bytes=4))
