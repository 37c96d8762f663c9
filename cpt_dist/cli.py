"""From the command line to a validated configuration, and from a mistake to one line and exit code 2.

Every script under `launch/` calls `run`. It takes out the argument that the deepspeed launcher appends, checks the
keys of all overrides at once, lets Hydra compose, validates, and calls the script's `main`. Nothing heavy is imported
on this way.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cpt_dist.cluster.environment import adopt_slurm_step
from cpt_dist.cluster.health import RankLostError
from cpt_dist.cluster.start_folder import record_outcome, redirect_output
from cpt_dist.config import CptConfig
from cpt_dist.control_arm import control_arm
from cpt_dist.errors import UserError
from cpt_dist.launcher_help import help_text
from cpt_dist.optional_groups import reach_into_optional_groups
from cpt_dist.override_problems import (
    CONFIG_DIR,
    FLAGS_WITH_VALUE,
    check_words,
    config_folders,
    config_groups,
    flags_first,
    key_of,
    one_line,
    overrides_in,
    with_missing_run,
)
from cpt_dist.process_end import end_process
from cpt_dist.validation import validate

EXIT_USER_ERROR = 2
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
"""What a shell says of a program that Ctrl-C ended."""
_STORAGE_ERRORS = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES),
    "make room or give write access, and start again: what was whole stays",
)
_PATH_ERRORS = dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG), "give another path")
_FIXES = {**_STORAGE_ERRORS, **_PATH_ERRORS}


def run(
    main: Callable[[CptConfig], None],
    needs: Iterable[str] = (),
    short: Mapping[str, str] | None = None,
    words: Sequence[str] = (),
    checks: Sequence[Callable[[CptConfig], list[str]]] = (),
) -> None:
    """Compose the configuration from `sys.argv`, check it and call `main` with it.

    `needs` names the keys without which `main` can't work, such as "model.path" or "stages"; `short` maps names that
    this script takes for a key, such as "what", to that key; plain words are the values of the keys `words`, in their
    order; `checks` find problems that are reported together with those of the values. Ends the process with exit code 2
    and a line a problem on a user's mistake.
    """
    adopt_slurm_step(os.environ)
    redirect_output(os.environ)
    rank = int(os.environ.get("RANK", 0))
    sys.argv[1:] = [word for word in sys.argv[1:] if not re.fullmatch(r"--local[_-]rank(=\d+)?", word)]
    sys.argv[1:] = flags_first([_lengthened(word, short or {}) for word in _keyed(sys.argv[1:], words)])
    if {"--help", "-h"} & set(sys.argv[1:]):
        if rank == 0:
            print(help_text(Path(sys.argv[0]).name, main.__globals__["__doc__"], needs, short or {}, words), flush=True)
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and leaving with 1
    overrides = overrides_in(sys.argv[1:])
    _register_schema()
    composed = False

    def task(composition: DictConfig) -> None:
        nonlocal composed
        try:
            config = _checked(_typed(_on_saved_config(composition, overrides), tuple(needs)), checks)
            composed = True
            main(config)
            if rank == 0:
                record_outcome(os.environ, 0, "finished")
        except UserError as error:  # here, since Hydra writes a preamble of its own on an exception of the task
            _leave(with_missing_run(error.problems, overrides), rank, same_on_all_ranks=not composed)
        except KeyboardInterrupt:
            _leave_interrupted(rank)
        except RankLostError as error:
            traceback.print_exc()
            for line in error.lines:
                print(f"error (rank {rank}): {line}", file=sys.stderr, flush=True)
            end_process(EXIT_FAILURE)
        except OSError as error:
            if error.errno not in _FIXES:
                raise
            where = f"{error.filename}: " if error.filename else ""
            _leave([f"{where}{error.strerror}; {_FIXES[error.errno]}"], rank, same_on_all_ranks=False)

    try:
        check_words(sys.argv[1:])
        hydra.main(config_path=str(CONFIG_DIR), config_name="config", version_base="1.3")(task)()
    except UserError as error:
        _leave(error.problems, rank, same_on_all_ranks=not composed)
    except (HydraException, OmegaConfBaseException) as error:
        if composed:
            raise
        _leave([one_line(error)], rank, same_on_all_ranks=True)
    except KeyboardInterrupt:
        _leave_interrupted(rank)


def _register_schema() -> None:
    ConfigStore.instance().store(name="cpt_config", node=CptConfig)
    reach_into_optional_groups(CptConfig)


def _keyed(arguments: list[str], keys: Sequence[str]) -> list[str]:
    """`arguments` with the plain words among them turned into key=word."""
    values = {index + 1 for index, word in enumerate(arguments) if word in FLAGS_WITH_VALUE}
    free = iter(keys)
    result = []
    for index, word in enumerate(arguments):
        plain = "=" not in word and not word.startswith(("-", "~")) and index not in values
        key = next(free, None) if plain else None
        result.append(f"{key}={word}" if key else word)
    return result


def composed(words: list[str], needs: Iterable[str] = ()) -> CptConfig:
    """The checked configuration of the command line `words`, as `run` would hand it to a script."""
    overrides = overrides_in(words)
    check_words(words)
    _register_schema()
    folders = [f"file://{Path(folder).resolve()}" for folder in config_folders(words)]
    search_path = f"hydra.searchpath={json.dumps(folders)}"
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composition = hydra.compose("config", overrides=[*overrides, search_path])
    return _checked(_typed(_on_saved_config(composition, overrides), tuple(needs)))


def _checked(config: CptConfig, checks: Sequence[Callable[[CptConfig], list[str]]] = ()) -> CptConfig:
    validate(config, checks)
    if not config.control_arm:
        return config
    arm = control_arm(config)
    validate(arm, checks)
    return arm


@contextmanager
def user_mistakes() -> Iterator[None]:
    """End the process with exit code 2 and a line a problem on a user's mistake."""
    try:
        yield
    except UserError as error:
        _leave(error.problems, rank=0, same_on_all_ranks=True)
    except (HydraException, OmegaConfBaseException) as error:
        _leave([one_line(error)], rank=0, same_on_all_ranks=True)


