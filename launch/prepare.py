"""Raw text to token shards: python launch/prepare.py model.path=… data=… (docs/prepare.md)."""

from cpt_dist.cli import run
from cpt_dist.config import CptConfig


def main(config: CptConfig) -> None:
    """Prepare every source of `config.data.sources`."""
    from cpt_dist.data.prepare import prepare

    prepare(config)


if __name__ == "__main__":
    run(main, needs=("data.sources", "data.shards", "data.tokenizer"))
