"""Every setting that sample numbers hang on is refused by name when it changes, and every other one changes nothing.

A new field of the configuration must be put into one of the two lists here.
"""

import copy
import dataclasses
import json

import pytest

from cpt_dist.config import CptConfig, CurriculumConfig, DataConfig, SourceConfig, StageConfig
from cpt_dist.curriculum_config import CURRICULA
from cpt_dist.data.ledger_entry import LedgerEntry
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.take_down import TakeDown
from cpt_dist.errors import UserError
from tests.helpers.memory_sources import MemorySource

N = 40
CURRICULUM = {
    "gradual": {"start": {"b": 1.0}, "ramp": 0.5},
    "staged": {"steps": [[0.5, {"a": 1.0}]]},
    "quality_first": {"buckets": ["a", "b"]},
    "difficulty": {"buckets": ["a", "b"]},
    "warmup_cooldown": {"domain": ["a"]},
    "table": {},
}
"""What each curriculum needs to be a valid one for the sources a and b."""
CURRICULUM_CHANGES = {
    "start": {"b": 1.0, "a": 0.1},
    "ramp": 0.6,
    "shape": "cosine",
    "steps": [[0.5, {"a": 0.7, "b": 0.3}]],
    "buckets": ["b", "a"],
    "opening": 0.6,
    "overlap": 0.2,
    "floor": 0.2,
    "domain": ["b"],
    "low": 0.1,
    "warmup": 0.2,
    "cooldown": 0.2,
}


def made(**curriculum):
    config = CptConfig(run_dir="run", seed=3)
    stage = StageConfig(tokens="640", seq_len=8, batch_tokens="32", mixture={"a": 0.6, "b": 0.4})
    stage.curriculum = CurriculumConfig(**curriculum) if curriculum else None
    config.stages = [stage]
    named = {"a": SourceConfig(raw=["a"], max_epochs=0.5, on_cap="spill", spill_to="b"), "b": SourceConfig(raw=["b"])}
    config.data.sources = named
    return config


def sources():
    return [MemorySource("a", [[20, 60], [80]], first_document=1), MemorySource("b", [[200, 140]], first_document=50)]


def order_of(config, of=None, ledger=()):
    return sample_order(config, sources() if of is None else of, list(ledger))


def state_of(order, n=N):
    return json.loads(json.dumps(order.state(n)))


def refused(before, after, named, with_record):
    """`after` doesn't go on with the state of `before`, and says so with `named` (as far as the record tells)."""
    record = json.loads(json.dumps(before.identity)) if with_record else None
    with pytest.raises(UserError) as caught:
        after.check(state_of(before), record)
    if with_record:
        assert any(named in problem for problem in caught.value.problems), caught.value.problems


CHANGES = {
    "CptConfig.seed": (lambda c: setattr(c, "seed", 4), "seed was 3 and is 4"),
    "DataConfig.shuffle_window_shards": (lambda c: setattr(c.data, "shuffle_window_shards", 1), "window_shards"),
    "SourceConfig.max_epochs": (lambda c: setattr(c.data.sources["a"], "max_epochs", 0.7), "data.sources.a.max_epochs"),
    "SourceConfig.on_cap": (lambda c: c.data.sources["a"].__dict__.update(on_cap="renormalise"), "data.sources.a"),
    "StageConfig.name": (lambda c: setattr(c.stages[0], "name", "other"), "stage 'main' name was main and is other"),
    "StageConfig.tokens": (lambda c: setattr(c.stages[0], "tokens", "160"), "length in samples"),
    "StageConfig.seq_len": (lambda c: setattr(c.stages[0], "seq_len", 16), "stage 'main' seq_len was 8 and is 16"),
    "StageConfig.batch_tokens": (lambda c: setattr(c.stages[0], "batch_tokens", "64"), "batch_tokens was 32 and is 64"),
    "StageConfig.mixture": (lambda c: c.stages[0].mixture.update(a=0.7), "share of source 'a' was 0.6 and is 0.7"),
    "StageConfig.packing": (lambda c: setattr(c.stages[0], "packing", "best_fit"), "stage 'main' packing was concat"),
    "StageConfig.positions": (lambda c: setattr(c.stages[0], "positions", "continue"), "positions was restart"),
    "StageConfig.curriculum": (
        lambda c: setattr(c.stages[0], "curriculum", CurriculumConfig("gradual", start={"b": 1.0})),
        "curriculum.name was None and is gradual",
    ),
}  # fmt: skip


