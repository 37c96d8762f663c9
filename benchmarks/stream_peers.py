"""The peers of benchmarks/stream.py: each gets its data in its own format and gives rows of a mixture as its users do.

The data are written beforehand and not measured; rows are int64 input_ids with document lengths. It is imported in the
peers' own environments, so it imports nothing of cpt_dist, and a peer's packages only in its class.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

MICRO_BATCH = 8
Row = tuple[Any, Any]
"""input_ids of a row, and the lengths of its documents' pieces or what they follow from."""


class Rows:
    """Random access to rows of seq_len tokens laid end to end, as a user of grain or datasets would write it."""

    def __init__(self, source: dict[str, str], seq_len: int) -> None:
        self.tokens = np.asarray(np.load(source["tokens"], mmap_mode="r"))
        self.offsets, self.seq_len = np.load(source["offsets"]), seq_len

    def __len__(self) -> int:
        return len(self.tokens) // self.seq_len

    def __getitem__(self, row: int) -> Row:
        start = int(row) * self.seq_len
        stop = start + self.seq_len
        first = self.offsets.searchsorted(start, side="right")
        last = self.offsets.searchsorted(stop, side="left")
        lengths = np.diff(np.concatenate([[start], self.offsets[first:last], [stop]]))
        return self.tokens[start:stop].astype(np.int64), lengths


class Grain:
    """MapDataset.mix of shuffled, repeated random-access rows."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job

    def mixed(self, weights: Any) -> Any:
        import grain

        parts = [
            grain.MapDataset.source(Rows(source, self.job["seq_len"])).seed(number).shuffle().repeat()
            for number, source in enumerate(self.job["sources"])
        ]
        return grain.MapDataset.mix(parts, weights=weights)

    def start(self, num_samples: int, at: int, fresh: bool) -> Iterator[Row]:
        mixed = self.mixed(self.job["weights"])
        return (mixed[n] for n in range(at, num_samples))

    def world_size(self) -> str:
        mixed = self.mixed(self.job["weights"])
        seen = [{mixed[r::w][i][0].tobytes() for r in range(w) for i in range(24 // w)} for w in (2, 3)]
        return "same global batch on 2 and 3 ranks" if seen[0] == seen[1] else "other global batch on 3 ranks than on 2"

    def schedule(self) -> str:
        next(iter(self.mixed([[[0.0, w], [1.0, 1.0]] for w in self.job["weights"]])))
        return "accepted"

    def packing(self) -> str:
        import grain

        names = [name for name in dir(grain.MapDataset) if "pack" in name]
        return f"MapDataset has {names or 'no method that packs'}; the rows were packed by the benchmark"


class Megatron:
    """BlendedDataset of GPTDatasets; documents are told by their separators.

    With reset_position_ids it would find them itself, for a third of its speed.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import torch
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        self.job, self.work, self.blend, self.number = job, Path(job["work"]) / "megatron", [], 0
        self.work.mkdir(parents=True, exist_ok=True)
        for number, source in enumerate(job["sources"]):
            prefix = self.work / f"source{number}"
            self.blend.append(str(prefix))
            if not prefix.with_suffix(".idx").exists():
                tokens, offsets = np.load(source["tokens"]), np.load(source["offsets"])
                builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
                for begin, end in itertools.pairwise(offsets.tolist()):
                    builder.add_document(torch.from_numpy(tokens[begin:end].astype(np.int64)), [end - begin])
                builder.finalize(f"{prefix}.idx")

    def dataset(self, num_samples: int, weights: Any, cache: Path) -> Any:
        from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

        separator = self.job["separator"]

        class Tokenizer:
            eod = separator
            pad = -1
            vocab_size = 1 << 16
            unique_identifiers = {"class": "stored tokens"}  # noqa: RUF012

        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=self.job["seq_len"],
            blend=(self.blend, weights),
            split="100,0,0",
            path_to_cache=str(cache),
            tokenizer=Tokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        return BlendedMegatronDatasetBuilder(GPTDataset, [num_samples, 0, 0], lambda: True, config).build()[0]

    def start(self, num_samples: int, at: int, fresh: bool) -> Iterator[Row]:
        cache = self.work / f"cache-{self.job['seq_len']}-{num_samples}"
        if fresh:
            shutil.rmtree(cache, ignore_errors=True)
        train = self.dataset(num_samples, self.job["weights"], cache)

        def rows() -> Iterator[Row]:
            for n in range(at, num_samples):
                sample = train[n]
                yield sample["tokens"], (sample["tokens"] == self.job["separator"]).nonzero()

        return rows()

    def world_size(self) -> str:
        import megatron.training  # noqa: F401

        return "has a sampler"

    def schedule(self) -> str:
        weights = [[[0.0, w], [1.0, 1.0]] for w in self.job["weights"]]
        self.dataset(1000, weights, self.work / "cache-schedule")
        return "accepted"

    def packing(self) -> str:
        return "documents laid end to end over all of a source, as in the job"


