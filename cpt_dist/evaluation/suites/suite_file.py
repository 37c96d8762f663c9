"""Suites: what a user names in `suites.run`, read and checked before any model is loaded.

A suite is a file of our form (docs/suites.md) with items of its own or with the name of an lm-evaluation-harness
task, or such a name alone. Prompts are rendered here, so that a mistake in a file is one line with its place and
nothing of an item's text is read as a template later. Neither a model nor lm-evaluation-harness is needed for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template, TemplateError

from cpt_dist.errors import UserError, nearest
from cpt_dist.evaluation.suites.capabilities import CAPABILITIES, OTHER, known_task

MULTIPLE_CHOICE, CLOZE, GENERATION = "multiple_choice", "cloze", "generation"
KINDS = (MULTIPLE_CHOICE, CLOZE, GENERATION)
METRICS = {MULTIPLE_CHOICE: ("acc", "acc_norm", "acc_bytes"), CLOZE: ("acc",), GENERATION: ("exact_match",)}
_OWN = {
    "kind": str,
    "data": str,
    "prompt": str,
    "choices": str,
    "answer": str,
    "delimiter": str,
    "fewshot_data": str,
    "max_new_tokens": int,
    "stop": list,
    "extract": str,
}
_TEMPLATE = ("prompt", "choices", "answer", "delimiter")
_TASK = {"task": str, "filter": str}
_BOTH = {"name": str, "capability": str, "metric": str, "margin": float, "fewshot": int}
_ONLY = {
    "choices": (MULTIPLE_CHOICE,),
    "max_new_tokens": (GENERATION,),
    "stop": (GENERATION,),
    "extract": (GENERATION,),
}


@dataclass(frozen=True)
class Item:
    """A question: the prompt, and either choices with the index of the right one or the answer itself."""

    prompt: str
    answer: str
    choices: list[str] = field(default_factory=list)
    gold: int = -1


@dataclass(frozen=True)
class Suite:
    """One entry of `suites.run`: items of its own, or the name of a task of lm-evaluation-harness."""

    name: str
    capability: str
    metric: str | None = None
    """Name of the score; None: the first that the task has."""
    margin: float | None = None
    fewshot: int | None = None
    task: str | None = None
    filter: str | None = None
    kind: str | None = None
    items: list[Item] = field(default_factory=list)
    examples: list[Item] = field(default_factory=list)
    """Worked examples for few-shot prompts."""
    delimiter: str = " "
    max_new_tokens: int = 64
    stop: list[str] = field(default_factory=lambda: ["\n"])
    extract: str | None = None


def read_suites(entries: list[str]) -> list[Suite]:
    """The suites of `suites.run`, in order; an entry that ends in .yaml or .yml is a file.

    Raises UserError with every mistake in every file.
    """
    suites: list[Suite] = []
    problems: list[str] = []
    for entry in entries:
        try:
            suites.append(read_suite(Path(entry)) if entry.endswith((".yaml", ".yml")) else task_suite(entry))
        except UserError as error:
            problems.extend(error.problems)
    names = [suite.name for suite in suites]
    problems.extend(
        f"suites.run: two suites are called '{name}'; give one another name: in its file"
        for name in sorted({name for name in names if names.count(name) > 1})
    )
    if problems:
        raise UserError(problems)
    return suites


def task_suite(task: str) -> Suite:
    """The suite of a task's or group's name, with what is known of it."""
    known = known_task(task)
    return Suite(task, known.capability if known else OTHER, known.metric if known else None, task=task)


def read_suite(path: Path) -> Suite:
    """The suite in a YAML file. Raises UserError with every mistake in it and in its data, by field and line."""
    where = f"suite '{path}'"
    if not path.is_file():
        raise UserError(f"{where}: there is no such file; suites.run takes suite files and names of tasks")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{where}: it must be a mapping of fields; docs/suites.md has an example")
    problems = [f"{where}: {problem}" for problem in _field_problems(fields)]
    if problems:
        raise UserError(problems)
    known = known_task(fields["task"]) if "task" in fields else None
    common: dict[str, Any] = {
        "name": fields.get("name", path.stem),
        "capability": fields.get("capability", known.capability if known else OTHER),
        "margin": fields.get("margin"),
        "fewshot": fields.get("fewshot"),
    }
    if "task" in fields:
        metric = fields.get("metric", known.metric if known else None)
        return Suite(**common, metric=metric, task=fields["task"], filter=fields.get("filter"))
    kind = fields["kind"]
    items = _items(where, path.parent / fields["data"], fields)
    examples = _items(where, path.parent / fields["fewshot_data"], fields) if "fewshot_data" in fields else []
    if common["fewshot"] and len(examples) < common["fewshot"]:
        raise UserError(f"{where}: fewshot: {common['fewshot']} examples are more than the {len(examples)} of its data")
    optional = {key: fields[key] for key in ("delimiter", "max_new_tokens", "stop", "extract") if key in fields}
    metric = fields.get("metric", METRICS[kind][0])
    return Suite(**common, metric=metric, kind=kind, items=items, examples=examples, **optional)


def read_template_items(suite_path: Path, data: Path) -> tuple[dict[str, str], list[Item]]:
    """The template of a suite file that `read_suite` has read, and the records of the file `data` as its items.

    The template is what makes an item of a record: prompt, answer, delimiter, and the field of the choices. Raises
    UserError with the first records that don't fit it.
    """
    fields = yaml.safe_load(suite_path.read_text(encoding="utf-8"))
    items = _items(f"suite '{suite_path}'", data, fields)
    return {"delimiter": " "} | {key: fields[key] for key in _TEMPLATE if key in fields}, items


def _field_problems(fields: dict[Any, Any]) -> Iterator[str]:
    is_task = "task" in fields
    allowed = _BOTH | (_TASK if is_task else _OWN)
    for name, value in fields.items():
        if name not in allowed:
            yield f"there is no field '{name}'{' beside task' * is_task}; {nearest(str(name), allowed)}"
        elif not isinstance(value, (int, float) if allowed[name] is float else allowed[name]):
            yield f"{name}: {value!r} must be a {allowed[name].__name__}"
    kind = fields.get("kind")
    if not is_task:
        if kind is not None and kind not in KINDS:
            yield f"kind: '{kind}' is unknown; {nearest(str(kind), KINDS)}"
        needed = ["kind", "data", "prompt", "answer", *(["choices"] if kind == MULTIPLE_CHOICE else [])]
        for name in needed:
            if name not in fields:
                yield f"{name} is missing; add it (or task: NAME for a task of lm-evaluation-harness)"
        for name, kinds in _ONLY.items():
            if name in fields and kind in KINDS and kind not in kinds:
                yield f"{name}: it is read for kind: {kinds[0]} only; take it out"
        if kind in KINDS and "metric" in fields and fields["metric"] not in METRICS[kind]:
            known = nearest(str(fields["metric"]), METRICS[kind])
            yield f"metric: '{fields['metric']}' is no metric of {kind}; {known}"
        if fields.get("fewshot") and "fewshot_data" not in fields:
            yield f"fewshot: {fields['fewshot']} needs fewshot_data: FILE.jsonl with worked examples"
        if isinstance(fields.get("stop"), list) and not all(isinstance(s, str) and s for s in fields["stop"]):
            yield f"stop: {fields['stop']!r} must be texts"
        if isinstance(fields.get("max_new_tokens"), int) and fields["max_new_tokens"] < 1:
            yield f"max_new_tokens: {fields['max_new_tokens']} must be at least 1"
    if "capability" in fields and fields["capability"] not in CAPABILITIES:
        yield f"capability: '{fields['capability']}' is unknown; {nearest(str(fields['capability']), CAPABILITIES)}"
    if isinstance(fields.get("margin"), (int, float)) and not 0 < fields["margin"] < 1:
        yield f"margin: {fields['margin']} must lie between 0 and 1, such as 0.02 for 2 points"
    if isinstance(fields.get("fewshot"), int) and fields["fewshot"] < 0:
        yield f"fewshot: {fields['fewshot']} must be at least 0"


def read_jsonl(where: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that isn't blank. Raises UserError with the bad lines, or if there is none."""
    if not path.is_file():
        raise UserError(f"{where}: there is no file '{path}'")
    rows: list[tuple[int, dict[str, Any]]] = []
    problems: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            problems.append(f"{where}: '{path}' line {number} is no JSON ({error})")
            continue
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            problems.append(f"{where}: '{path}' line {number} is no object")
    if not rows and not problems:
        problems.append(f"{where}: '{path}' is empty, so there is nothing to ask")
    if problems:
        raise UserError(first_few(problems))
    return rows


