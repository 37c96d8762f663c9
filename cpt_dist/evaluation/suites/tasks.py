"""Suites as tasks of lm-evaluation-harness, and what a model scored on each of their items.

The library loads its tasks (from folders of the user's, or its own with data from the hub), builds the prompts and
marks the answers; items of our suite files go in as ready texts and never touch a hub or a cache. Its `evaluate` is
called, not `simple_evaluate`, which sets global random seeds and gives results on the first rank alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from cpt_dist.errors import UserError, nearest
from cpt_dist.evaluation.suites.suite_file import CLOZE, GENERATION, MULTIPLE_CHOICE, Item, Suite

Tasks = dict[str, "dict[str, Any] | str"]
"""Suite -> its lm_eval tasks by name, or why they can't be loaded here."""
_CANT_RUN = (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError, IndexError, ImportError)
"""What tasks of the library raise that need what isn't here: data, packages, abilities of the model."""
FEWSHOT_SEED = 1234
"""What lm-evaluation-harness takes for the choice of worked examples."""


@dataclass(frozen=True)
class SuiteScores:
    """A model's score on each item of a suite; or why there is none. Arrays are [items]."""

    not_run: str | None = None
    keys: list[str] = field(default_factory=list)
    """Which item it is: task, number and hash of its content."""
    metric: str = ""
    higher_is_better: bool = True
    values: np.ndarray = field(default_factory=lambda: np.empty(0))
    chance: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Expected score of a random answer: one over the number of choices; 0 where an answer is free."""
    answer_bits: np.ndarray | None = None
    """Bits per UTF-8 byte of the right answer after the prompt; None for generated answers."""
    texts: list[str] = field(default_factory=list)
    """Prompt without worked examples, and right answer: what is searched for in the training data."""


def load_tasks(suites: Sequence[Suite], folders: Sequence[str]) -> Tasks:
    """Suite name -> its tasks by name, or the reason why they can't be loaded here. Raises as `find_tasks` does."""
    manager = find_tasks(suites, folders)
    return {suite.name: _load(suite, manager) for suite in suites}


