"""Suites and fine-tuning data of the medical study, from what `corpora.for_tasks` keeps out of the training text.

go_mc and wordnet_mc ask for the term or word of a definition; wrong choices are siblings in the ontology, or words of
the same WordNet file. cloze asks for the last word of a sentence of an address, where that word stands in the text
before it (the idea of LAMBADA, arXiv 1606.06031). aspect is for the probe: to which of the ontology's three parts does
a definition belong? Random choices are drawn with a seed made of the item's id, so the files are the same everywhere.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cpt_dist.files import atomic_write
from demo.corpora import sotu
from studies.corpora import Gloss, Term, address_of, for_tasks, share

ASPECTS = ("biological process", "cellular component", "molecular function")
CHOICES = 4
MANY_WORDS = (8, 60)
"""Words of a definition that is asked about."""


def _words(text: str) -> int:
    return len(text.split())


def _item(identity: str, query: str, right: str, wrong: Sequence[str]) -> dict[str, Any]:
    generator = random.Random(identity)
    choices = [right, *wrong]
    generator.shuffle(choices)
    return {"id": identity, "query": query, "choices": choices, "gold": choices.index(right)}


def _drawn(generator: random.Random, pools: Iterable[Sequence[str]], right: str) -> list[str] | None:
    """CHOICES - 1 different wrong names, from the first pools as far as they reach."""
    wrong: list[str] = []
    for pool in pools:
        for name in generator.sample(pool, min(len(pool), 4 * CHOICES)):
            if len(wrong) < CHOICES - 1 and name != right and name not in wrong:
                wrong.append(name)
    return wrong if len(wrong) == CHOICES - 1 else None


def _task_terms(terms: Sequence[Term]) -> list[Term]:
    """Terms kept for tasks with a definition that doesn't give the name away, in an order that depends on ids alone."""
    kept = [
        term
        for term in terms
        if for_tasks(term.id)
        and MANY_WORDS[0] <= _words(term.definition) <= MANY_WORDS[1]
        and term.name.lower() not in term.definition.lower()
    ]
    return sorted(kept, key=lambda term: share(f"order {term.id}"))


def go_mc(terms: Sequence[Term], number: int) -> list[dict[str, Any]]:
    """Definition -> term; wrong ones are siblings, else terms of the same aspect."""
    siblings, aspects = defaultdict(list), defaultdict(list)
    for term in terms:
        aspects[term.aspect].append(term.name)
        for parent in term.parents:
            siblings[parent].append(term.name)
    items: list[dict[str, Any]] = []
    for term in _task_terms(terms)[: 2 * number]:
        generator = random.Random(f"wrong {term.id}")
        wrong = _drawn(generator, [*(siblings[parent] for parent in term.parents), aspects[term.aspect]], term.name)
        if wrong:
            items.append(_item(term.id, f"Definition: {term.definition}\nTerm:", term.name, wrong))
    return items[:number]


def wordnet_mc(glosses: Sequence[Gloss], number: int) -> list[dict[str, Any]]:
    """Definition -> word; wrong ones are words of the same WordNet file."""
    words = defaultdict(list)
    for gloss in glosses:
        if gloss.words[0].islower():
            words[gloss.kind].append(gloss.words[0])
    kept = [
        gloss
        for gloss in glosses
        if for_tasks(gloss.id)
        and MANY_WORDS[0] <= _words(gloss.definition) <= MANY_WORDS[1]
        and gloss.words[0].islower()
        and gloss.words[0] not in gloss.definition.lower()
    ]
    items = []
    for gloss in sorted(kept, key=lambda one: share(f"order {one.id}"))[:number]:
        wrong = _drawn(random.Random(f"wrong {gloss.id}"), [words[gloss.kind]], gloss.words[0])
        if wrong:
            items.append(_item(gloss.id, f"Definition: {gloss.definition}\nWord:", gloss.words[0], wrong))
    return items


def cloze(number: int) -> list[dict[str, str]]:
    """Beginning of a passage -> the last word of a sentence, which stands in the passage before it."""
    found = []
    for passage in sotu():
        if not for_tasks(address_of(passage["id"])):
            continue
        text = " ".join(passage["text"].split())
        for match in re.finditer(r"(?<=\s)([a-z]{5,})[.!?](?=\s)", text):
            context = text[: match.start()].rstrip()
            if 60 <= _words(context) <= 130 and re.search(rf"\b{match[1]}\b", context):
                found.append({"id": f"{passage['id']}/{match.start()}", "query": context, "answer": match[1]})
                break
    return sorted(found, key=lambda one: share(f"order {one['id']}"))[:number]


def aspect(terms: Sequence[Term], number: int, examples: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(gold items, training examples) of definition -> aspect, the three about equally often, none a go_mc item's."""
    groups: dict[str, list[Term]] = {name: [] for name in ASPECTS}
    for term in _task_terms(terms)[::-1]:  # go_mc takes from the other end
        groups[term.aspect].append(term)
    rows = []
    for one in zip(*groups.values(), strict=False):
        for term in one:
            query = f"Definition: {term.definition}\nPart of the ontology:"
            row = {"id": term.id, "query": query, "choices": list(ASPECTS), "gold": ASPECTS.index(term.aspect)}
            rows.append(row)
    return rows[:number], rows[number : number + examples]


SUITES: dict[str, dict[str, Any]] = {
    "go_mc": {"capability": "knowledge", "kind": "multiple_choice", "choices": "choices", "metric": "acc_norm"},
    "wordnet_mc": {"capability": "language", "kind": "multiple_choice", "choices": "choices", "metric": "acc_norm"},
    "cloze": {"capability": "language", "kind": "cloze"},
    "aspect": {"capability": "knowledge", "kind": "multiple_choice", "choices": "choices", "metric": "acc"},
}


def _suite_text(name: str) -> Iterator[str]:
    answer = "answer" if SUITES[name]["kind"] == "cloze" else "gold"
    fields = SUITES[name] | {"data": f"{name}.jsonl", "prompt": "{{ query }}", "answer": answer}
    yield from (f"{key}: {json.dumps(value)}\n" for key, value in fields.items())


def write_tasks(folder: Path, terms: Sequence[Term], glosses: Sequence[Gloss], number: int, examples: int) -> None:
    """Write a suite file with at most `number` items for each of SUITES, and aspect_train.jsonl, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    gold, train = aspect(terms, number, examples)
    rows = {"go_mc": go_mc(terms, number), "wordnet_mc": wordnet_mc(glosses, number), "cloze": cloze(number)}
    for name, items in {**rows, "aspect": gold, "aspect_train": train}.items():
        with atomic_write(folder / f"{name}.jsonl", "w") as handle:
            handle.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        if name in SUITES:
            with atomic_write(folder / f"{name}.yaml", "w") as handle:
                handle.writelines(_suite_text(name))
