"""The synthetic tasks: what is hidden, what is asked, what is right. No tokens, no lengths.

Names and structure are those of RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3 and appendix B), plus passkey
(arXiv 2305.16300) and key-value lookup (arXiv 2307.03172). The wording, the keys and the haystack are ours, so scores
compare models on these prompts and aren't RULER's published ones. Every task also has wrong answers of the same form
(`candidates`), where possible ones that stand in the prompt, so that a model too small to answer can still be asked
which it finds likeliest.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise

from cpt_dist.evaluation.long_context import words
from cpt_dist.evaluation.long_context.haystack import Haystack, Units

NUM_CANDIDATES = 4
CHANCE = 1 / NUM_CANDIDATES
"""Share of right choices of a model that knows nothing."""


@dataclass(frozen=True)
class Needle:
    """A text that is put in, and the share of the filler before it."""

    text: str
    depth: float


@dataclass(frozen=True)
class Draft:
    """A prompt before it is filled up to a length."""

    head: str
    needles: tuple[Needle, ...]
    """The first one is what is asked for."""
    units: Units
    joiner: str
    """Between units and needles."""
    tail: str
    """The question and the beginning of the answer, without a space at its end."""
    answers: tuple[str, ...]
    """All of these should be in what the model writes."""
    candidates: tuple[str, ...]
    """`NUM_CANDIDATES` continuations, the first one right."""
    depth: float | None
    """Of the needle that is asked for; None where there is no single one."""
    divisible: bool = False
    """The filler is prose, of which a part of a unit may be used."""
    least_units: int = 0
    """With fewer units the question has no answer, or no wrong candidate in the text."""
    lead: str = " "
    """Between the tail and an answer."""


_NIAH_HEAD = "Some special magic {kind} are hidden within the following text. Make sure to memorize them.\n"


def _needle(kind: str, key: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


def _keys(kind: str, generator: random.Random) -> Iterator[str]:
    return words.unique_keys(generator) if kind == "words" else words.unique_identifiers(generator)


def _niah(
    generator: random.Random,
    haystack: Haystack,
    depth: float,
    *,
    values: str = "numbers",
    keys: str = "words",
    num_keys: int = 1,
    num_values: int = 1,
    num_queries: int = 1,
    of_needles: bool = False,
) -> Draft:
    make = words.number if values == "numbers" else words.identifier
    names = list(islice(_keys(keys, generator), num_keys))
    found = words.distinct(generator, num_keys * num_values + NUM_CANDIDATES, make)
    table = {name: found[index * num_values : (index + 1) * num_values] for index, name in enumerate(names)}
    spare = found[num_keys * num_values :]
    needles: list[Needle] = []
    for name in names:
        for value in table[name]:
            needles.append(Needle(_needle(values, name, value), generator.random() if needles else depth))
    if of_needles:
        units = _needle_units(random.Random(generator.getrandbits(64)), values, keys, set(names))
        shown = units(NUM_CANDIDATES - 1)
        spare = [line.rsplit(" ", 1)[1].rstrip(".") for line in shown]
    else:
        units = haystack.units(generator)
    asked = names[:num_queries]
    answers = tuple(value for name in asked for value in table[name])
    others = [value for name in names[1:] for value in table[name]]
    candidates = tuple([answers[0], *others, *spare][:NUM_CANDIDATES])
    listed = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    kind = values if len(answers) > 1 else values[:-1]
    verb = "are" if len(answers) > 1 else "is"
    question = f"What {verb} {'all ' * (len(answers) > 1)}the special magic {kind} for {listed} mentioned in the text?"
    tail = f"{question} The special magic {kind} for {listed} mentioned in the text {verb}"
    return Draft(
        _NIAH_HEAD.format(kind=values),
        tuple(needles),
        units,
        "\n" if of_needles else " ",
        tail,
        answers,
        candidates,
        depth,
        divisible=not of_needles,
        least_units=NUM_CANDIDATES - 1 if of_needles else 0,
    )


def _needle_units(generator: random.Random, values: str, keys: str, taken: set[str]) -> Units:
    make = words.number if values == "numbers" else words.identifier
    source = _keys(keys, generator)
    made: list[str] = []

    def first(count: int) -> list[str]:
        while len(made) < count:
            key = next(source)
            if key not in taken:
                made.append(_needle(values, key, make(generator)))
        return made[:count]

    return first


def _variable_tracking(generator: random.Random, haystack: Haystack, depth: float) -> Draft:
    """One chain of 4 hops as in RULER, and a second one with another value, from which wrong candidates come."""
    hops = 4
    names = words.distinct(generator, 2 * (hops + 1), lambda g: words.letters(g, 5))
    first, second = words.distinct(generator, 2, lambda g: str(g.randrange(10_000, 100_000)))
    chains = (names[: hops + 1], names[hops + 1 :])
    needles = []
    for chain, value in zip(chains, (first, second), strict=True):
        places = sorted(generator.random() for _ in chain)
        values = [value, *(f"VAR {name}" for name in chain)]
        needles += [Needle(f"VAR {n} = {v}.", p) for n, v, p in zip(chain, values[: hops + 1], places, strict=True)]
    tail = (
        f"Question: Find all variables that are assigned the value {first} in the text above. "
        f"Answer: The {hops + 1} variables that are assigned the value {first}, directly or through others, are:"
    )
    return Draft(
        "Memorize and track the chains of variable assignments hidden in the following text.\n",
        tuple(needles),
        Haystack.noise().units(generator),
        " ",
        tail,
        tuple(chains[0]),
        (chains[0][-1], *chains[1][-1:-NUM_CANDIDATES:-1]),
        None,
        divisible=True,
    )


def _common_words(generator: random.Random, haystack: Haystack, depth: float) -> Draft:
    """Ten words that come ten times as often as all the others; counts shrink where the length is short."""
    seed, source = generator.getrandbits(64), words.unique_keys(generator)
    pool: list[str] = []

    def take(count: int) -> list[str]:
        pool.extend(islice(source, max(0, count - len(pool))))
        return pool[:count]

    common = take(10)

    def first(count: int) -> list[str]:
        often = max(2, min(30, count // 20))
        rarely = max(1, often // 10)
        num_others = max(0, count - 10 * often)
        others = take(10 + -(-num_others // rarely))[10:]
        listed = (common * often)[:count] + (others * rarely)[:num_others]
        random.Random(seed).shuffle(listed)
        return [f"{index}. {word}" for index, word in enumerate(listed, start=1)]

    return Draft(
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
        "appear most often.\n",
        (),
        first,
        " ",
        "Question: What are the 10 most common words in the above list? Answer: The top 10 words that appear most "
        "often in the list are:",
        tuple(common),
        (common[0], *take(10 + NUM_CANDIDATES - 1)[10:]),
        None,
        least_units=40,
    )


def _frequent_words(generator: random.Random, haystack: Haystack, depth: float) -> Draft:
    """Coded words whose frequencies follow Zipf's law with exponent 2; the three most frequent are asked for."""
    seed = generator.getrandbits(64)
    vocabulary = words.distinct(generator, 60, lambda g: words.letters(g, 6, "abcdefghijklmnopqrstuvwxyz"))
    weights = [1 / rank**2 for rank in range(1, len(vocabulary) + 1)]
    borders = [0.0, *(total / sum(weights) for total in accumulate(weights))]

    def first(count: int) -> list[str]:
        ends = [round(count * border) for border in borders]
        listed = [word for word, (a, b) in zip(vocabulary, pairwise(ends), strict=True) for _ in range(b - a)]
        random.Random(seed).shuffle(listed)
        return listed

    return Draft(
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        "appearing coded words.\n",
        (),
        first,
        " ",
        "Question: What are the three most frequently appearing words in the above coded text? Answer: According to "
        "the coded text above, the three most frequently appearing words are:",
        tuple(vocabulary[:3]),
        (vocabulary[0], *vocabulary[3 : 3 + NUM_CANDIDATES - 1]),
        None,
        least_units=60,
    )


