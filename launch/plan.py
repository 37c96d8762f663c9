"""The whole run, before it costs anything: python launch/plan.py experiment=demo, in detail with what=data."""

from cpt_dist.cli import run
from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError


def main(config: CptConfig) -> None:
    """Print the plan and write plan.json with its figure and, of the whole run, plan.html."""
    if config.plan.what == "data":
        if not config.data.shards:
            raise UserError("data.shards is missing; give it: data.shards=…")
        from cpt_dist.planning.data_plan import plan_data as plan_of
        from cpt_dist.planning.data_report import print_data_plan as show
        from cpt_dist.planning.data_report import write_data_plan as write
    else:
        from cpt_dist.planning.run_plan import plan_run as plan_of
        from cpt_dist.planning.run_report import print_run_plan as show
        from cpt_dist.planning.run_report import write_run_plan as write

    plan = plan_of(config)
    from cpt_dist.console import output_console

    console = output_console()
    show(plan, console)
    paths = write(plan, config.plan.out)
    console.print(f"plan: {', '.join(str(path) for path in paths)}", soft_wrap=True)


if __name__ == "__main__":
    names = {name: f"plan.{name}" for name in ("what", "out", "world_size")}
    run(main, needs=("run_dir", "stages"), short=names)
