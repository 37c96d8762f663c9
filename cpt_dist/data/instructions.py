"""Instruction data: conversations and pairs of prompt and completion as documents of which a part is to be predicted.

A document's text, of which its id and its bytes are made and which is held out for evaluation, is the plain form of
the record; its tokens are the plain form's or those of the tokenizer's chat template. Only what the assistant is to
write becomes a target; the rest is read. The plain form of conversations is that of Vicuna: the separator token ends
each of the assistant's turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpt_dist.config import SourceConfig
from cpt_dist.corpus.inputs import InputFile
from cpt_dist.corpus.normalise import document_id, normalise
from cpt_dist.corpus.read import read_records
from cpt_dist.data.chat_template import (
    ChatTemplate,
    Message,
    NotExactError,
    RefusedError,
    Span,
    special_token_names,
    template_text,
)
from cpt_dist.data.documents import DUPLICATE, EMPTY, TOO_SHORT, Fate, Rules, is_held_out
from cpt_dist.data.shard_writer import Document
from cpt_dist.data.tokenizer import DocumentTokenizer
from cpt_dist.errors import UserError

ASSISTANT = "assistant"
NOT_A_CONVERSATION, NO_COMPLETION = "not_a_conversation", "no_completion"
SPECIAL_TOKEN, TEMPLATE_REFUSES, NOT_EXACT = "special_token_in_text", "template_refuses", "template_not_exact"


class UnusableError(Exception):
    """A record that becomes no document; its argument is the reason that is counted."""


@dataclass(frozen=True)
class Piece:
    """A part of the plain form of a record."""

    text: str
    is_target: bool


class Instructions:
    """How the records of one source become tokens and targets.

    `fields` are read from each record: one that holds a conversation, or prompt and completion. With a `template`
    conversations are rendered by it, else they are written in the plain form.
    """

    def __init__(self, fields: tuple[str, ...], tokenizer: DocumentTokenizer, template: ChatTemplate | None) -> None:
        self.fields = fields
        self._tokenizer, self._template = tokenizer, template
        added = sorted(tokenizer.added_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(name) for name in added)) if added and template else None

    @property
    def settings(self) -> dict[str, Any]:
        """What the tokens depend on, for the manifest."""
        if len(self.fields) == 2:
            return {"prompt_field": self.fields[0], "completion_field": self.fields[1]}
        chosen = {"chat_template": self._template.fingerprint} if self._template else {}
        return {"chat_field": self.fields[0], "chat_format": "template" if self._template else "plain", **chosen}

    def pieces(self, record: str) -> tuple[list[Piece], list[Message]]:
        """The plain form of a record (JSON of `fields`), normalised, and its messages (none for a pair)."""
        value = json.loads(record)
        if len(self.fields) == 2:
            prompt, completion = (value[name] for name in self.fields)
            if not isinstance(prompt, str) or not isinstance(completion, str):
                raise UnusableError(NOT_A_CONVERSATION)
            prompt, completion = normalise(prompt), normalise(completion)
            if not completion.strip():
                raise UnusableError(NO_COMPLETION)
            return [Piece(prompt, False), Piece(completion, True)], []
        messages = [_message(one) for one in _conversation(value[self.fields[0]])]
        if not any(one["role"] == ASSISTANT and one["content"].strip() for one in messages):
            raise UnusableError(NO_COMPLETION)
        return _plain(messages), messages

    def encode(self, pieces: Sequence[Piece], messages: Sequence[Message]) -> tuple[np.ndarray, tuple[Span, ...]]:
        """Token ids of a record and the spans of them that are targets; raises UnusableError."""
        if self._template is None or not messages:
            return self._encode_plain(pieces)
        if self._special and any(self._special.search(one["content"] + "\n" + one["role"]) for one in messages):
            raise UnusableError(
                SPECIAL_TOKEN
            )  # rendered, it would become the token: a user could end the assistant's turn
        try:
            ids, targets = self._template.encode(messages)
        except RefusedError as error:
            raise UnusableError(TEMPLATE_REFUSES) from error
        except NotExactError as error:
            raise UnusableError(NOT_EXACT) from error
        if not targets:
            raise UnusableError(NO_COMPLETION)
        return np.array(ids, dtype=self._tokenizer.dtype), targets

    def _encode_plain(self, pieces: Sequence[Piece]) -> tuple[np.ndarray, tuple[Span, ...]]:
        """[BOS, where the tokenizer adds one] pieces, each by itself; the separator ends each target.

        A prompt is tokenised by itself because that is how the model gets it when it is to answer.
        """
        tokenizer = self._tokenizer
        ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        targets = []
        for piece, tokens in zip(pieces, tokenizer.encode_pieces([one.text for one in pieces]), strict=True):
            start = len(ids)
            ids += tokens
            if piece.is_target:
                ids.append(tokenizer.separator_id)
                targets.append((start, len(ids)))
        return np.array(ids, dtype=tokenizer.dtype), tuple(targets)


def instructions_of(
    name: str, config: SourceConfig, tokenizer: DocumentTokenizer, inputs: Sequence[InputFile]
) -> Instructions | None:
    """What `config` says about the records of source `name`; None where they are text or tokens.

    Raises UserError for a template that is asked for and isn't there, one that can't be used, and plain text files.
    """
    if config.chat_field is None and config.prompt_field is None:
        return None
    key = f"data.sources.{name}"
    texts = [item.path for item in inputs if item.format == "text"]
    if texts:
        raise UserError(f"{key}.raw: '{texts[0]}' is plain text, which has no fields; give JSONL, Parquet or a dataset")
    if config.chat_field is None:
        assert config.prompt_field is not None
        assert config.completion_field is not None
        return Instructions((config.prompt_field, config.completion_field), tokenizer, None)
    template = None
    if config.chat_format != "plain":
        text = template_text(tokenizer.folder, tokenizer.settings)
        if text is None and config.chat_format == "template":
            raise UserError(
                f"{key}.chat_format: the tokenizer in '{tokenizer.folder}' has no chat template; add a "
                "chat_template.jinja to it, or set chat_format=plain"
            )
        if text is not None:
            names = special_token_names(tokenizer.settings)
            template = ChatTemplate(text, names, tokenizer.encode_rendered, tokenizer.added_tokens)
            template.check(f"{key}.chat_format: chat template of '{tokenizer.folder}'")
    return Instructions((config.chat_field,), tokenizer, template)


def instruction_fates(
    inputs: Sequence[InputFile],
    instructions: Instructions,
    rules: Rules,
    seen: set[bytes],
    start: tuple[int, int] = (0, 0),
    others: Sequence[str] = (),
) -> Iterator[Fate]:
    """The fate of every record from (input, record) `start` on, in order; ids of new documents are added to `seen`.

    `others` are the fields whose values a fate keeps. Raises what `read_records` raises.
    """
    for index in range(start[0], len(inputs)):
        first = start[1] if index == start[0] else 0
        for record in read_records(inputs[index], instructions.fields, rules.invalid_utf8, first, others):
            document, reason, tokens = None, record.problem, None
            targets: tuple[Span, ...] = ()
            if record.text is not None:
                try:
                    pieces, messages = instructions.pieces(record.text)
                    text = "".join(piece.text for piece in pieces)
                    num_bytes, doc_id = len(text.encode("utf-8")), document_id(text)
                    if not text.strip():
                        reason = EMPTY
                    elif num_bytes < rules.min_bytes:
                        reason = TOO_SHORT
                    elif doc_id in seen:
                        reason = DUPLICATE
                    else:
                        tokens, targets = instructions.encode(pieces, messages)
                        seen.add(doc_id)
                        document = Document(doc_id, text, num_bytes, record.file, record.index, record.byte)
                except UnusableError as why:
                    reason = str(why)
            held_out = document is not None and is_held_out(document.id, rules.held_out_fraction)
            where = (index, record.index + 1, record.byte)
            yield Fate(*where, document, held_out, reason, record.repaired, tokens, targets, record.values)


def _conversation(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UnusableError(NOT_A_CONVERSATION)
    return value


def _message(value: Any) -> Message:
    role, content = (value.get(key) if isinstance(value, dict) else None for key in ("role", "content"))
    if not isinstance(role, str) or not role.strip() or not isinstance(content, str):
        raise UnusableError(NOT_A_CONVERSATION)
    return {"role": role, "content": normalise(content)}


def _plain(messages: Sequence[Message]) -> list[Piece]:
    """`User: …`, `Assistant: …` with a blank line between; what follows an assistant's colon is a target."""
    pieces = []
    context = ""
    for number, message in enumerate(messages):
        context += ("\n\n" if number else "") + message["role"].capitalize() + ":"
        content = f" {message['content']}"
        if message["role"] == ASSISTANT:
            pieces += [Piece(context, False), Piece(content, True)]
            context = ""
        else:
            context += content
    return [*pieces, Piece(context, False)] if context else pieces
