"""A planted fact moves only after training on it, and a control doesn't."""

import random

import pytest
import torch

from cpt_dist.config import ModelConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation.scorers import packed_logits
from cpt_dist.evaluation.suites.answers import Answerer
from cpt_dist.evaluation.suites.compare import Judge
from cpt_dist.evaluation.suites.probes import compare_facts, read_facts, score_facts
from cpt_dist.evaluation.suites.text_model import TextModel
from cpt_dist.model.load import load_model
from tests.evaluation.suites.small import model_folder, write_rows

JUDGE = Judge(confidence=0.95, num_resamples=1000, seed=0)


def fact(number, kind, answer):
    form = f"The sign of item {number:02d} is"
    return {
        "id": f"f{number}",
        "kind": kind,
        "probes": [
            {"form": "cloze", "direction": "forward", "prompt": form, "answer": answer},
            {"form": "qa", "direction": "reverse", "prompt": f"Which item has the sign {answer}? Item", "answer": "x"},
        ],
    }


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    rng = random.Random(0)
    rows = [
        fact(number, "trained" if number < 10 else "control", "".join(rng.choices("abcdefgh", k=4)))
        for number in range(20)
    ]
    return read_facts(write_rows(tmp_path_factory.mktemp("facts") / "facts.jsonl", rows))


@pytest.fixture(scope="module")
def models(tmp_path_factory, facts):
    """Facts as scored by a model before, after training on other signs in the same words, and on the facts."""
    folder = model_folder(tmp_path_factory.mktemp("model"))
    model = load_model(ModelConfig(path=str(folder)))
    text = TextModel(str(folder), Answerer(packed_logits(model.eval()), 256))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = random.Random(5)

    def trained_on(lines):
        model.load_state_dict(start)
        encoded = [torch.tensor(text.encode(line)) for line in lines]
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        lengths = [len(tokens) for tokens in encoded]
        inputs = torch.cat(encoded)
        labels = torch.cat([torch.cat([tokens[1:], torch.tensor([-100])]) for tokens in encoded])
        positions = torch.cat([torch.arange(length) for length in lengths])
        borders = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        for _ in range(80):
            loss, _ = model.train()(inputs, labels, positions, borders, divisor=int((labels != -100).sum()))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return score_facts(facts, text)

    others = [f"The sign of item {n:02d} is {''.join(rng.choices('abcdefgh', k=4))}" for n in range(40, 60)]
    seen = [f"{f.probes[0].prompt} {f.probes[0].answer}" for f in facts if f.kind == "trained"]
    return score_facts(facts, text), trained_on(others), trained_on(others + seen)


def test_a_planted_fact_moves_only_after_training_on_it(facts, models):
    before, form_only, with_facts = models
    unmoved = compare_facts("facts", facts, before, form_only, JUDGE)
    assert unmoved.trained.low > 0  # the form of the sentences was learned,
    assert unmoved.outcome == "undecided"  # which the controls show to be no knowledge
    assert unmoved.learned.value == unmoved.trained.value - unmoved.control.value < unmoved.trained.value
    learned = compare_facts("facts", facts, before, with_facts, JUDGE)
    assert learned.outcome == "learned"
    assert learned.learned.low > 0.3
    cloze = next(g for g in learned.groups if (g.kind, g.form) == ("trained", "cloze"))
    control = next(g for g in learned.groups if (g.kind, g.form) == ("control", "cloze"))
    assert cloze.adapted_greedy > 0.8 > 0.2 > control.adapted_greedy
    forgot = compare_facts("facts", facts, with_facts, before, JUDGE)
    assert forgot.outcome == "forgot"


def test_an_unchanged_model_learned_nothing(facts, models):
    found = compare_facts("facts", facts, models[0], models[0], JUDGE)
    assert (found.outcome, found.learned.value) == ("undecided", 0.0)


def test_forms_and_directions_are_told_apart(facts, models):
    groups = compare_facts("facts", facts, models[0], models[2], JUDGE).groups
    assert [(g.kind, g.form, g.direction, g.facts) for g in groups] == [
        (kind, *what, 10) for kind in ("trained", "control") for what in (("cloze", "forward"), ("qa", "reverse"))
    ]


def test_few_facts_decide_nothing(facts, models):
    few = [*facts[:5], *facts[10:15]]
    chosen = [*range(10), *range(20, 30)]
    cut = [(bits[chosen], greedy[chosen]) for bits, greedy in (models[0], models[2])]
    assert compare_facts("facts", few, *cut, JUDGE).outcome == "undecided"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "seen"}, "kind: 'seen' is unknown"),
        ({"probes": []}, "probes: [] must be a list of at least one wording"),
        ({"prob": 1}, "there is no field 'prob'; did you mean 'probes'?"),
        ({"probes": [{"form": "cloze", "direction": "back", "prompt": "p", "answer": "a"}]}, "direction: 'back'"),
        ({"probes": [{"form": "cloze", "prompt": "p", "answer": "a"}]}, "must have exactly the fields"),
        ({"kind": "control"}, "no fact has kind: trained"),
    ],
)
def test_a_wrong_fact_is_one_line(tmp_path, change, expected):
    path = write_rows(tmp_path / "facts.jsonl", [fact(1, "trained", "ab") | change])
    with pytest.raises(UserError) as caught:
        read_facts(path)
    assert expected in caught.value.problems[0]
    assert caught.value.problems[0].startswith(f"probes '{path}'")
