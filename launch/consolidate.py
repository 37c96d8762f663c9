"""Turn a run's checkpoint into a Hugging Face model: python launch/consolidate.py run_dir=runs/demo dtype=bf16"""

from cpt_dist.cli import run
from cpt_dist.config import CptConfig

WORDS = ("step", "out", "dtype", "fp32_names", "max_shard_size", "workers", "check_logits")


def main(config: CptConfig) -> None:
    """Consolidate the checkpoint that the configuration names and print what was written."""
    from cpt_dist.checkpoint.consolidate import consolidate_run

    consolidate_run(config)


if __name__ == "__main__":
    run(main, needs=("run_dir",), short={word: f"consolidate.{word}" for word in WORDS})
