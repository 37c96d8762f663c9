"""Kernels compile for GPUs that are not here, and bad figures are red."""

import json

import pytest
from cpt_kernels.verify import ahead_of_time as ahead
from cpt_kernels.verify.ahead_of_time import Figures
from cpt_kernels.verify.builds import BUILDS, TARGETS

GOOD = Figures(64, 0, 40960, 64, 0)
PRODUCT = next(build for build in BUILDS if build.products)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Figures(255, 56, 40960, 64, 0), "spills 56 bytes"),
        (Figures(64, 0, 96 * 1024, 64, 0), "needs 98304 bytes of shared memory, the target has 65536"),
        (Figures(64, 0, 40960, 0, 0), "has no matrix instructions"),
        (Figures(64, 0, 40960, 64, 64), "rounds fp32 operands in 64 matrix instructions"),
        (Figures(70, 0, 40960, 64, 0), "registers rose from 64 to 70"),
        (Figures(64, 0, 50000, 64, 0), "shared_bytes rose from 40960 to 50000"),
        (Figures(64, 0, 40960, 32, 0), "matrix instructions fell from 64 to 32"),
    ],
)
def test_a_bad_figure_is_named(found, message):
    assert any(message in line for line in ahead.problems(PRODUCT, "gfx942", found, GOOD))


def test_equal_figures_are_no_problem():
    assert ahead.problems(PRODUCT, "gfx942", GOOD, GOOD) == []


def test_every_build_has_its_figures_and_none_is_bad():
    kept = ahead.kept_figures()
    assert set(kept) == {ahead.key(build, target) for build in BUILDS for target in TARGETS}
    assert [ahead.problems(b, t, kept[ahead.key(b, t)], None) for b in BUILDS for t in TARGETS].count([]) == len(kept)


def test_figures_of_another_triton_are_not_compared_with(tmp_path, monkeypatch):
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"triton": "0.0", "figures": {}}))
    monkeypatch.setattr(ahead, "FIGURES", path)
    assert ahead.kept_figures() == {}


def test_a_few_kernels_compile_here_as_the_kept_figures_say(interpreted):
    done = interpreted("cpt_kernels", "compile", "--fast", mode=None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 kernels compiled" in done.stdout


def test_compiling_in_the_interpreter_is_refused(interpreted):
    done = interpreted("cpt_kernels", "compile")
    assert done.returncode == 2
    assert "unset it" in done.stderr


def test_tuning_without_a_gpu_says_so(interpreted):
    done = interpreted("cpt_kernels", "tune", mode=None)
    assert done.returncode == 2
    assert "there is no GPU here" in done.stderr


def test_the_benchmark_of_kernels_without_a_gpu_says_so(interpreted):
    done = interpreted("benchmarks.gpu_kernels", mode=None)
    assert done.returncode == 2
    assert "not yet run" in done.stderr


@pytest.mark.e2e
def test_every_kernel_compiles_for_every_target(interpreted):
    done = interpreted("cpt_kernels", "compile", mode=None)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.e2e
def test_tf32_and_a_spill_are_seen_in_what_the_compilers_make(interpreted):
    done = interpreted("tests.helpers.bad_builds", mode=None)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert any("rounds fp32 operands" in line for line in found["tf32"])
    assert any("spills" in line for line in found["spill"])
