"""Promises of the loader: the same steps for any ranks, micro-batches and workers, from any step on."""

import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cpt_dist.config import StageConfig
from cpt_dist.data import loader
from cpt_dist.data.loader import StepLoader, rank_slots, window_slots
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.shard_writer import Document, Part, write_shard
from cpt_dist.data.shards import FORMAT, Source
from cpt_dist.errors import UserError
from cpt_dist.files import fingerprint, write_json
from tests.helpers.memory_sources import MemorySource

NUM_ROWS = 12  # rows in a global batch


def write_source(folder: Path, name: str, lengths: list[int]) -> Source:
    part = Part(np.uint16)
    for number, length in enumerate(lengths):
        document = Document(bytes([number] * 16), "", 1, "raw.jsonl", number, None)
        part.add(document, ((100 * number + np.arange(length)) % 60000).tolist())
    (folder / name).mkdir(parents=True)
    entry = write_shard(folder / name / "shard-00000.safetensors", part)
    manifest = {"format": FORMAT, "source": name, "role": "domain", "licence": "none"}
    manifest |= {"tokenizer": {"fingerprint": "t", "vocab_size": 60000, "separator_id": 0, "bos_id": None}}
    manifest |= {"tokens": sum(lengths), "documents": len(lengths), "shards": [entry], "held_out": []}
    write_json(folder / name / "manifest.json", manifest | {"fingerprint": fingerprint(manifest)})
    return Source.open(folder / name)


@pytest.fixture
def sources():
    return [MemorySource("a", [[5, 9, 30], [17]]), MemorySource("b", [[40, 3]], first_document=20)]


@pytest.fixture
def order(sources):
    return order_over(sources)


def order_over(sources, num_samples=48):
    shape = {"seq_len": 8, "batch_tokens": str(8 * NUM_ROWS)}
    mixture = {source.name: number + 1.0 for number, source in enumerate(sources)}
    main = StageConfig(tokens=str(8 * num_samples), mixture=mixture, **shape)
    tail = StageConfig(name="tail", tokens=str(8 * 24), mixture={"a": 1.0}, **shape)
    return SampleOrder.from_sources([main, tail], sources, seed=4)


def content_by_sample(steps):
    """For each step: sample id -> (tokens, labels) of its row. Only for micro-batches of one row."""
    return [
        {int(b.sample_ids[0]): (b.input_ids.tolist(), b.labels.tolist()) for b in step if b.sample_ids.numel()}
        for step in steps
    ]


def targets(step):
    return Counter(label for batch in step for label in batch.labels.tolist() if label != -100)


