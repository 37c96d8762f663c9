"""The number of targets of an epoch, from recorded bounds alone, is that of batches over all rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.config import PACKINGS
from cpt_dist.data.batches import build_batch
from cpt_dist.data.plans import make_plan
from cpt_dist.data.prepare import prepare
from cpt_dist.data.shards import Source
from cpt_dist.data.targets import epoch_targets
from cpt_dist.data.views import views_of
from cpt_dist.strata_config import StrataConfig
from tests.helpers.corpora import corpus_config
from tests.helpers.memory_sources import MemorySource


def counted(source, packing, seq_len):
    plan = make_plan(source, seq_len, packing)
    none = np.zeros(1, dtype=np.int64)
    batches = (build_batch([source], [plan], none, none + row, none) for row in range(plan.num_rows))
    return sum(batch.num_target_tokens for batch in batches)


@st.composite
def sources(draw):
    """Documents, maybe a part of them, maybe with spans that neither begin nor end where documents do."""
    shards = draw(st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=6), min_size=1, max_size=3))
    chosen = [draw(st.sets(st.sampled_from(range(len(shard))))) for shard in shards]
    source = MemorySource("law", shards, selected=draw(st.sampled_from([None, [sorted(one) for one in chosen]])))
    if draw(st.booleans()):
        cuts = [draw(st.sets(st.integers(0, sum(shard)))) for shard in shards]
        source.targets = [list(zip(*[iter(sorted(one))] * 2, strict=False)) for one in cuts]
    return source


@pytest.mark.parametrize("packing", PACKINGS)
@settings(deadline=None, max_examples=60)
@given(source=sources(), seq_len=st.integers(1, 16))
def test_an_epoch_has_as_many_targets_as_its_batches(packing, source, seq_len):
    assert counted(source, packing, seq_len) == epoch_targets(source)


def test_the_manifest_of_a_whole_source_has_them_and_its_strata_add_up(tmp_path):
    config = corpus_config(tmp_path, {"law": [f"text {index} " * (index % 9 + 1) for index in range(60)]})
    prepare(config)
    source = Source.open(tmp_path / "shards/law")
    config.data.sources["law"].strata = StrataConfig(edges=[30.0])
    parts = [epoch_targets(view) for view in views_of([source], config.data.sources)]
    assert epoch_targets(source) == counted(source, "concat", 16) == sum(parts)
    assert min(parts) > 0
