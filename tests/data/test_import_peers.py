"""The real packages write, the importers read: python -m pytest -m peer tests/data/test_import_peers.py

Each package is installed from the package index into an environment of its own, which sees this one's (for torch and
numpy) and changes nothing in it. Not part of the ordinary test run.
"""

import json
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from cpt_dist.data.prepare import prepare
from cpt_dist.data.shards import Source
from tests.data.test_imports import DOCUMENTS, import_config, tokens_of

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]

WRITER = Path(__file__).resolve().parents[1] / "helpers/peer_writers.py"
PEERS = {
    "megatron": ("peer.idx", ["megatron-core==0.16.1"]),
    "datatrove": ("peer.ds", ["datatrove==0.10.1", "loguru", "humanize"]),
    "mds": ("peer", ["mosaicml-streaming==0.13.0", "brotli", "python-snappy", "cramjam", "zstd", "boto3", "catalogue"]),
}


@pytest.mark.parametrize("import_format", PEERS)
def test_what_the_real_package_wrote_is_imported_token_by_token(tmp_path, import_format):
    file, packages = PEERS[import_format]
    venv.create(tmp_path / "environment", symlinks=True)
    python = tmp_path / "environment/bin/python"
    (site,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # Each by itself and without what it asks for: the writers need little, and torch is there.
    for package in packages:
        with_parts = [] if package == "boto3" else ["--no-deps"]
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", *with_parts, package], check=True)
    (tmp_path / "documents.json").write_text(json.dumps(DOCUMENTS))
    done = subprocess.run([python, WRITER, import_format, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (prepared,) = prepare(import_config(tmp_path, import_format, tmp_path / file))
    assert tokens_of(Source.open(prepared.folder)) == DOCUMENTS
