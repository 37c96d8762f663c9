"""Shards behind s3://, served by moto's server, which speaks the S3 protocol; and programs that read from there."""

import os
import re

import pytest
from omegaconf import OmegaConf

from cpt_dist.config import CptConfig
from cpt_dist.data.ledger import Ledger
from cpt_dist.data.loader import StepLoader
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.prefetch import Prefetcher
from cpt_dist.data.remote import FetchSettings, RemoteFolder
from cpt_dist.data.shards import Source, read_held_out
from cpt_dist.data.verify import main
from cpt_dist.errors import UserError
from cpt_dist.evaluation.evaluate import evaluate
from cpt_dist.planning.data_plan import plan_data
from tests.helpers.tiny_run import build, launch, read_metrics, write_corpus, write_experiment, write_tokenizer

s3fs = pytest.importorskip("s3fs")
SOURCES = ("domain", "general")


@pytest.fixture(scope="module")
def endpoint():
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def credentials(endpoint, monkeypatch):
    """The environment variables that any AWS program reads."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": endpoint}
    for key, value in keys.items():
        monkeypatch.setenv(key, value)
    return keys


@pytest.fixture
def upload(credentials):
    """Copies a folder of shards into a new bucket; gives its file system and URL."""

    def copy(folder, bucket):
        system = s3fs.S3FileSystem(skip_instance_cache=True)
        system.mkdir(bucket)
        system.put(str(folder), f"{bucket}/", recursive=True)
        return system, f"s3://{bucket}/{folder.name}"

    return copy


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Shards made from text by the program that makes them."""
    from cpt_dist.data.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared")
    (folder / "model").mkdir()
    write_tokenizer(folder / "model")
    raw = {}
    for number, name in enumerate(SOURCES):
        write_corpus(folder / f"{name}.jsonl", 100 * number, 250, seed=number)
        raw[name] = {"raw": [str(folder / f"{name}.jsonl")]}
    data = {"shards": str(folder / "shards"), "tokenizer": str(folder / "model"), "shard_tokens": "2k", "sources": raw}
    config = {"run_dir": "none", "data": {**data, "held_out_fraction": 0.05}, "model": {"path": str(folder / "model")}}
    prepare(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), config)))
    return folder / "shards"


def settings(tmp_path, cache_bytes=10**9):
    # A loader's workers have the environment in which the first of them was started, maybe by another test.
    options = {"key": "test", "secret": "test", "endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    return FetchSettings(tmp_path / "cache", cache_bytes, 1, 0.01, 20, options)


def batches(sources, num_workers):
    from cpt_dist.config import StageConfig

    stage = StageConfig("main", str(64 * 160), 64, "512", {"domain": 0.7, "general": 0.3})
    order = SampleOrder.from_sources([stage], sources, 0, window_shards=2)
    loader = StepLoader(order, sources, stage=0, micro_batch=4, num_workers=num_workers)
    found = []
    with Prefetcher(order, sources, 1) as prefetcher:
        for step, micro_batches in enumerate(loader):
            prefetcher.move_to(8 * step)
            for batch in micro_batches:
                found.append([batch.input_ids.tolist(), batch.doc_ids.tolist(), batch.sample_ids.tolist()])
    return found


def test_batches_from_a_bucket_are_those_of_the_folder(prepared, upload, tmp_path):
    _, url = upload(prepared, "batches")
    local = [Source.open(prepared / name) for name in SOURCES]
    largest = max(entry["bytes"] for source in local for entry in source.manifest["shards"])
    small = settings(tmp_path, 8 * largest)
    far = [Source.open(RemoteFolder(f"{url}/{name}", small)) for name in SOURCES]
    assert len(far[0].remote_files) >= 4
    assert batches(far, num_workers=1) == batches(local, num_workers=0)
    for name in SOURCES:
        assert list(read_held_out(RemoteFolder(f"{url}/{name}", small))) == list(read_held_out(prepared / name))
    files = [path for path in small.cache.iterdir() if path.suffix in (".whole", ".part")]
    assert 0 < sum(path.stat().st_size for path in files) <= small.cache_bytes


def test_a_bucket_is_verified_and_what_is_wrong_with_it_is_one_line(prepared, upload, tmp_path, capsys):
    system, url = upload(prepared, "verified")
    assert main([f"shards={url}"]) == 0
    shard = f"{url}/domain/shard-00001.safetensors"
    content = bytearray(system.cat_file(shard))
    content[-3] ^= 1
    system.pipe_file(shard, bytes(content))
    system.rm(f"{url}/general/shard-00000.safetensors")
    capsys.readouterr()
    assert main([f"shards={url}"]) == 2
    damaged, missing = capsys.readouterr().err.splitlines()
    assert "domain/shard-00001.safetensors' " in damaged
    assert re.search(r"doc_id: block 0 has checksum \w+ but its manifest says \w+; fetch it again", damaged)
    assert "general/shard-00000.safetensors' does not exist" in missing
    with pytest.raises(
        UserError, match=rf"'{shard}' block 0 has checksum \w+ but its manifest says \w+ \(2 attempts\)"
    ):
        Source.open(RemoteFolder(f"{url}/domain", settings(tmp_path))).tokens(1, 0, 10)
    with pytest.raises(UserError, match=r"'s3://.*/general/shard-00000.safetensors' does not exist"):
        Source.open(RemoteFolder(f"{url}/general", settings(tmp_path)))
    with pytest.raises(UserError, match=r"'s3://no-such-bucket/law/manifest.json' does not exist") as caught:
        Source.open(RemoteFolder("s3://no-such-bucket/law", settings(tmp_path)))
    assert len(caught.value.problems) == 1


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_train_plan_evaluate_and_ledger_read_a_bucket_as_they_read_a_folder(upload, credentials, tmp_path):
    config = build(tmp_path)
    config["data"].update(num_workers=1, shuffle_window_shards=1, cache=str(tmp_path / "cache"), prefetch_shards=1)
    experiment = write_experiment(tmp_path, config)
    launch("python", 1, "train.py", f"--config-dir={experiment}", "experiment=tiny")
    _, url = upload(tmp_path / "shards", "training")
    changes = [f"run_dir={tmp_path / 'far'}", f"data.shards={url}", "data.cache_bytes=100k"]
    arguments = [f"--config-dir={experiment}", "experiment=tiny", *changes]
    launch("python", 1, "train.py", *arguments, env={**os.environ, **credentials})
    losses = [[record["loss"] for record in read_metrics(tmp_path / run)] for run in ("run", "far")]
    assert losses[0] == losses[1]

    answers = [Ledger.open(tmp_path / run).of_steps(2, 3) for run in ("run", "far")]
    assert answers[0] == answers[1]
    document = answers[0]["documents"][0]["document"]
    assert len({str(Ledger.open(tmp_path / run).of_document(document)) for run in ("run", "far")}) == 1

    typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), config))
    typed.evaluate.base = typed.evaluate.adapted = typed.model.path
    near = plan_data(typed), evaluate(typed)
    typed.data.shards = url
    far = plan_data(typed), evaluate(typed)
    assert near == far
