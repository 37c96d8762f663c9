import fcntl
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import time
from contextlib import contextmanager

import numpy as np
import pytest

from cpt_dist.data.plans import make_plan
from cpt_dist.data.remote import FetchSettings, RemoteFolder
from cpt_dist.data.shards import Source, read_held_out
from cpt_dist.errors import UserError
from tests.helpers.file_server import file_server
from tests.helpers.shard_sets import write_source, write_wide_source

pytest.importorskip("aiohttp")
SHARDS = [f"shard-{number:05d}.safetensors" for number in range(3)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A source of three shards, the first of three blocks."""
    lengths = [[100_000] * 12, [200] * 300, [40_000] * 10]
    return write_source(tmp_path_factory.mktemp("prepared") / "legal", lengths)


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "shards" / "legal")


@pytest.fixture
def served(folder):
    with file_server(folder.parent) as (url, faults):
        yield url, faults


@pytest.fixture
def settings(tmp_path):
    return FetchSettings(tmp_path / "cache", retries=2, backoff_seconds=0.01, timeout_seconds=5.0)


def everything(source):
    return [
        [source.tokens(shard, 0, int(num)).tolist(), source.doc_offsets(shard).tolist(), source.doc_ids(shard).tolist()]
        for shard, num in enumerate(source.shard_tokens)
    ]


def opened(url, settings):
    return Source.open(RemoteFolder(f"{url}/legal", settings))


def cached_files(settings):
    return sorted(path for path in settings.cache.iterdir() if path.suffix in (".whole", ".part"))


def shard_bytes(folder, number=0):
    return (folder / SHARDS[number]).stat().st_size


@pytest.mark.parametrize("scheme", ["http", "file", "memory"])
def test_a_source_behind_a_url_is_the_local_one(scheme, served, folder, settings):
    url = {"http": served[0], "file": folder.parent.as_uri(), "memory": "memory://bucket"}[scheme]
    if scheme == "memory":
        import fsspec

        fsspec.filesystem("memory").put(str(folder.parent), "/bucket", recursive=True)
    source, local = opened(url, settings), Source.open(folder)
    assert not settings.cache.exists()
    assert everything(source) == everything(local)
    assert source.fingerprint == local.fingerprint
    far = RemoteFolder(f"{url}/legal", settings)
    assert list(read_held_out(far)) == list(read_held_out(folder))
    assert len(cached_files(settings)) == 3 + len(local.manifest["held_out"])


def test_a_shard_is_fetched_once_for_all_that_read_it(served, settings):
    url, faults = served
    first, second = opened(url, settings), pickle.loads(pickle.dumps(opened(url, settings)))
    everything(first), everything(first), everything(second)
    assert [len(faults.fetched(name)) for name in SHARDS] == [1, 1, 1]


def test_a_plain_http_server_is_asked_for_files_and_for_no_listing(served, settings):
    url, faults = served
    everything(opened(url, settings))
    assert {name for name, _ in faults.requests} == {"manifest.json", *SHARDS}


def test_a_server_without_ranges_will_do(served, folder, settings):
    url, faults = served
    faults.ranges = False
    faults.plan[SHARDS[0]] = ["cut", "flip"]
    assert everything(opened(url, settings)) == everything(Source.open(folder))


@pytest.mark.parametrize("fault", [500, 503, 429, "cut", "short", "flip"])
def test_a_passing_fault_heals(fault, served, folder, settings):
    url, faults = served
    faults.plan = {"manifest.json": [500] if fault in ("short", "flip") else [fault], SHARDS[1]: [fault, fault]}
    assert everything(opened(url, settings)) == everything(Source.open(folder))
    assert len(faults.fetched(SHARDS[1])) == 3


def test_an_answer_that_takes_too_long_is_asked_for_again(served, folder, settings):
    url, faults = served
    faults.plan[SHARDS[0]] = [20.0]
    quick = FetchSettings(settings.cache, retries=5, backoff_seconds=0.01, timeout_seconds=0.5)
    begin = time.monotonic()
    assert everything(opened(url, quick)) == everything(Source.open(folder))
    assert time.monotonic() - begin < 20.0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (500, r"block 0 cannot be fetched: HTTP 500 .*\(3 attempts\)"),
        ("cut", r"block 0 .*\(3 attempts\)"),
        ("flip", r"block 0 has checksum \w{16} but its manifest says \w{16} \(3 attempts\)"),
        (403, r"block 0 cannot be fetched: access is refused \(HTTP 403 .*\)"),
        (404, r"block 0 cannot be fetched: it does not exist"),
    ],
)
def test_a_lasting_fault_names_url_shard_and_block(fault, message, served, settings):
    url, faults = served
    source = opened(url, settings)
    faults.always[SHARDS[1]] = fault
    source.tokens(0, 0, 10)
    with pytest.raises(UserError, match=rf"source 'legal': '{url}/legal/{SHARDS[1]}' {message}") as caught:
        source.tokens(1, 0, 10)
    assert len(caught.value.problems) == 1
    assert "\n" not in caught.value.problems[0]
    assert len(faults.fetched(SHARDS[1])) == (1 if fault in (403, 404) else 3)


def test_a_later_block_that_is_wrong_there_is_named(served, folder, settings):
    url, _ = served
    content = bytearray((folder / SHARDS[0]).read_bytes())
    content[(1 << 20) + 5] ^= 1
    (folder / SHARDS[0]).write_bytes(content)
    with pytest.raises(UserError, match="block 1 has checksum"):
        opened(url, settings).tokens(0, 0, 10)


def test_a_shard_that_vanishes_is_named_when_it_is_needed_and_a_cached_one_goes_on(served, folder, settings):
    url, _ = served
    source = opened(url, settings)
    before = source.tokens(0, 0, 100).tolist()
    for name in SHARDS:
        (folder / name).unlink()
    assert source.tokens(0, 0, 100).tolist() == before
    with pytest.raises(UserError, match=rf"{SHARDS[2]}' block 0 cannot be fetched: it does not exist"):
        source.tokens(2, 0, 10)


def test_a_folder_that_can_be_listed_is_checked_before_anything_is_fetched(folder, settings):
    (folder / SHARDS[0]).unlink()
    (folder / SHARDS[2]).write_bytes(b"short")
    with pytest.raises(UserError) as caught:
        opened(folder.parent.as_uri(), settings)
    missing, short = caught.value.problems
    assert re.search(rf"{SHARDS[0]}' does not exist", missing)
    assert re.search(rf"{SHARDS[2]}' has 5 bytes but its manifest says \d+", short)


def test_no_manifest_is_not_complete(served, settings):
    with pytest.raises(UserError, match=r"http://.*/nothing/manifest.json' does not exist, so it is not complete"):
        Source.open(RemoteFolder(f"{served[0]}/nothing", settings))


def test_a_fetch_that_broke_off_goes_on_with_the_blocks_that_agree(served, folder, settings):
    url, faults = served
    opened(url, settings).tokens(0, 0, 10)
    (whole,) = cached_files(settings)
    content = whole.read_bytes()
    whole.unlink()
    part = whole.with_suffix(".part")
    block = 1 << 20
    for beginning, resumed_at in ((content[: block + 500], block), (b"x" + content[1 : 2 * block], 0)):
        part.write_bytes(beginning)
        faults.requests.clear()
        opened(url, settings).tokens(0, 0, 10)
        assert faults.fetched(SHARDS[0]) == [resumed_at]
        assert whole.read_bytes() == content
        whole.unlink()


def _fetch_slowly(url, settings):
    opened(url, settings).tokens(0, 0, 10)


def test_a_killed_process_blocks_nobody(served, folder, settings):
    url, faults = served
    faults.plan[SHARDS[0]] = [60.0]
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_fetch_slowly, args=(url, FetchSettings(settings.cache, timeout_seconds=60.0)))
    process.start()
    deadline = time.monotonic() + 15
    while not faults.fetched(SHARDS[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [path.suffix for path in cached_files(settings)] == [".part"]
    assert everything(opened(url, settings)) == everything(Source.open(folder))
    assert {path.suffix for path in cached_files(settings)} == {".whole"}


def _read_all(url, settings, results):
    results.put(everything(opened(url, settings)))


def test_processes_share_a_cache_smaller_than_what_they_read(served, folder, settings):
    url, _ = served
    small = FetchSettings(settings.cache, int(1.5 * shard_bytes(folder)), 2, 0.01, 20.0)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_read_all, args=(url, small, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [everything(Source.open(folder))] * 3
    assert sum(path.stat().st_size for path in cached_files(small)) <= small.cache_bytes


def test_the_longest_unused_goes_first_and_what_is_mapped_stays(served, folder, settings):
    url, faults = served
    bound = shard_bytes(folder, 0) + shard_bytes(folder, 2)
    source = opened(url, FetchSettings(settings.cache, bound, 0, 0.01, 0.2))
    view = source.doc_ids(0)
    source.tokens(1, 0, 10)
    other = source.doc_ids(2)
    source.tokens(0, 0, 10)
    assert [len(faults.fetched(name)) for name in SHARDS] == [1, 1, 1]
    with pytest.raises(UserError, match=r"bytes, but the \d+ bytes of '.*cache' are full of what is in use; raise"):
        source.tokens(1, 0, 10)
    assert len(view) + len(other) > 0


def test_a_copy_damaged_on_this_disk_is_fetched_again(served, folder, settings):
    url, faults = served
    before = opened(url, settings).tokens(0, 0, 100).tolist()
    (path,) = cached_files(settings)
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    assert opened(url, settings).tokens(0, 0, 100).tolist() == before
    assert len(faults.fetched(SHARDS[0])) == 2
    path.write_bytes(content[:1000])
    assert opened(url, settings).tokens(0, 0, 100).tolist() == before


def test_an_altered_held_out_file_is_refused(served, folder, settings):
    url, _ = served
    entry = json.loads((folder / "manifest.json").read_text())["held_out"][0]
    (folder / entry["file"]).write_bytes(b"x" * entry["bytes"])
    with pytest.raises(UserError, match=rf"{entry['file']}' block 0 has checksum \w+ but its manifest says"):
        list(read_held_out(RemoteFolder(f"{url}/legal", settings)))


def test_an_unknown_protocol_is_one_line(settings):
    with pytest.raises(UserError, match=r"'nosuch://a/legal/manifest.json': .*nosuch"):
        opened("nosuch://a", settings)


def test_views_of_a_shard_outlive_its_removal_and_tokens_are_no_views(served, settings):
    source = opened(served[0], settings)
    tokens, ids = source.tokens(0, 0, 1000), source.doc_ids(0)
    before = np.array(ids)
    for path in cached_files(settings):
        path.unlink()
    np.testing.assert_array_equal(ids, before)
    assert tokens.base is None


def test_a_file_that_another_process_has_mapped_is_not_evicted(served, folder, settings):
    url, faults = served
    bound = shard_bytes(folder, 0) + shard_bytes(folder, 1)
    small = FetchSettings(settings.cache, bound, 0, 0.01, 0.3)
    used = opened(url, small)
    with held_elsewhere(url, small, shard=0), pytest.raises(UserError, match="are full of what is in use"):
        used.tokens(2, 0, 10)
    used.tokens(2, 0, 10)
    assert [len(faults.fetched(name)) for name in SHARDS] == [1, 0, 1]


@contextmanager
def held_elsewhere(url, settings, shard):
    """Another process keeps a view of a shard for as long as the context lasts."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_hold, args=(url, settings, shard, there))
    process.start()
    try:
        assert here.poll(30)
        here.recv()
        yield
    finally:
        here.send("end")
        process.join()


def _hold(url, settings, shard, pipe):
    view = opened(url, settings).doc_ids(shard)
    pipe.send(len(view))
    pipe.recv()
    assert len(view)


def test_one_that_fetches_and_comes_no_further_is_given_up(served, settings):
    source = opened(served[0], FetchSettings(settings.cache, retries=0, backoff_seconds=0.01, timeout_seconds=0.1))
    part = source.remote_files[0].path.with_suffix(".part")
    part.parent.mkdir(parents=True)
    with part.open("wb") as handle, patched_waits(0.2):
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=rf"{SHARDS[0]}' is being fetched by another process .* come no further"):
            source.tokens(0, 0, 10)


