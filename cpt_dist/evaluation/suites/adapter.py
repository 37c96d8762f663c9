"""A model of ours as lm-evaluation-harness wants one.

The library builds requests and marks answers; which tokens they are and how likely is ours. To the library each rank
is alone (rank 0 of 1) and asks everything; the `Answerer` deals the work out, so that no rank waits for another
one's requests.
"""

from __future__ import annotations

import itertools
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from cpt_dist.evaluation.suites.answers import Sampling
from cpt_dist.evaluation.suites.text_model import TextModel

DEFAULT_NEW_TOKENS = 256


class PackedLM(LM):
    """An lm_eval model that asks a `TextModel`; `seed` is that of the tasks that sample."""

    def __init__(self, model: TextModel, seed: int = 0) -> None:
        super().__init__()
        self._model = model
        self._seed = seed

    @property
    def tokenizer_name(self) -> str:
        return self._model.tokenizer.name_or_path.replace("/", "__")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether it is the greedy one) of each answer."""
        values, greedy = self._model.log_likelihoods([request.args for request in requests])
        return [(float(value), bool(flag)) for value, flag in zip(values, greedy, strict=True)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood in nats of whole texts, in the disjoint windows of the library's own backends."""
        pairs: list[tuple[list[int], list[int]]] = []
        ends = [0]
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self._model.encode(request.args[0]),
                prefix_token=self._model.prefix_id,
                max_seq_len=self._model.answerer.max_positions,
                context_len=1,
            )
            pairs.extend(make_disjoint_window(window) for window in windows)
            ends.append(len(pairs))
        values, _ = self._model.answerer.log_likelihoods(pairs)
        return [float(values[start:end].sum()) for start, end in itertools.pairwise(ends)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continuations, greedy or drawn at random where a task asks for it, cut before the first stop text."""
        groups: dict[tuple[int, bool], list[int]] = {}
        drawn = [self._sampling(request.args[1], index) for index, request in enumerate(requests)]
        for index, request in enumerate(requests):
            groups.setdefault((_new_tokens(request.args[1]), drawn[index] is not None), []).append(index)
        results = [""] * len(requests)
        for (max_new_tokens, _), indices in groups.items():
            found = self._model.generate(
                [requests[index].args[0] for index in indices],
                max_new_tokens,
                [_stops(requests[index].args[1]) for index in indices],
                [sampling for index in indices if (sampling := drawn[index])] or None,
            )
            for index, text in zip(indices, found, strict=True):
                results[index] = text
        return results

    def _sampling(self, settings: dict[str, Any], index: int) -> Sampling | None:
        temperature = float(settings.get("temperature") or 0.0)
        if not settings.get("do_sample", temperature > 0):
            return None
        return Sampling(self._seed * 1_000_003 + index, temperature or 1.0, float(settings.get("top_p") or 1.0))


def _stops(settings: dict[str, Any]) -> list[str]:
    until = settings.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def _new_tokens(settings: dict[str, Any]) -> int:
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        if settings.get(name):
            return int(settings[name])
    return DEFAULT_NEW_TOKENS