def first_few(problems: list[str], most: int = 5) -> list[str]:
    """The first problems, and how many more of their kind there are."""
    more = len(problems) - most
    return problems[:most] + ([f"… and {more} more like these"] if more > 0 else [])


def _items(where: str, path: Path, fields: dict[str, Any]) -> list[Item]:
    prompt = _template(where, "prompt", fields["prompt"])
    items: list[Item] = []
    problems: list[str] = []
    for number, row in read_jsonl(where, path):
        try:
            items.append(_item(prompt, fields, row))
        except (UserError, TemplateError) as error:
            problems.append(f"{where}: '{path}' line {number}: {' '.join(str(error).split())}")
    if problems:
        raise UserError(first_few(problems))
    return items


def _item(prompt: Template, fields: dict[str, Any], row: dict[str, Any]) -> Item:
    text = prompt.render(row)
    value = _value(row, fields["answer"])
    if fields["kind"] != MULTIPLE_CHOICE:
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{fields['answer']}: {value!r} must be the text of the answer")
        return Item(text, value)
    choices = _value(row, fields["choices"])
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise UserError(f"{fields['choices']}: {choices!r} must be a list of at least two texts")
    if isinstance(value, str) and value in choices:
        value = choices.index(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(choices):
        raise UserError(f"{fields['answer']}: {value!r} is neither a choice nor its index from 0 to {len(choices) - 1}")
    return Item(text, choices[value], choices, value)


def _value(row: dict[str, Any], key: str) -> Any:
    if key not in row:
        raise UserError(f"there is no field '{key}'; {nearest(key, row)}")
    return row[key]


def _template(where: str, name: str, text: str) -> Template:
    try:
        return Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)
    except TemplateError as error:
        raise UserError(f"{where}: {name}: {text!r} is no Jinja template ({error})") from error