class Mosaicml:
    """StreamingDataset over four streams of rows that were packed beforehand, shuffled by py1e."""

    def __init__(self, job: dict[str, Any]) -> None:
        # streaming imports torchvision for its image data sets, and that one needs the GPU build of torch.
        for name in ("torchvision", "torchvision.datasets", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
        vars(sys.modules["torchvision.datasets"])["VisionDataset"] = object
        vars(sys.modules["torchvision.transforms.functional"])["to_tensor"] = None
        from streaming import MDSWriter

        self.job, self.folders = job, []
        seq_len = job["seq_len"]
        columns = {"input_ids": f"ndarray:uint16:{seq_len}", "lengths": "ndarray:int32"}
        for number, source in enumerate(job["sources"]):
            folder = Path(job["work"]) / f"mds-{seq_len}-{number}"
            self.folders.append(str(folder))
            if not (folder / "index.json").exists():
                rows = Rows(source, seq_len)
                with MDSWriter(out=str(folder), columns=columns, exist_ok=True) as out:
                    for ids, lengths in (rows[i] for i in range(len(rows))):
                        out.write({"input_ids": ids.astype(np.uint16), "lengths": lengths.astype(np.int32)})

    def dataset(self, num_samples: int, weights: Any) -> Any:
        from streaming import Stream, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        streams = [Stream(local=folder, proportion=w) for folder, w in zip(self.folders, weights, strict=True)]
        return StreamingDataset(
            streams=streams,
            epoch_size=num_samples,
            shuffle=True,
            shuffle_algo="py1e",
            num_canonical_nodes=1,
            batch_size=MICRO_BATCH,
        )

    def start(self, num_samples: int, at: int, fresh: bool) -> Iterator[Row]:
        dataset = self.dataset(num_samples, self.job["weights"])
        if at:
            state = {"epoch": 0, "sample_in_epoch": at, "num_canonical_nodes": 1}
            dataset.load_state_dict({**state, "shuffle_seed": dataset.shuffle_seed, "initial_physical_nodes": 1})
        return ((sample["input_ids"].astype(np.int64), sample["lengths"]) for sample in dataset)

    def world_size(self) -> str:
        from streaming.base.partition import get_partitions

        seen = []
        for ranks in (2, 3):
            parts = get_partitions("relaxed", 24_000, 1, 1, ranks, 1, 24 // ranks)
            seen.append(set(parts[:, :, :, 0].ravel().tolist()))
        same = "same" if seen[0] == seen[1] else "other"
        return f"{same} global batch of 24 on 2 and 3 ranks"

    def schedule(self) -> str:
        self.dataset(1000, [[[0.0, w], [1.0, 1.0]] for w in self.job["weights"]])
        return "accepted"

    def packing(self) -> str:
        import inspect

        from streaming import StreamingDataset

        names = [name for name in inspect.signature(StreamingDataset).parameters if "pack" in name]
        return f"StreamingDataset takes {names or 'no option that packs'}; the rows were packed by the benchmark"


class Litdata:
    """CombinedStreamingDataset of four token streams with a TokensLoader, stored as int64 so that none is converted."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch
        from litdata.streaming import TokensLoader
        from litdata.streaming.cache import Cache

        self.job, self.folders = job, []
        for number, source in enumerate(job["sources"]):
            folder = Path(job["work"]) / f"litdata-{number}"
            self.folders.append(str(folder))
            if not (folder / "index.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                cache = Cache(str(folder), chunk_bytes="64MB", item_loader=TokensLoader(block_size=4096))
                tokens, offsets = np.load(source["tokens"]), np.load(source["offsets"])
                for index, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
                    cache[index] = torch.from_numpy(tokens[begin:end].astype(np.int64))
                cache.done()
                cache.merge()

    def dataset(self, weights: Any, seq_len: int) -> Any:
        from litdata import CombinedStreamingDataset, StreamingDataset
        from litdata.streaming import TokensLoader

        parts = [
            StreamingDataset(folder, item_loader=TokensLoader(block_size=seq_len), shuffle=True, drop_last=True)
            for folder in self.folders
        ]
        return CombinedStreamingDataset(parts, seed=1, weights=weights, iterate_over_all=False)

    def rows(self, items: Any) -> Iterator[Row]:
        for ids in items:
            yield ids, (ids == self.job["separator"]).nonzero()

    def start(self, num_samples: int, at: int, fresh: bool) -> Iterator[Row]:
        from litdata import StreamingDataLoader

        if not at:
            return self.rows(self.endless())
        # A run ends with its data, so its length is set by the rows: see RESUME_ROW in stream.py.
        state = self.saved_state(at)
        loader = StreamingDataLoader(self.dataset(self.job["weights"], self.job["seq_len"]), batch_size=1)
        loader.load_state_dict(state)
        return self.rows(batch[0] for batch in loader)

    def saved_state(self, at: int) -> Any:
        from litdata import StreamingDataLoader

        path = Path(self.job["work"]) / f"litdata-state-{self.job['seq_len']}-{at}.json"
        if not path.exists():
            loader = StreamingDataLoader(self.dataset(self.job["weights"], self.job["seq_len"]), batch_size=1)
            for _ in itertools.islice(loader, at):
                pass
            path.write_text(json.dumps(loader.state_dict()))
        return json.loads(path.read_text())

    def endless(self) -> Iterator[Any]:
        dataset = self.dataset(self.job["weights"], self.job["seq_len"])
        for epoch in itertools.count(1):
            dataset.set_epoch(epoch)
            yield from dataset

    def world_size(self) -> str:
        from litdata import StreamingDataset
        from litdata.streaming import TokensLoader

        loader = TokensLoader(block_size=self.job["seq_len"])
        dataset = StreamingDataset(self.folders[0], item_loader=loader, shuffle=True)
        state = dataset.state_dict(num_samples_yielded=8, num_workers=1, batch_size=8)
        dataset.load_state_dict({**state, "world_size": 2})
        next(iter(dataset))
        return "a state that says world_size 2 is taken on 1 rank without a word"

    def schedule(self) -> str:
        next(iter(self.dataset([[[0.0, w], [1.0, 1.0]] for w in self.job["weights"]], self.job["seq_len"])))
        return "accepted"

    def packing(self) -> str:
        return (
            "TokensLoader cuts a chunk's tokens every block_size and knows no documents: lengths come from separators"
        )


class Datasets:
    """interleave_datasets over streams of rows that were packed and shuffled beforehand, numpy format."""

    def __init__(self, job: dict[str, Any]) -> None:
        import datasets

        datasets.disable_progress_bars()
        self.job, self.folders = job, []
        for number, source in enumerate(job["sources"]):
            folder = Path(job["work"]) / f"datasets-{job['seq_len']}-{number}"
            self.folders.append(str(folder))
            if not folder.exists():
                rows = Rows(source, job["seq_len"])
                order = np.random.default_rng(number).permutation(len(rows)).tolist()
                columns = dict(zip(("input_ids", "lengths"), zip(*(rows[i] for i in order), strict=True), strict=True))
                datasets.Dataset.from_dict(columns).save_to_disk(str(folder))

    def mixed(self, weights: Any) -> Any:
        import datasets

        parts = [datasets.load_from_disk(folder).to_iterable_dataset().repeat(None) for folder in self.folders]
        return datasets.interleave_datasets(parts, weights, seed=1).with_format("numpy")

    def start(self, num_samples: int, at: int, fresh: bool) -> Iterator[Row]:
        mixed = self.mixed(self.job["weights"])
        if at:
            path = Path(self.job["work"]) / f"datasets-state-{self.job['seq_len']}-{at}.json"
            if not path.exists():
                first = self.mixed(self.job["weights"])
                for _ in itertools.islice(first, at):
                    pass
                path.write_text(json.dumps(first.state_dict()))
            mixed.load_state_dict(json.loads(path.read_text()))
        return ((sample["input_ids"], sample["lengths"]) for sample in mixed)

    def world_size(self) -> str:
        from datasets.distributed import split_dataset_by_node

        seen = []
        for ranks in (2, 3):
            parts = [split_dataset_by_node(self.mixed(self.job["weights"]), rank, ranks) for rank in range(ranks)]
            taken = [row["input_ids"].tobytes() for part in parts for row in itertools.islice(part, 24 // ranks)]
            seen.append(sorted(taken))
        return "same global batch on 2 and 3 ranks" if seen[0] == seen[1] else "other global batch on 3 ranks than on 2"

    def schedule(self) -> str:
        next(iter(self.mixed([[[0.0, w], [1.0, 1.0]] for w in self.job["weights"]])))
        return "accepted"

    def packing(self) -> str:
        import datasets

        names = [name for name in dir(datasets.IterableDataset) if "pack" in name]
        return f"IterableDataset has {names or 'no method that packs'}; the rows were packed by the benchmark"


PEERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "grain": Grain,
    "megatron": Megatron,
    "mosaicml": Mosaicml,
    "litdata": Litdata,
    "datasets": Datasets,
}
