"""Turn a run's checkpoint into a Hugging Face model folder: python launch/consolidate.py run_dir=runs/demo"""

from cpt_dist.cli import run
from cpt_dist.config import CptConfig


def main(config: CptConfig) -> None:
    """Consolidate the checkpoint that the configuration names and print what was written."""
    from cpt_dist.checkpoint.consolidate import consolidate_run

    consolidate_run(config)


if __name__ == "__main__":
    run(main, needs=("run_dir",))
