"""Curation on Ray gives the files of one process; skipped where ray isn't installed (extra `ray`)."""

import pickle
from dataclasses import fields
from pathlib import Path

import pytest

from cpt_dist.corpus.curation.curate import curate
from cpt_dist.corpus.curation.job import Job
from cpt_dist.curation_pipeline_config import CurationPipelineConfig
from tests.corpus.test_curation import curation_config, files_below


def test_a_job_is_pickled_without_what_another_thread_may_be_working_out():
    job = Job(Path("curated"), (), CurationPipelineConfig(), 1, "drop", 0.0, "fingerprint")
    names = {one.name for one in fields(Job)}
    assert job.units == []
    assert vars(job).keys() > names
    assert vars(pickle.loads(pickle.dumps(job))).keys() == names


@pytest.mark.distributed
def test_ray_gives_the_files_of_one_process(tmp_path):
    ray = pytest.importorskip("ray")
    curate(curation_config(tmp_path))
    try:
        curate(curation_config(tmp_path, folder=str(tmp_path / "by_ray"), executor="ray", tasks=3, workers=2))
    finally:
        ray.shutdown()
    assert files_below(tmp_path / "by_ray") == files_below(tmp_path / "curated")
