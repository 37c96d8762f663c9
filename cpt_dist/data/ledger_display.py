"""The ledger's answers as tables on a terminal. Nothing is looked up here."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from cpt_dist.console import output_console


def _table(title: str, columns: dict[str, bool]) -> Table:
    """A table whose columns are name -> whether it holds numbers."""
    table = Table(title=title, title_justify="left", expand=False)
    for name, is_number in columns.items():
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    return table


def _origin(document: dict[str, Any]) -> Text:
    byte = "" if document["byte"] is None else f", byte {document['byte']}"
    return Text(f"{document['file']} record {document['record']}{byte}")


def _name(document: dict[str, Any]) -> str:
    """The stratum or generation of a document, where it has one, else its source."""
    return str(document.get("stratum", document["source"]))


def _ranges(steps: set[int]) -> str:
    """Steps as 3, 5-7, 9; the first five of such runs."""
    runs: list[list[int]] = []
    for step in sorted(steps):
        if runs and runs[-1][1] == step - 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(words[:5] + ["…"] * (len(words) > 5))


def show_steps(answer: dict[str, Any], num_shown: int) -> None:
    """Totals by source, then the first documents."""
    console = output_console()
    first, last = answer["steps"]
    by_source = _table(
        f"steps {first} to {last}",
        dict.fromkeys(("source", "role", "licence"), False)
        | dict.fromkeys(("samples", "documents", "tokens", "joined"), True),
    )
    for name, record in answer["sources"].items():
        numbers = [f"{record[key]:,}" for key in ("samples", "documents", "tokens", "joined_tokens")]
        by_source.add_row(Text(name), record["role"], Text(record["licence"]), *numbers)
        for stratum, part in record.get("strata", {}).items():
            numbers = [f"{part[key]:,}" for key in ("samples", "documents", "tokens", "joined_tokens")]
            by_source.add_row(Text(f"  {stratum}"), "", "", *numbers)
    console.print(by_source)
    columns = {"document": False, "source": False, "licence": False, "origin": False, "tokens": True, "steps": False}
    table = _table("documents, in the order in which they were read", columns)
    for document in answer["documents"][:num_shown]:
        steps = _ranges({reading["step"] for reading in document["read"]})
        names = [Text(word) for word in (document["document"], _name(document), document["licence"])]
        table.add_row(*names, _origin(document), f"{document['tokens']:,}", steps)
    console.print(table)
    if len(answer["documents"]) > num_shown:
        console.print(f"and {len(answer['documents']) - num_shown:,} documents more; json=FILE writes all of them")
    if last > answer["steps_done"]:
        console.print(f"the run has done {answer['steps_done']} steps; those after it are the plan", soft_wrap=True)


def show_document(answer: dict[str, Any], num_shown: int) -> None:
    """Whether, when and how often a document was read."""
    console = output_console()
    console.print(Text(f"document {answer['document']}"), soft_wrap=True)
    if answer["held_out_by"]:
        console.print(Text(f"held out for evaluation by source '{answer['held_out_by']}': never trained on"))
    if answer["taken_down_from"] is not None:
        console.print(Text(f"taken down from sample {answer['taken_down_from']} on"))
    for place in answer["places"]:
        console.print(Text(f"source '{_name(place)}', licence {place['licence']}, from ") + _origin(place))
        seen = f"read {place['times_read']:.4g} times" if place["read"] else "not read"
        console.print(f"{place['tokens']:,} tokens; {seen} in {answer['steps_done']} steps", soft_wrap=True)
        columns = ("step", "sample", "epoch", "tokens from", "to", "when")
        table = _table("readings", {name: name != "when" for name in columns})
        rows = [(reading, "done") for reading in place["read"]] + [(reading, "planned") for reading in place["planned"]]
        for reading, when in rows[:num_shown]:
            numbers = [f"{reading[key]:,}" for key in ("step", "sample", "epoch", "start", "stop")]
            table.add_row(*numbers, when)
        console.print(table if rows else "the plan never reads it")
        if len(rows) > num_shown:
            console.print(f"and {len(rows) - num_shown:,} readings more; json=FILE writes all of them")