@contextmanager
def patched_waits(seconds):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cpt_dist.data.shard_cache.LONGEST_WAIT_SECONDS", seconds)
        yield


def test_a_slow_server_is_asked_for_less_at_a_time(folder, settings):
    with file_server(folder.parent) as (url, faults):
        faults.bytes_per_second = 6 << 20
        quick = FetchSettings(settings.cache, retries=3, backoff_seconds=0.01, timeout_seconds=0.3)
        assert opened(url, quick).tokens(0, 0, 10).size == 10
        assert len(faults.fetched(SHARDS[0])) > 2


def test_a_file_system_that_never_answers_is_given_up(folder, settings, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    source = opened(
        folder.parent.as_uri(), FetchSettings(settings.cache, retries=1, backoff_seconds=0.01, timeout_seconds=0.2)
    )
    monkeypatch.setattr(LocalFileSystem, "cat_file", lambda *_, **__: time.sleep(20))
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"block 0 cannot be fetched: no answer within 0.2 seconds \(2 attempts\)"):
        source.tokens(0, 0, 10)
    assert time.monotonic() - begin < 20


@pytest.fixture
def many_documents(tmp_path):
    return write_wide_source(tmp_path / "many" / "legal")


def test_columns_are_read_without_fetching_the_tokens(many_documents, settings):
    local = Source.open(many_documents)
    with file_server(many_documents.parent) as (url, faults):
        far = opened(url, settings)
        for column in ("doc_offsets", "doc_ids", "doc_bytes"):
            np.testing.assert_array_equal(getattr(far, column)(0), getattr(local, column)(0))
            np.testing.assert_array_equal(getattr(far, column)(0), getattr(local, column)(0))
        assert far.column(0, "quality") is None
        size = shard_bytes(many_documents)
        assert sum(path.stat().st_size for path in cached_files(settings)) < size // 2
        assert not far.remote_files[0].path.exists()
        requests = len(faults.requests)
        np.testing.assert_array_equal(far.tokens(0, 5, 500), local.tokens(0, 5, 500))
        np.testing.assert_array_equal(far.doc_ids(0), local.doc_ids(0))
        assert len(faults.requests) == requests + 1