@pytest.mark.parametrize("world_size", range(1, 9))
def test_a_step_reads_the_same_samples_on_any_number_of_ranks(order, sources, world_size):
    alone = content_by_sample(StepLoader(order, sources, stage=0))
    ranks = [
        content_by_sample(StepLoader(order, sources, stage=0, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for number, step in enumerate(alone):
        parts = [rank[number] for rank in ranks]
        assert sorted(step) == list(range(number * NUM_ROWS, (number + 1) * NUM_ROWS))
        assert sorted(n for part in parts for n in part) == sorted(step)
        assert {n: content for part in parts for n, content in part.items()} == step


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 12, 100])
def test_a_step_reads_the_same_samples_in_any_micro_batch(order, sources, micro_batch):
    ones = list(StepLoader(order, sources, stage=0, rank=1, world_size=2))
    steps = list(StepLoader(order, sources, stage=0, rank=1, world_size=2, micro_batch=micro_batch))
    assert len(steps) == 4
    for step, reference in zip(steps, ones, strict=True):
        assert len(step) == -(-NUM_ROWS // 2 // micro_batch)
        assert max(batch.sample_ids.numel() for batch in step) <= micro_batch
        assert [n for b in step for n in b.sample_ids.tolist()] == [n for b in reference for n in b.sample_ids.tolist()]
        for name in ("input_ids", "labels", "position_ids", "source_ids", "doc_ids"):
            joined, single = (torch.cat([getattr(batch, name) for batch in part]) for part in (step, reference))
            assert torch.equal(joined, single)


@pytest.mark.parametrize(("world_size", "micro_batch"), [(5, 1), (7, 2), (8, 1), (12, 4)])
def test_all_ranks_give_equally_many_micro_batches_with_fillers_where_rows_lack(
    order, sources, world_size, micro_batch
):
    steps = [
        next(iter(StepLoader(order, sources, stage=0, rank=rank, world_size=world_size, micro_batch=micro_batch)))
        for rank in range(world_size)
    ]
    assert {len(step) for step in steps} == {math.ceil(math.ceil(NUM_ROWS / world_size) / micro_batch)}
    fillers = [batch for step in steps for batch in step if not batch.sample_ids.numel()]
    assert all(batch.num_target_tokens == 0 for batch in fillers)
    rows = sum(batch.sample_ids.numel() for step in steps for batch in step)
    assert rows == NUM_ROWS
    alone = next(iter(StepLoader(order, sources, stage=0)))
    assert sum((targets(step) for step in steps), Counter()) == targets(alone)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_change_nothing(tmp_path, num_workers):
    files = [write_source(tmp_path, "a", [5, 9, 30, 17]), write_source(tmp_path, "b", [40, 3])]
    order = order_over(files)
    here, there = (
        [batch for step in StepLoader(order, files, stage=0, micro_batch=5, num_workers=n) for batch in step]
        for n in (0, num_workers)
    )
    assert len(here) == len(there) == 12
    for one, other in zip(here, there, strict=True):
        names = [*vars(one), "labels", "position_ids", "source_ids"]
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_a_loader_made_at_a_step_goes_on_with_that_step(order, sources, done):
    whole = content_by_sample(StepLoader(order, sources, stage=0))
    rest = StepLoader(order, sources, stage=0, first_sample=done * NUM_ROWS)
    assert len(rest) == 4 - done
    assert content_by_sample(rest) == whole[done:]


def test_the_next_stage_begins_where_the_last_one_ended(order, sources):
    steps = list(StepLoader(order, sources, stage=1))
    assert sorted(n for batch in steps[0] for n in batch.sample_ids.tolist()) == list(range(48, 60))
    assert {int(s) for step in steps for batch in step for s in batch.source_ids} == {0}


def test_no_rank_sees_one_source_only():
    """Sources come in turn (a b a b …): without the permutation rank 0 of 2 would get only the first."""
    half = [rank_slots(seed, 0, 64, rank=0, world_size=2) for seed in range(50)]
    shares = [(slots % 2).mean() for slots in half]
    assert 0.2 < min(shares) <= max(shares) < 0.8


def test_a_window_of_many_steps_has_the_slots_of_each_step():
    ahead = window_slots(3, 128, 64, num_steps=4, rank=1, world_size=3)
    each = [rank_slots(3, first, 64, 1, 3) + first - 128 for first in range(128, 384, 64)]
    assert np.array_equal(ahead, np.concatenate(each))


@pytest.mark.parametrize("most", ["_WINDOW_SAMPLES", "_WINDOW_TOKENS"])
def test_how_many_steps_are_looked_up_at_a_time_changes_no_batch(order, sources, monkeypatch, most):
    many = content_by_sample(StepLoader(order, sources, stage=0))
    monkeypatch.setattr(loader, most, 1)
    assert content_by_sample(StepLoader(order, sources, stage=0)) == many


def test_slots_differ_from_step_to_step_and_cover_the_batch():
    first, second = (rank_slots(1, n, 64, 0, 1) for n in (0, 64))
    assert not np.array_equal(first, second)
    assert sorted(first.tolist()) == list(range(64))


def test_more_ranks_than_the_batch_has_rows_are_refused_with_the_nearest_fixes(order, sources):
    with pytest.raises(UserError, match="96 tokens is 12 rows of 8, too few for 13 ranks; start at most 12") as caught:
        StepLoader(order, sources, stage=0, rank=0, world_size=13)
    assert "batch_tokens to 104" in caught.value.problems[0]


@pytest.mark.parametrize("first_sample", [-12, 5, 60])
def test_a_start_that_is_no_step_boundary_is_refused(order, sources, first_sample):
    with pytest.raises(ValueError, match="no step boundary of stage 'main'"):
        StepLoader(order, sources, stage=0, first_sample=first_sample)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_shard_is_named_in_one_line_also_from_a_worker(tmp_path, num_workers):
    sources = [write_source(tmp_path, "a", [600_000]), write_source(tmp_path, "b", [40])]
    order = order_over(sources, num_samples=1200)
    path = tmp_path / "a" / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-100_000] ^= 1  # in the second block of tokens
    path.write_bytes(content)
    reopened = [Source.open(tmp_path / name) for name in "ab"]
    with pytest.raises(UserError) as caught:
        list(StepLoader(order, reopened, stage=0, micro_batch=12, num_workers=num_workers))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("source 'a': shard-00000.safetensors block 1 has checksum")
    assert "Traceback" not in str(caught.value)
    time.sleep(0.3)  # the end of a killed worker, which the exception still holds, is no crash that torch raises here


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_draws_nothing_from_the_global_random_numbers(order, sources, num_workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(StepLoader(order, sources, stage=1, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_time_waited_for_data_is_counted(order, sources):
    class Slow(MemorySource):
        def tokens(self, shard, start, stop):
            time.sleep(0.005)
            return super().tokens(shard, start, stop)

    slow = [Slow("a", [[5, 9, 30], [17]]), sources[1]]
    loader = StepLoader(order, slow, stage=1)
    assert loader.wait_seconds == 0
    list(loader)
    assert loader.wait_seconds > 24 * 0.005


def test_the_loader_gives_the_positions_that_the_stage_asks_for(order, sources):
    (batch,) = next(iter(StepLoader(order, sources, stage=0, micro_batch=NUM_ROWS, positions="continue")))
    assert int(batch.position_ids.max()) == 7
    assert int((batch.position_ids == 0).sum()) == NUM_ROWS < len(batch.doc_ids)
