"""The pilot: each token is trained on once, it learns what can be learned, and it stops in time."""

import numpy as np
import pytest
import torch

from cpt_dist.config import ModelConfig
from cpt_dist.diagnosis.pilot import default_peak, pack_rows, step_size, train_pilot
from cpt_dist.model.load import load_model
from tests.helpers.models import tiny_llama

END = 0


def documents(num, seed=0, length=30):
    rng = np.random.default_rng(seed)
    return [np.concatenate([[END], rng.integers(2, 12, length)]) for _ in range(num)]


def test_every_token_is_predicted_once_and_only_from_its_own_document():
    given = documents(7, length=13)
    steps = pack_rows(given, END, 10)
    assert all(sum(len(piece) - 1 for piece in step) == 10 for step in steps)
    targets = np.concatenate([piece[1:] for step in steps for piece in step])
    expected = np.concatenate([np.append(document[1:], END) for document in given])
    assert np.array_equal(targets, expected[: len(targets)])
    assert len(expected) - len(targets) < 10


@pytest.mark.parametrize(
    ("budget", "size"), [(2559, None), (2560, 256), (12_800, 256), (50_000, 1000), (102_400, 2048), (10**9, 2048)]
)
def test_short_pilots_take_smaller_steps_and_shorter_ones_are_not_run(budget, size):
    assert step_size(budget) == size


def test_the_peak_learning_rate_falls_above_eight_billion_parameters():
    assert default_peak(8_000_000_000) == 3e-5
    assert default_peak(8_000_000_001) == 1e-5


@pytest.fixture
def model(tmp_path):
    return load_model(ModelConfig(path=str(tiny_llama(tmp_path / "model", vocab_size=64))))


def test_a_pilot_learns_and_says_what_it_did(model):
    steps = pack_rows(documents(100), END, 256)
    run = train_pilot(model, steps, peak_lr=1e-2, seconds=60)
    assert run.steps == len(steps)
    assert run.tokens == 256 * len(steps)
    assert run.last_loss < 0.8 * run.first_loss
    assert not run.out_of_time
    assert not model.training


def test_a_pilot_stops_when_its_time_is_out(model):
    run = train_pilot(model, pack_rows(documents(100), END, 256), peak_lr=1e-3, seconds=1e-9)
    assert (run.steps, run.out_of_time) == (1, True)


def test_the_same_pilot_gives_the_same_weights(tmp_path):
    folder = str(tiny_llama(tmp_path / "model", vocab_size=64))
    models = [load_model(ModelConfig(path=folder)) for _ in range(2)]
    for one in models:
        train_pilot(one, pack_rows(documents(30), END, 256), peak_lr=1e-2, seconds=60)
    assert all(torch.equal(a, b) for a, b in zip(*(one.parameters() for one in models), strict=True))
