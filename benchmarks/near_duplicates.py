"""Which planted near-duplicates are found: precision and recall by their true Jaccard similarity.

Pairs are made from the documents of a corpus by replacing, inserting and deleting words here and there, until the
similarity of their sets of shingles, computed exactly, falls into each band. The whole curation then runs over them.

    python benchmarks/near_duplicates.py [CORPUS.jsonl] [pairs=200] [out=FOLDER]
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import tempfile
from pathlib import Path

from pyarrow import parquet

from cpt_dist.config import CptConfig, DataConfig, SourceConfig
from cpt_dist.corpus.curation.curate import curate
from cpt_dist.corpus.ngrams import words_of

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "runs" / "cache" / "corpora" / "sotu.jsonl"
EDGES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
WORDS = 400


def shingles(text: str, size: int) -> set[tuple[str, ...]]:
    """Every `size` words in a row."""
    words = words_of(text)
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}


def jaccard(one: str, other: str, size: int) -> float:
    """Similarity of the sets of shingles of two texts."""
    a, b = shingles(one, size), shingles(other, size)
    return len(a & b) / len(a | b)


def edited(text: str, share: float, random_: random.Random) -> str:
    """`text` with a share of its words replaced, doubled by another, or left out."""
    result = []
    for word in text.split():
        if random_.random() >= share:
            result.append(word)
            continue
        kind = random_.randrange(3)
        if kind < 2:
            result.append(f"{random_.choice('bcdfgklmnprst')}{random_.randrange(10_000)}")
        if kind == 1:
            result.append(word)
    return " ".join(result)


def plant(corpus: Path, pairs: int, size: int) -> list[tuple[str, str, float]]:
    """(text, edited text, similarity), as many as `pairs` in each band."""
    random_ = random.Random(7)
    texts = []
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            words = json.loads(line)["text"].split()
            texts += [" ".join(words[at : at + WORDS]) for at in range(0, len(words) - WORDS + 1, WORDS)]
    random_.shuffle(texts)
    wanted = dict.fromkeys(range(len(EDGES) - 1), pairs)
    planted = []
    for text in texts:
        if not any(wanted.values()):
            break
        for _ in range(8):
            other = edited(text, random_.random() ** 2 * 0.4, random_)
            similarity = jaccard(text, other, size)
            band = next(at for at in range(len(EDGES) - 1) if similarity <= EDGES[at + 1])
            if wanted[band]:
                wanted[band] -= 1
                planted.append((text, other, similarity))
                break
    return planted


def main() -> None:
    """Plant, curate, count; print the table and write it as JSON where `out` says."""
    options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    corpus = Path(next((word for word in sys.argv[1:] if "=" not in word), CORPUS))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw.jsonl"
        config = CptConfig(data=DataConfig(shards=str(folder / "shards"), held_out_fraction=0.0))
        # Only duplicates are of interest: the steps that score or change a document are turned off.
        steps = {"language": {"detector": "none"}, "quality": {"enabled": False}, "pii": {"policy": "off"}}
        config.data.sources = {"text": SourceConfig(raw=[str(raw)], curation=steps)}
        config.data.curation.folder = str(folder / "curated")
        size = config.data.curation.near_duplicates.shingle_words
        planted = plant(corpus, int(options.get("pairs", 200)), size)
        raw.write_text("".join(json.dumps({"text": text}) + "\n" for pair in planted for text in pair[:2]))
        done = curate(config)["text"]
        gone = {
            row["record"]: row["reason"]
            for entry in done.manifest["dropped"]
            for row in parquet.read_table(done.folder / entry["file"], columns=["record", "reason"]).to_pylist()
        }
    threshold = config.data.curation.near_duplicates.threshold
    table = []
    for low, high in itertools.pairwise(EDGES):
        band = [place for place, pair in enumerate(planted) if low < pair[2] <= high]
        found = sum(2 * place in gone or 2 * place + 1 in gone for place in band)
        table.append({"above": low, "to": high, "pairs": len(band), "one_dropped": found})
    right = sum((2 * p in gone or 2 * p + 1 in gone) and planted[p][2] >= threshold for p in range(len(planted)))
    all_found = sum(row["one_dropped"] for row in table)
    like = sum(pair[2] >= threshold for pair in planted)
    print(f"threshold {threshold}, {len(planted)} pairs of about {WORDS} words from {corpus.name}")
    print(f"{'similarity':>12} {'pairs':>6} {'one dropped':>12}")
    for row in table:
        share = row["one_dropped"] / row["pairs"] if row["pairs"] else float("nan")
        print(f"{row['above']:.2f} – {row['to']:.2f} {row['pairs']:>7} {row['one_dropped']:>5} {share:>7.1%}")
    print(f"precision {right / max(all_found, 1):.4f}, recall {right / max(like, 1):.4f} at the threshold")
    if "out" in options:
        record = {"threshold": threshold, "bands": table, "precision": right / max(all_found, 1)}
        path = Path(options["out"]) / "near_duplicates.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**record, "recall": right / max(like, 1)}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
