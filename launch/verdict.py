"""Was it worth it? python launch/verdict.py run_dir=runs/demo [control=FOLDER] [most_loss=0.02]"""

from pathlib import Path

from cpt_dist.cli import run
from cpt_dist.config import CptConfig

WORDS = {
    "base": "evaluate.base",
    "adapted": "evaluate.adapted",
    "control": "verdict.control",
    "least_gain": "verdict.least_gain",
    "most_loss": "verdict.most_loss",
    "averages": "verdict.averages",
    "suites": "suites.run",
    "goals": "verdict.goals",
    "probe": "verdict.probe",
    "out": "verdict.out",
}


def main(config: CptConfig) -> None:
    """Print helped, did not help or undecided with the claims behind it; write verdict.json, .md and .html."""
    from cpt_dist.evaluation.inputs import check_verdict_inputs

    check_verdict_inputs(config)  # before the imports below, which take seconds
    from cpt_dist.console import output_console
    from cpt_dist.evaluation.run_log import RunLog
    from cpt_dist.evaluation.verdict import judge
    from cpt_dist.evaluation.verdict_report import print_verdict, write_verdict
    from cpt_dist.evaluation.verdict_trajectory import trajectory_part

    console = output_console()
    with console.status("judging") as status:
        judgement = judge(config, status.update)
    log = RunLog.read(Path(config.run_dir) / "metrics.jsonl")
    record = write_verdict(judgement, config.verdict.out, log, trajectory_part(config, judgement, log))
    print_verdict(record, console)
    console.print(f"report: {Path(config.verdict.out) / 'verdict.html'} (and .md, .json)", soft_wrap=True)


if __name__ == "__main__":
    run(main, needs=("run_dir", "model.path", "data.shards"), short=WORDS)
