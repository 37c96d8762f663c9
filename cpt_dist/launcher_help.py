"""What `python launch/….py --help` prints: what the program is for and what it takes, a screenful.

Hydra's own help is the whole composed configuration, the same 360 lines for every program; --cfg job prints that.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cpt_dist.config import CptConfig
from cpt_dist.override_problems import config_groups

WIDTH = 110


def help_text(program: str, about: str, needs: Iterable[str], short: Mapping[str, str], words: Sequence[str]) -> str:
    """The help of a program under launch/: `about` is its docstring; the others are what it gave `cli.run`."""
    lines = [about.strip(), ""]
    if needs:
        lines += _wrapped("needed", f"{', '.join(needs)}; run_dir=… alone takes those of a run that was started")
    if words:
        plain = [name for name, key in short.items() if key in words]
        lines += _wrapped("in a row", f"{' '.join(plain).upper()} need no NAME= before them")
    if short:
        lines += ["words of this program (NAME=VALUE), each short for a key of the configuration:"]
        lines += [line for name, key in short.items() for line in _wrapped(f"  {name}", f"{key}. {explanation(key)}")]
    lines += ["files to begin with (GROUP=NAME), here and in folders of your own (--config-dir=FOLDER):"]
    lines += [line for name, found in config_groups().items() for line in _wrapped(f"  {name}", ", ".join(found))]
    lines += [
        "any single value: KEY.SUBKEY=VALUE, explained in docs/configuration.md",
        f"what would be run, without running it: python launch/{program} … --cfg job",
    ]
    return "\n".join(lines)


def explanation(key: str) -> str:
    """The first sentence of the literal below the field of the configuration that `key` names; "" where none is."""
    *groups, name = key.split(".")
    schema: Any = CptConfig
    for group in groups:
        schema = typing.get_type_hints(schema).get(group)
    if not dataclasses.is_dataclass(schema):
        return ""
    (definition,) = ast.parse(inspect.getsource(typing.cast(type, schema))).body
    assert isinstance(definition, ast.ClassDef)
    for field, literal in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id == name:
            text = (
                literal.value.value if isinstance(literal, ast.Expr) and isinstance(literal.value, ast.Constant) else ""
            )
            return " ".join(str(text).split()).split(". ")[0].split("; ")[0].rstrip(".")
    return ""


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{name:16s} ", subsequent_indent=" " * 17, break_long_words=False)
