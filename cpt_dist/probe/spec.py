"""The spec of a probe: everything that two results must share before they may be compared.

Data, template, gold items, hyper-parameters and the version of this code, by content and not by path. Nothing of the
models is in it, since they are what is compared, nor are the seeds, of which more may be added.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cpt_dist
from cpt_dist.config import CptConfig, parse_quantity
from cpt_dist.errors import UserError
from cpt_dist.evaluation.suites.suite_file import Item, Suite, read_suite, read_template_items
from cpt_dist.files import fingerprint

RECIPE = 1
"""Raised with every change of this package, or of what it calls, that changes the result of a spec."""


@dataclass(frozen=True)
class ProbeTask:
    """What both models learn and are asked."""

    suite: Suite
    examples: list[Item]
    spec: dict[str, Any]

    @property
    def hash(self) -> str:
        """xxh3-128 (hex) of the spec."""
        return fingerprint(self.spec)

    def pairs(self) -> list[dict[str, str]]:
        """The training examples as prompt and completion, which begins with the template's delimiter."""
        return [{"prompt": one.prompt, "completion": self.suite.delimiter + one.answer} for one in self.examples]


def read_task(config: CptConfig) -> ProbeTask:
    """The data and gold set of `config.probe`. Raises UserError with the mistakes in them."""
    given = {"data": config.probe.data, "gold": config.probe.gold}
    fixes = {"data": "a JSONL file of examples", "gold": "a suite file with the frozen items"}
    missing = [f"{key} is missing; give {fixes[key]}: {key}=FILE" for key, value in given.items() if not value]
    if missing:
        raise UserError(missing)
    path = Path(config.probe.gold)
    suite = read_suite(path)
    if suite.task is not None:
        raise UserError(
            f"gold: '{path}' names the task '{suite.task}'; the gold set must be frozen, with items of its own (data:)"
        )
    template, examples = read_template_items(path, Path(config.probe.data))
    asked = {item.prompt for item in suite.items}
    both = sum(item.prompt in asked for item in examples)
    if both:
        raise UserError(
            f"data: {both:,} of the {len(examples):,} examples in '{config.probe.data}' have the prompt of an item of "
            f"'{path}'; take them out, or the gold set measures memory"
        )
    return ProbeTask(suite, examples, _spec(config, suite, template, examples))


def _spec(config: CptConfig, suite: Suite, template: dict[str, Any], examples: list[Item]) -> dict[str, Any]:
    probe, optimizer = config.probe, config.optimizer
    return {
        "program": {"recipe": RECIPE, "version": cpt_dist.__version__},
        "data": {"examples": len(examples), "content": fingerprint([asdict(one) for one in examples])},
        "template": template,
        "gold": {
            "name": suite.name,
            "items": len(suite.items),
            "content": fingerprint([asdict(one) for one in suite.items]),
            "kind": suite.kind,
            "metric": suite.metric,
            "fewshot": suite.fewshot or 0,
            "fewshot_content": fingerprint([asdict(one) for one in suite.examples]),
            "max_new_tokens": suite.max_new_tokens,
            "stop": list(suite.stop),
            "extract": suite.extract,
            "limit": config.suites.limit,
        },
        "recipe": {
            "learning_rate": probe.learning_rate,
            "warmup": probe.warmup,
            "epochs": probe.epochs,
            "batch_tokens": parse_quantity(probe.batch_tokens, "probe.batch_tokens"),
            "seq_len": probe.seq_len,
            "weight_decay": probe.weight_decay,
            "beta1": optimizer.beta1,
            "beta2": optimizer.beta2,
            "epsilon": optimizer.epsilon,
            "max_grad_norm": optimizer.max_grad_norm,
            "lr_multipliers": dict(optimizer.lr_multipliers),
            "precision": config.engine.precision,
            "separator": config.data.separator,
        },
    }


def differences(here: Any, there: Any, path: str = "") -> list[str]:
    """The fields in which two specs differ, with both values, such as `recipe.epochs: 3 here, 2 there`."""
    if isinstance(here, dict) and isinstance(there, dict):
        found = []
        for key in dict.fromkeys([*here, *there]):
            found += differences(here.get(key), there.get(key), f"{path}.{key}".lstrip("."))
        return found
    return [] if here == there else [f"{path}: {here!r} here, {there!r} there"]


def refuse_other_spec(task: ProbeTask, there: Any, what: str, fix: str) -> None:
    """Raise UserError, a line for each field, unless the spec `there` of `what` is that of `task`."""
    found = differences(task.spec, there)
    if found:
        raise UserError(f"{what} is the result of another spec, {one}; {fix}" for one in found)
