"""Is it easier to fine-tune now? python launch/probe.py base=FOLDER adapted=FOLDER data=train.jsonl gold=gold.yaml"""

from dataclasses import fields

from cpt_dist.cli import run
from cpt_dist.config import CptConfig
from cpt_dist.probe_config import ProbeConfig

WORDS = {"base": "evaluate.base", "adapted": "evaluate.adapted", "control": "verdict.control"}


def main(config: CptConfig) -> None:
    """Print scores and gains of fine-tuning from base and from adapted, and write probe.json, probe.md and .html."""
    from cpt_dist.probe.inputs import check_probe_inputs

    check_probe_inputs(config)  # before the imports below, which take seconds
    from cpt_dist.console import output_console
    from cpt_dist.probe.compare import probe
    from cpt_dist.probe.report import print_probe, write_probe

    console = output_console()
    record = write_probe(probe(config, lambda line: console.print(line, soft_wrap=True)), config.probe.out)
    print_probe(record, console)
    console.print(f"report: {config.probe.out}/probe.html (and .md, .json)", soft_wrap=True)


if __name__ == "__main__":
    run(main, short=WORDS | {field.name: f"probe.{field.name}" for field in fields(ProbeConfig)})
