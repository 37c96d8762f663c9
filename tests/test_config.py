import dataclasses
import inspect
import math
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cpt_dist import config as schema
from cpt_dist.config import CptConfig, SourceConfig, StageConfig, parse_quantity
from cpt_dist.errors import UserError
from cpt_dist.mixture_knots import mixture_knots
from cpt_dist.strata_config import StrataConfig
from cpt_dist.validation import validate

CONFIGS = Path(schema.__file__).resolve().parents[1] / "configs"
CHOICES = [(path.parent.name, path.stem) for path in sorted(CONFIGS.glob("*/*.yaml"))]


def good():
    stage = StageConfig(tokens="8k", seq_len=64, batch_tokens="640", mixture={"legal": 1.0})
    config = CptConfig(run_dir="run", stages=[stage])
    config.data.sources = {"legal": SourceConfig(raw=["raw"])}
    return config


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_shipped_file_composes_and_validates(group, choice):
    ConfigStore.instance().store(name="cpt_config", node=CptConfig)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("config", [f"{group}={choice}", "run_dir=run", "data.shards=shards", "model.path=model"])
    OmegaConf.set_struct(composed, False)
    for source in composed.data.sources.values():
        if OmegaConf.is_missing(source, "raw"):  # what a user gives
            source.raw = ["raw"]
    if group == "stage" and composed.stages:
        OmegaConf.update(composed, "stages.0.tokens", "1M")
        mixture = composed.stages[0].mixture or {"legal": 1.0}
        OmegaConf.update(composed, "stages.0.mixture", mixture)
        OmegaConf.update(composed, "data.sources", {name: SourceConfig(raw=["raw"]) for name in mixture})
    validate(OmegaConf.to_object(composed))


@pytest.mark.parametrize("group", [c for c in vars(schema).values() if dataclasses.is_dataclass(c)])
def test_every_field_has_its_explanation_below_it(group):
    source = inspect.getsource(group)
    for field in dataclasses.fields(group):
        if not dataclasses.is_dataclass(field.type) and "Config" not in str(field.type):
            assert re.search(rf'\n    {field.name}: [^\n]*\n    """', source), f"{group.__name__}.{field.name}"


def test_a_valid_configuration_passes():
    validate(good())


def test_all_problems_are_raised_at_once():
    config = good()
    config.engine.name = "zerro"
    config.optimizer.beta2 = 1.5
    config.stages[0].mixture = {"legl": 1.0}
    config.stages[0].batch_tokens = "650"
    with pytest.raises(UserError) as caught:
        validate(config)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert "did you mean 'zero'" in text
    assert "did you mean 'legal'" in text
    assert "nearest: 640 or 704" in text
    assert "optimizer.beta2: 1.5" in text


def test_zero_0_in_bf16_is_refused_with_what_to_use():
    config = good()
    config.engine.name, config.engine.zero_stage, config.engine.precision = "zero", 0, "bf16"
    with pytest.raises(UserError, match="use engine=zero1"):
        validate(config)


def test_offload_without_what_it_moves_and_a_negative_chunk_are_refused():
    config = good()
    config.model.activation_offload, config.model.mlp_chunk_tokens = True, -1
    with pytest.raises(UserError) as caught:
        validate(config)
    offload, chunk = caught.value.problems
    assert "model.activation_checkpointing keeps; set that to true as well" in offload
    assert "model.mlp_chunk_tokens: -1 must be at least 0" in chunk


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20B", 20_000_000_000),
        ("1.5M", 1_500_000),
        ("500k", 500_000),
        ("4096", 4096),
        ("5GB", 5 * 10**9),
        ("2_000", 2000),
    ],
)
def test_quantities_have_decimal_units(text, value):
    assert parse_quantity(text, "tokens") == value


@pytest.mark.parametrize("text", ["", "many", "-3", "0", "1.5", "3 parsecs", "1.0001k5"])
def test_a_bad_quantity_is_named(text):
    with pytest.raises(UserError, match="tokens: "):
        parse_quantity(text, "tokens")


