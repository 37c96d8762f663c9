"""What a run will read, before it costs anything: python launch/plan.py experiment=demo what=data"""

from cpt_dist.cli import run
from cpt_dist.config import CptConfig


def main(config: CptConfig) -> None:
    """Print the plan and write plan.json and mixture.png."""
    from cpt_dist.planning.data_plan import plan_data

    plan = plan_data(config)
    from cpt_dist.console import output_console
    from cpt_dist.planning.data_report import print_data_plan, write_data_plan

    console = output_console()
    print_data_plan(plan, console)
    paths = write_data_plan(plan, config.plan.out)
    console.print(f"plan: {', '.join(str(path) for path in paths)}", soft_wrap=True)


if __name__ == "__main__":
    run(main, needs=("run_dir", "data.shards", "stages"), short={"what": "plan.what", "out": "plan.out"})
