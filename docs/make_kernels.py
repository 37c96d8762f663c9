"""Write the tables of docs/kernels.md: python docs/make_kernels.py (a test compares them)."""

from __future__ import annotations

from pathlib import Path

from cpt_kernels.roofline import bounds_text
from cpt_kernels.table import table_text
from cpt_kernels.verify.ahead_of_time import kept_figures, key
from cpt_kernels.verify.builds import BUILDS, TARGETS

PAGE = Path(__file__).with_name("kernels.md")


def figures_text() -> str:
    """Registers, spilled bytes, shared bytes and matrix instructions of each kernel for each target."""
    kept = kept_figures()
    lines = ["| registers / spilled bytes / shared bytes / matrix instructions | " + " | ".join(TARGETS) + " |"]
    lines.append("|---" * (len(TARGETS) + 1) + "|")
    for build in BUILDS:
        cells = []
        for target in TARGETS:
            one = kept[key(build, target)]
            cells.append(f"{one.registers} / {one.spilled_bytes} / {one.shared_bytes} / {one.matrix_instructions}")
        lines.append(f"| {build.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, made in {"table": table_text(), "figures": figures_text(), "bounds": bounds_text()}.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        head, _, rest = text.partition(begin)
        text = head + begin + made + "\n" + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
