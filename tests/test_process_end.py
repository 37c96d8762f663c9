"""The exit code of a process that ends while a save is under way."""

import subprocess
import sys

PROGRAM = """
import threading, time, torch
from cpt_dist.process_end import SAVING_THREAD, end_process

def save():
    while True:
        torch.ones(50, 50) @ torch.ones(50, 50)

threading.Thread(target=save, name=SAVING_THREAD, daemon=True).start()
time.sleep(0.2)
print("said", end="")
end_process(2)
"""


def test_a_save_that_still_runs_does_not_abort_the_process():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "said", "")