def find_tasks(suites: Sequence[Suite], folders: Sequence[str]) -> Any:
    """The harness's TaskManager that knows the tasks of `suites`; None where all have items of their own.

    Raises UserError for names of tasks that exist neither in `folders` nor in lm-evaluation-harness, and where that
    isn't installed. It reads names alone, so it can be asked before anything is scored.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError("suites.run needs lm-evaluation-harness; pip install 'cpt_dist[eval]'") from None
    _quiet()
    named = [suite for suite in suites if suite.task is not None]
    if not named:
        return None
    manager = _manager(tuple(folders), include_defaults=False)
    if any(suite.task not in manager.all_tasks for suite in named):
        manager = _manager(tuple(folders), include_defaults=True)
    problems = [
        f"suites.run: there is no task '{suite.task}'; {_near(str(suite.task), manager.all_tasks)}"
        for suite in named
        if suite.task not in manager.all_tasks
    ]
    if problems:
        raise UserError(problems)
    return manager


@cache
def _manager(folders: tuple[str, ...], include_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders), include_defaults=include_defaults)


def _near(name: str, known: Sequence[str]) -> str:
    text = nearest(name, known)
    return text if text.startswith("did") else "a suite file's name ends in .yaml; folders go into suites.task_folders"


def _quiet() -> None:
    """Keep the library's progress lines and warnings about each task out of the program's output."""
    for name in ("lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _load(suite: Suite, manager: Any) -> dict[str, Any] | str:
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError
    from lm_eval.api.task import ConfigurableTask

    if suite.task is None:
        return {suite.name: ConfigurableTask(config=_own_config(suite))}
    try:
        return dict(manager.load([suite.task])["tasks"])
    except (DatasetsError, HfHubHTTPError, *_CANT_RUN) as error:
        return f"its data or its code doesn't load here ({_line(error)})"


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + " …"


def _own_config(suite: Suite) -> dict[str, Any]:
    """The task of a suite file, whose prompts are rendered already."""
    config: dict[str, Any] = {
        "task": suite.name,
        "custom_dataset": lambda **_: {"test": _dataset(suite.items), "train": _dataset(suite.examples)},
        "test_split": "test",
        "doc_to_text": "prompt",
        "target_delimiter": suite.delimiter,
        "num_fewshot": suite.fewshot or 0,
        "metric_list": [{"metric": suite.metric, "aggregation": "mean", "higher_is_better": True}],
    }
    if suite.examples:
        config["fewshot_split"] = "train"
    if suite.kind == MULTIPLE_CHOICE:
        return config | {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    config["doc_to_target"] = "answer"
    if suite.kind == CLOZE:
        return config | {"output_type": "loglikelihood"}
    assert suite.kind == GENERATION
    steps = [] if suite.extract is None else [{"function": "regex", "regex_pattern": suite.extract}]
    steps += [{"function": "take_first"}, {"function": "remove_whitespace"}]
    return config | {
        "output_type": "generate_until",
        "generation_kwargs": {"until": suite.stop, "max_gen_toks": suite.max_new_tokens, "do_sample": False},
        "filter_list": [{"name": "answer", "filter": steps}],
    }


def _dataset(items: Sequence[Item]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [{"prompt": item.prompt, "choices": item.choices, "gold": item.gold, "answer": item.answer} for item in items]
    )


def run_suite(suite: Suite, tasks: dict[str, Any] | str, lm: Any, limit: int = 0) -> SuiteScores:
    """What the model `lm` (an lm_eval LM) scores on each item of `suite`, whose tasks `load_tasks` gave.

    At most the first `limit` items of each task (0: all). A suite whose data can't be marked item by item is not run.
    """
    from lm_eval.evaluator import evaluate

    if isinstance(tasks, str):
        return SuiteScores(not_run=tasks)
    for task in tasks.values():
        if suite.task is not None and suite.fewshot is not None:
            task.set_config(key="num_fewshot", value=suite.fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    if any(getattr(task, "UNSAFE_CODE", False) for task in tasks.values()):
        return SuiteScores(not_run="it executes code that the model writes, which is never done here")
    try:
        found = evaluate(
            lm=lm,
            task_dict={"tasks": tasks, "groups": {}},
            limit=limit or None,
            bootstrap_iters=0,
            log_samples=True,
        )
    except _CANT_RUN as error:
        if suite.task is None:
            raise
        return SuiteScores(not_run=f"lm-evaluation-harness can't run it on this model ({_line(error)})")
    assert found is not None
    return _scores(suite, tasks, found["samples"])


def _scores(suite: Suite, tasks: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> SuiteScores:
    keys, values, chance, bits, texts = [], [], [], [], []
    metric = suite.metric
    higher = True
    for name, task in tasks.items():
        rows = samples[name]
        filters = list(dict.fromkeys(row["filter"] for row in rows))
        if suite.filter is not None and suite.filter not in filters:
            raise UserError(
                f"suite '{suite.name}': filter: there is no '{suite.filter}'; {nearest(suite.filter, filters)}"
            )
        rows = [row for row in rows if row["filter"] == (suite.filter or filters[0])]
        offered = list(rows[0]["metrics"])
        if metric is None:
            metric = offered[0]
        if metric not in offered:
            raise UserError(
                f"suite '{suite.name}': metric: '{metric}' is none of task '{name}'; {nearest(metric, offered)}"
            )
        higher = bool(task.higher_is_better().get(metric, True))
        for row in rows:
            value = row[metric]
            if not isinstance(value, (bool, int, float, np.number)) or not math.isfinite(value):
                return SuiteScores(not_run=f"its metric '{metric}' has no value for a single item; name another one")
            keys.append(f"{name}/{row['doc_id']}/{row['doc_hash'][:16]}")
            values.append(float(value))
            is_choice = task.OUTPUT_TYPE == "multiple_choice"
            chance.append(1 / len(row["resps"]) if is_choice and metric.startswith("acc") else 0.0)
            texts.append(_item_text(task, row))
            bits.append(_answer_bits(task, row))
    return SuiteScores(
        keys=keys,
        metric=metric or "",
        higher_is_better=higher,
        values=np.array(values),
        chance=np.array(chance),
        answer_bits=None if any(one is None for one in bits) else np.array(bits, dtype=np.float64),
        texts=texts,
    )


def _answer(task: Any, row: dict[str, Any]) -> tuple[int, str] | None:
    """(index, text) of an item's single right answer, None where it has none or several."""
    target = row["target"]
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(row["doc"])
        index = choices.index(target) if isinstance(target, str) and target in choices else target
        if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(choices) == len(row["resps"]):
            return index, str(choices[index])
        return None
    return (0, target) if isinstance(target, str) else None


def _answer_bits(task: Any, row: dict[str, Any]) -> float | None:
    """-log2 likelihood of the right answer by its UTF-8 bytes."""
    found = _answer(task, row)
    if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood") or found is None or not found[1]:
        return None
    log_likelihood = row["resps"][found[0]][0][0]
    return -float(log_likelihood) / math.log(2) / len(found[1].encode())


def _item_text(task: Any, row: dict[str, Any]) -> str:
    prompt = task.doc_to_text(row["doc"])
    found = _answer(task, row)
    answer = found[1] if found else ""
    if not isinstance(prompt, str):  # the choices are the prompts, such as in Winogrande: the right one is the text
        return f"{row['arguments'][prompt][0]} {row['arguments'][prompt][1]}" if isinstance(prompt, int) else answer
    return f"{prompt} {answer}"
