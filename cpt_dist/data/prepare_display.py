"""What a person sees of prepare: a progress line with rates, and the table of counts at its end."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cpt_dist.corpus.inputs import InputFile
from cpt_dist.data.documents import Counts, Fate


class PrepareDisplay:
    """Progress of the source at hand by bytes of its raw files, with documents and tokens a second."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[rates]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._console = Console(markup=False, highlight=False)
        self.rates: dict[str, tuple[float, float]] = {}
        """Source -> (documents a second, tokens a second) of this run."""

    def __enter__(self) -> PrepareDisplay:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def begin(self, name: str, inputs: list[InputFile]) -> None:
        """Start the line of a source."""
        self._name, self._plain = name, [item.path.suffix in (".jsonl", ".txt") for item in inputs]
        sizes = [item.path.stat().st_size if item.path.is_file() else 1 for item in inputs]
        self._starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self._bar = self._progress.add_task(f"prepare {name}", total=sum(sizes), rates="")
        self._total = sum(sizes)

    def resumed(self, counts: Counts, start: tuple[int, ...]) -> None:
        """Note where this run begins; rates count from here."""
        self._began, self._records, self._tokens = time.monotonic(), counts.read, counts.tokens
        if counts.read:
            self._console.print(f"source '{self._name}': goes on after {counts.read} documents")

    def advance(self, counts: Counts, last: Fate) -> None:
        """Show the state after a batch whose last record is `last`."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        rates = (counts.read - self._records) / seconds, (counts.tokens - self._tokens) / seconds
        self.rates[self._name] = rates
        inside = last.byte if last.byte is not None and self._plain[last.next_input] else 0
        self._progress.update(
            self._bar,
            completed=self._starts[last.next_input] + inside,
            rates=f"{rates[0]:,.0f} documents/s  {rates[1]:,.0f} tokens/s",
        )

    def table(self, sources: list[tuple[dict[str, Any], bool, Path]]) -> None:
        """Print the counts of (manifest, was it complete before, folder) of each source."""
        table = Table(box=box.SIMPLE)
        for column in ("source", "read", "kept", "held out", "dropped", "tokens", "bytes"):
            table.add_column(column, justify="left" if column in ("source", "dropped") else "right", overflow="fold")
        for manifest, _, _ in sources:
            counts = manifest["counts"]
            dropped = "\n".join(f"{reason} {number:,}" for reason, number in counts["dropped"].items()) or "0"
            table.add_row(
                manifest["source"],
                *(f"{counts[key]:,}" for key in ("read", "kept", "held_out")),
                dropped,
                f"{manifest['tokens']:,}",
                f"{manifest['text_bytes']:,}",
            )
        self._console.print(table)
        for manifest, was_complete, folder in sources:
            if repaired := manifest["counts"]["repaired_utf8"]:
                self._console.print(f"source '{manifest['source']}': invalid UTF-8 replaced in {repaired:,} records")
            if not manifest["held_out"]:
                self._console.print(f"source '{manifest['source']}': no document is held out, so it can't be evaluated")
            rates = self.rates.get(manifest["source"], (0.0, 0.0))
            how = "it was already" if was_complete else f"{rates[0]:,.0f} documents/s, {rates[1]:,.0f} tokens/s"
            self._console.print(f"{folder}: complete ({how})", soft_wrap=True)
