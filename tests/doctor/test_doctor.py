"""The whole examination, its file and its script."""

import io
import json
import shutil

import pytest
from rich.console import Console

from cpt_dist.config import CptConfig
from cpt_dist.doctor.case import read_case
from cpt_dist.doctor.report import build_record, examine, print_record, write_record
from cpt_dist.doctor_config import DoctorConfig, doctor_problems
from cpt_dist.errors import UserError
from tests.doctor.run_folder import NOW, configured, evaluation, step_records, write
from tests.helpers.tiny_run import launch


def record_of(case):
    return build_record(case, examine(case))


def test_a_healthy_run_is_called_healthy(run):
    record = record_of(run())
    assert record["sentence"] == "Healthy, as far as 13 of 13 checks can tell."
    assert {one["status"] for one in record["findings"]} == {"healthy"}


def test_a_run_that_has_not_begun_has_not_enough_data(run):
    case = run(0, evaluations=[], beats=[], prepare=lambda folder: shutil.rmtree(folder / "logs"), world_size=2)
    assert record_of(case)["sentence"].startswith("Healthy, as far as 1 of 13 checks can tell. Not enough data for:")
    case.config.stages = []
    assert record_of(case)["sentence"] == "There is not enough data to say anything."


def test_troubles_come_first_and_severe_ones_before_them(run):
    evaluations = [evaluation(0, 1, 1.0), evaluation(150, 1, 1.5)]
    record = record_of(run(evaluations=evaluations, steps={"data_wait_share": 0.5}))
    assert record["sentence"] == "Found: severe forgetting, starved loader."
    assert [one["severity"] for one in record["findings"]][:3] == ["severe", "warning", ""]


def test_file_and_table_show_evidence_and_changes(run, tmp_path):
    case = run(steps={"data_wait_share": 0.5})
    record = record_of(case)
    write_record(record, tmp_path / "new" / "doctor.json", case.log)
    assert json.loads((tmp_path / "new" / "doctor.json").read_text()) == json.loads(json.dumps(record))
    printed = io.StringIO()
    print_record(record, Console(width=200, file=printed))
    assert "data.num_workers: 0 -> 2" in printed.getvalue()
    assert "| starved loader | found (warning) |" in (tmp_path / "new" / "doctor.md").read_text()
    page = (tmp_path / "new" / "doctor.html").read_text()
    assert "<code>data.num_workers</code>: 0 → 2" in page
    assert page.count("<svg") == 3


def test_the_page_shows_what_torn_records_leave(run, tmp_path):
    case = run(steps={"loss": None}, evaluations=[])
    write_record(record_of(case), tmp_path / "doctor.json", case.log)
    assert "<svg" not in (tmp_path / "doctor.html").read_text()


def test_torn_and_damaged_files_are_passed_over(run):
    def prepare(folder):
        (folder / "metrics.jsonl").open("a").write('{"kind": "step", "st')
        (folder / "health" / "rank-00001.json").write_text("{")
        (folder / "bad_numbers.json").write_text("[]")
        (folder / "starts" / "0001.yaml").write_text("model: [")

    record = record_of(run(prepare=prepare))
    assert "Not enough data for: learning rate off plan" in record["sentence"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run was started there"):
        read_case(CptConfig(run_dir=str(tmp_path)), NOW)


def test_logs_that_are_not_there_are_refused(tmp_path):
    config = configured(tmp_path / "run")
    write(tmp_path / "run", config, step_records(config, [3.0]))
    config.doctor.logs = [str(tmp_path / "none*.log")]
    with pytest.raises(UserError, match="no file matches"):
        read_case(config, NOW)
    assert "is no path" in doctor_problems(DoctorConfig(logs=3))[0]


@pytest.mark.e2e
def test_the_script_prints_and_writes_what_it_found_with_exit_code_0(tmp_path):
    config = configured(tmp_path / "run")
    write(tmp_path / "run", config, step_records(config, [3.0] * 20, data_wait_share=0.5))
    done = launch("python", 1, "doctor.py", f"run_dir={tmp_path / 'run'}")
    record = json.loads((tmp_path / "run" / "doctor.json").read_text())
    assert record["sentence"] in done.stdout
    assert "starved loader" in record["sentence"]


@pytest.mark.e2e
def test_a_wrong_folder_is_named_with_exit_code_2(tmp_path):
    done = launch("python", 1, "doctor.py", f"run_dir={tmp_path}", check=False)
    assert done.returncode == 2
    assert "has no config.yaml" in done.stderr
