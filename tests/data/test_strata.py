"""Promises of strata: exact partitions, nested shares to the sample, nothing unreachable, no silent change."""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpt_dist.config import SourceConfig, StageConfig
from cpt_dist.curriculum_config import CurriculumConfig
from cpt_dist.data.caps import Cap
from cpt_dist.data.columns import as_score
from cpt_dist.data.ledger_entry import LedgerEntry
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.plans import make_plan
from cpt_dist.data.prepare import prepare
from cpt_dist.data.shards import Source
from cpt_dist.data.stage_plan import SourceRows, StagePlan
from cpt_dist.data.views import views_of
from cpt_dist.errors import UserError
from cpt_dist.strata_config import StrataConfig
from tests.helpers.corpora import corpus_config
from tests.helpers.memory_sources import stage

VALUES = st.none() | st.booleans() | st.just("0.5") | st.floats(width=16) | st.floats(0, 1) | st.integers(-3, 10**6)
LABELS = st.none() | st.sampled_from(["code", "math", "language", " code ", ""]) | st.integers(0, 2)
BY_QUALITY = StrataConfig(by="quality", edges=[0.3, 0.7])


def raw(index, **values):
    return json.dumps({"text": f"document number {index} " + "x" * (index % 17), **values}).encode()


def prepared(folder, lines, **data):
    """A complete source with a score and a label."""
    config = corpus_config(folder, {"law": lines}, held_out_fraction=0.0, shard_tokens="150", **data)
    config.data.sources["law"].score_fields = {"quality": "q"}
    config.data.sources["law"].label_field = "kind"
    (done,) = prepare(config)
    return config, Source.open(done.folder)


def views(source, strata):
    return views_of([source], {"law": SourceConfig(raw=[], strata=strata)})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(VALUES, LABELS), min_size=1, max_size=40),
    st.sampled_from([BY_QUALITY, StrataConfig(edges=[20.0, 30.0]), StrataConfig(by="label")]),
)
def test_every_document_is_in_exactly_one_stratum_and_where_its_value_says(tmp_path_factory, records, strata):
    lines = [raw(i, q=q, kind=kind) for i, (q, kind) in enumerate(records)]
    _, source = prepared(tmp_path_factory.mktemp("strata"), lines)
    parts = views(source, strata)
    found = {view.stratum: set() for view in parts}
    record = 0
    for shard in range(len(source.shard_tokens)):
        number = len(source.doc_ids(shard))
        own = {view.stratum: view.documents(shard) for view in parts}
        assert sorted(np.concatenate(list(own.values())).tolist()) == list(range(number))
        for name, documents in own.items():
            found[name] |= {record + int(document) for document in documents}
        record += number
    for name, members in found.items():
        assert members == {i for i, one in enumerate(records) if expected(strata, source, i, *one) == name}
    assert sum(view.num_tokens for view in parts) == source.num_tokens


def expected(strata, source, index, quality, label):
    """The stratum that docs/mixtures.md promises for a record."""
    if strata.by == "label":
        return label.strip() if isinstance(label, str) and label.strip() else "unscored"
    value = as_score(quality) if strata.by == "quality" else length_of(source, index)
    if math.isnan(value):
        return "unscored"
    return ["low", "middle", "high"][sum(np.float16(value) >= np.float16(edge) for edge in strata.edges)]


def length_of(source, index):
    lengths = [np.diff(source.doc_offsets(shard).astype(int)) for shard in range(len(source.shard_tokens))]
    return float(np.concatenate(lengths)[index])


def test_missing_values_are_counted_and_kept(tmp_path):
    values = [0.5, None, "0.9", True, 1e9, float("nan")]
    lines = [raw(i, q=q, kind="code" if i else None) for i, q in enumerate(values)]
    _, source = prepared(tmp_path, lines)
    assert source.num_documents == 6
    assert source.manifest["columns"]["scores"]["quality"]["missing"] == 4
    assert source.manifest["columns"]["label"] == {"vocabulary": ["code"], "missing": 1}
    columns = np.concatenate([source.column(shard, "score.quality") for shard in range(len(source.shard_tokens))])
    assert columns.dtype == np.float16
    assert sorted(columns[~np.isnan(columns)].tolist()) == [0.5, 65504.0]


