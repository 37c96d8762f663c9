"""Saving, loading and consolidating checkpoints beside other tools: python benchmarks/checkpoint.py [--quick]

Models of 0.5 GB of fp32 weights with Adam's moments and of 4 GB without, with --quick one of 0.25 GB with moments, are
made on the spot and removed afterwards; `--scratch FOLDER` says where (about 6, 20 and 3 GB), `--size` runs one only.
The state lies on two gloo processes. Everything is timed with its input in the page cache and its output flushed to
the disk: for `cp` and zero_to_fp32.py, which don't flush, by an fsync of the files inside the measured time. Runs of
ours and of a peer alternate, and the best of each counts. CPU seconds are those of all of a program's processes, and
depend less than the others on what else the machine does. Memory is the largest sum of the proportional set sizes of
a program's processes, seen every 100 ms. ratio is peer / ours for seconds and memory: above 1, ours is better.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results") / "checkpoint.json"
SIZES = {
    "0.25 GB": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "vocab_size": 8000},
    "0.5 GB": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "vocab_size": 16000},
    "4 GB": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 17, "vocab_size": 32000},
}
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
}
QUICK = "0.25 GB"
MEMORY_ALLOWED = 1_000_000_000
"""Beside twice the largest tensor."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    metric: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float


@dataclass(frozen=True)
class Run:
    """A program that has ended."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def run(command: list[Any], after: Callable[[], None] = lambda: None) -> Run:
    """Run a program to its end and `after` it, with the time of both and the program's peak memory."""
    peak, ended = 0, threading.Event()

    def watch(process: psutil.Process) -> None:
        nonlocal peak
        while not ended.wait(0.1):
            total = 0
            try:
                for member in (process, *process.children(recursive=True)):
                    total += member.memory_full_info().pss
            except psutil.Error:  # it has just ended
                continue
            peak = max(peak, total)

    words = [str(word) for word in command]
    start, cpu_start = time.perf_counter(), cpu_of_children()
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        watcher = threading.Thread(target=watch, args=(psutil.Process(child.pid),))
        watcher.start()
        output, problem = child.communicate()
        ended.set()
        watcher.join()
    after()
    if child.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{problem[-3000:]}")
    seconds = time.perf_counter() - start
    cpu_seconds = cpu_of_children() - cpu_start
    print(f"{seconds:7.1f} s, CPU {cpu_seconds:6.1f} s  {' '.join(words)[:150]}", file=sys.stderr, flush=True)
    return Run(seconds, cpu_seconds, peak, output)


def cpu_of_children() -> float:
    """CPU seconds of all processes that this one started and that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ranks(job: dict[str, Any]) -> dict[str, float]:
    """The times of a job of `checkpoint_ranks.py`."""
    folder = Path(job["folder"])
    (folder / "job.json").write_text(json.dumps(job))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    run([*launcher, Path(__file__).with_name("checkpoint_ranks.py"), folder / "job.json"])
    return json.loads((folder / "times.json").read_text())


def flush(folder: Path) -> None:
    """fsync every file below a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())


def warm(folder: Path) -> None:
    """Read every file below a folder once, so that it is in the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as handle:
                while handle.read(1 << 24):
                    pass


MAKE_BASE = """
import sys, json, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from tests.helpers.tiny_run import write_tokenizer
folder = Path(sys.argv[1])
shape = json.loads(sys.argv[2])
config = LlamaConfig(num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=512, **shape)
with torch.device("meta"):
    model = LlamaForCausalLM(config)
model.to_empty(device="cpu")
torch.manual_seed(0)
for name, parameter in model.named_parameters():
    torch.nn.init.ones_(parameter) if parameter.ndim == 1 else torch.nn.init.uniform_(parameter, -0.03, 0.03)
model.save_pretrained(folder, max_shard_size="100GB")
write_tokenizer(folder)
"""


STREAM_ALONE = """
import os, sys, time
from pathlib import Path
from cpt_dist.checkpoint.consolidate import model_sources
from cpt_dist.checkpoint.safetensors_stream import TensorSpec, lay_out
from cpt_dist.checkpoint.tensor_source import Files
start = time.perf_counter()
sources = model_sources(Path(sys.argv[1]))
[layout] = lay_out([TensorSpec(name, one.shape, one.dtype) for name, one in sorted(sources.items())], 1 << 60)
with Files() as files, open(sys.argv[2], "wb", buffering=0) as file:
    file.write(layout.header)
    for spec in layout.specs:
        for block in sources[spec.name].blocks(files):
            file.write(block)
    os.fsync(file.fileno())
