"""The one exception for mistakes that a user can mend.

It is not for defects of the program: those keep their traceback. `cpt_dist.cli` prints each problem of a
`UserError` on a line of its own and leaves with exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One or more mistakes in what the user gave, each a single line with the value and the fix."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that names the known word nearest to `name`, or lists them all where none is near."""
    options = sorted(set(known))
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(options) or 'none'}"


def nearest_of(name: str, known: Iterable[str]) -> str:
    """A clause that names the known word nearest to `name`, if one is near, and lists them all in their order."""
    options = list(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    listed = f"one of {', '.join(options)}"
    return f"did you mean '{close[0]}'? ({listed})" if close else f"it is {listed}"
