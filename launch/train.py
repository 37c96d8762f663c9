"""Train, or go on with a run that was stopped: python | torchrun … | deepspeed … launch/train.py experiment=demo"""

from cpt_dist.cli import run
from cpt_dist.config import CptConfig
from cpt_dist.model.stage_lengths import length_problems


def main(config: CptConfig) -> None:
    """Check the files that the configuration names, then train."""
    from cpt_dist.training.preflight import check_files

    check_files(config)
    from cpt_dist.training.trainer import train

    train(config)


if __name__ == "__main__":
    run(main, needs=("run_dir", "model.path", "data.shards", "stages"), checks=[length_problems])
