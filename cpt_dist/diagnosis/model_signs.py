"""What a model folder's small files say about the model: whether it was instruction-tuned, and what it is.

Signs, not proof: a base model may ship a chat template for convenience, and each sign is named so that the reader can
judge. Nothing here loads a tensor.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_NAME = re.compile(r"(?:^|[^a-z])(instruct|chat|it|sft|dpo|rlhf)(?:[^a-z]|$)", re.IGNORECASE)
_CARD_TAGS = re.compile(r"\b(instruct(?:ion)?[- ]tuned|chat|rlhf|dpo|sft)\b", re.IGNORECASE)
_CARD_BYTES = 64_000


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _card(folder: Path) -> tuple[str, str]:
    """Header and text of README.md, as much as is read of them."""
    try:
        with open(folder / "README.md", encoding="utf-8", errors="replace") as handle:
            text = handle.read(_CARD_BYTES)
    except OSError:
        return "", ""
    match = re.match(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    return (match[1], match[2]) if match else ("", text)


def instruct_signs(folder: str | Path) -> tuple[str, ...]:
    """What says that the model was instruction-tuned: chat template, generation config, model card, name."""
    path = Path(folder)
    signs = []
    template = (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file()
    if template or _json(path / "tokenizer_config.json").get("chat_template"):
        signs.append("its tokenizer has a chat template")
    ends = _json(path / "generation_config.json").get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1:
        signs.append(f"its generation config ends answers at {len(ends)} different tokens")
    name = _NAME.search(path.resolve().name)
    if name:
        signs.append(f"its folder's name says '{name[1]}'")
    header, text = _card(path)
    if re.search(r"^base_model:", header, re.MULTILINE):
        signs.append("its model card names a base model that it was made from")
    tag = _CARD_TAGS.search(header) or _CARD_TAGS.search("\n".join(re.findall(r"^# .*$", text, re.MULTILINE)))
    if tag:
        signs.append(f"its model card says '{tag[1]}'")
    return tuple(signs)
