"""Compare base and adapted model on held-out text: python launch/evaluate.py run_dir=runs/demo"""

from pathlib import Path

from cpt_dist.cli import run
from cpt_dist.config import CptConfig


def main(config: CptConfig) -> None:
    """Print bits per byte before and after, and write report.json, report.md and report.html."""
    from cpt_dist.evaluation.inputs import check_inputs

    check_inputs(config)  # before the imports below, which take seconds
    from cpt_dist.console import output_console
    from cpt_dist.evaluation.evaluate import evaluate
    from cpt_dist.evaluation.report import write_report
    from cpt_dist.evaluation.run_log import RunLog
    from cpt_dist.evaluation.table import print_table

    console = output_console()
    with console.status("evaluating") as status:
        evaluation = evaluate(config, status.update)
    record = write_report(evaluation, config.evaluate.out, RunLog.read(Path(config.run_dir) / "metrics.jsonl"))
    print_table(record, console)
    console.print(f"report: {Path(config.evaluate.out) / 'report.html'} (and .md, .json)", soft_wrap=True)


if __name__ == "__main__":
    run(main, needs=("run_dir", "model.path", "data.shards"))
