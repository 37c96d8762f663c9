"""What is wrong with this run, and what to change: python launch/doctor.py run_dir=runs/demo"""

from cpt_dist.cli import run
from cpt_dist.config import CptConfig


def main(config: CptConfig) -> None:
    """Print what was found and write doctor.json, doctor.md and doctor.html."""
    import time

    from cpt_dist.console import output_console
    from cpt_dist.doctor.case import read_case
    from cpt_dist.doctor.report import build_record, examine, print_record, write_record

    case = read_case(config, time.time())
    record = build_record(case, examine(case))
    console = output_console()
    print_record(record, console)
    write_record(record, config.doctor.out, case.log)
    console.print(f"findings: {config.doctor.out} (and .md, .html)", soft_wrap=True)


if __name__ == "__main__":
    run(main, needs=("run_dir",), short={"logs": "doctor.logs", "out": "doctor.out"})
