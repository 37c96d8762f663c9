"""Curation on Ray gives the files of one process; skipped where ray isn't installed (extra `ray`)."""

import pytest

from cpt_dist.corpus.curation.curate import curate
from tests.corpus.test_curation import curation_config, files_below


@pytest.mark.distributed
def test_ray_gives_the_files_of_one_process(tmp_path):
    ray = pytest.importorskip("ray")
    curate(curation_config(tmp_path))
    try:
        curate(curation_config(tmp_path, folder=str(tmp_path / "by_ray"), executor="ray", tasks=3, workers=2))
    finally:
        ray.shutdown()
    assert files_below(tmp_path / "by_ray") == files_below(tmp_path / "curated")
