"""Keys and values of the synthetic tasks, drawn from a seeded generator.

Everything comes from the short lists below, so nothing is fetched and the same seed gives the same bytes on every
machine. Keys are unlike each other as words, because a model shall find them by what they are and not by a letter.
"""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable, Iterator

_ADJECTIVES_TEXT = """
amber ancient autumn bitter brave bright brisk broken calm careful cheap civil clever cold common crimson curious damp
daring dark deep distant double dusty eager early eastern empty faint famous fancy final flat foreign formal fresh
gentle giant glad golden grand gray green happy harsh heavy hidden hollow honest humble icy idle inner ivory jolly
keen kind large late lazy light lively local lonely loud lucky major mellow merry mild modern narrow noble odd old
orange pale patient plain polite proud purple quick quiet rapid rare ready remote rough royal rustic scarce scarlet
secret sharp shy silent silver simple sleepy smooth solid southern spare steady steep stern strange strong sturdy
subtle sudden sweet swift tall tame thick thin tidy tiny upper vast violet vivid warm weary western wild windy wise
yellow young
"""
_NOUNS_TEXT = """
acorn anchor apple arrow badge barn basin basket beacon bell bench bottle bridge brook brush bucket button cabin camel
candle canoe canyon carpet castle cedar chair chapel clock cloud coast comet copper coral cradle crane crown desert
dolphin donkey dragon drum eagle ember engine falcon feather fence ferry field finch flute forest fossil fountain
garden gate glacier glove goose grape hammer harbor harp hawk helmet heron hill horse island ivy jacket jungle kettle
kite ladder lagoon lake lantern lemon lily lion lizard lock magnet maple marble meadow melon mirror monkey moon
mountain needle nest ocean olive onion otter oven owl paddle palace parrot peach pebble pencil piano pigeon pillow
planet pocket pond poplar prairie pumpkin rabbit raven ribbon river robin rocket saddle salmon shadow shell ship
shovel spider spoon spring squirrel stable star statue stone storm sunset swan table temple thunder tiger torch tower
trumpet tulip turtle valley vase violin wagon walnut water whale willow window winter wolf
"""
ADJECTIVES, NOUNS = _ADJECTIVES_TEXT.split(), _NOUNS_TEXT.split()
PAIRS = len(ADJECTIVES) * len(NOUNS)


def unique_keys(generator: random.Random) -> Iterator[str]:
    """Words like `quiet-harbor`, none twice; from half of all pairs on with a second noun, so they never end soon.

    Raises ValueError after len(ADJECTIVES) * len(NOUNS) ** 2 // 2 of them.
    """
    seen: set[str] = set()
    limit = PAIRS * len(NOUNS) // 2
    while len(seen) < limit:
        parts = [generator.choice(ADJECTIVES), generator.choice(NOUNS)]
        if len(seen) >= PAIRS // 2:
            parts.append(generator.choice(NOUNS))
        key = "-".join(parts)
        if key not in seen:
            seen.add(key)
            yield key
    raise ValueError(f"more than {limit} different keys were asked for")


def number(generator: random.Random) -> str:
    """Seven digits, the first not 0."""
    return str(generator.randrange(1_000_000, 10_000_000))


def identifier(generator: random.Random) -> str:
    """A version 4 UUID."""
    return str(uuid.UUID(int=generator.getrandbits(128), version=4))


def letters(generator: random.Random, count: int, alphabet: str = string.ascii_uppercase) -> str:
    """A string of `count` letters."""
    return "".join(generator.choice(alphabet) for _ in range(count))


def unique_identifiers(generator: random.Random) -> Iterator[str]:
    """UUIDs without end; two equal ones don't happen."""
    while True:
        yield identifier(generator)


def distinct(generator: random.Random, count: int, make: Callable[[random.Random], str]) -> list[str]:
    """`count` different values of `make(generator)`."""
    found: list[str] = []
    while len(found) < count:
        value = make(generator)
        if value not in found:
            found.append(value)
    return found
