"""Mistakes on the command line: what is wrong with its words, each on one line with the value and the fix.

The keys of all overrides are checked against the schema before Hydra sees them, and the choices of groups against the
files. What Hydra and OmegaConf say of the rest is brought into the same form by `one_line`.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError, nearest

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"
FLAGS_WITH_VALUE = {
    "-c",
    "--cfg",
    "-p",
    "--package",
    "-cn",
    "--config-name",
    "-cp",
    "--config-path",
    "-cd",
    "--config-dir",
}
_OTHER_FLAGS = {
    "--hydra-help",
    "--version",
    "--resolve",
    "-r",
    "--run",
    "-m",
    "--multirun",
    "-sc",
    "--shell-completion",
    "--experimental-rerun",
    "-i",
    "--info",
}
_KINDS = {"Integer": ("whole number", "8"), "Float": ("number", "0.1"), "bool": ("truth value", "true")}


def overrides_in(words: Sequence[str]) -> list[str]:
    """The words that are neither a flag nor a flag's value."""
    values = {index + 1 for index, word in enumerate(words) if word in FLAGS_WITH_VALUE}
    return [word for index, word in enumerate(words) if index not in values and not word.startswith("-")]


def flags_first(words: Sequence[str]) -> list[str]:
    """`words` with flags and their values before the overrides: Hydra takes no overrides on both sides of a flag."""
    overrides = overrides_in(words)
    rest = list(words)
    for word in overrides:
        rest.remove(word)
    return rest + overrides


def key_of(override: str) -> str:
    """The key that an override sets."""
    return override.split("=", 1)[0].lstrip("+~").split("@")[0]


def config_folders(words: Sequence[str]) -> list[str]:
    """The folders that --config-dir names."""
    folders = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("--config-dir", "-cd")]
    return folders + [word.split("=", 1)[1] for word in words if word.startswith("--config-dir=")]


def config_groups(folders: Sequence[str] = ()) -> dict[str, list[str]]:
    """The groups under configs/ -> the names of their files, with those of the same groups in `folders`."""
    groups = {path.name: {file.stem for file in path.glob("*.yaml")} for path in CONFIG_DIR.iterdir() if path.is_dir()}
    for folder in folders:
        for name, found in groups.items():
            found |= {file.stem for file in (Path(folder) / name).glob("*.yaml")}
    return {name: sorted(found) for name, found in sorted(groups.items())}


def check_words(words: Sequence[str]) -> None:
    """Check every flag, the key of every override against the schema, and the choice of every group against the files.

    Raises UserError with all that is wrong.
    """
    folders = config_folders(words)
    groups = config_groups(folders)
    problems = [f"--config-dir: there is no folder '{one}'; correct the path" for one in folders if not _is_dir(one)]
    for word in words:
        name = word.split("=", 1)[0]
        if word.startswith("-") and name not in FLAGS_WITH_VALUE | _OTHER_FLAGS:
            fix = f"values have no dashes: {word.lstrip('-')}" if "=" in word else "--help tells what there is"
            problems.append(f"there is no flag '{name}'; {fix}")
    for word in overrides_in(words):
        key, equals, value = word.lstrip("+~").partition("=")
        key = key.split("@")[0]
        if not equals:
            problems.append(f"'{word}' is not an override; write it as key=value")
        elif said := _unreadable(word):
            problems.append(f"{word}: {said}; close every bracket and quote, and put the word into '…' for the shell")
        elif key.startswith("hydra.") or key.startswith("hydra/"):
            continue
        elif key in groups and value.startswith("{"):
            problems.append(
                f"{word}: {key}=… chooses a file ({', '.join(groups[key])}); set values one by one: {key}.…=…"
            )
        elif key in groups:
            chosen = [choice.strip() for choice in value.split(",")]
            unknown = [choice for choice in chosen if choice not in groups[key] and choice != "null"]
            where = "" if folders else " (files of your own: --config-dir=FOLDER)"
            problems += [f"{key}={choice}: no such {key}; {nearest(choice, groups[key])}{where}" for choice in unknown]
        else:
            problem = _unknown_key(key.split("."), CptConfig, [])
            if problem:
                problems.append(f"{word}: {problem}")
    if problems:
        raise UserError(problems)


def _unreadable(word: str) -> str | None:
    """Why Hydra's grammar has no reading of an override."""
    try:
        OverridesParser.create().parse_override(word)
    except HydraException as error:
        return str(error).splitlines()[0]
    return None


def _is_dir(folder: str) -> bool:
    return Path(folder).is_dir()


def with_missing_run(problems: list[str], overrides: Sequence[str]) -> list[str]:
    """`problems`, after the reason why values are missing where the run that run_dir names was never started."""
    given = {key_of(word): word.split("=", 1)[1] for word in overrides if "=" in word}
    run_dir = given.get("run_dir")
    if run_dir is None or "experiment" in given or (Path(run_dir) / "config.yaml").is_file():
        return problems
    if not any(" is missing; give it" in problem for problem in problems):
        return problems
    line = (
        f"run_dir: '{run_dir}' has no config.yaml, so no run was started there; correct the path, or say what to run: "
        "experiment=…"
    )
    return [line, *problems]


def _unknown_key(parts: list[str], schema: Any, path: list[str]) -> str | None:
    if not parts or schema is Any:
        return None
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if type(None) in arguments:
        return _unknown_key(parts, next(a for a in arguments if a is not type(None)), path)
    if origin in (dict, list):
        return _unknown_key(parts[1:], arguments[-1], [*path, parts[0]])
    if dataclasses.is_dataclass(schema):
        hints = typing.get_type_hints(schema)
        if parts[0] not in hints:
            known = list(hints) + (list(config_groups()) if not path else [])
            where = f"'{'.'.join(path)}' has no key '{parts[0]}'" if path else f"there is no key '{parts[0]}'"
            return f"{where}; {nearest(parts[0], known)}"
        return _unknown_key(parts[1:], hints[parts[0]], [*path, parts[0]])
    return f"'{'.'.join(path)}' is a single value and has no key '{parts[0]}'"


def one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages on one line, with the value and the fix."""
    text = str(error)
    cause = error.__cause__
    both = f"{text}\n{cause}"
    key = getattr(error, "full_key", None) or getattr(cause, "full_key", None) or _found(r"full_key: (\S+)", text)
    key = key and re.sub(r"\[(\d+)\]", r".\1", str(key))
    unknown = _found(r"Key '([^']+)' (?:not in|is not in struct)", both)
    if unknown:
        problem = _unknown_key((key or unknown).split("."), CptConfig, [])
        if problem:
            return f"{key or unknown}: {problem}"
    wrong = re.search(r"Value '(.*)' (?:of type '\w+' could not be converted to|is not a valid) (\w+)", both)
    if key and wrong and wrong[2] in _KINDS:
        kind, example = _KINDS[wrong[2]]
        return f"{key}: '{wrong[1]}' is no {kind}; write one, such as {key}={example}"
    if key and "is not a ListConfig, list or tuple" in both:
        value = _found(r"Error merging override [^=]+=(.*)", text)
        return f"{key}: '{value or '…'}' is a single value where a list is wanted; write {key}=[{value or '…'}]"
    first = " ".join(line.strip() for line in text.splitlines() if line.strip() and "object_type" not in line)
    if error.__cause__ is not None and str(error.__cause__) not in text:
        first += f": {str(error.__cause__).splitlines()[0]}"
    return first


def _found(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None
