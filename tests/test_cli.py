import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import errno, os
from cpt_dist.cli import run

def main(config):
    raise OSError({number}, os.strerror({number}), "runs/x/metrics.jsonl")

run(main)
"""


def result_of(number):
    words = [sys.executable, "-c", PROGRAM.format(number=number), "model.path=x", "data.shards=y", "run_dir=z"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ)


def test_a_full_disk_is_one_line_and_exit_code_2():
    done = result_of(28)
    assert done.returncode == 2
    assert done.stderr.startswith("error: runs/x/metrics.jsonl: No space left on device; make room")
    assert done.stderr.count("\n") == 1


def test_an_error_that_is_no_mistake_keeps_its_traceback():
    done = result_of(5)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_file_where_a_folder_is_needed_is_one_line_and_exit_code_2():
    done = result_of(20)
    assert done.returncode == 2
    assert done.stderr == "error: runs/x/metrics.jsonl: Not a directory; give another path\n"


def test_ctrl_c_is_one_line_and_the_shells_exit_code():
    program = PROGRAM.format(number=0).replace("raise OSError", "raise KeyboardInterrupt #")
    words = [sys.executable, "-c", program, "model.path=x", "data.shards=y", "run_dir=z"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 130
    assert done.stderr == "interrupted; what was finished stays: start again to go on\n"


def test_what_is_checked_before_a_program_starts_imports_nothing_heavy():
    modules = [
        "training.preflight",
        "diagnosis.inputs",
        "evaluation.inputs",
        "evaluation.suites.inputs",
        "probe.inputs",
    ]
    imports = ", ".join(f"cpt_dist.{module}" for module in modules)
    program = f"import sys, {imports}\nprint([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
