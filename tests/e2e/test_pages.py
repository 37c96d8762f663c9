"""Every report opened in a real browser: it asks for nothing, shows its figures, and its numbers are the record's."""

import json
import os

import numpy as np
import pytest

from cpt_dist.config import CptConfig
from cpt_dist.diagnosis.diagnose import diagnose
from cpt_dist.diagnosis.report import write_report as write_diagnosis
from cpt_dist.doctor.report import build_record, examine, write_record
from cpt_dist.evaluation.claims import answers, decide
from cpt_dist.evaluation.long_context.measure import evaluate_long_context
from cpt_dist.evaluation.long_context.report import write_report as write_long_context
from cpt_dist.evaluation.report import write_report
from cpt_dist.evaluation.suites.compare import Judge
from cpt_dist.evaluation.suites.report import write_suites_report
from cpt_dist.evaluation.suites.run import Answers, Questions, Searched, compare_answers
from cpt_dist.evaluation.suites.suite_file import Suite
from cpt_dist.evaluation.suites.tasks import SuiteScores
from cpt_dist.evaluation.trajectory import Trajectory, all_of
from cpt_dist.evaluation.trajectory_report import write_trajectory
from cpt_dist.evaluation.verdict import Judgement, claims_of, point
from cpt_dist.evaluation.verdict_report import write_verdict
from cpt_dist.planning.run_figures import quantity
from cpt_dist.planning.run_plan import plan_run
from cpt_dist.planning.run_report import write_run_plan
from cpt_dist.probe.compare import ProbeResult, compared
from cpt_dist.probe.report import write_probe
from cpt_dist.probe.spec import read_task
from cpt_dist.verdict_config import VerdictConfig
from tests.doctor import run_folder
from tests.evaluation.long_context.test_measure import made, mapping_of, models_and_documents
from tests.evaluation.long_context.test_measure import planted as models_that_forget
from tests.evaluation.test_evaluate import SETTINGS, planted
from tests.evaluation.test_report import evaluation_of
from tests.evaluation.test_trajectory import STEPS, Planted
from tests.helpers import browser, tiny_run
from tests.helpers.in_process import typed
from tests.probe.small import configured, write_task
from tests.probe.test_found_items import ITEMS as PROBE_ITEMS
from tests.probe.test_found_items import arm as probe_arm

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    program = browser.find()
    if program is None:
        reason = f"needs a browser: one of {', '.join(browser.NAMES)} (Debian's package chromium)"
        if os.environ.get("CPT_REQUIRE_CHROMIUM"):
            pytest.fail(reason)
        pytest.skip(reason)
    return browser.Browser(program, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder and configuration of a tiny run with its model, texts and shards."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, tiny_run.build(folder)


def doctors_case(folder):
    config = run_folder.configured(folder / "run")
    records = run_folder.step_records(config, run_folder.losses(150), data_wait_share=0.5)
    return run_folder.case_of(run_folder.write(folder / "run", config, records), config)


def report(folder, tiny):
    log = doctors_case(folder).log
    write_report(evaluation_of(("law", "domain", 40, -0.2), ("web", "replay", 30, 0.1)), folder, log)
    return lambda record: [f"{s[key]['value']:.4f}" for s in record["sources"] for key in ("base", "adapted")]


def verdict(folder, tiny):
    parts = [planted("law", "domain", 40, -0.2), planted("web", "replay", 30, 0.1)]
    sets = [held_out for held_out, _, _ in parts]
    base, adapted = ({one[0].source: one[place] for one in parts} for place in (1, 2))
    found = answers(claims_of(sets, {"base": base, "adapted": adapted}, VerdictConfig()), 0.95, 400, 0)
    points = [point(name, sets, base, scores, SETTINGS) for name, scores in (("base", base), ("adapted", adapted))]
    models = {"base": "models/base", "adapted": "runs/x/model"}
    write_verdict(Judgement(models, True, SETTINGS, decide(found), points), folder)
    return lambda record: ["did not help", *(f"{claim['gain']['value']:+.4f}" for claim in record["claims"])]


def trajectory(folder, tiny):
    visits, first = all_of(STEPS[:4], Planted(30).visit)
    write_trajectory(Trajectory("all", "runs/x", "0", SETTINGS, STEPS[:4], visits, first), folder)
    return lambda record: [f"{visit['forgetting']['value']:+.4f}" for visit in record["visits"]]


def suites(folder, tiny):
    def scores(right):
        values = np.zeros(200)
        values[:right] = 1.0
        return Answers({"facts": SuiteScores(None, [str(n) for n in range(200)], "acc", True, values, values * 0)})

    config = CptConfig()
    config.suites.contamination = False
    asked = Questions([Suite("facts", "knowledge")], {}, [])
    write_suites_report(compare_answers(config, asked, scores(90), scores(130)), folder)
    return lambda record: [f"{record['suites'][0][name]['value']:.4f}" for name in ("base", "adapted")]


def diagnosis(folder, tiny):
    config = CptConfig(run_dir="run")
    config.model.path = str(tiny[0] / "model")
    config.evaluation.seq_len, config.evaluation.bootstrap = 64, 300
    config.diagnose.domain, config.diagnose.general = (str(tiny[0] / f"{name}.jsonl") for name in ("domain", "general"))
    config.diagnose.held_out_tokens, config.diagnose.out = "1000", str(folder)
    write_diagnosis(diagnose(config), config)
    return lambda record: [f"{record['sides']['domain']['bits_per_byte']['value']:.4g}", record["options"][0]["option"]]


def doctor(folder, tiny):
    case = doctors_case(folder)
    write_record(build_record(case, examine(case)), folder / "doctor.json", case.log)
    return lambda record: ["starved loader", record["sentence"]]


def plan(folder, tiny):
    write_run_plan(plan_run(typed(tiny[1], folder / "run")), folder)
    return lambda record: [quantity(record["total"]["tokens"]), f"{record['total']['steps']:,}"]


def probe(folder, tiny):
    base, adapted = probe_arm("base", 20), probe_arm("adapted", 90)
    config = configured(write_task(folder / "task", items=PROBE_ITEMS), tiny[0] / "model")
    judge = Judge(0.95, 500, 0)
    found = [compared(base, adapted, judge, 0.03, range(10))]
    suite = read_task(config).suite.name
    searched = Searched(["law"], [], 10, 1000, [], {suite: list(range(10))}, {suite: 0})
    write_probe(ProbeResult(read_task(config), judge, 0.03, [base, adapted], found, 0.4, searched), folder)
    return lambda record: [f"{record['comparisons'][0]['gain']['value']:+.4f}", record["spec_hash"]]


def long_context(folder, tiny):
    with pytest.MonkeyPatch.context() as patch:
        models_that_forget(patch, {"base": 600, "adapted": 900})
        mapping = mapping_of(models_and_documents(folder / "long"))
        write_long_context(evaluate_long_context(made(mapping)), folder)
    return lambda record: [f"{b['loss']['value']:.4f}" for b in record["positions"]["curves"]["base"]["buckets"]]


PAGES = [report, verdict, trajectory, suites, diagnosis, doctor, plan, probe, long_context]


@pytest.mark.parametrize("write", PAGES)
def test_a_report_in_a_browser_asks_for_nothing_and_shows_what_its_record_says(write, chromium, tiny, tmp_path):
    expected = write(tmp_path, tiny)
    name = write.__name__
    record = json.loads((tmp_path / f"{name}.json").read_text())
    page = chromium.open(tmp_path / f"{name}.html")
    assert page.requests == []
    assert [address for address in page.addresses if not address.startswith(("#", "data:image/png;"))] == []
    assert "script" not in page.counts
    assert page.counts["svg"] == page.counts["figure"] >= 1
    for text in expected(record):
        assert text in page.text
    known = browser.numbers_of(record)
    known += [one["stop"] - 1 for one in record.get("positions", {}).get("changes", [])]  # shown as its last token
    assert [shown for shown in page.numbers() if not browser.agrees(shown, known)] == []


def test_the_browser_tells_what_a_page_asks_the_network_for(chromium, tmp_path):
    (tmp_path / "page.html").write_text('<td class="number">1</td><img src="http://elsewhere.invalid/x.png">')
    page = chromium.open(tmp_path / "page.html")
    assert page.requests == ["http://elsewhere.invalid/x.png"]