@pytest.mark.parametrize("with_record", [True, False], ids=["with order.json", "without"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_the_order_depends_on_is_refused_by_name(name, with_record):
    change, named = CHANGES[name]
    before, config = made(), made()
    if name.startswith("SourceConfig"):  # a cap that has acted by sample N
        before.data.sources["a"].max_epochs = config.data.sources["a"].max_epochs = 0.2
    change(config)
    refused(order_of(before), order_of(config), named, with_record)


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in CURRICULUM for field in ["name", *CURRICULA[kind]]]
)
def test_every_parameter_of_every_curriculum_is_refused_by_name(kind, field):
    given = {"name": kind, **CURRICULUM[kind]}
    changed = {"name": "immediate"} if field == "name" else {**given, field: CURRICULUM_CHANGES[field]}
    assert changed != given
    refused(order_of(made(**given)), order_of(made(**changed)), f"curriculum.{field} was", True)


def test_a_source_made_again_a_missing_one_and_a_changed_ledger_are_refused_by_name():
    config, (a, b) = made(), sources()
    order = order_of(config, ledger=[LedgerEntry(8, {"a": 1.0, "b": 2.0}), TakeDown(16, frozenset([bytes(16)]))])
    changed = sources()
    changed[1].fingerprint = "another"
    refused(order, order_of(config, changed, order.entries), "source 'b' was fingerprint of b and is another", True)
    refused(order, order_of(config, [a, b], order.entries[1:]), "ledger entry at sample 8 is missing", True)
    refused(order, order_of(config, [a, b], order.entries[:1]), "take-down at sample 16 is missing", True)
    other = [LedgerEntry(8, {"a": 1.0, "b": 3.0}), order.entries[1]]
    refused(order, order_of(config, [a, b], other), "ledger entry 1 was", True)


NOTHING = {
    "SourceConfig": {
        # What prepare reads is in the fingerprint of the shards.
        **dict.fromkeys(["raw", "role", "licence", "text_field", "chat_field", "chat_format", "prompt_field"]),
        **dict.fromkeys(["completion_field", "language", "import_format", "import_column"]),
        **dict.fromkeys(["score_fields", "label_field", "grow", "curation"]),
        "spill_to": None,  # needs on_cap, and goes with it
    },
    "DataConfig": {
        **dict.fromkeys(["sources", "shards", "tokenizer", "separator", "held_out_fraction", "shard_tokens"]),
        **dict.fromkeys(["invalid_utf8", "min_bytes", "curation"]),
        "cut_min_tokens": 64,  # what prepare recorded is in the fingerprint of the shards
        "num_workers": 3,
        "take_down": "list.txt",  # becomes an entry of the ledger
        "verify": "open",
        "prefetch_shards": 9,
        "cache": "elsewhere",
        **dict.fromkeys(["cache_bytes", "fetch_retries", "fetch_backoff_seconds", "fetch_timeout_seconds"]),
        "storage_options": {"anon": True},
    },
    "StageConfig": {
        **dict.fromkeys(["schedule", "rope", "optimizer", "context_parallel"]),
        "trainable": ["*", "!*norm*"],
        "epochs": None,  # becomes tokens
        **dict.fromkeys(["gate", "consolidate", "keep"]),  # a fork of a gate is another plan, from the ledger
    },
}


def test_every_other_setting_leaves_the_order_as_it_is():
    order, state = order_of(made()), state_of(order_of(made()))
    for group, owner in (("SourceConfig", "a"), ("DataConfig", None)):
        for field, value in NOTHING[group].items():
            config = made()
            if field not in ("sources", "spill_to"):
                setattr(config.data.sources[owner] if owner else config.data, field, value)
            changed = order_of(config)
            assert changed.fingerprint == order.fingerprint
            assert changed.check(copy.deepcopy(state)) == N


VIEWS = {"SourceConfig.strata"}
"""Other strata are other sources for the order; tests/data/test_strata.py has what is refused."""


@pytest.mark.parametrize("group", [StageConfig, SourceConfig, DataConfig])
def test_every_field_is_known_to_matter_or_not_to(group):
    name = group.__name__
    known = {*NOTHING[name], *(key.partition(".")[2] for key in {*CHANGES, *VIEWS} if key.startswith(f"{name}."))}
    assert known == {field.name for field in dataclasses.fields(group)}, "put the field into CHANGES or NOTHING"
