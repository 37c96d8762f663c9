"""How full best-fit packing makes the rows of prepared sources, beside the fullest that any packing could.

    python benchmarks/packing.py [SHARDS_FOLDER ...] [--seq-len 2048 4096 8192] [--out FILE]

SHARDS_FOLDER has sources written by launch/prepare.py (default: those of the demo). "possible" is an upper bound, from
the sum of tokens and from the documents that are too long to share a row (Martello and Toth's L2 bound, 1990). It
supposes that documents which fit are not cut, as concat does. "structural" is the same for packing=structural; "at
paragraphs" and "at lines" are its cuts at those places, of all its cuts, where there are any.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cpt_dist.data.best_fit import StructuralFit, best_fit_decreasing, pack_shard  # noqa: E402
from cpt_dist.data.packing import selected_documents  # noqa: E402
from cpt_dist.data.shards import Source  # noqa: E402
from cpt_dist.files import write_json  # noqa: E402

SEQ_LENS = (2048, 4096, 8192)
WIDTHS = (10, 8, 9, 10, 11, 15, 17, 12, 15, 10)


def fewest_rows(lengths: np.ndarray, seq_len: int) -> int:
    """A number of rows below which no packing gets that leaves documents of at most `seq_len` tokens whole."""
    short = np.sort(lengths[(lengths > 0) & (lengths <= seq_len)])
    before = np.concatenate([[0], np.cumsum(short)])
    half = int(short.searchsorted(seq_len // 2, side="right"))
    least = np.unique(np.append(short[:half], 0))  # documents shorter than this are left out of the count
    whole = short.searchsorted(seq_len - least, side="right")  # from here on a document has no company in its row
    small = before[half] - before[short.searchsorted(least)]
    room = (whole - half) * seq_len - (before[whole] - before[half])
    rows = len(short) - half + np.maximum(0, -(-(small - room) // seq_len))
    return max(int(rows.max()), -(-int(lengths.sum()) // seq_len))


def cut_without_need(lengths: np.ndarray, seq_len: int) -> int:
    """Documents of at most `seq_len` tokens that concatenation cuts."""
    ends = np.cumsum(lengths)
    return int(((ends - lengths) // seq_len != (ends - 1) // seq_len)[(lengths > 0) & (lengths <= seq_len)].sum())


def measure(source: Source, seq_len: int) -> dict[str, Any]:
    """One row of the table, over all shards of a source."""
    total = dict.fromkeys(("documents", "tokens", "rows", "alone", "fewest", "cut"), 0)
    begin = time.process_time()
    for shard in range(len(source.shard_tokens)):
        total["rows"] += len(pack_shard(selected_documents(source, shard), seq_len)[0]) - 1
    seconds = time.process_time() - begin
    for shard in range(len(source.shard_tokens)):
        lengths = np.diff(selected_documents(source, shard))[:, 0]
        total["documents"] += len(lengths)
        total["tokens"] += int(lengths.sum())
        total["fewest"] += fewest_rows(lengths, seq_len)
        total["cut"] += cut_without_need(lengths, seq_len)
        pieces = [np.full(int((lengths // seq_len).sum()), seq_len), lengths % seq_len]
        total["alone"] += best_fit_decreasing(np.concatenate([pieces[0], pieces[1][pieces[1] > 0]]), seq_len)[1]
    source.plan_folder = None  # nothing is to be written beside what is measured
    structural = StructuralFit.of(source, seq_len)
    cuts = structural.count_cuts(source)
    rows = {"utilisation": "rows", "best_fit_decreasing_alone": "alone", "possible": "fewest"}
    full = {name: total["tokens"] / (total[kind] * seq_len) for name, kind in rows.items()}
    return {
        "source": source.name,
        "seq_len": seq_len,
        "documents": total["documents"],
        "tokens": total["tokens"],
        **full,
        "cut_by_concat": total["cut"] / max(1, total["documents"]),
        "documents_per_cpu_second": total["documents"] / max(seconds, 1e-6),
        "structural": structural.num_tokens / (structural.num_rows * seq_len),
        "cuts": sum(cuts),
        "at_paragraphs": cuts.paragraphs / max(1, sum(cuts)),
        "at_lines": cuts.lines / max(1, sum(cuts)),
    }


def main() -> None:
    """Measure every source at every length, print the table and write the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, nargs="*", default=[ROOT / "runs" / "cache" / "shards"])
    parser.add_argument("--seq-len", type=int, nargs="+", default=list(SEQ_LENS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "packing.json")
    arguments = parser.parse_args()
    folders = [path.parent for shards in arguments.shards for path in sorted(shards.glob("*/manifest.json"))]
    if not folders:
        sys.exit(f"error: no prepared source in {[str(path) for path in arguments.shards]}; run `make demo` first")
    rows = []
    head = ("documents", "length", "full", "possible", "bfd alone", "cut by concat", "documents/cpu-s")
    head += ("structural", "at paragraphs", "at lines")
    print(f"{'source':<16}" + "".join(f"{name:>{width}}" for name, width in zip(head, WIDTHS, strict=True)))
    for folder in folders:
        source = Source.open(folder)
        for seq_len in arguments.seq_len:
            row = measure(source, seq_len)
            rows.append(row)
            shares = [row[name] for name in ("utilisation", "possible", "best_fit_decreasing_alone", "cut_by_concat")]
            print(
                f"{source.name:<16}{row['documents']:>10,}{seq_len:>8}{shares[0]:>9.2%}{shares[1]:>10.2%}"
                f"{shares[2]:>11.2%}{shares[3]:>15.1%}{row['documents_per_cpu_second']:>17,.0f}"
                f"{row['structural']:>12.2%}{row['at_paragraphs']:>15.1%}{row['at_lines']:>10.1%}",
                flush=True,
            )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, {"rows": rows})


if __name__ == "__main__":
    main()
