"""What can be refused about a teacher before a model is loaded, and who it is.

It reads files and imports no torch. Whether the weights fit the architecture is found when it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cpt_dist.config import CptConfig
from cpt_dist.context_config import context_rank_problems
from cpt_dist.data.shards import tokenizer_fingerprint
from cpt_dist.errors import UserError
from cpt_dist.model.folder import check_model_folder, max_positions, model_fingerprint, read_model_config

KEY = "distillation.teacher"


def teacher_folder(config: CptConfig) -> str:
    """The teacher's folder, where the run has one."""
    assert config.distillation is not None
    return config.distillation.teacher or config.model.path


@contextmanager
def said_of_the_teacher() -> Iterator[None]:
    """Let UserErrors about a model folder name the key of the teacher's."""
    try:
        yield
    except UserError as error:
        stripped = (one.removeprefix("model.path: ") for one in error.problems)
        raise UserError(f"{KEY}: {one}" for one in stripped) from error


def check_teacher_files(config: CptConfig, world_size: int) -> None:
    """Raise UserError where the folder of a teacher of its own holds no model that could be one, on `world_size` ranks.

    The run's own base model is checked as what it is.
    """
    if config.distillation is None or config.distillation.teacher is None:
        return
    folder = config.distillation.teacher
    with said_of_the_teacher():
        described = check_model_folder(folder)
        base = read_model_config(config.model.path)
        of_base = context_rank_problems(config, world_size, base)
        problems = [one for one in context_rank_problems(config, world_size, described) if one not in of_base]
        if tokenizer_fingerprint(folder) != tokenizer_fingerprint(config.data.tokenizer):
            problems.append(
                f"the tokenizer of '{folder}' isn't that of '{config.data.tokenizer}' (data.tokenizer); give a teacher "
                "with the same one"
            )
        ours, theirs = _words(base), _words(described)
        if ours != theirs:
            problems.append(
                f"'{folder}' has {theirs} words in its vocabulary and the model {ours}; give a teacher with as many"
            )
        if problems:
            raise UserError(problems)


def _words(config: dict[str, Any]) -> int | None:
    return (config.get("text_config") or config).get("vocab_size", config.get("vocab_size"))


def teacher_positions(config: CptConfig) -> int | None:
    """Positions that the teacher knows; None where it declares no limit."""
    return max_positions(read_model_config(teacher_folder(config)))


def teacher_identity(config: CptConfig) -> dict[str, str] | None:
    """The teacher's folder and the fingerprint of its weights and tokenizer; None in a run without one. Reads all."""
    if config.distillation is None:
        return None
    folder = teacher_folder(config)
    return {"path": folder, "fingerprint": model_fingerprint(folder)}


def check_same_teacher(teacher: dict[str, str] | None, saved: dict[str, Any]) -> None:
    """Raise UserError where a checkpoint's trainer.json `saved` names a teacher with other weights."""
    before = saved.get("teacher")
    if teacher is not None and before is not None and teacher["fingerprint"] != before["fingerprint"]:
        raise UserError(
            f"{KEY}: '{teacher['path']}' holds other weights ({teacher['fingerprint']}) than the teacher that the run "
            f"has had ('{before['path']}', {before['fingerprint']}); give that one, or fork the run (fork.run_dir)"
        )
