"""How far each rule of mixing lets a source stray from its share: python benchmarks/quotas.py [num_samples] [json_file]

For 3, 10 and 100 sources: the worst |count - n x share| over all prefixes and sources, and the worst relative error of
a share at the end, of this repository's quotas beside the rules that other loaders use. The rules are written out
here after those projects' sources (named at each function), so that no project must be installed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from cpt_dist.data.mixture import Quotas

Rule = Callable[[np.ndarray, int], np.ndarray]
"""rule(shares [source], num_samples) -> source of each sample, int64 [num_samples]."""


def ours(shares: np.ndarray, num_samples: int) -> np.ndarray:
    """The tree of roundings of `cpt_dist/data/mixture.py`."""
    sequence = np.empty(num_samples, dtype=np.int64)
    for source, _, places in Quotas([0, num_samples], [shares.tolist()] * 2).split(0, num_samples):
        sequence[places] = source
    return sequence


def independent(shares: np.ndarray, num_samples: int) -> np.ndarray:
    """A draw for each: litdata `combined.py`, torchdata `multi_node_weighted_sampler.py`, webdataset RandomMix."""
    return np.random.default_rng(0).choice(len(shares), size=num_samples, p=shares)


def megatron_greedy(shares: np.ndarray, num_samples: int) -> np.ndarray:
    """The source with the largest deficit next: megatron-core `core/datasets/helpers.cpp`, build_blending_indices."""
    counts = np.zeros(len(shares))
    sequence = np.empty(num_samples, dtype=np.int64)
    for n in range(num_samples):
        sequence[n] = np.argmax(shares * max(n, 1) - counts)
        counts[sequence[n]] += 1
    return sequence


def grain(shares: np.ndarray, num_samples: int) -> np.ndarray:
    """grain `transformations/mix.py`, _dataset_and_key_of_next_element: source by source from what the others leave.

    Weights become whole numbers as there: divided by the smallest and multiplied by 100.
    """
    scale = 100 / shares.min()
    weights = [int(share * scale) for share in shares]
    sequence = np.empty(num_samples, dtype=np.int64)
    rest = np.arange(num_samples)  # samples not yet given, and their numbers among such samples
    places = np.arange(num_samples)
    left = sum(weights)
    for source, weight in enumerate(weights):
        # a source takes element i of those left when ceil((i + 1) w / left) passes ceil(i w / left)
        taken = -(-((rest + 1) * weight) // left) > -(-(rest * weight) // left)
        sequence[places[taken]] = source
        places = places[~taken]
        rest = np.arange(len(places))
        left -= weight
    return sequence


def levanter_block(shares: np.ndarray, num_samples: int, block: int = 2048) -> np.ndarray:
    """levanter `data/mixture.py`: whole numbers in each block of 2048, the remainder to the largest source.

    The order within the block is one permutation here, where levanter draws one for each block.
    """
    counts = np.floor(shares * block).astype(np.int64)
    counts[np.argmax(shares)] += block - counts.sum()
    one = np.random.default_rng(0).permutation(np.repeat(np.arange(len(shares)), counts))
    return np.tile(one, -(-num_samples // block))[:num_samples]


RULES: dict[str, Rule] = {
    "cpt_dist": ours,
    "i.i.d. (litdata, torchdata, webdataset)": independent,
    "Megatron greedy": megatron_greedy,
    "grain": grain,
    "levanter, blocks of 2048": levanter_block,
}


def mixtures() -> dict[str, np.ndarray]:
    """Shares of 3, 10 and 100 sources, summing to 1."""
    zipf = 1 / np.arange(1, 101)
    return {
        "3 (7:2:1)": np.array([0.7, 0.2, 0.1]),
        "10 (Dirichlet)": np.random.default_rng(5).dirichlet(np.ones(10)),
        "100 (Zipf)": zipf / zipf.sum(),
    }


def errors(sequence: np.ndarray, shares: np.ndarray) -> tuple[float, float]:
    """Worst |count - n x share| over prefixes and sources; worst relative error of a share at the end."""
    num = len(sequence)
    counts = np.zeros((num + 1, len(shares)), dtype=np.int64)
    counts[np.arange(1, num + 1), sequence] = 1
    counts = counts.cumsum(axis=0)
    worst = np.abs(counts - np.arange(num + 1)[:, None] * shares).max()
    return float(worst), float(np.abs(counts[-1] / (num * shares) - 1).max())


def main() -> None:
    """Print the table; write it as JSON where a file is named."""
    num_samples = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    rows = []
    print(f"{num_samples} samples; worst |count - target| over all prefixes, in samples, and relative error at the end")
    print(f"{'rule':>40}" + "".join(f"{name:>24}" for name in mixtures()))
    for rule_name, rule in RULES.items():
        line = f"{rule_name:>40}"
        for name, shares in mixtures().items():
            begin = time.process_time()
            worst, final = errors(rule(shares, num_samples), shares)
            rows.append(
                {
                    "rule": rule_name,
                    "sources": name,
                    "samples": num_samples,
                    "worst_samples": worst,
                    "final_relative": final,
                    "cpu_seconds": time.process_time() - begin,
                }
            )
            line += f"{worst:>15.2f} {final:>7.2%}"
        print(line)
    if len(sys.argv) > 2:
        with open(sys.argv[2], "w", encoding="utf-8") as handle:
            json.dump(rows, handle, indent=1)


if __name__ == "__main__":
    main()
