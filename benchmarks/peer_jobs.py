"""A peer's part of benchmarks/stream.py, run in that peer's environment: `peer_jobs.py JOB.json`, prints JSON.

The job names .npy files of each source (tokens u16, document offsets int64), weights, sequence length and what to
measure. The peers themselves are in stream_peers.py. It imports nothing of cpt_dist.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.stream_peers import MICRO_BATCH, PEERS, Row


def resident_bytes() -> int:
    """Resident memory now (Linux)."""
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize()


def collated(rows: list[Row]) -> tuple[Any, list[Any]]:
    """A micro-batch: int64 [rows, seq_len] and the documents of each row."""
    ids = [row[0] for row in rows]
    if hasattr(ids[0], "numpy"):
        import torch

        return torch.stack(ids), [row[1] for row in rows]
    return np.stack(ids), [row[1] for row in rows]


def rates(peer: Any, job: dict[str, Any]) -> list[float]:
    """Tokens per CPU second of each of the job's repeats."""
    rows = peer.start(job["num_samples"], 0, False)
    result = []
    for _ in range(job["repeats"] + 1):
        tokens, begin = 0, time.process_time()
        while time.process_time() - begin < job["seconds"]:
            batch, _lengths = collated(list(itertools.islice(rows, MICRO_BATCH)))
            assert str(batch.dtype).endswith("int64"), batch.dtype
            assert batch.shape[0] == MICRO_BATCH, batch.shape
            tokens += MICRO_BATCH * job["seq_len"]
        result.append(tokens / (time.process_time() - begin))
    return result[1:]  # the first finds pages and caches cold


def first_samples(peer: Any, job: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds from nothing to the first sample, and resident bytes that the first time added."""
    if job["at"]:
        next(peer.start(job["num_samples"], job["at"], False))  # writes what a run before the resume has left on disk
    seconds, added = [], 0
    for number in range(job["repeats"]):
        before, begin = resident_bytes(), time.process_time()
        rows = peer.start(job["num_samples"], job["at"], not job["at"])
        next(rows)
        seconds.append(time.process_time() - begin)
        added = resident_bytes() - before if number == 0 else added
        del rows
    return {"seconds": seconds, "bytes": added}


def attempts(peer: Any) -> dict[str, str]:
    """What came of each thing that the job asks for beside speed: the peer's answer, or its error."""
    result = {}
    for what in ("world_size", "schedule", "packing"):
        try:
            result[what] = getattr(peer, what)()
        except BaseException as error:  # noqa: BLE001 - whatever the peer says is what is to be shown
            lines = str(error).strip().splitlines() or [""]
            result[what] = f"{type(error).__name__}: {lines[0][:100]}"
    return result


def main() -> None:
    """Measure what the job asks for and print it as JSON on the last line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    peer = PEERS[job["peer"]](job)
    if job["what"] == "rates":
        result: dict[str, Any] = {"rates": rates(peer, job)}
    else:
        result = first_samples(peer, job) if job["what"] == "first" else attempts(peer)
    print("\n" + json.dumps(result), flush=True)
    os._exit(0)  # some peers leave threads behind


if __name__ == "__main__":
    main()
