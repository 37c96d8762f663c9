"""What the medical study trains on and asks: read right, kept apart, the same everywhere."""

import json

from cpt_dist.evaluation.suites.suite_file import read_suite
from studies import corpora, tasks
from studies.corpora import Gloss, Term, for_tasks, gloss_texts, term_texts

OBO = """format-version: 1.2

[Term]
id: GO:0000001
name: mitochondrion inheritance
namespace: biological_process
def: "The \\"distribution\\" of mitochondria into daughter cells." [GOC:mcc]
synonym: "mitochondrial inheritance" EXACT []
synonym: "something near" RELATED []
is_a: GO:0048308 ! organelle inheritance
is_a: GO:0048311 {source="x"} ! mitochondrion distribution

[Term]
id: GO:0000005
name: obsolete ribosomal chaperone activity
namespace: molecular_function
def: "OBSOLETE." [GOC:jl]
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""
LINE = (
    '02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 022 @ 02083346 n 0000 | a member of the genus Canis; "'
    'the dog barked all night"; "a good dog"  '
)


def material(number=400):
    terms = [
        Term(
            f"GO:{n}",
            f"name {n}",
            tasks.ASPECTS[n % 3],
            f"what is meant by the thing with this number {n} here",
            [],
            [f"GO:{n % 7}"],
        )
        for n in range(number)
    ]
    glosses = [
        Gloss(f"noun/{n}", [f"word{n}"], n % 4, f"what is meant by the other thing with {n}", []) for n in range(number)
    ]
    return terms, glosses


def test_terms_and_glosses_are_read():
    (term,) = corpora._terms(OBO)
    assert (term.id, term.name, term.aspect) == ("GO:0000001", "mitochondrion inheritance", "biological process")
    assert term.definition == 'The "distribution" of mitochondria into daughter cells.'
    assert (term.synonyms, term.parents) == (["mitochondrial inheritance"], ["GO:0048308", "GO:0048311"])
    gloss = corpora._gloss("noun", LINE)
    assert gloss.words == ["dog", "domestic dog", "Canis familiaris"]
    assert (gloss.kind, gloss.definition) == (5, "a member of the genus Canis")
    assert gloss.examples == ["the dog barked all night", "a good dog"]


def test_what_is_asked_stands_in_no_training_text():
    terms, glosses = material()
    trained = {one["id"] for one in (*term_texts(terms), *gloss_texts(glosses))}
    gold, train = tasks.aspect(terms, 9, 6)
    questions = tasks.go_mc(terms, 10)
    asked = {one["id"] for one in (*questions, *tasks.wordnet_mc(glosses, 10), *gold, *train)}
    assert len(asked) == 35
    assert all(for_tasks(identity) for identity in asked)
    assert not asked & trained
    assert len(trained) + sum(for_tasks(one.id) for one in (*terms, *glosses)) == 800
    assert not {one["id"] for one in gold} & {one["id"] for one in (*train, *questions)}


def test_items_have_one_right_answer_and_are_the_same_again():
    terms, glosses = material()
    names = {term.id: term.name for term in terms}
    items = tasks.go_mc(terms, 20)
    assert items == tasks.go_mc(list(terms), 20)
    for item in items:
        assert len(set(item["choices"])) == tasks.CHOICES
        assert item["choices"][item["gold"]] == names[item["id"]]
    assert {item["gold"] for item in items} == {0, 1, 2, 3}
    wrong = tasks.wordnet_mc(glosses, 5)[0]
    assert {int(word[4:]) % 4 for word in wrong["choices"]} == {int(wrong["id"].split("/")[1]) % 4}


def test_the_suite_files_can_be_asked(tmp_path, monkeypatch):
    passage = "The word union was spoken. " + "It is said here again and again in this long text. " * 6
    monkeypatch.setattr(
        tasks, "sotu", lambda: [{"id": f"sotu/{n}/0", "text": f"{passage}So ends the union. Yes"} for n in range(60)]
    )
    tasks.write_tasks(tmp_path, *material(), 6, 6)
    suites = {name: read_suite(tmp_path / f"{name}.yaml") for name in tasks.SUITES}
    assert {name: len(suite.items) > 0 for name, suite in suites.items()} == dict.fromkeys(tasks.SUITES, True)
    assert suites["cloze"].items[0].answer == "union"
    assert suites["cloze"].items[0].prompt.endswith("So ends the")
    assert len((tmp_path / "aspect_train.jsonl").read_text().splitlines()) == 6
    assert json.loads((tmp_path / "aspect.jsonl").read_text().splitlines()[0])["choices"] == list(tasks.ASPECTS)
