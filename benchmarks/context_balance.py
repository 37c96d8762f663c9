"""How evenly the attention work of packed rows is shared by the ranks of a context group.

    python benchmarks/context_balance.py [--tokens 131072] [--rows 100] [--out FILE]

A row is log-normal documents (median e^7 = 1,097 tokens, sigma 1.5) laid end to end and cut. Numbers are the work of
the busiest rank over the mean: what a step takes longer than it would with perfect balance. "contiguous" gives each
rank one range, "head-tail" the chunks r and 2n-1-r, "by work" is what context parallelism does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cpt_dist.engine.context.split import split_sequence, work_before  # noqa: E402
from cpt_dist.files import write_json  # noqa: E402

RANKS = (2, 4, 8)


def packed_row(seed: int, num_tokens: int) -> list[int]:
    """Borders of log-normal documents in a row of `num_tokens`; the last one is cut."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.lognormal(7, 1.5, num_tokens // 100).astype(np.int64) + 1)
    return [0, *ends[ends < num_tokens].tolist(), num_tokens]


def head_tail_imbalance(borders: list[int], num_ranks: int) -> float:
    """Busiest over mean where rank r has the chunks r and 2n-1-r; of rows whose length 2n divides."""
    places = np.linspace(0, borders[-1], 2 * num_ranks + 1).astype(np.int64)
    work = np.diff(work_before(places, borders, (None,)))
    pairs = work[:num_ranks] + work[num_ranks:][::-1]
    return float(pairs.max() / pairs.mean())


def measure(num_rows: int, num_tokens: int) -> list[dict[str, float]]:
    """For each number of ranks the mean and the largest imbalance of each way, and the ranges of a rank."""
    results = []
    for num_ranks in RANKS:
        rows = [packed_row(seed, num_tokens) for seed in range(num_rows)]
        splits = [split_sequence(row, num_ranks) for row in rows]
        found = {
            "contiguous": [split_sequence(row, num_ranks, whole_parts=True).imbalance for row in rows],
            "head-tail": [head_tail_imbalance(row, num_ranks) for row in rows],
            "by work": [split.imbalance for split in splits],
        }
        record: dict[str, float] = {"ranks": num_ranks}
        for name, values in found.items():
            record |= {name: float(np.mean(values)), f"{name}, worst": float(np.max(values))}
        results.append(record | {"ranges": float(np.mean([max(map(len, split.parts)) for split in splits]))})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = measure(arguments.rows, arguments.tokens)
    print(f"{'ranks':>5}  {'contiguous':>16}  {'head-tail':>16}  {'by work':>16}  {'ranges':>6}   (mean, worst)")
    for one in results:
        cells = "  ".join(f"{one[k]:8.3f}{one[f'{k}, worst']:8.3f}" for k in ("contiguous", "head-tail", "by work"))
        print(f"{one['ranks']:5.0f}  {cells}  {one['ranges']:6.1f}")
    if arguments.out:
        write_json(arguments.out, {"tokens": arguments.tokens, "rows": arguments.rows, "results": results})


if __name__ == "__main__":
    main()