def test_a_mixture_is_normalised_at_every_knot():
    knots, shares = mixture_knots({"a": [[0, 3], [0.5, 1]], "b": 1})
    assert knots == [0.0, 0.5]
    assert shares == [[0.75, 0.25], [0.5, 0.5]]


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 100), min_size=1))
def test_constant_shares_sum_to_one(mixture):
    knots, shares = mixture_knots(mixture)
    assert knots == [0.0]
    assert sum(shares[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    "mixture", [{}, {"a": -1}, {"a": 0}, {"a": "x"}, {"a": [[0.5, 1], [0.2, 1]]}, {"a": [[0, 1, 2]]}]
)
def test_an_impossible_mixture_is_refused(mixture):
    with pytest.raises(UserError, match="mixture"):
        mixture_knots(mixture)


def test_two_points_at_one_progress_make_a_step():
    knots, shares = mixture_knots({"a": [[0, 1], [0.5, 1], [0.5, 3], [1, 3]], "b": 1})
    assert knots == [0.0, 0.5, 0.5, 1.0]
    assert shares == [[0.5, 0.5], [0.5, 0.5], [0.75, 0.25], [0.75, 0.25]]


def test_three_points_at_one_progress_are_refused():
    with pytest.raises(UserError, match="at most two of them equal"):
        mixture_knots({"a": [[0, 1], [0.5, 1], [0.5, 2], [0.5, 3]]})


@pytest.mark.parametrize(
    ("curriculum", "named"),
    [
        ({"name": "gradul"}, "did you mean 'gradual'?"),
        ({"name": "gradual", "start": {"legl": 1}}, "start: source 'legl' is not in mixture; did you mean 'legal'?"),
        ({"name": "gradual", "start": {"legal": 0}}, "start: all shares are 0"),
        ({"name": "gradual", "start": {"legal": 1}, "ramp": 0}, "ramp: 0"),
        ({"name": "gradual", "start": {"legal": 1}, "overlap": 0.2}, "overlap is not read by 'gradual'"),
        ({"name": "gradual", "start": {"legal": 1}, "shape": "round"}, "shape: 'round'"),
        ({"name": "gradual", "start": {"legal": 1}, "ramp": 1e-9}, "give 0 or at least 1e-06"),
        ({"name": "staged"}, "needs at least one"),
        ({"name": "staged", "steps": [[0.5, {"legal": 1}], [0.2, {"wiki": 1}]]}, "progress 0.2 must lie above 0.5"),
        ({"name": "quality_first", "buckets": ["legal"]}, "at least 2"),
        ({"name": "quality_first", "buckets": ["legal", "void"]}, "'void' has share 0 in mixture"),
        ({"name": "difficulty", "buckets": ["legal", "wiki"], "overlap": 0.7}, "overlap: 0.7"),
        ({"name": "warmup_cooldown", "domain": ["legal", "wiki"]}, "none is left to take the rest"),
        ({"name": "warmup_cooldown", "domain": ["legal"], "warmup": 0.7, "cooldown": 0.7}, "exceed 1"),
    ],
)
def test_a_wrong_curriculum_is_named(curriculum, named):
    config = good()
    config.data.sources |= {"wiki": SourceConfig(raw=["raw"]), "void": SourceConfig(raw=["raw"])}
    config.stages[0].mixture = {"legal": 0.6, "wiki": 0.4, "void": 0}
    config.stages[0].curriculum = schema.CurriculumConfig(**curriculum)
    with pytest.raises(UserError) as caught:
        validate(config)
    assert any(named in problem and "stages.0 ('main').curriculum." in problem for problem in caught.value.problems)


def test_an_unknown_packing_and_unknown_positions_are_named_with_their_nearest():
    config = good()
    config.stages[0].packing, config.stages[0].positions = "bestfit", "restarts"
    with pytest.raises(UserError) as caught:
        validate(config)
    packing, positions = caught.value.problems
    assert "stages.0 ('main').packing: 'bestfit' is unknown" in packing
    assert "concat, best_fit, structural" in packing
    assert "stages.0 ('main').positions: 'restarts' is unknown" in positions


def test_points_are_for_the_table_curriculum_only():
    config = good()
    config.stages[0].mixture = {"legal": [[0, 1], [1, 2]]}
    config.stages[0].curriculum = schema.CurriculumConfig(name="table", shape="cosine")
    validate(config)
    config.stages[0].curriculum = schema.CurriculumConfig()
    with pytest.raises(UserError, match=r"'immediate' needs plain shares, but mixture\.legal is a list"):
        validate(config)


@pytest.mark.parametrize(
    ("cap", "named"),
    [
        ({"max_epochs": 0.0}, "max_epochs: 0.0 must be positive"),
        ({"on_cap": "spil"}, "did you mean 'spill'?"),
        ({"spill_to": "wiki"}, "read with on_cap=spill only"),
        ({"on_cap": "spill", "spill_to": "wik"}, "did you mean 'wiki'?"),
        ({"on_cap": "spill", "spill_to": "wiki"}, "reads 'legal' but not 'wiki'; add wiki: 0"),
    ],
)
def test_a_wrong_cap_is_named(cap, named):
    config = good()
    config.data.sources = {"legal": SourceConfig(raw=["raw"], **cap), "wiki": SourceConfig(raw=["raw"])}
    with pytest.raises(UserError) as caught:
        validate(config)
    assert any(named in problem for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt_field": "q"}, "prompt_field is set and completion_field isn't"),
        ({"chat_field": "m", "prompt_field": "q", "completion_field": "a"}, "keep one of the two forms"),
        ({"chat_format": "plain"}, "chat_format: 'plain' is read with chat_field only"),
        ({"chat_field": "m", "chat_format": "plian"}, "chat_format: 'plian' is unknown; did you mean 'plain'"),
        ({"chat_field": "m", "import_format": "mds"}, "import_format takes tokens over"),
    ],
)
def test_a_wrong_form_of_instruction_data_is_named(fields, named):
    config = good()
    config.data.sources["legal"] = SourceConfig(raw=["raw"], **fields)
    with pytest.raises(UserError, match=named):
        validate(config)


