"""Distillation on one process: the loss and its gradient, what it hangs on, what a run keeps of it, mistakes."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cpt_dist.checkpoint.dcp import SafeReader
from cpt_dist.config import CptConfig, ModelConfig, StageConfig
from cpt_dist.data.batches import pack_documents
from cpt_dist.distillation_config import DistillationConfig, distillation_problems
from cpt_dist.engine import distributed
from cpt_dist.engine.build import build_engine
from cpt_dist.engine.teacher import StepDistillation, Teacher, needed_pieces
from cpt_dist.errors import UserError
from cpt_dist.model.load import load_model
from cpt_dist.training.distillation import Distillation
from cpt_dist.training.preflight import open_sources
from tests.helpers import in_process, models, tiny_run

WEIGHT, TEMPERATURE = 0.7, 2.0
STEPS = 4


def distilled(batch):
    """About half of the predicted tokens."""
    return (batch.labels >= 0) & (batch.input_ids % 2 == 0)


def documents():
    generator = np.random.default_rng(7)
    return [generator.integers(0, 1001, length) for length in (17, 1, 30, 9)]


def reference(student, teacher):
    """(sum of KL, gradients) in float64, each document alone, all logits at once."""
    ours, theirs = (AutoModelForCausalLM.from_pretrained(one, dtype=torch.float64).eval() for one in (student, teacher))
    nll, kl, targets, number = 0.0, 0.0, 0, 0
    for ids in map(torch.from_numpy, documents()):
        logits = ours(ids[None]).logits[0, :-1]
        with torch.no_grad():
            soft = (theirs(ids[None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
        nll = nll + torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
        each = (soft.exp() * (soft - (logits / TEMPERATURE).log_softmax(-1))).sum(-1)
        chosen = ids[:-1] % 2 == 0
        kl, targets, number = kl + each[chosen].sum(), targets + len(each), number + int(chosen.sum())
    (nll / targets + WEIGHT * TEMPERATURE**2 * kl / number).backward()
    return float(kl.detach()), {name: one.grad for name, one in ours.named_parameters()}


@pytest.fixture
def world():
    yield distributed.start(CptConfig().engine)
    distributed.stop()


@pytest.fixture
def folders(tmp_path):
    """A model, and a teacher of another family and width."""
    models.tiny_llama(tmp_path / "model")
    models.tiny_qwen2(tmp_path / "teacher", seed=5, hidden_size=32)
    return tmp_path / "model", tmp_path / "teacher"


def gradients(world, folders, batches):
    config = CptConfig(run_dir="unused", model=ModelConfig(path=str(folders[0])))
    config.stages = [StageConfig(tokens="1", batch_tokens="1")]
    engine = build_engine(load_model(config.model), config, world, torch.float32)
    engine.context.enter(config, 0)
    engine.teacher = Teacher(load_model(ModelConfig(path=str(folders[1]))), config.engine, world, torch.float32)
    targets, number = (sum(int(of(batch).sum()) for batch in batches) for of in (lambda b: b.labels >= 0, distilled))
    step = StepDistillation(distilled, number / WEIGHT, TEMPERATURE)
    for place, batch in enumerate(batches, start=1):
        engine.forward_backward(batch, targets, place == len(batches), step)
    assert all(parameter.grad is None for parameter in engine.teacher.model.parameters())
    return step.kl, {engine.model.hf_name(name): one.grad for name, one in engine.model.named_parameters()}


def test_the_kl_and_the_gradients_are_those_of_float64_whatever_the_packing(world, folders):
    kl, expected = reference(*folders)
    for batches in ([pack_documents(documents())], [pack_documents([one]) for one in documents()]):
        found, grads = gradients(world, folders, batches)
        assert found == pytest.approx(kl, rel=1e-5)
        for name, gradient in expected.items():
            assert (grads[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_a_teacher_reads_each_piece_up_to_its_last_distilled_token(folders):
    batch = pack_documents(documents())
    chosen = torch.zeros(batch.num_tokens, dtype=torch.bool)
    chosen[[3, 5, 20]] = True  # of the first and the third document
    needed = needed_pieces(batch, chosen)
    assert needed.cu_seqlens.tolist() == [0, 6, 9]
    assert needed.input_ids[needed.at].tolist() == batch.input_ids[chosen].tolist()
    model = load_model(ModelConfig(path=str(folders[1])))
    with torch.no_grad():
        whole = model.hidden_states(batch.input_ids, batch.position_ids, batch.cu_seqlens)
        part = model.hidden_states(needed.input_ids, needed.position_ids, needed.cu_seqlens)
    assert torch.allclose(part[needed.at], whole[chosen], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A configuration of four steps, of which the third reads no replay."""
    folder = tmp_path_factory.mktemp("distillation")
    config = tiny_run.build(folder)
    config["stages"][0] |= {"tokens": str(STEPS * 256), "mixture": {"domain": 0.82, "general": 0.18}}
    config["checkpoint"] = {"every_steps": 1, "keep_last": 0}
    models.tiny_qwen3(folder / "other", seed=3, max_position_embeddings=32)
    tiny_run.write_tokenizer(folder / "other")
    models.tiny_llama(folder / "larger", vocab_size=1002)
    tiny_run.write_tokenizer(folder / "larger")
    models.tiny_llama(folder / "words")
    tiny_run.write_tokenizer(folder / "words")
    text = (folder / "words" / "tokenizer.json").read_text()
    (folder / "words" / "tokenizer.json").write_text(text.replace('"w000"', '"W000"'))
    return folder, config


