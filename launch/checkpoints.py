"""Look after a run's checkpoints: python launch/checkpoints.py run_dir=… [verify|prune|show STEP|name STEP NAME]"""

from cpt_dist.cli import run
from cpt_dist.config import CptConfig

WORDS = ("checkpoints.what", "checkpoints.step", "checkpoints.name")


def main(config: CptConfig) -> None:
    """Do what `checkpoints.what` says and print a table."""
    from cpt_dist.checkpoint.manage import manage

    manage(config)


if __name__ == "__main__":
    run(main, needs=("run_dir",), short={word.removeprefix("checkpoints."): word for word in WORDS}, words=WORDS)