@pytest.mark.parametrize("points", [[[0, 0.2], [0.19, 0]], [[0.1, 1 / 3], [0.7, 0]]])
def test_a_share_that_falls_to_zero_never_falls_below(points):
    assert all(min(row) >= 0 for row in mixture_knots({"a": points, "b": 1})[1])


def test_keeping_the_best_needs_evaluations_and_a_source_that_is_there():
    config = good()
    config.checkpoint.keep_best, config.checkpoint.keep_best_of = 1, "lega"
    with pytest.raises(UserError) as caught:
        validate(config)
    assert any("checkpoint.keep_best: 1 needs" in problem for problem in caught.value.problems)
    assert any("did you mean 'legal'?" in problem for problem in caught.value.problems)
    config.checkpoint.keep_best_of, config.evaluation.every_steps = "macro", 10
    validate(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shuffle_window_shards", -1, "-1 must be at least 0"),
        ("prefetch_shards", -2, "-2 must be at least 0"),
        ("fetch_retries", -1, "-1 must be at least 0"),
        ("fetch_backoff_seconds", 0.0, "0.0 must be positive and finite"),
        ("fetch_timeout_seconds", math.inf, "inf must be positive and finite"),
        ("cache_bytes", "plenty", "'plenty' is not a whole positive count"),
    ],
)
def test_an_impossible_way_of_fetching_is_named(field, value, message):
    config = good()
    setattr(config.data, field, value)
    with pytest.raises(UserError) as caught:
        validate(config)
    assert [f"data.{field}: " in problem and message in problem for problem in caught.value.problems] == [True]


def with_strata(strata, mixture=None, curriculum=None, **fields):
    """A configuration whose source legal has strata, with wiki beside it."""
    config = good()
    config.data.sources = {"legal": SourceConfig(raw=["raw"], **fields), "wiki": SourceConfig(raw=["raw"])}
    config.data.sources["legal"].strata = StrataConfig(**strata) if strata is not None else None
    config.stages[0].mixture = mixture or {"legal": 0.7, "wiki": 0.3}
    if curriculum is not None:
        config.stages[0].curriculum = schema.CurriculumConfig(**curriculum)
    return config


def problems_of(config):
    with pytest.raises(UserError) as caught:
        validate(config)
    return caught.value.problems


@pytest.mark.parametrize(
    ("strata", "expected"),
    [
        ({"by": "qualty", "edges": [1.0]}, ["by: 'qualty' is not stored; did you mean 'quality'?"]),
        ({"by": "label"}, ["by: 'label' is not stored; known: length, quality, or set label_field"]),
        ({"by": "age", "edges": [1.0]}, ["or add score_fields.age"]),
        ({}, ["edges [] and quantiles 0: give one of the two"]),
        ({"edges": [5.0], "quantiles": 3}, ["edges [5.0] and quantiles 3: give one of the two"]),
        ({"edges": [5.0, 5.0]}, ["edges: [5.0, 5.0] must be numbers that rise"]),
        ({"edges": [math.nan]}, ["edges: [nan] must be numbers that rise"]),
        ({"quantiles": 1}, ["quantiles: 1 must be at least 2"]),
        ({"edges": [5.0], "names": ["a"]}, ["names: ['a'] are 1 names for 2 strata"]),
        ({"edges": [5.0], "names": ["a/b", "unscored"]}, ["'a/b' can't name a stratum", "'unscored' is kept for"]),
        ({"edges": [5.0], "names": ["a", "a"], "labels": {"x": ["y"]}}, ["read with by=label only", "'a' is there"]),
    ],
)
def test_wrong_strata_are_all_named(strata, expected):
    problems = problems_of(with_strata(strata, score_fields={"quality": "q"}))
    assert len(problems) == len(expected)
    for problem, part in zip(problems, expected, strict=True):
        assert problem.startswith("data.sources.legal.strata.")
        assert part in problem


