"""How often the intervals of the report hold the truth, and how often they decide although nothing changed.

    python benchmarks/interval_coverage.py

2,000 simulated evaluations a row: documents of log-normal size (sigma 1) whose changes are normal, 1,000 resamples,
nominal level 0.95. The plain percentile interval stands beside the expanded one that is used. "Wrong" is a decision
although nothing changed. It is the table of docs/evaluation.md; nothing is timed.
"""

from __future__ import annotations

import numpy as np

from cpt_dist.evaluation.sign_flip import p_different
from cpt_dist.evaluation.statistics import (
    UNDECIDED,
    Estimate,
    effective_documents,
    outcome,
    percentile_interval,
    resampled_ratios,
)

DOCUMENTS = (6, 8, 12, 20, 40, 100)
TRIALS, RESAMPLES, CONFIDENCE, TRUTH = 2000, 1000, 0.95, 0.1


def shares(num_documents: int) -> tuple[float, ...]:
    """Coverage of the plain and of the expanded interval, and the shares of wrong decisions when nothing changed.

    The decisions of the expanded interval alone, of the sign-flip test alone, and of both, which is what is used.
    """
    generator = np.random.default_rng(num_documents)
    plain = expanded = 0
    wrong = np.zeros(3)
    for trial in range(TRIALS):
        num_bytes = np.round(generator.lognormal(6, 1, num_documents)) + 1
        changes = generator.normal(0, 0.2, num_documents)
        numerators = np.stack([(TRUTH + changes) * num_bytes, changes * num_bytes])
        changed, unchanged = resampled_ratios(numerators, num_bytes, RESAMPLES, trial)
        effective = effective_documents(num_bytes)
        low, high = np.quantile(changed, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        plain += low <= TRUTH <= high
        low, high = percentile_interval(changed, CONFIDENCE, effective)
        expanded += low <= TRUTH <= high
        estimate = Estimate(0.0, *percentile_interval(unchanged, CONFIDENCE, effective))
        p_value = p_different(numerators[1], trial, RESAMPLES)
        wrong[0] += outcome(estimate, effective, CONFIDENCE, 0.0) != UNDECIDED
        wrong[1] += p_value <= 1 - CONFIDENCE
        wrong[2] += outcome(estimate, effective, CONFIDENCE, p_value) != UNDECIDED
    return plain / TRIALS, expanded / TRIALS, *(wrong / TRIALS).tolist()


def main() -> None:
    """Print the table in Markdown."""
    print(
        "| documents | plain percentile | expanded (used) | wrong by interval | wrong by sign flips | wrong by both |"
    )
    print("|---|---|---|---|---|---|")
    for num_documents in DOCUMENTS:
        print(f"| {num_documents} | " + " | ".join(f"{share:.1%}" for share in shares(num_documents)) + " |")


if __name__ == "__main__":
    main()
