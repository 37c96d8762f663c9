"""A tokenizer's chat template: conversations as text, with the characters that the assistant is to write.

Where the template marks them itself (`{% generation %}`, as transformers reads it) its marks are taken. Else they are
found from prefixes: what the template adds to the conversation so far, generation prompt included, is the turn. A
template for which that isn't exact, to the token, is refused, because then the model would be trained on a text that
it never meets when it answers.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cpt_dist.errors import UserError
from cpt_dist.files import fingerprint

Message = dict[str, str]
"""role and content."""
Span = tuple[int, int]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBES = (
    [("user", "What is a row?"), ("assistant", "A line of tokens."), ("user", "Why?"), ("assistant", "It is short.")],
    [("system", "Be brief."), ("user", "Hello!"), ("assistant", "Hi.")],
)


class NotExactError(Exception):
    """The conversation's turns can't be told from its prefixes."""


class RefusedError(Exception):
    """The template doesn't take the conversation, such as two turns of one role."""


class ChatTemplate:
    """The template of a tokenizer folder.

    `encode` turns a text with special tokens into token ids and the characters [start, stop) of each.
    """

    def __init__(
        self,
        text: str,
        special_tokens: dict[str, str],
        encode: Callable[[str], tuple[list[int], list[Span]]],
        specials: Sequence[str],
    ) -> None:
        self._text, self._special_tokens, self._encode = text, special_tokens, encode
        self._specials = tuple(specials)
        self.marks_turns = _GENERATION.search(text) is not None
        """Whether the template has {% generation %} marks."""
        self.fingerprint = fingerprint({"template": text, "special_tokens": special_tokens})

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], tuple[Span, ...]]:
        """Token ids of a conversation as the template has it, and the spans of them that the assistant is to write.

        A token belongs to a turn if any of its characters does, as in transformers' assistant mask. Raises
        RefusedError and NotExactError.
        """
        text, turns = self._rendered(messages)
        ids, offsets = self._encode(text)
        starts, stops = [start for start, _ in offsets], [stop for _, stop in offsets]
        spans = []
        for start, stop in turns:
            first, last = bisect.bisect_right(stops, start), bisect.bisect_left(starts, stop)
            if not self.marks_turns and first < len(ids) and starts[first] < start:
                raise NotExactError(f"a token spans the beginning of the turn {text[start:stop]!r}")
            if first < last:
                spans.append((first, last))
        return ids, tuple(spans)

    def check(self, what: str) -> None:
        """Raise UserError, naming `what`, for a template whose turns can't be told from prefixes to the token."""
        taken = 0
        for probe in _PROBES:
            messages = [{"role": role, "content": content} for role, content in probe]
            try:
                ids, spans = self.encode(messages)
                if not self.marks_turns:
                    self._check_tokens(messages, ids)
            except RefusedError as error:
                reason = str(error)
                continue
            except NotExactError as error:
                raise UserError(
                    f"{what}: the assistant's turns can't be told from prefixes of the conversation ({error}); put "
                    "{% generation %} marks around them in the template, or set chat_format=plain"
                ) from error
            taken += 1
            if not spans:
                raise UserError(f"{what}: it renders nothing of the assistant's turns; set chat_format=plain")
        if not taken:
            raise UserError(f"{what}: it takes no conversation of user and assistant ({reason}); set chat_format=plain")

    def _check_tokens(self, messages: Sequence[Message], ids: list[int]) -> None:
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                prefix, _ = self._encode(self._render(messages[:number], add_generation_prompt=True))
                if ids[: len(prefix)] != prefix:
                    raise NotExactError(f"the tokens before turn {number + 1} change with what follows them")

    def _rendered(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of a conversation and the characters [start, stop) of each of the assistant's turns."""
        if self.marks_turns:
            texts, marks = self._run(messages, return_assistant_tokens_mask=True)
            return texts[0], [(start, stop) for start, stop in marks[0]]
        text = self._render(messages)
        turns = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], add_generation_prompt=True)
            through = self._render(messages[: number + 1])
            if not (through.startswith(before) and text.startswith(through)):
                raise NotExactError(f"turn {number + 1} isn't the prefix with something added")
            turns.append((len(before), len(before) + self._length(through[len(before) :])))
        return text, turns

    def _length(self, turn: str) -> int:
        """Characters of a turn to its last special token, where only white space follows that; else all of it."""
        stripped = turn.rstrip()
        return len(stripped) if stripped.endswith(self._specials) else len(turn)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        return self._run(messages, add_generation_prompt=add_generation_prompt)[0][0]

    def _run(self, messages: Sequence[Message], **options: Any) -> Any:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            names: Any = self._special_tokens
            return render_jinja_template([list(messages)], chat_template=self._text, **options, **names)
        except TemplateError as error:  # also what a template raises itself, by raise_exception
            raise RefusedError(str(error)) from error


def template_text(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template of a tokenizer folder: chat_template.jinja, or that of `settings` (tokenizer_config.json)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    given = settings.get("chat_template")
    if isinstance(given, list):  # several, by name
        named = {one["name"]: one["template"] for one in given}
        given = named.get("default")
    if given is not None and not isinstance(given, str):
        raise UserError(f"'{folder / 'tokenizer_config.json'}': chat_template is {json.dumps(given)[:80]}, no text")
    return given


def special_token_names(settings: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like of tokenizer_config.json, as a template may use them."""
    found = {}
    for key, value in settings.items():
        name = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(name, str):
            found[key] = name
    return found