def test_values_come_from_tables_too(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = {
        "text": [f"text {i}" for i in range(5)],
        "q": [0.1, None, 0.3, 0.4, 0.5],
        "kind": ["a", "b", None, "a", "b"],
    }
    parquet.write_table(pa.table(rows), tmp_path / "raw.parquet")
    config = corpus_config(tmp_path, {}, held_out_fraction=0.0)
    path = str(tmp_path / "raw.parquet")
    config.data.sources = {"law": SourceConfig(raw=[path], score_fields={"quality": "q"}, label_field="kind")}
    (done,) = prepare(config)
    source = Source.open(done.folder)
    assert source.column(0, "label").tolist() == [0, 1, 0xFFFF, 0, 1]
    assert source.column(0, "score.quality")[[0, 2]].tolist() == np.array([0.1, 0.3], np.float16).tolist()


@given(st.lists(st.floats(0, 1), min_size=8, max_size=60, unique=True), st.integers(2, 4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_quantiles_hold_equally_many_documents_unless_values_are_equal(tmp_path_factory, values, count):
    records = [raw(i, q=q) for i, q in enumerate(values)] + [raw(100 + i, q=None) for i in range(5)]
    _, source = prepared(tmp_path_factory.mktemp("quantiles"), records)
    stored = np.sort(np.float16(values))
    borders = [len(values) * part // count for part in range(1, count)]
    try:
        parts = views(source, StrataConfig(by="quality", quantiles=count))
    except UserError as error:
        assert "leave a stratum empty" in str(error)  # noqa: PT017
        assert len(set(stored[[0, *borders]])) < count
        return
    edges = parts[0].partition.edges
    assert list(edges) == [float(stored[place]) for place in borders]
    assert all(view.num_documents for view in parts)


def test_a_stratum_by_a_score_that_shards_do_not_hold_is_one_clear_error(tmp_path):
    (done,) = prepare(corpus_config(tmp_path, {"law": ["one text", "two texts"]}, held_out_fraction=0.0))
    source = Source.open(done.folder)
    assert [view.name for view in views(source, StrataConfig(edges=[4.0]))] == ["law/low", "law/high"]
    with pytest.raises(UserError, match=r"source 'law': its shards hold no 'quality' .*score_fields.quality.*prepare"):
        views(source, BY_QUALITY)


def test_capability_labels_may_be_grouped_and_the_others_stay_readable(tmp_path):
    kinds = ["reasoning", "knowledge", "language", "code", "math", "instruction", "safety", None]
    _, source = prepared(tmp_path, [raw(i, kind=kinds[i % 8]) for i in range(32)])
    groups = {"think": ["reasoning", "math"], "write": ["language", "instruction"]}
    found = views(source, StrataConfig(by="label", labels=groups))
    prints = {view.name: view.fingerprint.partition(", ")[2] for view in found}
    assert prints["law/think"] == "label in ['math', 'reasoning']"
    assert prints["law/other"] == "label not in ['instruction', 'language', 'math', 'reasoning']"
    parts = {view.name: view.num_documents for view in found}
    assert parts == {"law/think": 8, "law/write": 8, "law/other": 12, "law/unscored": 4}


# The order over strata: rows in place of shards, named as views are.

STRATA = {"law/high": 30, "law/low": 70, "law/unscored": 20, "news": 90}


def ordered(mixture, curriculum=None, rows=STRATA, num=240, ledger=(), caps=None, seq_len=8):
    chosen = None
    if curriculum is not None:
        config = StageConfig(tokens="8", seq_len=8, batch_tokens="8", mixture=mixture, curriculum=curriculum)
        chosen = StagePlan.from_config(config).curriculum
    plan = stage(num, mixture, seq_len=seq_len)
    plan = StagePlan(plan.name, num, seq_len, 4, mixture, curriculum=chosen)
    sources = [SourceRows(name, f"print of {name}", {seq_len: (n, n * seq_len)}) for name, n in rows.items()]
    return SampleOrder([plan], sources, 0, ledger, caps)


def counts(order, n=None):
    number = order.counts(order.num_samples if n is None else n).tolist()
    return dict(zip(order.source_names, number, strict=True))


def test_a_plain_share_is_parted_in_proportion_to_tokens():
    assert counts(ordered({"law": 0.5, "news": 0.5})) == {
        "law/high": 30,
        "law/low": 70,
        "law/unscored": 20,
        "news": 120,
    }


def test_nested_shares_are_exact_at_every_level():
    nested = {"law": {"share": 0.75, "strata": {"high": 3, "low": 1, "unscored": 0}}, "news": 0.25}
    order = ordered(nested, num=320)
    assert counts(order) == {"law/high": 180, "law/low": 60, "law/unscored": 0, "news": 80}
    for n in range(0, 321, 5):
        assert np.abs(order.counts(n) - np.array([9, 3, 0, 4]) * n / 16).max() <= order.error_bound(0) + 1e-9


def test_both_levels_may_move_over_the_stage():
    inside = {"high": [[0, 1], [1, 0]], "low": [[0, 0], [1, 1]], "unscored": 0}
    order = ordered({"law": {"share": [[0, 0.2], [1, 0.6]], "strata": inside}, "news": [[0, 0.8], [1, 0.4]]})
    shares = [order.shares(n) for n in (0, 120, 239)]
    assert [round(s["law/high"], 2) for s in shares] == [0.2, 0.2, 0.0]
    assert [round(s["law/low"], 2) for s in shares] == [0.0, 0.2, 0.6]
    assert [round(order.source_shares(n)["law"], 9) for n in (0, 60, 120, 180)] == [0.2, 0.3, 0.4, 0.5]


def test_a_source_that_jumps_takes_its_strata_with_it():
    mixture = {
        "law": {"share": [[0, 0.2], [0.5, 0.2], [0.5, 0.8], [1, 0.8]], "strata": {"high": 3, "low": 2, "unscored": 0}},
        "news": 1,
    }
    mixture["news"] = [[0, 0.8], [0.5, 0.8], [0.5, 0.2], [1, 0.2]]
    order = ordered(mixture)
    assert [order.shares(n)["law/high"] for n in (0, 119, 120, 239)] == pytest.approx([0.12, 0.12, 0.48, 0.48])
    assert counts(order, 120)["news"] == 96


def test_strata_that_jump_while_their_source_moves_do_so_at_one_sample():
    inside = {"high": [[0.5, 1], [0.5, 0]], "low": 1, "unscored": 0}
    order = ordered({"law": {"share": [[0, 0], [1, 1]], "strata": inside}, "news": [[0, 1], [1, 0]]})
    assert [order.shares(n)["law/high"] for n in (119, 120)] == pytest.approx([119 / 480, 0], abs=1 / 4096)
    assert [order.shares(n)["law/low"] for n in (119, 120)] == pytest.approx([119 / 480, 0.5], abs=1 / 4096)


def test_the_preset_of_721_outside_with_strata_inside():
    rows = {"general": 900, "domain/high": 20, "domain/low": 80, "instruction/code": 40, "instruction/math": 60}
    inner = {"share": 0.2, "strata": {"high": 1, "low": 1}}
    order = ordered({"general": 0.7, "domain": inner, "instruction": 0.1}, rows=rows, num=400)
    assert list(counts(order).values()) == [280, 40, 40, 16, 24]


BUCKETS = ["law/high", "law/low", "law/unscored"]


@pytest.mark.parametrize(
    "curriculum",
    [
        None,
        CurriculumConfig("quality_first", buckets=BUCKETS, opening=0.4),
        CurriculumConfig("difficulty", buckets=BUCKETS[::-1]),
        CurriculumConfig("difficulty", buckets=[*BUCKETS, "news"], overlap=0.0),
        CurriculumConfig("gradual", start={"law/high": 1, "news": 1}, ramp=0.3),
        CurriculumConfig("staged", steps=[[0.4, {"law/low": 1, "news": 2}], [0.7, {"law": 1, "news": 1}]]),
        CurriculumConfig("warmup_cooldown", domain=["law/high", "law/low"], low=0.1, warmup=0.2),
        CurriculumConfig("quality_first", buckets=["law", "news"], opening=0.4),
    ],
)
def test_under_every_curriculum_no_document_of_a_stratum_is_unseen_after_its_epoch(curriculum):
    order = ordered({"law": 0.5, "news": 0.5}, curriculum, num=1600)
    samples = order.samples(0, 1600)
    for number, name in enumerate(order.source_names):
        rows = samples.row[samples.source == number][: STRATA[name]]
        assert sorted(rows.tolist()) == list(range(STRATA[name])), name


def test_difficulty_over_strata_in_proportion_reads_one_epoch_of_each_easy_first():
    order = ordered({"law": 1.0}, CurriculumConfig("difficulty", buckets=BUCKETS[::-1], floor=0.0), num=120)
    assert max(abs(counts(order)[name] - STRATA[name]) for name in BUCKETS) <= 1
    assert counts(order, 12)["law/unscored"] == 12
    assert counts(order, 96)["law/high"] <= 12


def test_quality_first_over_strata_opens_the_best_first_and_keeps_the_other_sources_share():
    order = ordered({"law": 0.5, "news": 0.5}, CurriculumConfig("quality_first", buckets=BUCKETS, opening=0.5))
    assert counts(order, 8)["law/high"] == 4
    assert order.shares(200) == pytest.approx(
        {"law/high": 0.125, "law/low": 7 / 24, "law/unscored": 1 / 12, "news": 0.5}
    )
    assert all(order.source_shares(n)["news"] == pytest.approx(0.5) for n in range(0, 240, 10))


def test_an_empty_stratum_is_left_out_of_the_buckets():
    rows = {"law/high": 0, "law/low": 70, "law/unscored": 20, "news": 90}
    order = ordered({"law": 0.5, "news": 0.5}, CurriculumConfig("quality_first", buckets=BUCKETS), rows)
    assert counts(order)["law/high"] == 0
    assert sum(counts(order).values()) == 240


def test_a_stratum_with_text_that_the_mixture_does_not_name_is_refused():
    with pytest.raises(UserError, match=r"mixture.law.strata doesn't name 'unscored', which holds 160 tokens"):
        ordered({"law": {"share": 1, "strata": {"high": 1, "low": 1}}})
    with pytest.raises(UserError, match=r"'hihg' is no stratum of it; did you mean 'high'"):
        ordered({"law": {"share": 1, "strata": {"hihg": 1, "low": 1, "unscored": 0}}})


def test_a_cap_holds_for_each_stratum_and_spills_to_all_strata_of_its_heir():
    nested = {"law": {"share": 0.5, "strata": {"high": 3, "low": 1, "unscored": 0}}, "news": 0.5}
    with pytest.raises(UserError, match=r"'law/high' reaches its max_epochs of 2 .* raise data.sources.law.max_epochs"):
        ordered(nested, caps={"law": Cap(2.0)})
    rows = {"law/high": 30, "law/low": 700, "law/unscored": 20, "news/a": 60, "news/b": 30}
    order = ordered(nested, rows=rows, caps={"law": Cap(2.0, "spill", "news")})
    (bound,) = order.capped
    assert bound.source == "law/high"
    assert counts(order)["law/high"] == 60
    after = order.shares(bound.n)
    assert after == pytest.approx(
        {"law/high": 0, "law/low": 0.125, "law/unscored": 0, "news/a": 7 / 12, "news/b": 7 / 24}
    )


def test_a_ledger_entry_moves_sources_and_leaves_what_is_inside_in_proportion():
    nested = {"law": {"share": 0.5, "strata": {"high": 3, "low": 1, "unscored": 0}}, "news": 0.5}
    order = ordered(nested, ledger=[LedgerEntry(120, {"law": 0.8, "news": 0.2})])
    assert order.shares(119)["law/high"] == pytest.approx(0.375)
    assert order.shares(120) == pytest.approx({"law/high": 0.6, "law/low": 0.2, "law/unscored": 0, "news": 0.2})
    with pytest.raises(UserError, match="source 'law/high' is not in stage"):
        ordered(nested, ledger=[LedgerEntry(120, {"law/high": 1.0})])


def test_changed_strata_are_refused_by_name_on_resume(tmp_path):
    _, source = prepared(tmp_path, [raw(i, q=(i % 10) / 10, kind="a") for i in range(60)])
    stages = [StageConfig(tokens="320", seq_len=16, batch_tokens="64", mixture={"law": 1.0})]

    def order(strata):
        return SampleOrder.from_sources(stages, views(source, strata), 0)

    state, record = (json.loads(json.dumps(one)) for one in (order(BY_QUALITY).state(8), order(BY_QUALITY).identity))
    assert record["sources"]["law/low"].endswith(", quality in [-inf, 0.300048828125)")
    assert order(BY_QUALITY).check(state) == order(BY_QUALITY).check(state, record) == 8
    moved = StrataConfig(by="quality", edges=[0.3, 0.8])
    with pytest.raises(UserError, match=r"stratum 'law/high' was quality in \[0.7.*set data.sources.law.strata back"):
        order(moved).check(state, record)
    with pytest.raises(UserError, match=r"source 'law/low' is read as 'law' now: its strata changed"):
        order(None).check(state, record)
    with pytest.raises(UserError, match=r"source 'law/high' is not what it was"):
        order(moved).check(state)


def test_the_rows_of_strata_hold_each_token_of_the_source_once(tmp_path):
    _, source = prepared(tmp_path, [raw(i, q=(i % 7) / 7) for i in range(50)])
    places = []
    for view in views(source, BY_QUALITY):
        plan = make_plan(view, 16)
        for row in map(plan.row, range(plan.num_rows)):
            places += [(row.shard, at) for span in row.spans for at in range(*span)]
    assert sorted(places) == [(s, at) for s, tokens in enumerate(source.shard_tokens) for at in range(tokens)]
