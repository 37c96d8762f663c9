"""Recipe "schedule": python -m recipes.schedule

The same model on the same rows with a cosine, with warm-up, stable phase and decay (WSD), with a constant learning
rate (WSD without its decay), and with a cosine that restarts. All begin with the same weights and the same peak.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

from cpt_dist.console import output_console
from recipes.arms import make_arm, mean_losses, options, score, training_losses
from recipes.judge import Claim, conclude
from recipes.material import read_documents, tokens_of, write_model, write_tokens

LENGTH, CYCLES = 128, 3
SAME = 0.03
"""Nats per token below which two schedules count as equal."""
COMMON: dict[str, Any] = {"peak_lr": 3e-3, "warmup": 0.05}
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"name": "cosine", "min_lr_ratio": 0.1},
    "WSD": {"name": "wsd", "decay": 0.2, "min_lr_ratio": 0.1},
    "constant": {"name": "constant"},
    "restarts": {"name": "cosine_restarts", "cycles": CYCLES, "min_lr_ratio": 0.1},
}


def restart_spike(losses: np.ndarray) -> float:
    """Training loss just after the last restart's warm-up minus that just before the restart, in nats per token.

    `losses` [steps]. Each is a mean over a twelfth of a cycle. Learning goes on meanwhile, which hides a part of it.
    """
    cycle = len(losses) // CYCLES
    width = max(1, cycle // 12)
    restart = (CYCLES - 1) * cycle
    risen = restart + max(1, round(COMMON["warmup"] * cycle))
    return float(losses[risen : risen + width].mean() - losses[restart - width : restart].mean())


def main(words: list[str] | None = None) -> list[str]:
    """Run the recipe; the outcome of each claim."""
    given = options("schedule", 200, words)
    train_on, held_out = read_documents(given.text, 3_000_000, LENGTH + 1)
    tokens = write_tokens(given.out / "text" / "tokens.ds", [tokens_of(one) for one in train_on])
    documents = [tokens_of(one)[: 8 * LENGTH] for one in held_out[: given.num_documents]]
    pieces = [
        np.append(part, np.uint16(0)) for one in documents for part in np.split(one, range(LENGTH, len(one), LENGTH))
    ]
    console = output_console()
    losses: dict[str, list[float]] = {name: [] for name in SCHEDULES}
    spikes = []
    for seed in range(given.seeds):
        console.print(f"seed {seed}")
        folder = given.out / f"seed{seed}"
        start = write_model(folder / "start", seed, LENGTH, 500.0, given.hidden, given.layers)
        for name, schedule in SCHEDULES.items():
            model = make_arm(folder / name, start, tokens, seed, given.steps, LENGTH, {**COMMON, **schedule})
            losses[name].append(float(mean_losses(score(model, pieces, (0, LENGTH)))[0]))
        spikes.append(restart_spike(training_losses(folder / "restarts")))

    def over_seeds(worse: str, better: str) -> tuple[float, ...]:
        return tuple(a - b for a, b in zip(losses[worse], losses[better], strict=True))

    minicpm = "MiniCPM, arXiv 2404.06395"
    listed = [
        Claim("WSD ends where cosine ends", minicpm, over_seeds("WSD", "cosine"), SAME, equal=True),
        Claim("the decay of WSD lowers the loss", minicpm, over_seeds("constant", "WSD")),
        Claim("a restart raises the training loss", "Ibrahim et al., arXiv 2403.08763", tuple(spikes)),
    ]
    table = Table(title=f"Held-out nats per token after {given.steps} steps")
    table.add_column("schedule")
    for seed in range(given.seeds):
        table.add_column(f"seed {seed}", justify="right")
    for name, values in losses.items():
        table.add_row(name, *(f"{value:.4f}" for value in values))
    measured = {"steps": given.steps, "losses": losses, "restart_spikes": spikes}
    return conclude("schedule", listed, table, measured, given.out, console)


if __name__ == "__main__":
    main()
