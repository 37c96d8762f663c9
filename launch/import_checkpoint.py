"""Take over another trainer's checkpoint: python launch/import_checkpoint.py from=FOLDER model=BASE out=HF_FOLDER"""

from cpt_dist.cli import run
from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError

WORDS = ("model", "out", "dtype", "fp32_names", "max_shard_size", "workers", "check_logits")


def main(config: CptConfig) -> None:
    """Import the checkpoint that the configuration names and print what was written."""
    given = config.import_checkpoint
    words = {"from": given.source, "model": given.model, "out": given.out}
    missing = [f"{word} is missing; give it: {word}=FOLDER" for word, value in words.items() if not value]
    if missing:
        raise UserError(missing)
    from cpt_dist.checkpoint.import_checkpoint import import_run

    import_run(config)


if __name__ == "__main__":
    run(
        main,
        short={"from": "import_checkpoint.source"} | {word: f"import_checkpoint.{word}" for word in WORDS},
    )
