"""A real transformers 4 reads our exports as transformers 5 does: python -m pytest -m peer tests/model

It is installed from the package index into an environment of its own, which sees this one's torch.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cpt_dist.config import RopeConfig, StageConfig
from cpt_dist.model.folder import read_model_config
from cpt_dist.model.model_files import write_export_config
from cpt_dist.model.rope import stage_ropes
from cpt_dist.rope_config import ROPE_TYPES
from tests.helpers.models import tiny_llama

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).resolve().parents[1] / "helpers/load_and_score.py"
PACKAGES = ["transformers==4.57.6", "huggingface-hub==0.36.0", "tokenizers==0.22.1"]


@pytest.fixture(scope="module")
def transformers_4(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers4")
    venv.create(folder, symlinks=True, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    python = folder / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", "--no-deps", *PACKAGES], check=True)
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.parametrize("kind", ROPE_TYPES)
def test_transformers_4_computes_what_transformers_5_computes(tmp_path, transformers_4, kind):
    folder = tiny_llama(tmp_path / "model", max_position_embeddings=512 if kind == "none" else 128)
    stage = StageConfig(seq_len=512, rope=RopeConfig(type=kind))
    (rope,) = stage_ropes(read_model_config(folder), [stage])
    write_export_config(folder, "fp32", rope.config_changes if rope else None)
    results = []
    for number, python in enumerate((sys.executable, transformers_4)):
        out = tmp_path / f"{number}.safetensors"
        done = subprocess.run([python, SCRIPT, folder, out], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append((done.stdout.split()[-1], load_file(out)))
    (five, ours), (four, theirs) = results
    assert (five[0], four[:4]) == ("5", "4.57")
    torch.testing.assert_close(theirs["inv_freq"], ours["inv_freq"], rtol=1e-7, atol=0)
    torch.testing.assert_close(theirs["logits"], ours["logits"], rtol=1e-5, atol=1e-5)
