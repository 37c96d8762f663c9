"""Real trainings on languages of known entropy: the best code is approached and never beaten, and a loss is dated."""

import math

import numpy as np
import pytest

from cpt_dist.checkpoint.consolidate import consolidate_run
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.evaluation.bits_per_byte import DocumentScores
from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.evaluate import Settings, compare, read_held_out_sets, score_sets
from cpt_dist.evaluation.trajectory import checkpoint_scorer, follow
from tests.helpers import tiny_run
from tests.helpers.in_process import train, typed
from tests.helpers.models import tiny_llama
from tests.helpers.planted_text import Chain, Sums, prepare_texts
from tests.helpers.tokenizer import tiny_tokenizer

pytestmark = pytest.mark.e2e
WEB, SUMS = Chain.random("pqrstu", 2), Sums()
CONTRARY = Chain.random("pqrstu", 3)
"""Another language in the letters of the web: who learns it unlearns the web's."""
STEPS, BATCH_TOKENS = 100, 1024


def stage(name, steps, **mixture):
    tokens = {"tokens": str(steps * BATCH_TOKENS), "batch_tokens": str(BATCH_TOKENS), "seq_len": 128}
    return {"name": name, "mixture": mixture, **tokens}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder and configuration of a training on the web's language and on sums; other sources lie beside them."""
    folder = tmp_path_factory.mktemp("truths")
    model = tiny_llama(folder / "base", vocab_size=258, hidden_size=32, intermediate_size=64)
    tiny_tokenizer(model, adds_bos=True, vocab_size=258)
    rng = np.random.default_rng(0)

    def chain_texts(chain, count):
        return [chain.document(rng, int(rng.integers(30, 120))) for _ in range(count)]

    texts = {
        "contrary": ("domain", chain_texts(CONTRARY, 500)),
        "web": ("replay", chain_texts(WEB, 1000)),
        "sums": ("replay", [SUMS.document(rng, 8) for _ in range(1500)]),
    }
    config = prepare_texts(folder, model, texts, held_out_fraction=0.05)
    config["schedule"] = {"name": "cosine", "peak_lr": 1e-2, "warmup": 0.1}
    config["stages"] = [stage("main", STEPS, web=0.5, sums=0.5)]
    config["checkpoint"] = {"every_steps": 0}
    config["evaluation"] |= {"during_training": True, "every_steps": 25}
    train(config, folder / "first")
    return folder, config


def ideal(name, texts):
    code = SUMS if name == "sums" else WEB
    num_bytes = np.array([len(text) for text in texts])
    return DocumentScores(np.array([code.bits(text) * math.log(2) for text in texts]), num_bytes, num_bytes)


def test_training_approaches_the_entropy_of_the_text_and_never_beats_it(trained):
    folder, config = trained
    made = typed(config, folder / "first")
    settings, encoder = Settings.of(made), DocumentEncoder(made.model.path)
    sets = read_held_out_sets(made.data.shards, {"web": "replay", "sums": "replay"}, encoder, settings.max_tokens)
    load = checkpoint_scorer(made, CheckpointStore(folder / "first" / "checkpoints"), STEPS)
    scores = score_sets("trained", encoder, load, sets, settings)
    curve = tiny_run.read_metrics(folder / "first", "evaluation")
    assert [record["step"] for record in curve] == [0, 25, 50, 75, 100]
    for held_out in sets:
        best = ideal(held_out.source, [text.text for text in held_out.texts])
        found, _ = compare(held_out, best, scores[held_out.source], settings)
        values = [record["sources"][held_out.source]["bits_per_byte"] for record in curve]
        assert found.outcome == "worse"
        assert 0 < found.difference.value < 0.2  # the best code that looks one byte back is 0.3 away on the sums
        assert values[-1] == pytest.approx(found.adapted.value, abs=1e-6)
        assert values[0] > found.base.value + 4
        assert min(values) > found.base.value


def test_a_regression_planted_at_a_step_is_found_among_real_checkpoints(trained):
    folder, config = trained
    consolidate_run(typed(config, folder / "first"))
    sources = {name: one for name, one in config["data"]["sources"].items() if name != "sums"}
    second = config | {
        "model": {"path": str(folder / "first" / "model")},
        "data": config["data"] | {"sources": sources},
        "stages": [stage("kept", 16, web=1.0), stage("broken", 16, contrary=1.0)],
        "schedule": {"name": "constant", "peak_lr": 1.5e-3, "warmup": 0.1},
        "checkpoint": {"every_steps": 4, "keep_last": 0},
        "evaluation": config["evaluation"] | {"during_training": False},
    }
    train(second, folder / "second")
    found = {}
    for how in ("all", "bisect"):
        evaluate = config["evaluate"] | {"checkpoints": how}
        found[how] = follow(typed(second, folder / "second", evaluate=evaluate))
    assert found["all"].steps == [4, 8, 12, 16, 20, 24, 28, 32]
    assert [visit.step for visit in found["all"].visits if visit.regressed == ["web"]] == [20, 24, 28, 32]
    assert found["bisect"].first_regressed == found["all"].first_regressed == 20
    assert len(found["bisect"].visits) == 4
