"""Which ability a well-known task measures, and by which of its metrics.

The chance level isn't here: it follows from the number of choices of each item (`tasks.py`). A task that isn't in
this table belongs to "other" until a suite file says better.
"""

from __future__ import annotations

from dataclasses import dataclass

REASONING, KNOWLEDGE, MATH, CODING, LANGUAGE, OTHER = (
    "reasoning",
    "knowledge",
    "math",
    "coding",
    "language",
    "other",
)
CAPABILITIES = (REASONING, KNOWLEDGE, MATH, CODING, LANGUAGE, OTHER)


@dataclass(frozen=True)
class KnownTask:
    """A task of lm-evaluation-harness whose name is `name` or begins with it and an underscore."""

    name: str
    capability: str
    metric: str


KNOWN_TASKS = tuple(
    KnownTask(name, capability, metric)
    for capability, metric, names in (
        (KNOWLEDGE, "acc", "mmlu cmmlu ceval-valid global_mmlu truthfulqa_mc1 truthfulqa_mc2 medmcqa pubmedqa medqa"),
        (KNOWLEDGE, "exact_match", "triviaqa nq_open webqs mmlu_pro"),
        (KNOWLEDGE, "acc_norm", "sciq openbookqa arc_easy agieval"),
        (REASONING, "acc_norm", "arc_challenge hellaswag piqa logiqa logiqa2 swag"),
        (REASONING, "acc", "winogrande commonsense_qa social_iqa copa xcopa xwinograd boolq cb rte anli wsc"),
        (REASONING, "exact_match", "bbh"),
        (REASONING, "em", "drop"),
        (MATH, "exact_match", "gsm8k gsm_plus minerva_math hendrycks_math mgsm"),
        (MATH, "acc_norm", "mathqa"),
        (MATH, "acc", "arithmetic asdiv"),
        (CODING, "pass@1", "humaneval"),
        (CODING, "pass_at_1", "mbpp"),
        (LANGUAGE, "acc", "lambada blimp race xnli paws belebele wic storycloze xstorycloze"),
    )
    for name in names.split()
)


def known_task(name: str) -> KnownTask | None:
    """The entry of a task's name, the longest that fits."""
    fitting = [task for task in KNOWN_TASKS if name == task.name or name.startswith(f"{task.name}_")]
    return max(fitting, key=lambda task: len(task.name), default=None)
