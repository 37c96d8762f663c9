"""The check of a written model by its logits, with everything slow about it done while the weights are written.

Importing transformers and building the architecture takes longer than writing a small model, and needs only its
config.json; so it happens in a thread, which starts after the processes that write are forked. What is checked is in
`streamed_model.py`.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class ModelBehind:
    """The model of `folder`, for a check of its logits; with `wanted` false there is none, and torch isn't imported."""

    def __init__(self, folder: Path, wanted: bool) -> None:
        self._folder, self._wanted = folder, wanted
        self._thread = ThreadPoolExecutor(1)
        self._model: Future[Any] | None = None

    def __enter__(self) -> ModelBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Leaving in the middle of an import of torch would crash the interpreter's end.
        self._thread.shutdown(wait=True)

    def begin(self) -> None:
        """Start to build the architecture; the folder's config.json is there."""
        if self._wanted:
            self._model = self._thread.submit(self._build)

    def _build(self) -> Any:
        from cpt_dist.checkpoint.streamed_model import empty_model

        return empty_model(self._folder)

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The written model's logits [tokens, vocab]. Raises UserError where its files are not the model's."""
        from cpt_dist.checkpoint.streamed_model import logits

        assert self._model is not None
        return logits(self._folder, input_ids, self._model.result())

    def difference_from_probe(self, checkpoint: Path) -> float | None:
        """Largest difference of logits from those in the checkpoint, relative to the largest of these.

        None where the check isn't wanted or the checkpoint has no probe. Raises what `logits` raises.
        """
        if self._model is None:
            return None
        from cpt_dist.checkpoint.probe import read_probe

        probe = read_probe(checkpoint)
        if probe is None:
            return None
        scale = probe.logits.abs().max().clamp_min(1e-12)
        return float((self.logits(probe.input_ids) - probe.logits).abs().max() / scale)

    def has_finite_logits(self, num_tokens: int = 8) -> bool:
        """Whether the logits of the first tokens of the vocabulary are finite; True where the check isn't wanted."""
        if self._model is None:
            return True
        import torch

        return bool(self.logits(torch.arange(num_tokens)).isfinite().all())
