"""Do I need continued pretraining at all? python launch/diagnose.py model=FOLDER domain=FILES general=FILES"""

from dataclasses import fields

from cpt_dist.cli import run
from cpt_dist.config import CptConfig
from cpt_dist.diagnose_config import DiagnoseConfig


def main(config: CptConfig) -> None:
    """Print what was measured and the ranked options, and write diagnosis.json, diagnosis.md and diagnosis.html."""
    from cpt_dist.diagnosis.inputs import check_inputs

    check_inputs(config)  # before the imports below, which take seconds
    from cpt_dist.console import output_console
    from cpt_dist.diagnosis.diagnose import diagnose
    from cpt_dist.diagnosis.report import write_report
    from cpt_dist.diagnosis.table import print_record

    console = output_console()
    with console.status("diagnosing") as status:
        found = diagnose(config, status.update)
    record, paths = write_report(found, config)
    print_record(record, console)
    console.print(f"report: {', '.join(str(path) for path in paths)}", soft_wrap=True)


if __name__ == "__main__":
    run(
        main,
        needs=("model.path",),
        short={"model": "model.path"} | {field.name: f"diagnose.{field.name}" for field in fields(DiagnoseConfig)},
    )
