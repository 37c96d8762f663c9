import subprocess
import sys

SCRIPT = """
import torch
import torch.distributed as dist
from cpt_dist.config import EngineConfig
from cpt_dist.engine.distributed import start, stop

start(EngineConfig(timeout_seconds=7, threads=1))
made = [dist.new_group(), dist.init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b")).get_group("a")]
print([group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in made])
stop()
"""


def test_groups_that_libraries_make_take_the_configured_timeout():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1:] == ["[7.0, 7.0]"], done.stderr
