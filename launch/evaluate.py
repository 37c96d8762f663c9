"""Compare base and adapted model: python launch/evaluate.py run_dir=runs/demo [checkpoints=all|what=suites|…]"""

from pathlib import Path

from cpt_dist.cli import run
from cpt_dist.config import CptConfig

WORDS = {
    "what": "evaluate.what",
    "base": "evaluate.base",
    "adapted": "evaluate.adapted",
    "model": "evaluate.adapted",
    "out": "evaluate.out",
    "checkpoints": "evaluate.checkpoints",
    "documents": "evaluation.long_context.documents",
    "suites": "suites.run",
}


def main(config: CptConfig) -> None:
    """Print what was measured, and write it as JSON, Markdown and one HTML page."""
    if config.evaluate.what == "long_context":
        _long_context(config)
    elif config.evaluate.checkpoints is not None:
        _checkpoints(config)
    else:
        _held_out_and_suites(config)


def _held_out_and_suites(config: CptConfig) -> None:
    from cpt_dist.evaluation.suites.inputs import check_suite_inputs, scores_held_out
    from cpt_dist.suites_config import asks_anything

    if config.evaluate.what == "suites" or asks_anything(config.suites):
        check_suite_inputs(config)  # a mistake in the suites is known before held-out text is scored
        from cpt_dist.evaluation.suites.run import read_questions
        from cpt_dist.evaluation.suites.tasks import find_tasks

        if questions := read_questions(config).suites:
            find_tasks(questions, config.suites.task_folders)
    if scores_held_out(config):
        _held_out(config)
    if asks_anything(config.suites):
        _suites(config)


def _held_out(config: CptConfig) -> None:
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


def _checkpoints(config: CptConfig) -> None:
    from cpt_dist.evaluation.inputs import check_trajectory_inputs

    check_trajectory_inputs(config)  # before the imports below, which take seconds
    from cpt_dist.console import output_console
    from cpt_dist.evaluation.trajectory import follow
    from cpt_dist.evaluation.trajectory_report import print_trajectory, write_trajectory

    console = output_console()
    with console.status("evaluating") as status:
        found = follow(config, status.update)
    print_trajectory(write_trajectory(found, config.evaluate.out), console)
    console.print(f"report: {Path(config.evaluate.out) / 'trajectory.html'} (and .md, .json)", soft_wrap=True)


def _suites(config: CptConfig) -> None:
    from cpt_dist.console import output_console
    from cpt_dist.evaluation.suites.report import print_suites, write_suites_report
    from cpt_dist.evaluation.suites.run import evaluate_suites

    console = output_console()
    with console.status("asking") as status:
        evaluation = evaluate_suites(config, status.update)
    print_suites(write_suites_report(evaluation, config.evaluate.out), console)
    console.print(f"report: {Path(config.evaluate.out) / 'suites.html'} (and .md, .json)", soft_wrap=True)


def _long_context(config: CptConfig) -> None:
    from cpt_dist.evaluation.long_context.inputs import check_long_context

    check_long_context(config)  # before the imports below, which take seconds
    from cpt_dist.console import output_console
    from cpt_dist.evaluation.long_context.measure import evaluate_long_context
    from cpt_dist.evaluation.long_context.report import print_tables, write_report

    console = output_console()
    with console.status("evaluating") as status:
        evaluation = evaluate_long_context(config, status.update)
    print_tables(write_report(evaluation, config.evaluate.out), console)
    console.print(f"report: {Path(config.evaluate.out) / 'long_context.html'} (and .md, .json)", soft_wrap=True)


if __name__ == "__main__":
    run(main, short=WORDS)
