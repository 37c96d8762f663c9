"""The benchmark of long rows compares like with like, and its fit finds the cost that it looks for."""

import importlib.util
import sys

import pytest

from cpt_dist.config import ModelConfig
from cpt_dist.model.load import load_model
from tests.helpers.tiny_run import ROOT


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "benchmarks" / "long_context.py"
    spec = importlib.util.spec_from_file_location("long_context_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.SHAPES = {"tiny": module.SHARED_SHAPE | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}}
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("documents", [1, 4])
def test_the_peer_has_our_loss(benchmark, tmp_path, documents):
    benchmark.make_models(tmp_path)
    batch = benchmark.row_of(128, documents)
    peer = benchmark.peer_step(tmp_path / "tiny")(batch)
    model = load_model(ModelConfig(path=str(tmp_path / "tiny")))
    _, nll = model(batch.input_ids, batch.labels, batch.position_ids, batch.cu_seqlens)
    assert peer == pytest.approx(float(nll.sum()) / batch.num_target_tokens, rel=1e-6)
    assert batch.num_target_tokens == 128 - documents


def test_the_fit_tells_the_sum_of_squares_from_the_square_of_the_row(benchmark):
    cases = [(8192, 1), (8192, 2), (8192, 8), (32768, 32)]
    times = {case: {"cpu_seconds": 1e-3 * case[0] + 3e-8 * benchmark.squares(case)} for case in cases}
    assert benchmark.largest_deviation(times, benchmark.squares) < 1e-9
    assert benchmark.largest_deviation(times, lambda case: float(case[0]) ** 2) > 0.1


def test_sides_that_compute_something_else_are_not_compared(benchmark):
    one = {"loss": 7.0, "cpu_seconds": 1.0, "peak_bytes": 1.0}
    with pytest.raises(SystemExit, match="the loss is"):
        benchmark.pair("a row", one, one | {"loss": 7.001}, "peer")
