"""Between the second and the third stage: the models that score a source are fitted on samples of its documents.

A document is in the sample of its block if its id, which is a hash, lies below a bound that follows from the size of
the source alone; of these, those with the smallest ids make the sample of the source. So it's the same for any number
of tasks, and no stage reads a whole source in one process.
"""

from __future__ import annotations

from pathlib import Path

from cpt_dist.corpus.curation.job import (
    FIT,
    READ,
    CuratedSource,
    Job,
    file_of,
    read_record,
    write_record,
)
from cpt_dist.corpus.curation.tables import read_documents
from cpt_dist.corpus.steps.fit import SourceModels, SourceSample, fit_models, needs_models
from cpt_dist.corpus.steps.sample import Sample

_SPARE = 4
"""The bound of ids is chosen for so many times as much text, as raw bytes only tell about how much there is."""
SAMPLE_FILE = "sample.parquet"
MODELS = "models"


def is_fitted(source: CuratedSource) -> bool:
    """Whether a source needs models."""
    return source.steps is not None and needs_models(source.steps)


def sample_bound(source: CuratedSource) -> bytes:
    """The id below which documents of a source may be in its sample; without any bytes where it needs no model."""
    if not is_fitted(source):
        return b""
    size = max(1, sum(block.num_bytes for block in source.blocks))
    share = _SPARE * source.steps.quality.sample_characters / size
    return b"\xff" * 17 if share >= 1 else int(share * 2**64).to_bytes(8, "big")


def fit_all(job: Job) -> None:
    """Write the models of all sources into the job's folder, and which source is scored by which."""
    samples = {
        source.name: SourceSample(source.steps, _sample(job, number), source.role == "domain")
        for number, source in enumerate(job.sources)
        if is_fitted(source)
    }
    models = fit_models(samples, job.folder / MODELS)
    names = {
        name: [path.name if path else None for path in (found.perplexity, found.relevance)]
        for name, found in sorted(models.items())
    }
    write_record(job.bucket_stem(FIT, 0), {"job": job.fingerprint, "models": names})


def _sample(job: Job, number: int) -> list[str]:
    """The texts with the smallest ids of a source, each once."""
    sample, seen = Sample(job.sources[number].steps.quality.sample_characters), set[bytes]()
    for unit in job.units:
        if unit.source == number:
            for document in read_documents(file_of(job.stem(READ, unit), SAMPLE_FILE), job.sources[number].name):
                if document.id not in seen:
                    seen.add(document.id)
                    sample.add(document.id, document.text)
    return sample.texts()


def models_of(job: Job, source: CuratedSource) -> SourceModels:
    """The models that score a source's documents."""
    names = read_record(job.bucket_stem(FIT, 0))["models"].get(source.name, [None, None])
    paths: list[Path | None] = [job.folder / MODELS / name if name else None for name in names]
    return SourceModels(*paths)
