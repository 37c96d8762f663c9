"""Language models that the user gives for perplexity: a KenLM file, or a Hugging Face model in a folder.

Both are optional, are loaded from disk only and answer in bits per byte, so that scores don't depend on a tokenizer.
"""

from __future__ import annotations

import math
from typing import Any

from cpt_dist.errors import UserError

_KEY = "quality.perplexity.model"


class KenlmModel:
    """An n-gram model of words (Heafield 2011), read by the package kenlm."""

    def __init__(self, path: str) -> None:
        try:
            import kenlm
        except ImportError as error:
            raise UserError(
                f"{_KEY}: '{path}' needs the package kenlm, which isn't installed; pip install 'cpt_dist[kenlm]'"
            ) from error
        try:
            self._model: Any = kenlm.Model(path)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{_KEY}: '{path}' is no KenLM model ({reason}); correct the path") from error

    def bits_per_byte(self, data: bytes) -> float:
        """Sum over the lines of a text of -log2 p, ends of lines included, by byte; words apart by white space."""
        lines = [line for line in data.decode("utf-8").split("\n") if line.strip()]
        log10 = sum(self._model.score(" ".join(line.split()), bos=True, eos=True) for line in lines)
        return -log10 * math.log2(10) / max(len(data), 1)


class HuggingFaceModel:
    """A causal language model of transformers, on the CPU or the first GPU; overlapping windows, each byte once."""

    def __init__(self, folder: str, window_bytes: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{_KEY}: '{folder}' holds no model that can be loaded ({reason}); correct the path"
            ) from error
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self._device)
        self._window_bytes = window_bytes

    def bits_per_byte(self, data: bytes) -> float:
        """Sum of -log2 p of every token but the first, by byte; half a window is context for what follows."""
        import torch
        from torch.nn.functional import cross_entropy

        tokens = self._tokenizer(data.decode("utf-8"), add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        # A window of bytes is at most as many tokens; most models read fewer.
        longest = getattr(self._model.config, "max_position_embeddings", None) or self._window_bytes
        mean_bytes = max(len(data) / max(len(tokens), 1), 1.0)
        window = max(min(int(self._window_bytes / mean_bytes), longest), 2)
        total, scored = 0.0, 1
        while scored < len(tokens):
            first = max(scored - window // 2, 0)
            part = tokens[first : first + window].to(self._device)
            with torch.inference_mode():
                logits = self._model(part[None]).logits[0, :-1].float()
            losses = cross_entropy(logits, part[1:], reduction="none")[scored - first - 1 :]
            total += float(losses.sum())
            scored = first + len(part)
        return total / math.log(2) / max(len(data), 1)
