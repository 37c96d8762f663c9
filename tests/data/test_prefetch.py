import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress

import psutil
import pytest

from cpt_dist.config import DataConfig, StageConfig
from cpt_dist.data.loader import StepLoader
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.packing import ConcatAndChunk
from cpt_dist.data.prefetch import Prefetcher, shards_ahead
from cpt_dist.data.remote import FetchSettings, RemoteFolder
from cpt_dist.data.shard_cache import check_cache_holds
from cpt_dist.data.shards import Source
from cpt_dist.errors import UserError
from tests.helpers.file_server import file_server
from tests.helpers.shard_sets import write_source

pytest.importorskip("aiohttp")
NUM_SHARDS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_source(folder / "law", [[100] * 32] * NUM_SHARDS)
    write_source(folder / "news", [[80] * 40] * 2)
    return folder


@pytest.fixture
def served(folder):
    with file_server(folder) as (url, faults):
        yield url, faults


def opened(url, cache, cache_bytes=10**9):
    settings = FetchSettings(cache, cache_bytes, 1, 0.01, 5.0)
    return [Source.open(RemoteFolder(f"{url}/{name}", settings)) for name in ("law", "news")]


def order_of(sources, window, seed=0):
    stage = StageConfig("main", str(400 * 64), 64, "512", {"law": 0.8, "news": 0.2})
    return SampleOrder.from_sources([stage], sources, seed, window_shards=window)


def first_uses(order, sources, n):
    """(source, shard) in the order of their first use from n on, by looking at each sample."""
    plans = [ConcatAndChunk(source.shard_tokens, 64) for source in sources]
    samples = order.samples(n, order.num_samples - n)
    pairs = zip(samples.source.tolist(), samples.row.tolist(), strict=True)
    return list(dict.fromkeys((source, plans[source].row(row).shard) for source, row in pairs))


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("n", [0, 136])
def test_the_look_ahead_is_the_order_of_first_use(served, tmp_path, window, n):
    sources = opened(served[0], tmp_path / "cache")
    order = order_of(sources, window)
    assert [(source, shard) for _, source, shard in shards_ahead(order, sources, n)] == first_uses(order, sources, n)


def cached(source):
    return {number for number, file in enumerate(source.remote_files) if file.path.exists()}


def test_the_window_and_the_shards_after_it_are_fetched_and_no_more(served, tmp_path):
    sources = opened(served[0], tmp_path / "cache")
    order = order_of(sources, 2)
    uses = [shard for source, shard in first_uses(order, sources, 0) if source == 0]
    with Prefetcher(order, sources, 1) as prefetcher:
        prefetcher.move_to(0)
        deadline = time.monotonic() + 10
        while cached(sources[0]) != set(uses[:3]) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        assert cached(sources[0]) == set(uses[:3])
        assert cached(sources[1]) == {0, 1}


def test_what_cannot_be_fetched_ahead_is_left_to_the_reader(served, tmp_path):
    url, faults = served
    sources = opened(url, tmp_path / "cache")
    order = order_of(sources, 0)
    faults.always = {f"shard-{number:05d}.safetensors": 404 for number in range(NUM_SHARDS)}
    with Prefetcher(order, sources, 2) as prefetcher:
        prefetcher.move_to(0)
        time.sleep(0.3)
    with pytest.raises(UserError, match="cannot be fetched: it does not exist"):
        next(iter(StepLoader(order, sources, stage=0)))


def batches(order, sources, num_workers, prefetch):
    loader = StepLoader(order, sources, stage=0, micro_batch=4, num_workers=num_workers)
    with Prefetcher(order, sources, prefetch) as prefetcher:
        found = []
        for step, micro_batches in enumerate(loader):
            prefetcher.move_to(8 * (step + 1))
            found += [batch.input_ids.tolist() for batch in micro_batches]
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bounded_cache_gives_the_batches_of_the_local_folder(served, folder, tmp_path, num_workers):
    url, _ = served
    local = [Source.open(folder / name) for name in ("law", "news")]
    sizes = [max(entry["bytes"] for entry in source.manifest["shards"]) for source in local]
    bound = 4 * sizes[0] + 2 * sizes[1]
    far = opened(url, tmp_path / "cache", bound)
    assert batches(order_of(far, 2), far, num_workers, 1) == batches(order_of(local, 2), local, 0, 0)


def test_a_windowed_epoch_fetches_each_shard_once_and_never_exceeds_the_cache(served, folder, tmp_path):
    url, faults = served
    (law, _) = opened(url, tmp_path / "none")
    bound = 4 * max(entry["bytes"] for entry in law.manifest["shards"])
    sources = opened(url, tmp_path / "cache", bound)[:1]
    epochs, rows = 3, ConcatAndChunk(law.shard_tokens, 64).num_rows
    stage = StageConfig("main", str(epochs * rows * 64), 64, "512", {"law": 1.0})
    order = SampleOrder.from_sources([stage], sources, 0, window_shards=2)
    with watched(tmp_path / "cache") as sizes:
        batches(order, sources, 0, 1)
    fetched = Counter(name for name, first in faults.requests if name.startswith("shard-"))
    assert len(fetched) == NUM_SHARDS
    assert max(fetched.values()) <= epochs
    assert 0 < max(sizes) <= bound


@contextmanager
def watched(folder):
    """Bytes in the folder, looked at again and again while the context lasts."""
    sizes, ended = [], threading.Event()

    def look():
        while not ended.wait(0.002):
            with suppress(FileNotFoundError):
                sizes.append(sum(entry.stat().st_size for entry in os.scandir(folder)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield sizes
    finally:
        ended.set()
        thread.join()


def test_a_cache_too_small_for_what_is_drawn_from_is_refused(served, tmp_path):
    files = {source.name: source.remote_files for source in opened(served[0], tmp_path / "cache")}
    total = sum(file.entry["bytes"] for of in files.values() for file in of)
    data = DataConfig(cache=str(tmp_path), cache_bytes=str(total))
    check_cache_holds(data, files)
    data.cache_bytes = str(total - 1)
    with pytest.raises(
        UserError, match=rf"cache_bytes: {total - 1} bytes hold less .* raise it to {total} or more, or"
    ):
        check_cache_holds(data, files)
    strata = {"law/high": files["law"], "law/low": files["law"], "news": files["news"]}
    with pytest.raises(UserError, match=rf"raise it to {total} or more"):
        check_cache_holds(data, strata)
    data.shuffle_window_shards = 1
    check_cache_holds(data, strata)


def test_workers_outlive_the_signals_that_ask_a_job_to_stop(served, folder, tmp_path):
    sources = opened(served[0], tmp_path / "cache")
    order = order_of(sources, 0)
    steps = iter(StepLoader(order, sources, stage=0, num_workers=1))
    found = [next(steps)]
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(worker.pid, number)
        os.kill(psutil.Process(worker.pid).ppid(), number)
    time.sleep(0.5)
    found += steps
    assert len(found) == 50
    assert not worker.is_alive()
