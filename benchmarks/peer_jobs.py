"""One peer's part of benchmarks/stream.py, run in that peer's own environment: `peer_jobs.py JOB.json`, prints JSON.

The job names .npy files of each source (tokens u16, document offsets u64), the weights, the sequence length and a
number of tokens. Every peer gets its data in its own format, written beforehand and not measured, and gives int64
input_ids with document lengths. It imports nothing of cpt_dist.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np


def resident_bytes() -> int:
    """Resident memory now (Linux)."""
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize()


def piece_lengths(offsets: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Lengths of the document pieces of tokens [start, stop)."""
    first = offsets.searchsorted(start, side="right")
    last = offsets.searchsorted(stop, side="left")
    return np.diff(np.concatenate([[start], offsets[first:last], [stop]]))


def sources_of(job: dict) -> list:
    """(tokens as a map of the file, offsets int64) of each source."""
    return [(np.load(s["tokens"], mmap_mode="r"), np.load(s["offsets"]).astype(np.int64)) for s in job["sources"]]


class Rows:
    """Random access to rows of seq_len tokens laid end to end, as a user of grain or datasets would write it."""

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, seq_len: int) -> None:
        self.tokens, self.offsets, self.seq_len = np.asarray(tokens), offsets, seq_len

    def __len__(self) -> int:
        return len(self.tokens) // self.seq_len

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        start = int(row) * self.seq_len
        stop = start + self.seq_len
        ids = self.tokens[start:stop].astype(np.int64)
        return {"input_ids": ids, "lengths": piece_lengths(self.offsets, start, stop)}


def grain(job: dict):
    """MapDataset.mix of shuffled, repeated random-access rows; (start at sample n) -> iterator."""
    import grain as library

    def start(num_samples: int, at: int):
        parts = [
            library.MapDataset.source(Rows(tokens, offsets, job["seq_len"])).seed(i).shuffle().repeat()
            for i, (tokens, offsets) in enumerate(sources_of(job))
        ]
        mixed = library.MapDataset.mix(parts, weights=job["weights"])
        return (mixed[n] for n in range(at, num_samples))

    return start


def megatron(job: dict):
    """BlendedDataset of GPTDatasets with positions reset at documents."""
    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    work = Path(job["work"]) / "megatron"
    work.mkdir(parents=True, exist_ok=True)
    blend = []
    for number, (tokens, offsets) in enumerate(sources_of(job)):
        prefix = work / f"source{number}"
        blend.append(str(prefix))
        if not prefix.with_suffix(".idx").exists():
            builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
            for begin, end in itertools.pairwise(offsets):
                builder.add_document(torch.from_numpy(tokens[begin:end].astype(np.int64)), [int(end - begin)])
            builder.finalize(f"{prefix}.idx")
    separator = job["separator"]

    class Tokenizer:
        eod = separator
        pad = -1
        vocab_size = 1 << 16
        unique_identifiers = {"class": "stored tokens"}  # noqa: RUF012

    def start(num_samples: int, at: int):
        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=job["seq_len"],
            blend=(blend, job["weights"]),
            split="100,0,0",
            path_to_cache=str(work / f"cache-{job['seq_len']}-{num_samples}"),
            tokenizer=Tokenizer(),
            reset_position_ids=True,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        train = BlendedMegatronDatasetBuilder(GPTDataset, [num_samples, 0, 0], lambda: True, config).build()[0]

        def samples():
            for n in range(at, num_samples):
                sample = train[n]
                starts = torch.nonzero(sample["position_ids"] == 0).flatten()
                yield {"input_ids": sample["tokens"], "lengths": starts}

        return samples()

    return start


def datasets(job: dict):
    """interleave_datasets over streams of rows that were packed beforehand, numpy format."""
    import datasets as library

    library.disable_progress_bars()
    folders = []
    for number, (tokens, offsets) in enumerate(sources_of(job)):
        folder = Path(job["work"]) / f"datasets-{job['seq_len']}-{number}"
        folders.append(folder)
        if not folder.exists():
            rows = Rows(tokens, offsets, job["seq_len"])
            columns = [rows[i] for i in range(len(rows))]
            library.Dataset.from_dict({k: [c[k] for c in columns] for k in ("input_ids", "lengths")}).save_to_disk(
                str(folder)
            )

    def start(num_samples: int, at: int):
        parts = [
            library.load_from_disk(str(f)).to_iterable_dataset().shuffle(seed=1, buffer_size=100).repeat(None)
            for f in folders
        ]
        total = sum(job["weights"])
        mixed = library.interleave_datasets(parts, [w / total for w in job["weights"]], seed=1)
        return iter((mixed.skip(at) if at else mixed).with_format("numpy"))

    return start


def main() -> None:
    """Measure what the job asks for and print it as JSON on the last line."""
    with open(sys.argv[1]) as handle:
        job = json.load(handle)
    start = globals()[job["peer"]](job)
    before = resident_bytes()
    begin = time.process_time()
    items = start(job["num_samples"], job["at"])
    first = next(items)
    result = {"seconds": time.process_time() - begin, "bytes": resident_bytes() - before}
    assert str(first["input_ids"].dtype).endswith("int64"), first["input_ids"].dtype
    rates = []
    for _ in range(job["repeats"]):
        tokens, begin = 0, time.process_time()
        while tokens < job["tokens"]:
            tokens += len(next(items)["input_ids"])
        rates.append(tokens / (time.process_time() - begin))
    result["rates"] = rates
    print(json.dumps(result), flush=True)
    os._exit(0)  # some peers leave threads behind


if __name__ == "__main__":
    main()
