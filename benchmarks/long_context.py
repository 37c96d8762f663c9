"""Time and memory of a training step against the length of its row: python benchmarks/long_context.py [--quick]

Both sides train a small Llama in fp32 on one thread of a CPU: forward, backward and an AdamW step. Ours is the FSDP2
engine on one process; the peer is the same weights in transformers, with SDPA, a dense block-diagonal mask where there
are documents, and SDPA's own causal mask where there is one. Both must compute the same loss. Time is CPU seconds, the
best of the repeats, since it hangs less than wall time on what else the machine does; memory is the rise of the peak
resident set over what lay there before the step. ratio is peer / ours: above 1, ours is better. Rows of memory options
and of context parallelism (on two ranks, of which the larger value counts) have our own step without them as the peer.
`--jobs 2` measures two sides at a time.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results") / "long_context.json"
SHARED_SHAPE = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 32768,
}
SHAPES = {
    "time": SHARED_SHAPE | {"intermediate_size": 1792, "num_hidden_layers": 2},
    "memory": SHARED_SHAPE | {"intermediate_size": 688, "num_hidden_layers": 4},
}
"""Of SmolLM2-135M's layers the first keeps the share of attention in all operations, the second the MLP's width."""
DOCUMENT = 1024
"""Tokens of a document where rows grow and documents don't."""
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
QUICK_LENGTHS = (1024, 8192, 32768)
MIDDLE = 8192
PEER_LONGEST = {True: 8192, False: 16384}
"""The longest row of the peer, with and without --quick: its mask of 32,768 tokens takes minutes."""
ALONE_LONGEST = {True: 8192, False: 32768}
"""The longest row that is a single document."""
OPTIONS: dict[str, dict[str, Any]] = {
    "activation_checkpointing": {"activation_checkpointing": True},
    "mlp_chunk_tokens=1024": {"mlp_chunk_tokens": 1024},
    "both": {"activation_checkpointing": True, "mlp_chunk_tokens": 1024},
}
SHARING = 2
"""Ranks of the rows about context parallelism."""
MOST_GROWTH = 4.5
"""Goal of the time from 8k to 32k tokens at a fixed document length."""
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
}

Case = tuple[int, int]
"""Tokens of a row, and the documents of equal length in it."""


