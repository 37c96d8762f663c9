"""Raw text to token shards: python launch/prepare.py model.path=… data=… (docs/prepare.md, docs/curation.md)."""

import sys

from cpt_dist.cli import run
from cpt_dist.config import CptConfig


def problems_of_curation(config: CptConfig) -> list[str]:
    """What is wrong with the settings under data.sources.NAME.curation."""
    if all(source.curation is None for source in config.data.sources.values()):
        return []
    from cpt_dist.corpus.curation.step_lists import curation_problems

    return curation_problems(config)


def main(config: CptConfig) -> None:
    """Curate the sources that ask for it, and prepare every source of `config.data.sources`."""
    from cpt_dist.data.curated import curate_with_progress, with_curated_sources
    from cpt_dist.data.prepare import prepare
    from cpt_dist.evaluation.suites.suite_items import with_suite_items

    folders = curate_with_progress(with_suite_items(config))
    if config.prepare.what == "shards":
        prepare(*with_curated_sources(config, folders))
    elif config.prepare.what == "report":
        from cpt_dist.planning.curation_page import report

        report(config, folders)


def with_raw(words: list[str]) -> list[str]:
    """The words of a command line with raw=FILES as the raw files of the source that data=NAME is called after."""
    name = next((word.removeprefix("data=") for word in words if word.startswith("data=")), None)
    given = [word.removeprefix("raw=") for word in words if word.startswith("raw=")]
    if name is None or not given:
        return words
    files = given[-1] if given[-1].startswith("[") else f"[{given[-1]}]"
    return [f"data.sources.{name}.raw={files}" if word == f"raw={given[-1]}" else word for word in words]


if __name__ == "__main__":
    sys.argv[1:] = with_raw(sys.argv[1:])
    run(
        main,
        needs=("data.sources", "data.shards", "data.tokenizer"),
        short={
            "what": "prepare.what",
            "executor": "data.curation.executor",
            "tasks": "data.curation.tasks",
            "out": "data.shards",
        },
        checks=(problems_of_curation,),
    )