def test_wrong_strata_by_label_are_all_named():
    labels = {"think": ["math", "code"], "unscored": ["math"], "none": []}
    strata = {"by": "label", "labels": labels, "edges": [1.0], "quantiles": 2, "names": ["a"]}
    assert problems_of(with_strata(strata, label_field="kind")) == [
        f"data.sources.legal.strata.{problem}"
        for problem in (
            "edges: it is not read with by=label; take it out",
            "quantiles: it is not read with by=label; take it out",
            "names: it is not read with by=label; take it out",
            "labels: 'math' is in two strata; each label goes into one",
            "labels.none: it names no label",
            "labels: 'unscored' is kept for documents without a value",
        )
    ]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"score_fields": {"length": "n"}}, "score_fields: 'length: n' is no name of a score and its field"),
        ({"score_fields": {"a b": "n"}}, "score_fields: 'a b: n' is no name of a score and its field"),
        ({"score_fields": {"quality": ""}}, "score_fields: 'quality: ' is no name of a score and its field"),
        ({"label_field": "kind", "import_format": "mds"}, "token data (import_format) has no score_fields or label"),
    ],
)
def test_a_wrong_field_of_scores_or_labels_is_named(fields, named):
    (problem,) = problems_of(with_strata(None, **fields))
    assert problem.startswith(f"data.sources.legal{'.' if 'score_fields: ' in named else ': '}{named}")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            {"shar": 1, "strata": {"low": 1}},
            ["legal.shar: an entry has share and strata or length_upsampling; did you", "it has no share"],
        ),
        ({"share": 1, "strata": {}}, ["legal.strata: {} is no mapping of strata to shares"]),
        ({"share": 1, "strata": 3}, ["legal.strata: 3 is no mapping of strata to shares"]),
        ({"share": 1, "strata": {"hig": 1}}, ["legal.strata: there is no 'hig'; did you mean 'high'?"]),
        ({"share": 1, "strata": {"low": -1, "high": 1}}, ["mixture.legal: "]),
        ({"share": 1, "strata": {"low": 0, "high": 0}}, ["mixture.legal: "]),
        ({"share": -1, "strata": {"low": 1}}, ["-1"]),
    ],
)
def test_a_wrong_nested_entry_of_a_mixture_is_named(entry, expected):
    problems = problems_of(with_strata({"edges": [9.0]}, {"legal": entry, "wiki": 1}))
    assert len(problems) == len(expected)
    for problem, part in zip(problems, expected, strict=True):
        assert problem.startswith("stages.0 ('main'): ")
        assert part in problem


def test_nested_entries_of_two_sources_are_all_named_at_once():
    config = with_strata({"edges": [9.0]}, {"legal": {"share": 1, "strata": {"hig": 1}}})
    config.stages[0].mixture["wiki"] = {"share": 1, "strata": {"low": 1}}
    unknown, none = problems_of(config)
    assert "there is no 'hig'" in unknown
    assert "mixture.wiki.strata: source 'wiki' has none; set data.sources.wiki.strata" in none


@pytest.mark.parametrize("share", [1, [[0, 1], [1, 0.5]]])
def test_nested_entries_may_name_labels_and_what_has_no_value(share):
    mixture = {"legal": {"share": share, "strata": {"think": 2, "other": 1, "unscored": 0}}, "wiki": 1}
    validate(with_strata({"by": "label", "labels": {"think": ["math"]}}, mixture, label_field="kind"))
    mixture["legal"]["strata"]["any label"] = 1
    validate(with_strata({"by": "label"}, mixture, label_field="kind"))


@pytest.mark.parametrize(
    ("curriculum", "named"),
    [
        (["legal/hig", "legal/low"], "'legal/hig': there is no 'hig'; did you mean 'high'?"),
        (["wiki/low", "legal/low"], "'wiki/low': source 'wiki' has no strata; set data.sources.wiki.strata"),
        (["legal", "legal/low"], "buckets: source 'legal' has strata; name those, as in legal/unscored"),
        (["legal/low", "legal/unscored"], "'legal/unscored' has share 0 in mixture"),
    ],
)
def test_a_curriculum_with_a_wrong_stratum_is_named(curriculum, named):
    mixture = {"legal": {"share": 1, "strata": {"low": 1, "high": 1}}, "wiki": 1}
    problems = problems_of(with_strata({"edges": [9.0]}, mixture, {"name": "quality_first", "buckets": curriculum}))
    assert any(problem.startswith("stages.0 ('main').curriculum.") and named in problem for problem in problems)


def test_an_unknown_evaluation_schedule_is_named_and_log_suffices_for_adaptive_replay():
    config = good()
    config.replay.rule, config.evaluation.schedule = "bounded", "log"
    validate(config)
    config.evaluation.schedule = "lgo"
    assert "evaluation.schedule: 'lgo' is unknown; did you mean 'log'? (one of steps, log)" in problems_of(config)
