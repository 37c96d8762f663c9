"""Scores by models: perplexity as a percentile within the source, and relevance to the domain.

A model is one safetensors file whose name carries its checksum; a step pickles as that path, and each process loads it
once. Low perplexity isn't quality: repeated boilerplate is the cheapest text of all and what is new to the model the
dearest, so only the middle of a source is left unquestioned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import save

from cpt_dist.corpus.steps import ngram_model, relevance_model
from cpt_dist.corpus.steps.language_models import HuggingFaceModel, KenlmModel
from cpt_dist.corpus.steps.ngram_model import NgramModel
from cpt_dist.corpus.steps.relevance_model import RelevanceModel
from cpt_dist.corpus.steps.text_view import TextView
from cpt_dist.curation_config import PerplexityConfig, RelevanceConfig
from cpt_dist.errors import UserError
from cpt_dist.files import atomic_write

NGRAM, KENLM, HUGGING_FACE = "ngram", "kenlm", "hugging_face"
QUANTILES = 1001
HOLD_BACK = 2
"""One document in so many is scored for the percentiles instead of being counted."""
_KENLM_ENDINGS = (".arpa", ".arpa.gz", ".bin", ".klm", ".binary")


class BitsPerByte(Protocol):
    """A language model."""

    def bits_per_byte(self, data: bytes) -> float:
        """Mean bits that a byte of this UTF-8 text costs."""


def _kind_of(model: str) -> str:
    path = Path(model)
    if path.is_dir():
        return HUGGING_FACE
    if path.is_file() and path.name.lower().endswith(_KENLM_ENDINGS):
        return KENLM
    raise UserError(
        f"quality.perplexity.model: '{model}' is neither a KenLM file ({', '.join(_KENLM_ENDINGS)}) nor a folder of a "
        "Hugging Face model; correct the path"
    )


@lru_cache(maxsize=2)
def _given_model(kind: str, model: str, window_bytes: int) -> BitsPerByte:
    return KenlmModel(model) if kind == KENLM else HuggingFaceModel(model, window_bytes)


def _write(folder: Path, stem: str, tensors: dict[str, np.ndarray], description: dict[str, Any]) -> Path:
    """Write a model under a name with its checksum; the same model has the same name."""
    data = save(tensors, metadata={"model": json.dumps(description, sort_keys=True)})
    path = folder / f"{stem}-{xxhash.xxh3_64_hexdigest(data)}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as handle:
        handle.write(data)
    return path


@lru_cache(maxsize=16)
def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors.numpy import load

    data = path.read_bytes()
    if xxhash.xxh3_64_hexdigest(data) != path.stem.rsplit("-", 1)[-1]:
        raise UserError(f"'{path}' is not the model that was fitted: its checksum isn't that of its name; fit it again")
    try:
        length = int.from_bytes(data[:8], "little")
        description = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["model"])
        return load(data), description
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"'{path}' is no model of cpt_dist ({error}); fit it again") from error


def fit_perplexity(texts: Sequence[str], config: PerplexityConfig, folder: Path, stem: str) -> Path | None:
    """Fit the percentiles of a source (and its model, unless one is given) on a sample; the file's path.

    Every second document is counted, the others give the percentiles, as a text that was counted looks cheaper than
    any new one. None with fewer than two documents.
    """
    data = [text.encode("utf-8") for text in texts if text]
    counted = [text for place, text in enumerate(data) if place % HOLD_BACK]
    held = data[::HOLD_BACK]
    if not counted or not held:
        return None
    tensors: dict[str, np.ndarray] = {}
    description: dict[str, Any] = {"documents": len(data), "bytes": sum(map(len, data))}
    if config.model is None:
        model: BitsPerByte = ngram_model.fit(counted, held, config.order, config.bits)
        assert isinstance(model, NgramModel)
        tensors.update(ngram_model.as_tensors(model))
        description |= {"kind": NGRAM, "prior": model.prior}
    else:
        kind = _kind_of(config.model)
        model = _given_model(kind, config.model, config.window_bytes)
        description |= {"kind": kind, "path": config.model, "window_bytes": config.window_bytes}
    costs = [model.bits_per_byte(text) for text in held]
    tensors["quantiles"] = np.quantile(costs, np.linspace(0, 1, QUANTILES)).astype(np.float64)
    return _write(folder, stem, tensors, description)


def fit_relevance(
    domain: Sequence[str], replay: Sequence[str], config: RelevanceConfig, folder: Path, stem: str
) -> Path | None:
    """Fit the model that tells domain from replay on samples of both; the file's path.

    None where either has too few documents. The file's description holds the area under the curve (`describe`).
    """
    try:
        model, area = relevance_model.fit(domain, replay, config.method, config.bits, config.epochs)
    except ValueError:
        return None
    description = {
        "kind": config.method,
        "domain_documents": len(domain),
        "replay_documents": len(replay),
        "area_under_curve": area,
        "bias": model.bias,
        "slope": model.slope,
        "offset": model.offset,
    }
    return _write(folder, stem, {"weights": model.weights}, description)


def describe(path: Path) -> dict[str, Any]:
    """What a report says of a fitted model: its kind, its sample and, of relevance, its area under the curve."""
    return dict(_read(path)[1])


@lru_cache(maxsize=16)
def _perplexity_model(path: Path) -> tuple[BitsPerByte, np.ndarray]:
    tensors, description = _read(path)
    if description["kind"] == NGRAM:
        return ngram_model.from_tensors(tensors, description["prior"]), tensors["quantiles"]
    model = _given_model(description["kind"], description["path"], description["window_bytes"])
    return model, tensors["quantiles"]


@lru_cache(maxsize=16)
def _relevance_model(path: Path) -> RelevanceModel:
    tensors, description = _read(path)
    bias, slope, offset = (float(description[name]) for name in ("bias", "slope", "offset"))
    return RelevanceModel(tensors["weights"], bias, slope, offset, description["kind"])


def in_band(percentile: float, low: float, high: float) -> float:
    """1 from `low` to `high`, falling in a straight line to 0 at the percentiles 0 and 1."""
    if percentile < low:
        return percentile / low
    return (1 - percentile) / (1 - high) if percentile > high else 1.0


@dataclass(frozen=True)
class Perplexity:
    """Bits per byte, and their percentile in the source as a component."""

    path: Path
    band: tuple[float, float]
    measures: tuple[str, ...] = ("bits_per_byte", "perplexity_percentile")
    component: str = "perplexity"

    def __call__(self, view: TextView) -> tuple[tuple[float, ...], float]:
        """((bits per byte, percentile), 1 in the band)."""
        model, quantiles = _perplexity_model(self.path)
        cost = model.bits_per_byte(view.data)
        percentile = float(np.interp(cost, quantiles, np.linspace(0, 1, len(quantiles))))
        return (cost, percentile), in_band(percentile, *self.band)


@dataclass(frozen=True)
class Relevance:
    """The raw number of the model, and the probability that a text is of the domain as a component."""

    path: Path
    measures: tuple[str, ...] = ("relevance_raw",)
    component: str = "relevance"

    def __call__(self, view: TextView) -> tuple[tuple[float, ...], float]:
        """((raw number,), probability)."""
        model = _relevance_model(self.path)
        raw = model.raw(view)
        return (raw,), model.probability(raw)
