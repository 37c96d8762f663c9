"""Raw text to token shards: python launch/prepare.py model.path=… data=… (docs/prepare.md, docs/curation.md)."""

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


if __name__ == "__main__":
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
