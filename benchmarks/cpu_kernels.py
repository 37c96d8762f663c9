"""The C kernels of a CPU beside torch's own operations: python benchmarks/cpu_kernels.py [--quick]

Each operation of a layer of SmolLM2-135M on 2,048 tokens in four documents, forward and backward, in fp32 on one
thread; the rows of the loss on 64 tokens. Milliseconds of CPU time (user and system), the least of the repeats, since
whatever else runs on the machine only adds to it. `ratio` above 1: the C kernel is faster. Writes
benchmarks/results/cpu_kernels.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from cpt_kernels import add_rms_norm, rms_norm, rope, swiglu  # noqa: E402
from cpt_kernels.cross_entropy import native_rows, torch_rows  # noqa: E402

from cpt_dist.model.attention import Documents, Heads, choose_backend  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "cpu_kernels.json"
TOKENS, HIDDEN, MIDDLE, HEADS, KEY_HEADS, SIZE, WORDS = 2048, 576, 1536, 9, 3, 64, 49152
Run = Callable[[str], None]


def differentiated(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Run:
    """Forward and backward of `function(backend, *inputs)`."""
    leaves = [one.requires_grad_() for one in inputs]
    cotangent = torch.ones_like(function("torch", *leaves))

    def run(backend: str) -> None:
        torch.autograd.grad(function(backend, *leaves), leaves, cotangent)

    return run


def operations() -> dict[str, Run]:
    """Name -> run(backend)."""
    x, residual = torch.randn(TOKENS, HIDDEN), torch.randn(TOKENS, HIDDEN)
    gate, up, weight = torch.randn(TOKENS, MIDDLE), torch.randn(TOKENS, MIDDLE), torch.ones(HIDDEN)
    query, key, value = (torch.randn(TOKENS, n, SIZE).transpose(0, 1) for n in (HEADS, KEY_HEADS, KEY_HEADS))
    angles = torch.arange(TOKENS)[:, None] * 1e4 ** -(torch.arange(SIZE // 2) / (SIZE // 2))
    documents = Documents.of(torch.arange(0, TOKENS + 1, TOKENS // 4, dtype=torch.int32), TOKENS)
    names = {"torch": "sdpa_per_document", "native": "native"}
    logits, labels, share = torch.randn(64, WORDS), torch.arange(64), torch.ones(64)

    def attend(backend: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        chosen = choose_backend(names[backend], "cpu", torch.float32)
        return documents.attend(chosen, Heads(q, k, v))

    def turned(backend: str, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.cat(rope(q, k, angles.cos(), angles.sin(), backend=backend))

    def loss_rows(backend: str) -> None:
        (native_rows if backend == "native" else torch_rows)(logits, labels, share, 0.0, -100, 1.0, None)

    return {
        "rms_norm": differentiated(lambda b, *one: rms_norm(*one, backend=b), x, weight),
        "add_rms_norm": differentiated(lambda b, *one: add_rms_norm(*one, backend=b)[1], x, residual, weight),
        "swiglu": differentiated(lambda b, *one: swiglu(*one, backend=b), gate, up),
        "rope": differentiated(turned, query, key),
        "packed_attention": differentiated(attend, query, key, value),
        "rows of the loss": loss_rows,
    }


def main() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 15")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name, run in operations().items():
        best = dict.fromkeys(("native", "torch"), float("inf"))
        for _ in range(3 if arguments.quick else 15):
            for backend in best:  # in turn, so that both see the same machine
                begin = time.process_time()
                run(backend)
                best[backend] = min(best[backend], (time.process_time() - begin) * 1e3)
        ratio = best["torch"] / best["native"]
        print(f"{name:20} {best['native']:8.2f} {best['torch']:8.2f} CPU ms  {ratio:5.2f}", flush=True)
        row = {"metric": name, "unit": "CPU ms", "ours": best["native"], "peer": best["torch"], "peer_name": "torch"}
        rows.append(row | {"ratio": ratio})
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
