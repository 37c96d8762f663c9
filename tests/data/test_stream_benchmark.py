"""Promises of benchmarks/stream.py and simulate.py that need no peer and no cluster."""

import sys

import numpy as np
import pytest

from benchmarks import simulate, stream, stream_data
from benchmarks.stream_peers import Rows


@pytest.fixture
def job(tmp_path):
    generator = np.random.default_rng(0)
    sources = []
    for number in range(4):
        paths = {key: str(tmp_path / f"{key}{number}.npy") for key in ("tokens", "offsets")}
        sources.append({"shards": str(tmp_path / f"source{number}"), **paths})
        documents = [generator.integers(1, 999, size).tolist() for size in generator.integers(1, 900, 200)]
        texts = [f"document {index} of {number}" for index in range(len(documents))]
        stream_data.write_source(sources[number], texts, documents, separator=0)
    return {"sources": sources, "seq_len": 4096, "at": 0, "seconds": 0.05, "held": True, "repeats": 1}


def test_own_jobs_read_the_sources_and_answer_what_is_asked(job):
    assert len(stream.own_rates(job)["rates"]) == len(stream.bare_gather(job)["rates"]) == 1
    assert stream.own_first({**job, "at": stream.NUM_SAMPLES // 2})["seconds"][0] > 0
    answers = stream.own_attempts(job)
    assert answers["world_size"] == "same global batch on 2 and 3 ranks"
    assert "0.40 of source0 at the beginning, 0.25 at the end" in answers["schedule"]


def test_rows_given_to_peers_are_those_of_the_sources_with_the_lengths_of_their_documents(job):
    rows, offsets = Rows(job["sources"][1], 4096), np.load(job["sources"][1]["offsets"])
    ids, lengths = rows[2]
    assert ids.tolist() == np.load(job["sources"][1]["tokens"])[8192:12288].tolist()
    assert lengths.sum() == 4096
    assert (8192 + np.cumsum(lengths)[:-1]).tolist() == [at for at in offsets.tolist() if 8192 < at < 12288]


def test_a_ratio_above_one_means_that_ours_is_better():
    benchmark = object.__new__(stream.Benchmark)
    benchmark.rows = []
    benchmark.row("speed", "tokens/CPU-s", 6.0, 2.0, "peer", higher=True)
    benchmark.row("time", "CPU-s", 6.0, 2.0, "peer", higher=False)
    benchmark.row("time", "CPU-s", 6.0, None, "peer", higher=False)
    assert [row["ratio"] for row in benchmark.rows] == [3.0, pytest.approx(1 / 3), None]


def test_a_job_that_takes_too_long_is_stopped_and_said_to_be(tmp_path):
    with pytest.raises(RuntimeError, match="not done after"):
        stream.run_job([sys.executable, "-c", "while True: pass"], {"timeout": 1}, tmp_path)


def test_the_simulator_finds_a_small_plan_exact_at_every_point():
    result = simulate.simulate(num_sources=4, num_shards=20, num_tokens=10**8, ranks=16)
    assert all(all(point["exact"].values()) for point in result["points"])
    assert len(result["points"]) == 5