print("streamed in", time.perf_counter() - start, "s")
"""
"""What a consolidation does without a checksum and without reading back, in one process."""


IMPORTS = "import torch; from transformers import LlamaForCausalLM"
"""What the check of logits takes before it begins, whatever the size of the model."""


def largest_tensor_bytes(base: Path) -> int:
    """Of the tensors in the model's one file."""
    with open(base / "model.safetensors", "rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return max(end - start for start, end in (v["data_offsets"] for k, v in header.items() if k != "__metadata__"))


def alternate(programs: dict[str, Callable[[], Run]], repeat: int) -> dict[str, list[Run]]:
    """Run each program `repeat` times, in turns."""
    found: dict[str, list[Run]] = {name: [] for name in programs}
    for _ in range(repeat):
        for name, program in programs.items():
            found[name].append(program())
    return found


def consolidations(folder: Path, tag: str, repeat: int) -> list[Row]:
    """Rows for consolidation and import beside zero_to_fp32.py and cp."""
    base, out = folder / "base", folder / "out"

    def writing(command: list[Any], inputs: Path, flushes: bool) -> Callable[[], Run]:
        def program() -> Run:
            shutil.rmtree(out, ignore_errors=True)
            warm(inputs)
            return run(command, (lambda: flush(out)) if flushes else (lambda: None))

        return program

    def copying() -> Run:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        warm(base)
        return run(["cp", base / "model.safetensors", out], lambda: flush(out))

    python, launch, saved = sys.executable, ROOT / "launch", folder / "deepspeed"
    words = [f"out={out}", "workers=2", "max_shard_size=100GB"]
    script = [python, saved / "zero_to_fp32.py", saved, out, "--safe_serialization", "--max_shard_size", "100GB"]
    importing = [python, launch / "import_checkpoint.py", f"from={saved}", f"model={base}", *words]
    consolidating = [python, launch / "consolidate.py", f"run_dir={folder / 'run'}", *words]
    unchecked = "check_logits=false"

    def streaming() -> Run:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        warm(folder / "run")
        [checkpoint] = (folder / "run" / "checkpoints").glob("step-*")
        return run([python, "-c", STREAM_ALONE, checkpoint, out / "model.safetensors"])

    found = alternate(
        {
            "consolidate": writing(consolidating, folder / "run", flushes=False),
            "consolidate unchecked": writing([*consolidating, unchecked], folder / "run", flushes=False),
            "import": writing(importing, saved, flushes=False),
            "import unchecked": writing([*importing, unchecked], saved, flushes=False),
            "zero_to_fp32.py": writing(script, saved, flushes=True),
            "stream alone": streaming,
            "imports": lambda: run([python, "-c", IMPORTS]),
            "cp": copying,
        },
        repeat,
    )
    seconds = {name: min(one.seconds for one in runs) for name, runs in found.items()}
    cpu = {name: min(one.cpu_seconds for one in runs) for name, runs in found.items()}
    memory = {name: max(one.peak_bytes for one in runs) / 1e6 for name, runs in found.items()}

    def said(name: str) -> float:
        """The seconds that a program itself says the weights took."""
        return min(float(re.findall(r" in ([\d.]+) s", one.output)[0]) for one in found[name])

    allowed = (MEMORY_ALLOWED + 2 * largest_tensor_bytes(base)) / 1e6
    peer, copied = "zero_to_fp32.py", "cp + fsync"

    def row(metric: str, unit: str, ours: float, theirs: float, name: str) -> Row:
        return Row(f"{tag}: {metric}", unit, ours, theirs, name, theirs / ours)

    checked = "whole command with its check of logits, which the peer hasn't"
    alone = "weights only (check_logits=false)"
    rows = [
        row(f"{kind}, {what}", unit, table[name], table[peer], peer)
        for kind in ("import", "consolidate")
        for name, what in ((f"{kind} unchecked", alone), (kind, checked))
        for unit, table in (("s", seconds), ("CPU s", cpu))
    ]
    both = "consolidate: streamed, checksums compared, flushed, read back"
    return [
        *rows,
        row(both, "s", said("consolidate unchecked"), seconds["cp"], copied),
        row("consolidate: streamed and flushed alone", "s", said("stream alone"), seconds["cp"], copied),
        row("consolidate, whole command", "s", seconds["consolidate"], seconds["cp"], copied),
        row(f"consolidate, {checked}", "CPU s", cpu["consolidate"], cpu["imports"], "import of torch and transformers"),
        row("import: peak memory, weights only", "MB", memory["import unchecked"], memory[peer], peer),
        row("consolidate: peak memory", "MB", memory["consolidate"], memory[peer], peer),
        row("consolidate: peak memory", "MB", memory["consolidate"], allowed, "1 GB + twice the largest tensor"),
        row("import: peak memory", "MB", memory["import"], allowed, "1 GB + twice the largest tensor"),
    ]


def savings(times: dict[str, float], tag: str) -> list[Row]:
    """Rows for stalls and for the bandwidth of saves and loads."""
    stalls = {"stall": "stall of an asynchronous save", "first stall": "stall of the first asynchronous save"}
    stalls["prepare"] = "its buffers, made behind training"
    rows = [
        Row(f"{tag}: {metric}", "s", times[key], times["save"], "synchronous save", times["save"] / times[key])
        for key, metric in stalls.items()
    ]
    durable = "dcp.save and checksums"
    ours, theirs = times["bytes"] / times["save"] / 1e6, times["dcp bytes"] / times[durable] / 1e6
    rows.append(Row(f"{tag}: save, flushed", "MB/s", ours, theirs, durable, ours / theirs))
    for kind in ("save", "load"):
        ours = times["bytes"] / times[kind] / 1e6
        for name in ("torch", "dcp", "deepspeed"):
            key = f"{name}.{kind}" if name != "deepspeed" else f"deepspeed {kind}"
            num_bytes = times["torch.save bytes" if name == "torch" else f"{name} bytes"]
            theirs = num_bytes / times[key] / 1e6
            rows.append(
                Row(
                    f"{tag}: {kind}, flushed" if kind == "save" else f"{tag}: verify and load",
                    "MB/s",
                    ours,
                    theirs,
                    key,
                    ours / theirs,
                )
            )
    return rows


def measure(tag: str, scratch: Path, repeat: int) -> list[Row]:
    """All rows of one size of model."""
    folder = scratch / tag.replace(" ", "")
    base, run_dir = folder / "base", folder / "run"
    run_dir.mkdir(parents=True)
    run([sys.executable, "-c", MAKE_BASE, base, json.dumps(SIZES[tag])])
    shutil.copytree(base, run_dir / "model_files", ignore=shutil.ignore_patterns("*.safetensors"))
    moments = tag != "4 GB"
    job = {"base": str(base), "moments": moments, "repeat": repeat}
    times = ranks(job | {"kind": "store", "folder": str(run_dir)})
    times |= ranks(job | {"kind": "deepspeed", "folder": str(folder)})
    rows = savings(times, tag) + consolidations(folder, tag, repeat)
    shutil.rmtree(folder)
    return rows


def show(rows: list[Row]) -> None:
    """Print the table."""
    width = max(len(row.metric) for row in rows)
    print(f"{'':{width}}  {'ours':>9} {'peer':>9} {'unit':5} {'ratio':>6}  peer")
    for row in rows:
        print(f"{row.metric:{width}}  {row.ours:9.2f} {row.peer:9.2f} {row.unit:5} {row.ratio:6.2f}  {row.peer_name}")


def main() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"a model of {QUICK}, each program once")
    parser.add_argument("--size", choices=SIZES, action="append", help="default: 0.5 GB and 4 GB")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the checkpoints")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each, of which the best counts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    tags = options.size or ([QUICK] if options.quick else [tag for tag in SIZES if tag != QUICK])
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="checkpoint-benchmark-") as scratch:
        repeat = 1 if options.quick else options.repeat
        rows = [row for tag in tags for row in measure(tag, Path(scratch), repeat)]
    show(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([row.__dict__ for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
