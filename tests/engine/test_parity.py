import pytest

from cpt_dist.checkpoint.dcp import SafeReader
from tests.engine.conftest import BF16, BF16_RESUMES, HALF, RESUMES, UNINTERRUPTED

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]


def tensors(checkpoints, step):
    reader = SafeReader(checkpoints / f"step-{step:08d}" / "state")
    return {name: reader.tensor(name) for name in sorted(reader.tensor_shapes())}


@pytest.mark.parametrize("name", UNINTERRUPTED)
def test_every_engine_and_world_size_gives_the_same_losses_and_weights(runs, name):
    reference, run_dir = runs.uninterrupted("one"), runs.uninterrupted(name)
    assert len(runs.losses(run_dir)) == 20
    assert runs.losses(run_dir) == pytest.approx(runs.losses(reference), rel=1e-5)
    ours, theirs = tensors(run_dir / "checkpoints", 20), tensors(reference / "checkpoints", 20)
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        if key.startswith("model."):
            assert (ours[key] - weight).norm() <= 1e-4 * weight.norm(), key


def test_training_learns_something(runs):
    losses = runs.losses(runs.uninterrupted("one"))
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize(("writer", "reader"), RESUMES)
def test_a_resume_on_another_engine_or_world_size_continues_the_loss_curve(runs, writer, reader):
    resumed = runs.losses(runs.resumed(writer, reader))
    assert len(resumed) == 20
    assert resumed == pytest.approx(runs.losses(runs.uninterrupted("one")), rel=1e-5)


@pytest.mark.parametrize(("writer", "reader"), RESUMES)
def test_a_resume_reads_the_samples_that_the_uninterrupted_run_reads(runs, writer, reader):
    whole = runs.sample_ids(runs.uninterrupted("one"))
    resumed = runs.sample_ids(runs.resumed(writer, reader))
    assert list(resumed) == list(range(HALF + 1, 21))
    assert resumed == {step: whole[step] for step in resumed}


@pytest.mark.parametrize("name", BF16)
def test_bf16_stays_near_fp32(runs, name):
    losses = runs.losses(runs.uninterrupted(name))
    assert losses != runs.losses(runs.uninterrupted("one"))
    assert losses == pytest.approx(runs.losses(runs.uninterrupted("one")), rel=1e-2)


@pytest.mark.parametrize(("writer", "reader"), BF16_RESUMES)
def test_a_bf16_resume_continues_the_loss_curve(runs, writer, reader):
    resumed = runs.losses(runs.resumed(writer, reader))
    assert len(resumed) == 20
    assert resumed == pytest.approx(runs.losses(runs.uninterrupted(writer)), rel=1e-2)


@pytest.mark.parametrize(("writer", "reader"), RESUMES + BF16_RESUMES)
def test_weights_and_adam_moments_are_bit_equal_after_a_load(runs, writer, reader):
    saved = tensors(runs.uninterrupted(writer) / "checkpoints", HALF)
    loaded = tensors(runs.loaded(writer, reader), HALF)
    assert saved.keys() == loaded.keys()
    assert any(name.startswith("optimizer.exp_avg_sq.") for name in saved)
    different = [name for name, tensor in saved.items() if not tensor.equal(loaded[name])]
    assert different == []


def test_no_sample_comes_twice_within_a_run(runs):
    ids = [n for step in runs.sample_ids(runs.uninterrupted("zero 3")).values() for n in step]
    assert ids == list(range(80))
