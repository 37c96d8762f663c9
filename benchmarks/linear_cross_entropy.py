"""Memory and CPU time of the loss and of the distillation loss, forward and backward, against what PyTorch offers.

    python benchmarks/linear_cross_entropy.py [--quick]

Each variant runs in a process of its own on the same numbers (SmolLM2's head: hidden 576, vocabulary 49152; a seventh
of the labels ignored; fp32; one thread). The distillation has a teacher of the same size, with a head of its own.
Memory is the rise of the peak resident set over the inputs. Goals at 4,096 tokens: at most 260 MiB and the plain loss's
time; of the distillation at most 1.3 times the memory of our cross entropy. Writes
benchmarks/results/linear_cross_entropy.json; a ratio above 1 means ours is better.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "linear_cross_entropy.json"
HIDDEN, VOCABULARY, IGNORED_EVERY = 576, 49152, 7
KL = "kl"
KL_PEERS = {"torch kl_div of log_softmax": "kl_plain", "cpt_kernels linear_cross_entropy": "ours"}
"""The second only for memory: what distillation costs beside training without it."""
PEERS = {
    "torch cross_entropy": "plain",
    "torch linear_cross_entropy (auto)": "torch_auto",
    "torch linear_cross_entropy (chunk 512)": "torch_chunk",
}


def variants() -> dict[str, Callable]:
    """Name -> loss(hidden, weight, labels, teacher's hidden, teacher's weight), a mean over labels or over tokens."""
    import torch
    from cpt_kernels import linear_cross_entropy, linear_kl
    from torch.nn import functional

    options = torch.nn.LinearCrossEntropyOptions
    return {
        "ours": lambda h, w, y, *_: linear_cross_entropy(h, w, y, divisor=float((y >= 0).sum()))[0],
        "plain": lambda h, w, y, *_: functional.cross_entropy(h @ w.T, y),
        "torch_auto": lambda h, w, y, *_: functional.linear_cross_entropy(h, w, y, options=options()),
        "torch_chunk": lambda h, w, y, *_: functional.linear_cross_entropy(
            h, w, y, options=options(batch_chunk_size=512, chunking_method=None)
        ),
        KL: lambda h, w, _, th, tw: linear_kl(h, w, th, tw, divisor=float(len(h)))[0],
        "kl_plain": lambda h, w, _, th, tw: functional.kl_div(
            (h @ w.T).log_softmax(1), (th @ tw.T).log_softmax(1), reduction="batchmean", log_target=True
        ),
    }


def peak_bytes() -> int:
    """Peak resident set of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, tokens: int, repeats: int) -> None:
    """Print {"bytes", "seconds", "loss"} of one variant as JSON: peak over the inputs, median CPU seconds."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN).mul_(0.05).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (tokens,))
    labels[::IGNORED_EVERY] = -100
    teacher = (torch.randn(tokens, HIDDEN), torch.randn(VOCABULARY, HIDDEN).mul_(0.05)) if KL in name else ()
    loss_of = variants()[name]
    # The C kernels are compiled, or read, and tried before anything is measured.
    loss_of(*(x[:2].detach() for x in (hidden, weight)), labels[:2].clamp(max=1), *(x[:2] for x in teacher))
    before, seconds = peak_bytes(), []
    for _ in range(repeats):
        hidden.grad = weight.grad = None
        begin = time.process_time()
        loss = loss_of(hidden, weight, labels, *teacher)
        loss.backward()
        seconds.append(time.process_time() - begin)
    print(json.dumps({"bytes": peak_bytes() - before, "seconds": statistics.median(seconds), "loss": loss.item()}))


def main() -> None:
    """Run every variant, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,024 tokens and 2 repeats instead of 4,096 and 5")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tokens, repeats = (1024, 2) if arguments.quick else (4096, 5)
    if arguments.variant:
        measure(arguments.variant, tokens, repeats)
        return

    def run(variant: str) -> dict[str, float]:
        words = [sys.executable, __file__, "--variant", variant, *(["--quick"] if arguments.quick else [])]
        return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    found = {one: run(one) for one in ("ours", KL, *PEERS.values(), "kl_plain")}
    print(f"{'variant':42} {'peak MiB':>9} {'CPU s':>7} {'loss':>10}")
    labels = {"ours": "cpt_kernels linear_cross_entropy", KL: "cpt_kernels linear_kl"}
    for name, variant in [*((label, one) for one, label in labels.items()), *PEERS.items(), *[*KL_PEERS.items()][:1]]:
        one = found[variant]
        print(f"{name:42} {one['bytes'] / 2**20:9.0f} {one['seconds']:7.2f} {one['loss']:10.5f}")
    rows = []
    for what, ours, peers in (("loss", found["ours"], PEERS), ("distillation", found[KL], KL_PEERS)):
        for peer, variant in peers.items():
            for metric, unit in (("bytes", "bytes"), ("seconds", "CPU seconds")):
                if variant == "ours" and metric == "seconds":
                    continue
                theirs = found[variant][metric]
                row = {"metric": f"{what} {metric}, {tokens} tokens", "unit": unit, "ours": ours[metric]}
                rows.append(row | {"peer": theirs, "peer_name": peer, "ratio": theirs / ours[metric]})
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"results: {RESULTS}")


if __name__ == "__main__":
    main()
