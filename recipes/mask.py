"""Recipe "document mask": python -m recipes.mask

The same short documents in the same order, once as documents that don't see each other, and once joined by sixteen to
a document with the end token between them, so that attention crosses. Both models are scored on single documents. The
first token of a document isn't counted: with the mask it is never predicted in training.
"""

from __future__ import annotations

from rich.table import Table

from cpt_dist.console import output_console
from recipes.arms import make_arm, mean_losses, options, score
from recipes.judge import Claim, conclude
from recipes.material import read_documents, split_blocks, tokens_of, write_model, write_tokens

LENGTH, JOINED = 256, 16
MIN_BYTES, MAX_BYTES = 64, 240


def main(words: list[str] | None = None) -> list[str]:
    """Run the recipe; the outcome of each claim."""
    given = options("mask", 200, words)
    train_on, held_out = read_documents(given.text, 8_000_000, MIN_BYTES)
    parts = [split_blocks(documents, MIN_BYTES, MAX_BYTES) for documents in (train_on, held_out)]
    documents = [tokens_of(one) for one in parts[0]]
    scored = [tokens_of(one) for one in parts[1][: 10 * given.num_documents]]
    if len(documents) < 100 or not scored:
        raise SystemExit(
            f"only {len(documents)} parts of {MIN_BYTES} to {MAX_BYTES} bytes; give more text: --text FILE …"
        )
    files = {
        "mask": write_tokens(given.out / "alone" / "tokens.ds", documents),
        "no mask": write_tokens(given.out / "joined" / "tokens.ds", documents, JOINED),
    }
    console = output_console()
    losses: dict[str, list[float]] = {name: [] for name in files}
    schedule = {"name": "wsd", "peak_lr": 3e-3, "warmup": 0.05, "decay": 0.3, "min_lr_ratio": 0.1}
    for seed in range(given.seeds):
        console.print(f"seed {seed}")
        folder = given.out / f"seed{seed}"
        start = write_model(folder / "start", seed, LENGTH, 500.0, given.hidden, given.layers)
        for name, tokens in files.items():
            model = make_arm(folder / name.replace(" ", "_"), start, tokens, seed, given.steps, LENGTH, schedule)
            losses[name].append(float(mean_losses(score(model, scored, (0, 1, MAX_BYTES)))[1]))
    differences = tuple(a - b for a, b in zip(losses["no mask"], losses["mask"], strict=True))
    listed = [
        Claim("the mask lowers the loss of single documents", "Zhao et al., arXiv 2402.13991", differences),
    ]
    table = Table(title=f"Nats per token of {len(scored)} single held-out documents after {given.steps} steps")
    table.add_column("attention")
    for seed in range(given.seeds):
        table.add_column(f"seed {seed}", justify="right")
    for name, values in losses.items():
        table.add_row(name, *(f"{value:.4f}" for value in values))
    return conclude("mask", listed, table, {"steps": given.steps, "losses": losses}, given.out, console)


if __name__ == "__main__":
    main()
