"""Promises of data for long rows: sources keep their shares, lengths shift, short and joined tokens are known."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from cpt_dist.config import CptConfig, RopeConfig, SourceConfig, StageConfig, StrataConfig
from cpt_dist.data.batches import build_batch, filler_batch
from cpt_dist.data.length_counts import TOKENS_BY_LENGTH, share_below, tokens_by_length
from cpt_dist.data.loader import StepLoader
from cpt_dist.data.long_documents import joined_shares, planned_joined, short_share_problems
from cpt_dist.data.plans import make_plan
from cpt_dist.data.prepare import prepare
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.shards import Source
from cpt_dist.data.view_names import by_source
from cpt_dist.data.views import views_of
from cpt_dist.errors import UserError
from cpt_dist.model.rope import stage_trained_positions
from cpt_dist.validation import validate
from tests.helpers.corpora import corpus_config
from tests.helpers.memory_sources import MemorySource

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa "


def text(name, number):
    """Short documents, and each fifth one long."""
    return f"{name} {number} " + WORDS * (8 if number % 5 == 0 else 1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    texts = {name: [text(name, number) for number in range(100)] for name in ("books", "web")}
    config = corpus_config(tmp_path_factory.mktemp("long"), texts, shard_tokens="2000", held_out_fraction=0.0)
    prepare(config)
    return config


@pytest.fixture
def config(shards):
    config = CptConfig(run_dir="nowhere", seed=1, data=shards.data)
    config.model.path = "model"
    config.stages = [stage("long", 0.6)]
    return config


def upsampled(share, *factors):
    parts = [{"min_tokens": least, "factor": factor} for least, factor in factors]
    return {"share": share, "length_upsampling": parts if len(parts) > 1 else parts[0]}


def stage(name, books, seq_len=256, **changes):
    return StageConfig(
        name=name, tokens="40960", seq_len=seq_len, batch_tokens="1024", mixture={"books": books, "web": 0.4}, **changes
    )


def opened(config):
    sources = [Source.open(Path(config.data.shards) / name) for name in config.data.sources]
    return views_of(sources, config.data.sources, config.stages)


def lengths(source):
    return np.concatenate([np.diff(source.doc_offsets(shard).astype(int)) for shard in range(len(source.shard_tokens))])


def middle(config):
    """A length between that of the short and of the long documents."""
    found = lengths(opened(config)[0])
    return int(found.max() + found.min()) // 2


def test_the_share_of_the_source_stays_and_long_documents_count_by_their_factor(config):
    edge = middle(config)
    config.stages = [stage("plain", 0.6), stage("long", upsampled(0.6, (edge, 5)))]
    views = opened(config)
    order = sample_order(config, views, [])
    assert order.source_names == [f"books/under_{edge}", f"books/from_{edge}", "web"]
    tokens = {view.name: view.num_tokens for view in views}
    short, long = tokens[f"books/under_{edge}"], tokens[f"books/from_{edge}"]
    starts = order.stage_starts
    for n, factor in ((starts[0], 1), (starts[1], 5)):
        assert order.source_shares(n) == pytest.approx({"books": 0.6, "web": 0.4})
        assert order.shares(n)[f"books/from_{edge}"] == pytest.approx(0.6 * factor * long / (factor * long + short))
    for begin, end in itertools.pairwise(starts):
        read = by_source({name: order.planned_tokens(end)[name] - order.planned_tokens(begin)[name] for name in tokens})
        assert read["books"] / read["web"] == pytest.approx(1.5)
        counted, planned = (f(end) - f(begin) for f in (order.counts, order.planned_samples))
        assert np.abs(counted - planned).max() <= 1 + order.error_bound(1)


def test_several_lengths_have_a_factor_each_and_each_document_stays_within_reach(config):
    edge, longest = middle(config), int(lengths(opened(config)[0]).max())
    config.stages = [stage("long", upsampled(0.6, (edge, 2), (longest, 6)))]
    views = opened(config)
    order = sample_order(config, views, [])
    tokens = {view.name: view.num_tokens for view in views if view.name != "web"}
    weights = dict(zip(tokens, (1, 2, 6), strict=True))
    assert list(tokens) == [f"books/under_{edge}", f"books/from_{edge}", f"books/from_{longest}"]
    total = sum(weights[name] * tokens[name] for name in tokens)
    assert {name: order.shares(0)[name] for name in tokens} == pytest.approx(
        {name: 0.6 * weights[name] * tokens[name] / total for name in tokens}
    )


def test_strata_by_length_of_the_users_own_are_used_under_their_names(config):
    edge = middle(config)
    strata = StrataConfig(edges=[float(edge) // 2, float(edge)], names=["tiny", "mid", "huge"])
    config.data = type(config.data)(**vars(config.data) | {"sources": dict(config.data.sources)})
    config.data.sources["books"] = SourceConfig(raw=["x"], strata=strata)
    config.stages = [stage("long", upsampled(0.6, (edge, 3)))]
    validate(config)
    order = sample_order(config, views := opened(config), [])
    weighted = {view.name: view.num_tokens * (3 if view.name == "books/huge" else 1) for view in views[:3]}
    assert order.shares(0)["books/huge"] == pytest.approx(0.6 * weighted["books/huge"] / sum(weighted.values()))


@pytest.mark.parametrize(
    ("entry", "strata", "said"),
    [
        ({"share": 1, "length_upsampling": 5}, None, "write {min_tokens: 4096, factor: 5}"),
        ({"share": 1, "length_upsampling": {"min_tokens": 9, "times": 5}}, None, "write {min_tokens: 4096, factor: 5}"),
        ({"share": 1, "length_upsampling": {"min_tokens": 9.5, "factor": 5}}, None, "write {min_tokens: 4096"),
        (upsampled(1, (64, 0)), None, "factor: 0 must be positive, as no document may become unreachable"),
        (upsampled(1, (64, 2), (32, 3)), None, r"min_tokens: \[64, 32\] must rise"),
        ({**upsampled(1, (64, 2)), "strata": {"low": 1}}, None, "the entry has strata too"),
        (
            upsampled(1, (64, 2)),
            StrataConfig(quantiles=2),
            r"are quantiles; give .*strata.edges=\[64\]",
        ),
        (upsampled(1, (64, 2)), StrataConfig(edges=[32]), r"no stratum .* begins at \[64\]; set .*edges=\[32, 64\]"),
        (
            upsampled(1, (64, 2)),
            StrataConfig(by="label"),
            "is parted by label; set .*strata.by=length",
        ),
        ({"length_upsampling": {"min_tokens": 64, "factor": 2}}, None, "it has no share"),
    ],
)
def test_a_mistaken_upsampling_is_refused_with_the_fix(config, entry, strata, said):
    config.data = type(config.data)(
        **vars(config.data)
        | {"sources": {"books": SourceConfig(["x"], strata=strata, label_field="kind"), "web": SourceConfig(["y"])}}
    )
    config.stages[0].mixture["books"] = entry
    with pytest.raises(UserError, match=rf"stages\.0 \('long'\): mixture\.books.*{said}"):
        validate(config)


def test_an_upsampling_stage_that_is_added_later_is_refused_with_the_ways_out(config):
    before = sample_order(config, opened(config), [])
    config.stages = [*config.stages, stage("longer", upsampled(0.6, (64, 5)))]
    with pytest.raises(UserError, match="length_upsampling parts its source for the whole run"):
        sample_order(config, opened(config), []).check(before.state(8), before.identity)


def test_the_manifest_tells_what_the_bounds_of_documents_tell(config):
    source = opened(config)[0]
    found = lengths(source)
    recorded = [sum(column) for column in zip(*(e[TOKENS_BY_LENGTH] for e in source.manifest["shards"]), strict=False)]
    assert recorded == tokens_by_length(found)[: len(recorded)]
    for length in (1, 16, 64, 100, 1 << 20):
        assert share_below(source, length) == found[found < length].sum() / found.sum()


@pytest.mark.parametrize("length", [256, 255])
def test_only_a_length_between_powers_of_two_reads_the_bounds(config, length, monkeypatch):
    monkeypatch.setattr(Source, "doc_offsets", lambda *_: pytest.fail("a shard was read"))
    source = Source.open(Path(config.data.shards) / "books")
    if length == 256:
        assert 0 < share_below(source, length) < 1
    else:
        with pytest.raises(pytest.fail.Exception):
            share_below(source, length)


def test_a_row_knows_which_of_its_tokens_are_of_documents_as_long_as_it():
    source = MemorySource("law", [[4, 9, 3, 8]])
    plan = make_plan(source, 8, "concat")
    rows = np.arange(plan.num_rows)
    batch = build_batch([source], [plan], np.zeros_like(rows), rows, rows)
    assert batch.doc_lengths.tolist() == [4, 9, 9, 3, 8]
    assert batch.joined_tokens(8).tolist() == [4, 3, 0]
    assert batch.joined_tokens(9).tolist() == [4, 3, 8]
    assert batch.joined_tokens(10).tolist() == [8, 8, 8]
    assert filler_batch().joined_tokens(8).tolist() == []


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_what_batches_count_as_joined_is_what_the_plan_says(config, packing):
    edge = middle(config)
    config.stages = [stage("long", upsampled(0.6, (edge, 5)), seq_len=64, packing=packing)]
    views = opened(config)
    order = sample_order(config, views, [])
    counted = torch.zeros(len(views), dtype=torch.long)
    for step in StepLoader(order, views, stage=0, micro_batch=4):
        for batch in step:
            counted.index_add_(0, batch.row_sources, batch.joined_tokens(64))
    planned = planned_joined(order, joined_shares(order, views), order.num_samples)
    assert counted.tolist() == pytest.approx([planned[view.name] for view in views], rel=0.05, abs=200)
    assert counted[1] == 0


def test_a_long_stage_with_few_short_documents_is_refused_with_the_numbers(config):
    trained = middle(config)
    config.stages = [stage("short", 0.6, seq_len=128), stage("long", upsampled(0.6, (trained, 50)), seq_len=1024)]
    config.stages[1].mixture["web"] = upsampled(0.4, (trained, 50))
    views = opened(config)
    order = sample_order(config, views, [])
    [line] = short_share_problems(order, views, [trained, trained], 0.4)
    share = sum(order.shares(order.stage_starts[1])[f"{name}/under_{trained}"] for name in ("books", "web"))
    assert share < 0.1
    assert line.startswith(f"stage 'long': {share:.1%} of its tokens lie in documents of fewer than {trained} tokens")
    assert "of its 60.0%" in line
    assert line.endswith(f"set long_data.min_short_share={int(share * 100) / 100:g}")
    assert short_share_problems(order, views, [trained, trained], int(share * 100) / 100) == []
    assert short_share_problems(order, views, [trained, None], 0.4) == []
    assert short_share_problems(order, views, [trained, trained], 0.4, first_sample=order.num_samples) == []


def test_the_trained_length_is_what_a_stage_says_of_the_base_or_its_config():
    stages = [StageConfig(seq_len=64), StageConfig(rope=RopeConfig("yarn", original=32)), StageConfig()]
    assert stage_trained_positions({"max_position_embeddings": 128}, stages) == [128, 32, 32]


def test_a_share_outside_0_to_1_is_refused(config):
    config.long_data.min_short_share = 40
    with pytest.raises(UserError, match=r"long_data\.min_short_share: 40 must lie within 0 to 1"):
        validate(config)