def _passkey(generator: random.Random, haystack: Haystack, depth: float) -> Draft:
    right, *wrong = words.distinct(generator, NUM_CANDIDATES, lambda g: str(g.randrange(10_000, 100_000)))
    return Draft(
        "There is important information hidden inside a lot of irrelevant text. Find it and memorize it.\n",
        (Needle(f"The pass key is {right}. Remember it. {right} is the pass key.", depth),),
        Haystack.noise().units(generator),
        " ",
        "What is the pass key? The pass key is",
        (right,),
        (right, *wrong),
        depth,
        divisible=True,
    )


def _key_value(generator: random.Random, haystack: Haystack, depth: float) -> Draft:
    """A JSON object of identifiers, one a line; the others in it are the wrong candidates."""
    source = random.Random(generator.getrandbits(64))
    key, value = words.identifier(generator), words.identifier(generator)
    made: list[tuple[str, str]] = []

    def pairs(count: int) -> list[tuple[str, str]]:
        while len(made) < count:
            made.append((words.identifier(source), words.identifier(source)))
        return made[:count]

    def line(entry: tuple[str, str]) -> str:
        return f"{json.dumps(entry[0])}: {json.dumps(entry[1])},"

    return Draft(
        "Extract the value of the given key from the JSON object below.\n{\n",
        (Needle(line((key, value)), depth),),
        lambda count: [line(entry) for entry in pairs(count)],
        "\n",
        f'}}\nKey: "{key}"\nCorresponding value: "',
        (value,),
        (value, *(entry[1] for entry in pairs(NUM_CANDIDATES - 1))),
        depth,
        least_units=NUM_CANDIDATES - 1,
        lead="",
    )


Make = Callable[[random.Random, Haystack, float], Draft]


def _niah_task(noise: bool = False, **settings: object) -> Make:
    def make(generator: random.Random, haystack: Haystack, depth: float) -> Draft:
        return _niah(generator, Haystack.noise() if noise else haystack, depth, **settings)  # type: ignore[arg-type]

    return make


MAKERS: dict[str, Make] = {
    "niah_single_1": _niah_task(noise=True),
    "niah_single_2": _niah_task(),
    "niah_single_3": _niah_task(values="uuids"),
    "niah_multikey_1": _niah_task(num_keys=4),
    "niah_multikey_2": _niah_task(of_needles=True),
    "niah_multikey_3": _niah_task(of_needles=True, keys="uuids", values="uuids"),
    "niah_multivalue": _niah_task(num_values=4),
    "niah_multiquery": _niah_task(num_keys=4, num_queries=4),
    "vt": _variable_tracking,
    "cwe": _common_words,
    "fwe": _frequent_words,
    "passkey": _passkey,
    "kv": _key_value,
}
"""Task -> what makes its draft from a seeded generator, the haystack and the depth of what is asked for."""
