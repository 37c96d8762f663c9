"""Submit a run to Slurm: python launch/submit.py experiment=demo cluster=slurm nodes=4 --dry-run (docs/cluster.md)."""

import sys

from cpt_dist.cli import composed, run, user_mistakes
from cpt_dist.cluster.request import parse_request
from cpt_dist.config import CptConfig

NEEDS = ("run_dir", "model.path", "data.shards", "stages")
KEYS = ("nodes", "launcher", "time", "partition", "account", "qos", "chain", "after", "container")
SHORT = {key: f"cluster.{key}" for key in KEYS}

with user_mistakes():
    request = parse_request(sys.argv[1:], SHORT)
    for task in request.sweep[1:]:
        composed([*request.words, *task], NEEDS)


def main(config: CptConfig) -> None:
    """Show the batch files of the request and submit them; `config` is that of its first task."""
    from cpt_dist.cluster.submission import submit

    submit(request, config)


if __name__ == "__main__":
    sys.argv[1:] = request.first_task
    run(main, needs=NEEDS, short=SHORT)
