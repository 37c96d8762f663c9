"""Curation keeps the items of the suites out of what is trained on."""

import dataclasses

from cpt_dist.corpus.curation.curate import curate
from cpt_dist.evaluation.suites.suite_items import with_suite_items
from tests.corpus.test_curation import LAW, curation_config, dropped_rows
from tests.evaluation.suites.small import suite_file


def test_documents_with_an_item_of_a_suite_are_dropped_and_name_it(tmp_path):
    query = " ".join(LAW[6].split()[5:25])
    path = suite_file(tmp_path, rows=[{"query": query, "choices": ["a", "b"], "gold": 0}])
    config = curation_config(tmp_path)
    config.suites.run = [str(path), "arc_easy"]
    curate(with_suite_items(config))
    (found,) = [row for row in dropped_rows(tmp_path, "law") if row["reason"] == "contaminated"]
    assert found["record"] == 6
    assert found["detail"].startswith(f"{tmp_path}/curated/suites/words.jsonl:0: ")


def test_suites_are_left_out_where_that_is_asked_or_nothing_is_curated(tmp_path):
    config = curation_config(tmp_path)
    config.suites.run = [str(suite_file(tmp_path))]
    config.data.curation.decontamination = dataclasses.replace(config.data.curation.decontamination, suites=False)
    assert with_suite_items(config) is config
    config.data.curation.decontamination.suites = True
    for source in config.data.sources.values():
        source.curation = None
    assert with_suite_items(config) is config
    assert not (tmp_path / "curated").exists()