def make_models(folder: Path) -> None:
    """Random weights of each of `SHAPES` in a folder of its name."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    for name, shape in SHAPES.items():
        LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(folder / name)


def row_of(tokens: int, documents: int) -> Any:
    """A `Batch` of random tokens in documents of equal length."""
    import torch

    from cpt_dist.data.batch import Batch

    ids = torch.randint(0, SHARED_SHAPE["vocab_size"], (tokens,), generator=torch.Generator().manual_seed(0))
    borders = torch.arange(documents + 1, dtype=torch.int32) * (tokens // documents)
    none, zero = torch.empty(2, 0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    doc_ids, bounds = torch.zeros(documents, 16, dtype=torch.uint8), torch.tensor([0, tokens])
    return Batch(ids, borders, doc_ids, borders.diff(), zero, zero, bounds, zero, zero, none, none, none)


def our_step(folder: Path, options: dict[str, Any]) -> tuple[Callable[[Any], float], Callable[[Any], list[Any]]]:
    """A training step of the FSDP2 engine, which gives the mean nll of a target token; and what ranks tell each other.

    All ranks there are share each row.
    """
    import torch

    from cpt_dist.config import CptConfig, ModelConfig, StageConfig
    from cpt_dist.engine import distributed
    from cpt_dist.engine.build import build_engine
    from cpt_dist.model.load import load_model

    config = CptConfig(run_dir="unused", model=ModelConfig(path=str(folder), **options))
    config.engine.threads, config.engine.context_parallel = 1, int(os.environ.get("WORLD_SIZE", "1"))
    config.stages = [StageConfig(tokens="1", batch_tokens="1")]
    world = distributed.start(config.engine)
    engine = build_engine(load_model(config.model), config, world, torch.float32)
    engine.context.enter(config, 0)

    def step(batch: Any) -> float:
        nll = engine.forward_backward(batch, batch.num_target_tokens, True)
        engine.step(0.0)  # a step in all but its length: the loss stays comparable
        return float(nll.sum()) / batch.num_target_tokens

    return step, world.gather


def peer_step(folder: Path) -> Callable[[Any], float]:
    """The same in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step(batch: Any) -> float:
        mask = None
        if len(batch.doc_ids) > 1:
            place = torch.arange(batch.num_tokens)
            document = torch.searchsorted(batch.cu_seqlens[1:].long(), place, right=True)
            mask = (place[:, None] >= place) & (document[:, None] == document)
            mask = mask[None, None]
        loss = model(
            input_ids=batch.input_ids[None],
            attention_mask=mask,
            position_ids=batch.position_ids[None],
            shift_labels=batch.labels[None],
            labels=batch.labels[None],
            use_cache=False,
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def resident(key: str) -> int:
    """A line of this process's status in bytes: VmRSS, or its peak VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def measure(kind: str, folder: Path, cases: list[Case], repeat: int) -> None:
    """Print {"tokens", "documents", "num_ranks", "cpu_seconds", "peak_bytes", "loss"} of each case, a line each.

    Of several ranks, each of which has the nll of its own tokens, the largest time and memory count.
    """
    if kind == "peer":
        step, gather = peer_step(folder), lambda found: [found]
    else:
        step, gather = our_step(folder, OPTIONS.get(kind, {}))
    step(row_of(256, 2))
    for tokens, documents in cases:
        batch = row_of(tokens, documents)
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again from here
        before, seconds, losses = resident("VmRSS"), [], []
        for _ in range(repeat):
            begin = time.process_time()
            losses.append(step(batch))
            seconds.append(time.process_time() - begin)
        ranks = gather({"cpu_seconds": min(seconds), "peak_bytes": resident("VmHWM") - before, "loss": losses[0]})
        if os.environ.get("RANK", "0") == "0":
            found = {"tokens": tokens, "documents": documents, "num_ranks": len(ranks)}
            found |= {name: max(one[name] for one in ranks) for name in ("cpu_seconds", "peak_bytes")}
            print(json.dumps(found | {"loss": sum(one["loss"] for one in ranks)}), flush=True)


def run(kind: str, folder: Path, cases: list[Case], repeat: int, ranks: int = 1) -> dict[Case, dict[str, float]]:
    """Measure in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    words = [sys.executable, *launcher, __file__, "--measure", kind, "--model", str(folder)]
    words += ["--repeat", str(repeat), "--cases", json.dumps(cases)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    found = {}
    for one in (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")):
        found[one["tokens"], one["documents"]] = one
        print(
            f"{kind:26} {one['tokens']:6} tokens in {one['documents']:3} documents: {one['cpu_seconds']:8.2f} CPU s "
            f"{one['peak_bytes'] / 1e6:8.0f} MB  loss {one['loss']:.5f}",
            file=sys.stderr,
            flush=True,
        )
    return found


def row(metric: str, unit: str, ours: float, peer: float, peer_name: str) -> dict[str, Any]:
    """One line of the table."""
    return {"metric": metric, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": peer / ours}


def pair(what: str, ours: dict[str, float], peer: dict[str, float], peer_name: str) -> list[dict[str, Any]]:
    """Time and memory of one step beside another. Raises SystemExit where they don't compute the same."""
    if abs(ours["loss"] - peer["loss"]) > 1e-5 * peer["loss"]:
        raise SystemExit(f"{what}: the loss is {ours['loss']} and that of {peer_name} {peer['loss']}")
    return [
        row(f"{what}, time", "CPU s", ours["cpu_seconds"], peer["cpu_seconds"], peer_name),
        row(f"{what}, memory", "MB", ours["peak_bytes"] / 1e6, peer["peak_bytes"] / 1e6, peer_name),
    ]


def largest_deviation(cases: dict[Case, dict[str, float]], cost: Callable[[Case], float]) -> float:
    """Of CPU seconds from a * tokens + b * cost, as a share, with the a and b that make squared shares least."""
    scaled = [(case[0] / one["cpu_seconds"], cost(case) / one["cpu_seconds"]) for case, one in cases.items()]
    xx, xy, yy = (sum(p[i] * p[j] for p in scaled) for i, j in ((0, 0), (0, 1), (1, 1)))
    x, y = (sum(p[i] for p in scaled) for i in (0, 1))
    determinant = xx * yy - xy * xy
    a, b = (x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant
    return max(abs(a * p[0] + b * p[1] - 1) for p in scaled)


def squares(case: Case) -> float:
    """Sum of the squared lengths of the documents."""
    tokens, documents = case
    return documents * (tokens / documents) ** 2


def documents_of(case: Case) -> str:
    """A case in words."""
    return f"{case[0]:,} tokens in {case[1]} document{'s' if case[1] > 1 else ''}"


def compare(folder: Path, quick: bool, repeat: int, jobs: int) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """The rows of the table, and every single measurement by side."""
    lengths = QUICK_LENGTHS if quick else LENGTHS
    packed = [(tokens, tokens // DOCUMENT) for tokens in lengths if tokens > DOCUMENT]
    alone = [(tokens, 1) for tokens in lengths if tokens <= ALONE_LONGEST[quick]]
    middle, longest = (MIDDLE, MIDDLE // DOCUMENT), (lengths[-1], lengths[-1] // DOCUMENT)
    between = [(MIDDLE, 2)] if quick else [(MIDDLE, 4), (MIDDLE, 2), (2 * MIDDLE, 4)]
    short_enough = [case for case in [*alone, *packed] if case[0] <= PEER_LONGEST[quick]]
    shared = f"context_parallel={SHARING}"
    with ThreadPoolExecutor(jobs) as pool:
        sides = {
            "ours": pool.submit(run, "ours", folder / "time", [*alone, *between, *packed], repeat),
            "peer": pool.submit(run, "peer", folder / "time", short_enough, repeat),
            shared: pool.submit(run, shared, folder / "time", [middle, (MIDDLE, 1)], repeat, SHARING),
            **{name: pool.submit(run, name, folder / "memory", [middle], repeat) for name in ("no option", *OPTIONS)},
        }
        measured = {name: side.result() for name, side in sides.items()}
    ours, rows = measured["ours"], []
    for case, one in measured["peer"].items():
        rows += pair(documents_of(case), ours[case], one, f"SDPA, {'dense' if case[1] > 1 else 'causal'} mask")
    growth = ours[longest]["cpu_seconds"] / ours[middle]["cpu_seconds"]
    what = f"time of {longest[0]:,} tokens over that of {MIDDLE:,}, documents of {DOCUMENT:,}"
    rows.append(row(what, "x", growth, MOST_GROWTH, "goal: at most"))
    large = {case: one for case, one in ours.items() if case[0] >= MIDDLE}
    deviations = [largest_deviation(large, cost) for cost in (squares, lambda case: float(case[0]) ** 2)]
    what = "deviation of the time from a*tokens + b*(sum of squared document lengths)"
    rows.append(row(what, "share", *deviations, "a*tokens + b*(row length squared)"))
    for name in OPTIONS:
        what = f"{documents_of(middle)}, {name}"
        rows += pair(what, measured[name][middle], measured["no option"][middle], "no option")
    for case, one in measured[shared].items():
        rows += pair(f"{documents_of(case)}, {shared}, busiest rank", one, ours[case], "one process")
    return rows, {name: list(found.values()) for name, found in measured.items()}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    width = max(len(one["metric"]) for one in rows)
    print(f"{'':{width}}  {'ours':>9} {'peer':>9} {'unit':5} {'ratio':>6}  peer")
    for one in rows:
        numbers = f"{one['ours']:9.2f} {one['peer']:9.2f} {one['unit']:5} {one['ratio']:6.2f}"
        print(f"{one['metric']:{width}}  {numbers}  {one['peer_name']}")


def main() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer lengths, each step once after a short one")
    parser.add_argument("--repeat", type=int, default=None, help="steps of each case, of which the fastest counts")
    parser.add_argument("--jobs", type=int, default=1, help="sides that are measured at a time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cases", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    repeat = options.repeat or (1 if options.quick else 2)
    if options.measure:
        measure(options.measure, options.model, [tuple(case) for case in options.cases], repeat)
        return
    with tempfile.TemporaryDirectory(prefix="long-context-benchmark-") as scratch:
        folder = Path(scratch)
        # In a process of its own: this one stays small and the measured ones share nothing with it.
        make = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import long_context as b; "
        words = [sys.executable, "-c", f"{make}b.make_models(b.Path({str(folder)!r}))"]
        subprocess.run(words, env=ENVIRONMENT, check=True)
        rows, measured = compare(folder, options.quick, repeat, options.jobs)
    show(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"rows": rows, "measured": measured}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
