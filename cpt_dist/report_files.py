"""What all reports are made with: templates that fail on a missing value, and three files that are written together.

A report is one record of numbers; its Markdown and its page are templates over that record, so the files can't
disagree. Which numbers, and how they read, is each report's own.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from cpt_dist.files import atomic_write, write_json


def markdown_text(value: Any) -> str:
    """Any text as Markdown that shows just that text on one line, also inside a table."""
    plain = html.escape(re.sub(r"\s+", " ", str(value)), quote=False)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", plain)


def template_environment(package: str, autoescape: bool, filters: Mapping[str, Callable[..., str]]) -> Environment:
    """The templates in `package`/templates, and those that all share, with `filters` and `markdown_text`."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("cpt_dist")]),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {**filters, "markdown_text": markdown_text}
    return environment


def write_report_files(folder: str | Path, name: str, record: Mapping[str, Any], markdown: str, page: str) -> None:
    """Write `name`.json, .md and .html into `folder` (made if needed), each whole."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / f"{name}.json", record)
    for kind, text in (("md", markdown), ("html", page)):
        with atomic_write(target / f"{name}.{kind}", "w") as handle:
            handle.write(text)
