"""Against moto's server, which speaks the S3 protocol, and by whole training runs that read from a URL."""

import os

import pytest

from cpt_dist.data.remote import FetchSettings, RemoteFolder
from cpt_dist.data.shards import Source, read_held_out
from cpt_dist.data.verify import main
from cpt_dist.errors import UserError
from tests.helpers.shard_sets import write_source
from tests.helpers.tiny_run import build, launch, read_metrics, write_experiment

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def endpoint():
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch):
    """A bucket with two sources; gives (file system, folder, options)."""
    s3fs = pytest.importorskip("s3fs")
    options = {"key": "test", "secret": "test", "endpoint_url": endpoint}
    write_source(tmp_path / "shards" / "law", [[100_000] * 12, [200] * 30])
    write_source(tmp_path / "shards" / "news", [[50] * 30])
    system = s3fs.S3FileSystem(**options)
    name = tmp_path.name.replace("_", "-")
    system.mkdir(name)
    system.put(str(tmp_path / "shards"), f"{name}/", recursive=True)
    system.invalidate_cache()
    return system, f"{name}/shards", options


def opened(bucket, tmp_path, source="law"):
    settings = FetchSettings(tmp_path / "cache", retries=1, backoff_seconds=0.01, timeout_seconds=10, options=bucket[2])
    return RemoteFolder(f"s3://{bucket[1]}/{source}", settings)


def test_a_source_in_a_bucket_is_the_local_one(bucket, tmp_path):
    far, local = opened(bucket, tmp_path), tmp_path / "shards" / "law"
    remote, near = Source.open(far), Source.open(local)
    for shard, num_tokens in enumerate(near.shard_tokens):
        assert remote.tokens(shard, 0, num_tokens).tolist() == near.tokens(shard, 0, num_tokens).tolist()
    assert list(read_held_out(far)) == list(read_held_out(local))


def test_a_shard_that_vanishes_from_a_bucket_is_named(bucket, tmp_path):
    far = opened(bucket, tmp_path)
    source = Source.open(far)
    bucket[0].rm(f"{bucket[1]}/law/shard-00001.safetensors")
    source.tokens(0, 0, 10)
    with pytest.raises(
        UserError, match=r"'s3://.*/law/shard-00001.safetensors' block 0 cannot be fetched: it does not"
    ):
        source.tokens(1, 0, 10)
    bucket[0].invalidate_cache()
    with pytest.raises(UserError, match=r"'s3://.*/law/shard-00001.safetensors' does not exist"):
        Source.open(far)


def test_a_damaged_object_is_named_by_block(bucket, tmp_path):
    content = bytearray((tmp_path / "shards/law/shard-00000.safetensors").read_bytes())
    content[(1 << 20) + 9] ^= 1
    bucket[0].pipe(f"{bucket[1]}/law/shard-00000.safetensors", bytes(content))
    with pytest.raises(UserError, match=r"block 1 has checksum \w+ but its manifest says \w+ \(2 attempts\)"):
        Source.open(opened(bucket, tmp_path)).tokens(0, 0, 10)


def test_a_bucket_that_does_not_exist_is_one_line(bucket, tmp_path):
    far = RemoteFolder("s3://no-such-bucket/law", opened(bucket, tmp_path).settings)
    with pytest.raises(UserError, match=r"'s3://no-such-bucket/law/manifest.json' does not exist") as caught:
        Source.open(far)
    assert len(caught.value.problems) == 1


def test_a_bucket_is_verified(bucket, monkeypatch, capsys):
    for key, value in {
        "ACCESS_KEY_ID": "test",
        "SECRET_ACCESS_KEY": "test",
        "ENDPOINT_URL": bucket[2]["endpoint_url"],
    }.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    assert main([f"shards=s3://{bucket[1]}"]) == 0
    assert [line.split(";")[0] for line in capsys.readouterr().out.splitlines()] == ["law: whole", "news: whole"]


def test_a_run_on_a_bucket_is_the_run_on_the_folder(endpoint, tmp_path):
    s3fs = pytest.importorskip("s3fs")
    config = build(tmp_path)
    config["data"].update(num_workers=1, shuffle_window_shards=1, cache=str(tmp_path / "cache"), prefetch_shards=1)
    experiment = write_experiment(tmp_path, config)
    launch("python", 1, "train.py", f"--config-dir={experiment}", "experiment=tiny")
    losses = [record["loss"] for record in read_metrics(config["run_dir"])]
    system = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=endpoint)
    system.mkdir("training")
    system.put(str(tmp_path / "shards"), "training/", recursive=True)
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": endpoint}
    far = tmp_path / "far"
    changes = [f"run_dir={far}", "data.shards=s3://training/shards", "data.cache_bytes=200k"]
    arguments = [f"--config-dir={experiment}", "experiment=tiny", *changes]
    launch("python", 1, "train.py", *arguments, env={**os.environ, **keys}, timeout=100)
    assert [record["loss"] for record in read_metrics(far)] == losses