def test_a_step_is_divided_by_its_distilled_tokens_over_the_weight(base):
    config = in_process.typed(base[1], "unused", distillation={"weight": 4.0})
    assert Distillation(config, open_sources(config)).of_step(10).divisor == 2.5


def weights(run_dir, step):
    reader = SafeReader(run_dir / "checkpoints" / f"step-{step:08d}" / "state")
    return {name: reader.tensor(name) for name in sorted(reader.tensor_shapes())}


def test_a_teacher_that_is_the_model_itself_changes_nothing(base, tmp_path):
    config = base[1] | {"stages": [base[1]["stages"][0] | {"tokens": "256"}]}
    (plain,) = in_process.train(config, tmp_path / "plain")
    (record,) = in_process.train(config, tmp_path / "taught", distillation={"weight": 3.0, "tokens": "all"})
    assert abs(record["distillation_kl"]) < 1e-6
    assert record["distilled_tokens"] == record["target_tokens"]
    assert "distillation_kl" not in plain
    assert record["loss"] == plain["loss"]
    work, without = (one["mfu"] * one["seconds"] for one in (record, plain))
    assert work / without == pytest.approx(1 + record["distilled_tokens"] / record["tokens"] / 3)
    expected, found = weights(tmp_path / "plain", 1), weights(tmp_path / "taught", 1)
    for name, weight in expected.items():
        if name.startswith("optimizer.exp_avg."):
            assert (found[name] - weight).norm() <= 1e-5 * weight.norm(), name


def test_only_replay_is_distilled_where_the_teacher_knows_the_position_and_micro_batches_change_nothing(base, tmp_path):
    folder, config = base
    asked = {"weight": 2.0, "temperature": 2.0, "teacher": str(folder / "other")}
    config = config | {"stages": [config["stages"][0] | {"positions": "continue"}]}
    runs = []
    for micro_batch in (1, 4):
        engine = config["engine"] | {"micro_batch": micro_batch}
        runs.append(in_process.train(config, tmp_path / f"{micro_batch}", engine=engine, distillation=asked))
    for key in ("loss", "distillation_kl", "grad_norm"):
        first, second = ([record[key] for record in run if record[key] is not None] for run in runs)
        assert second == pytest.approx(first, rel=1e-5)
    assert [record["distilled_tokens"] for record in runs[0]] == [record["distilled_tokens"] for record in runs[1]]
    replay = [record["realised_tokens"]["general"] for record in runs[0]]
    read = [after - before for before, after in zip([0, *replay], replay, strict=False)]
    assert 0 in read
    assert next(one["distillation_kl"] for one in runs[0] if one["distilled_tokens"]) > 0.01
    for record, tokens in zip(runs[0], read, strict=True):
        assert (record["distilled_tokens"] > 0) == (tokens > 0)
        assert record["distilled_tokens"] <= tokens / 2  # the teacher knows 32 of the 64 positions in a row
        assert (record["distillation_kl"] is None) == (tokens == 0)


def test_a_resumed_run_is_the_uninterrupted_one_and_keeps_its_teacher(base, tmp_path):
    folder, config = base
    asked = {"weight": 2.0, "teacher": str(folder / "other")}
    whole = in_process.train(config, tmp_path / "whole", distillation=asked)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for step in range(3, STEPS + 1):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"step-{step:08d}")
    with pytest.raises(UserError, match=r"distillation\.teacher: .*holds other weights .* than the teacher"):
        in_process.train(config, tmp_path / "again", distillation=asked | {"teacher": None})
    resumed = in_process.train(config, tmp_path / "again", distillation=asked)
    for key in ("loss", "distillation_kl", "grad_norm"):
        assert [record[key] for record in resumed] == [record[key] for record in whole]
    expected, found = (weights(tmp_path / name, STEPS) for name in ("whole", "again"))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    records = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    told = [one["distillation"] for one in records if one["kind"] in ("run", "resume")]
    assert [one["teacher"]["path"] for one in told] == [asked["teacher"]] * 2
    kernels = [one["chosen"] for one in records if one["kind"] == "kernels"]
    assert all("linear_kl" in {choice["operation"] for choice in one} for one in kernels)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weight": -1.0}, "distillation.weight: -1.0 must be positive and finite; distillation=null turns it off"),
        ({"weight": 0.0}, "distillation.weight: 0.0 must be positive"),
        ({"temperature": 0.0}, "distillation.temperature: 0.0 must be positive"),
        ({"tokens": "replays"}, "distillation.tokens: 'replays' is unknown; it is replay or all"),
        ({"tokens": "replay"}, "distillation.tokens: no stage reads a source with role replay"),
    ],
)
def test_a_mistake_in_the_values_is_one_line(asked, message):
    roles = {"law": "domain", "web": "replay"}
    read = {"law"} if asked == {"tokens": "replay"} else {"law", "web"}
    (problem,) = distillation_problems(DistillationConfig(**asked), roles, read)
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "distillation.teacher: there is no folder "),
        ("larger", "distillation.teacher: '.*larger' has 1002 words in its vocabulary and the model 1001; give a"),
        ("words", r"distillation.teacher: the tokenizer of '.*words' isn't that of '.*model' \(data.tokenizer\)"),
    ],
)
def test_a_folder_that_holds_no_teacher_is_refused_in_one_line(base, tmp_path, name, message):
    folder, config = base
    with pytest.raises(UserError, match=message) as caught:
        in_process.train(config, tmp_path / "run", distillation={"teacher": str(folder / name)})
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "run").exists()
