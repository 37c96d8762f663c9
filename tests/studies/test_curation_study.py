"""The example of curation: its corpora are read right, and the report that is kept is short."""

import zipfile

import pytest

from cpt_dist.errors import UserError
from studies import curation_corpora
from studies.curation import SAMPLES_KEPT, excerpt

LICENCE = (
    "---\nkey: mit\nignorable_urls:\n  - http://x\n---\n\nPermission is hereby granted --- to all.\n" + "More. " * 40
)
FILES = {
    "licensedcode/data/licenses/mit.LICENSE": LICENCE,
    "licensedcode/data/rules/short.RULE": "---\nis: short\n---\nMIT",
    "licensedcode/data/rules/plain.RULE": "A notice without a header. " * 10,
    "licensedcode/data/README.rst": "no licence " * 40,
}


def test_licences_come_without_their_headers_and_short_ones_not_at_all(tmp_path):
    with zipfile.ZipFile(tmp_path / curation_corpora.LICENCES, "w") as wheel:
        for name, text in FILES.items():
            wheel.writestr(name, text)
    found = {one["id"]: one["text"] for one in curation_corpora.licences(tmp_path)}
    assert found.keys() == {"licenses/mit.LICENSE", "rules/plain.RULE"}
    assert found["licenses/mit.LICENSE"].startswith("\nPermission is hereby granted --- to all.")


def test_code_of_an_installed_package_has_its_repository_and_paths():
    found = list(curation_corpora.code(["jinja2"]))
    assert {one["repository"] for one in found} == {"jinja2"}
    assert "jinja2/lexer.py" in {one["path"] for one in found}
    with pytest.raises(UserError, match="package 'absent' is not installed"):
        list(curation_corpora.code(["absent"]))


def test_the_kept_report_has_few_samples():
    reasons = [{"reason": "x", "samples": list(range(9))}]
    scores = {name: {"thresholds": []} for name in ("quality", "words")}
    record = {"sources": {"law": {"reasons": reasons, "removed": {"samples": list(range(9))}, "scores": scores}}}
    source = excerpt(record)["sources"]["law"]
    assert source["scores"].keys() == {"quality"}
    assert [len(source["reasons"][0]["samples"]), len(source["removed"]["samples"])] == [SAMPLES_KEPT] * 2
