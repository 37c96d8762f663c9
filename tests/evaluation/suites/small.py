"""A tiny byte-level model folder and suite files about random words."""

import json
import random

from tests.helpers.models import tiny_llama
from tests.helpers.tokenizer import tiny_tokenizer

NOUNS = "cell gland nerve vein bone joint tumour fever graft lesion".split()  # noqa: SIM905


def model_folder(folder, seed=0, **changes):
    """A random model over bytes, with 256 positions."""
    tiny_llama(folder, vocab_size=259, seed=seed, max_position_embeddings=256, **changes)
    return tiny_tokenizer(folder)


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(num_items, seed=0, choices=4):
    """Rows of a multiple-choice file: query, choices of different lengths, gold."""
    rng = random.Random(seed)
    rows = []
    for number in range(num_items):
        options = rng.sample(NOUNS, choices)
        query = f"Question {number}: which word follows {' '.join(rng.sample(NOUNS, 3))}?"
        rows.append({"query": query, "choices": options, "gold": rng.randrange(choices)})
    return rows


def suite_file(folder, name="words", rows=None, **fields):
    """A suite file beside its data; `fields` change or add fields, None takes one out."""
    write_rows(folder / f"{name}.jsonl", questions(12) if rows is None else rows)
    content = {
        "capability": "language",
        "kind": "multiple_choice",
        "data": f"{name}.jsonl",
        "prompt": "{{ query }}",
        "choices": "choices",
        "answer": "gold",
    } | fields
    path = folder / f"{name}.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in content.items() if value is not None))
    return path