def _lengthened(word: str, short: Mapping[str, str]) -> str:
    key, equals, value = word.partition("=")
    # model=smollm2 chooses configs/model/smollm2.yaml, model=FOLDER is a folder.
    if value in config_groups().get(key, ()):
        return word
    return f"{short[key]}={value}" if equals and key in short else word


def _leave_interrupted(rank: int) -> typing.NoReturn:
    if rank == 0:
        print("interrupted; what was finished stays: start again to go on", file=sys.stderr, flush=True)
    record_outcome(os.environ, EXIT_INTERRUPTED, "interrupted")
    end_process(EXIT_INTERRUPTED)


def _leave(problems: list[str], rank: int, same_on_all_ranks: bool) -> typing.NoReturn:
    if rank == 0 or not same_on_all_ranks:
        prefix = "error: " if rank == 0 else f"error (rank {rank}): "
        for problem in problems:
            print(prefix + problem, file=sys.stderr, flush=True)
    record_outcome(os.environ, EXIT_USER_ERROR, "error")
    end_process(EXIT_USER_ERROR)


def _missing_keys(node: Any, path: str = "") -> list[str]:
    if isinstance(node, dict):
        return [key for name, child in node.items() for key in _missing_keys(child, f"{path}.{name}".lstrip("."))]
    if isinstance(node, list):
        return [key for index, child in enumerate(node) for key in _missing_keys(child, f"{path}.{index}")]
    return [path] if node == "???" else []


def _typed(composition: DictConfig, needs: tuple[str, ...]) -> CptConfig:
    missing = _missing_keys(OmegaConf.to_container(composition, resolve=False))
    wanted = sorted(key for key in missing if any(key == n or key.startswith(n + ".") for n in needs))
    problems = [f"{key} is missing; give it: {key}=…" for key in wanted]
    if "stages" in needs and not composition.stages:
        problems.append("stages is empty; choose one: stage=single, or write stages: [{name: …, tokens: …}]")
    if problems:
        raise UserError(problems)
    for key in missing:
        OmegaConf.update(composition, key, "")
    return typing.cast(CptConfig, OmegaConf.to_object(composition))


def _on_saved_config(composition: DictConfig, overrides: list[str]) -> DictConfig:
    """`run_dir=X` alone means: go on with the configuration saved there, changed by the other overrides."""
    keys = [key_of(word) for word in overrides]
    if "run_dir" not in keys or "experiment" in keys:
        return composition
    saved_path = Path(composition.run_dir) / "config.yaml"
    if not saved_path.is_file():
        return composition
    saved = OmegaConf.merge(OmegaConf.structured(CptConfig), OmegaConf.load(saved_path))
    assert isinstance(saved, DictConfig)
    for key in keys:
        target = "stages" if key == "stage" else key
        OmegaConf.update(saved, target, OmegaConf.select(composition, target), merge=False, force_add=True)
    return saved
