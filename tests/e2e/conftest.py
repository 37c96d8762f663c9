import copy

import pytest

from tests.helpers import tiny_run


class Tiny:
    """A prepared tiny run; `changed` gives an experiment with other values, `arguments` its command line."""

    def __init__(self, folder):
        self.folder = folder
        self.config = tiny_run.build(folder)
        self.number = 0

    def arguments(self, *overrides, **changes):
        """Command-line words of the experiment with whole top-level groups replaced, in a run directory of its own."""
        self.number += 1
        config = copy.deepcopy(self.config) | changes
        config["run_dir"] = str(self.folder / f"run-{self.number}")
        configs = tiny_run.write_experiment(self.folder, config, f"tiny{self.number}")
        self.run_dir = self.folder / f"run-{self.number}"
        return [f"--config-dir={configs}", f"experiment=tiny{self.number}", *overrides]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("tiny"))
