"""Held-out bits per byte with the model in training, on all ranks together.

It lends the engine to `cpt_dist.evaluation` and puts nothing into the training trajectory: no gradient, no random
number, no change of the sample order.
"""

from __future__ import annotations

import numpy as np
import torch

from cpt_dist.config import parse_quantity
from cpt_dist.data.ledger_entry import generations_of
from cpt_dist.data.view_names import source_of
from cpt_dist.data.views import held_out_of
from cpt_dist.evaluation.bits_per_byte import DocumentScores, score_documents
from cpt_dist.evaluation.documents import DocumentEncoder, choose_texts
from cpt_dist.training.run import Run


class HeldOut:
    """The chosen held-out documents of every source that has some."""

    def __init__(self, run: Run) -> None:
        config = run.config
        self._encoder = DocumentEncoder(config.data.tokenizer, config.data.separator)
        budget = parse_quantity(config.evaluation.max_tokens, "evaluation.max_tokens")
        self._texts = {}
        # Those of a generation that came on the way would change what is measured from there on.
        late = generations_of(run.order.ledger)
        for name in dict.fromkeys(source_of(source.name) for source in run.sources):
            texts = choose_texts(held_out_of(run.sources, name, but=late), self._encoder, budget)
            if texts:
                self._texts[name] = texts

    @property
    def sources(self) -> list[str]:
        """Those that hold some text out."""
        return list(self._texts)

    def scores(self, run: Run) -> dict[str, DocumentScores]:
        """Source name -> scores of its documents; the same on every rank."""

        def sum_over_ranks(values: np.ndarray) -> np.ndarray:
            return run.world.sum(torch.from_numpy(values)).cpu().numpy()

        config = run.config
        return {
            name: score_documents(
                texts,
                self._encoder,
                run.engine.nll,
                window=config.evaluation.seq_len,
                batch_tokens=parse_quantity(config.evaluate.batch_tokens, "evaluate.batch_tokens"),
                rank=run.engine.context.now.data_rank,
                world_size=run.engine.context.now.data_size,
                sum_over_ranks=sum_over_ranks,
            )
            for name, texts in self._texts.items()
        }
