import pytest

from tests.doctor.run_folder import case_of, configured, losses, step_records, write


@pytest.fixture
def run(tmp_path):
    """Makes a run directory that is healthy but for what is given, and gives its case."""

    def made(num_steps=150, values=None, config=None, steps=None, prepare=lambda folder: None, **parts):
        config = config or configured(tmp_path / "run")
        values = losses(num_steps) if values is None else values
        records = step_records(config, values, **(steps or {}))
        folder = write(tmp_path / "run", config, records, **parts)
        prepare(folder)
        return case_of(folder, config)

    return made
