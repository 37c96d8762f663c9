"""launch/prepare.py as a user starts it, with what docs/prepare.md tells them to type."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from cpt_dist.data.shards import Source
from tests.helpers.corpora import write_jsonl
from tests.helpers.tokenizer import tiny_tokenizer

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs/prepare.md").read_text(encoding="utf-8")
TEXTS = [f"document {index}" for index in range(200)]


def run(folder, arguments):
    command = [sys.executable, str(ROOT / "launch/prepare.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def documented_command(beginning):
    """Arguments of the documented command that has `beginning` among its first words."""
    lines = re.sub(r"\\\n", " ", DOCS).splitlines()
    (line,) = (line for line in lines if line.startswith(f"python launch/prepare.py {beginning}"))
    return shlex.split(line)[2:]


def test_the_documented_source_file_and_command_work(tmp_path):
    (tmp_path / "my_configs/data").mkdir(parents=True)
    (tmp_path / "my_configs/data/law.yaml").write_text(re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)[1])
    plain = write_jsonl(tmp_path / "raw/cases/a.jsonl", TEXTS)
    (tmp_path / "raw/cases/a.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    (tmp_path / "raw/statutes").mkdir()
    (tmp_path / "raw/statutes/b.txt").write_text("a statute")
    parquet.write_table(pa.table({"body": [f"news {index}" for index in range(50)]}), tmp_path / "raw/news.parquet")
    tiny_tokenizer(tmp_path / "PATH_OF_THE_MODEL")
    done = run(tmp_path, documented_command("--config-dir"))
    assert done.returncode == 0, done.stderr
    law = Source.open(tmp_path / "runs/shards/law/law")
    news = Source.open(tmp_path / "runs/shards/law/news")
    assert (law.role, news.role, law.manifest["licence"]) == ("domain", "replay", "CC0-1.0")
    assert (law.manifest["counts"]["read"], news.manifest["counts"]["read"]) == (201, 50)


def test_the_documented_command_without_a_file_works(tmp_path):
    for name in ("icd10cm", "sotu"):
        write_jsonl(tmp_path / f"runs/cache/corpora/{name}.jsonl", [f"{name} {text}" for text in TEXTS])
    tiny_tokenizer(tmp_path / "runs/cache/smollm2-135m")
    done = run(tmp_path, documented_command("data.tokenizer"))
    assert done.returncode == 0, done.stderr
    assert Source.open(tmp_path / "runs/shards/docs/sotu").manifest["counts"]["read"] == 200


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], r"error: source 'a': nothing is left to train on \(read 0"),
        ([b'{"text": "caf\xe9"}'], r"error: source 'a': nothing is left .* dropped: invalid_utf8 1\)"),
    ],
)
def test_an_empty_corpus_is_one_line_and_exit_code_2(tmp_path, texts, message):
    write_jsonl(tmp_path / "a.jsonl", texts)
    tiny_tokenizer(tmp_path / "tokenizer")
    sources = "+data.sources={a: {raw: [a.jsonl]}}"
    done = run(tmp_path, ["data.tokenizer=tokenizer", "data.shards=shards", sources])
    problems = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert (done.returncode, len(problems), "Traceback" in done.stderr) == (2, 1, False)
    assert re.match(message, problems[0])