def test_best_fit_rows_need_no_tokens_and_are_those_of_the_folder(tmp_path, settings):
    local = Source.open(write_wide_source(tmp_path / "many" / "legal", num_documents=2000))
    with file_server(tmp_path / "many") as (url, _):
        far = opened(url, settings)
        plans = [make_plan(source, 128, "best_fit") for source in (far, local)]
        assert plans[0].num_rows == plans[1].num_rows
        assert [plans[0].row(row) for row in range(0, 500, 9)] == [plans[1].row(row) for row in range(0, 500, 9)]
        assert not far.remote_files[0].path.exists()
    assert list((settings.cache / "plans").iterdir())


def test_a_damaged_column_is_named_by_its_block_in_the_shard(many_documents, settings):
    path = many_documents / SHARDS[0]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    last = (len(content) - 1) // (1 << 14)
    with file_server(many_documents.parent) as (url, _):
        far = opened(url, settings)
        far.doc_offsets(0)
        with pytest.raises(UserError, match=rf"{SHARDS[0]}' block {last} has checksum"):
            far.doc_ids(0)


def test_a_held_out_copy_damaged_on_this_disk_is_fetched_again(served, settings):
    far = RemoteFolder(f"{served[0]}/legal", settings)
    before = list(read_held_out(far))
    for path in cached_files(settings):
        path.write_bytes(bytes(path.stat().st_size))
    assert list(read_held_out(far)) == before
