"""The items of suite files as a file of evaluation items, so that curation keeps them out of the text.

Nothing is searched or scored here. What a file says hangs on the suites alone, so it's written once.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from cpt_dist.config import CptConfig
from cpt_dist.corpus.curation.curate import SUITES
from cpt_dist.evaluation.suites.suite_file import read_suites
from cpt_dist.files import atomic_write


def with_suite_items(config: CptConfig) -> CptConfig:
    """`config` with a file of each suite's items among those that curation decontaminates against.

    Written only where a source is curated and `data.curation.decontamination.suites` is on. Raises UserError for suite
    files that are missing or wrong.
    """
    wanted = config.data.curation.decontamination
    if not wanted.suites or all(source.curation is None for source in config.data.sources.values()):
        return config
    folder = Path(config.data.curation.folder) / SUITES
    files = []
    for suite in read_suites(config.suites.run):
        if not suite.items:
            print(
                f"suite '{suite.name}': a task of lm-evaluation-harness, whose items are not searched for", flush=True
            )
            continue
        lines = [
            json.dumps({"prompt": item.prompt, "answer": item.answer, "choices": item.choices}, ensure_ascii=False)
            for item in suite.items
        ]
        content = "".join(line + "\n" for line in lines)
        path = folder / f"{suite.name}.jsonl"
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, "w") as handle:
                handle.write(content)
        files.append(str(path))
    if not files:
        return config
    curation = replace(config.data.curation, decontamination=replace(wanted, files=[*wanted.files, *files]))
    return replace(config, data=replace(config.data, curation=curation))
