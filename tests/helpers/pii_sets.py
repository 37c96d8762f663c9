"""A seeded generator of personal data in sentences, and texts that only look as if they held some."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator

from cpt_dist.corpus.steps.pii_checks import IBAN_LENGTHS

HEX = "0123456789abcdef"


def _letters(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(length))


def _luhn_digit(digits: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 if place % 2 else 2)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def email(rng: random.Random) -> str:
    names = ["anna", "j.smith", "li_wei", "o'brien", "maria-jose", "r2d2", "k.o.meier", "x.y+news"]
    hosts = ["gmail.com", "uni-bonn.de", "mail.co.uk", "kernel.org", "sub.dept.u-tokyo.ac.jp", "posteo.eu"]
    return f"{rng.choice(names)}{rng.choice(['', str(rng.randrange(100))])}@{rng.choice(hosts)}"


def phone(rng: random.Random) -> str:
    area, exchange = f"{rng.randrange(2, 10)}{rng.randrange(2, 10)}{rng.randrange(2, 10)}", f"{rng.randrange(234, 909)}"
    exchange = exchange.replace("11", "12")
    area = area.replace("11", "12")
    line = f"{rng.randrange(1000, 9990):04d}"
    return rng.choice(
        [
            f"({area}) {exchange}-{line}",
            f"{area}-{exchange}-{line}",
            f"{area}.{exchange}.{line}",
            f"+1 {area} {exchange} {line}",
            f"+1-{area}-{exchange}-{line}",
            f"+49 {rng.randrange(30, 90)} {rng.randrange(100000, 999999)}",
            f"+44 (0)20 7{rng.randrange(100, 999)} {rng.randrange(1000, 9999)}",
            f"+33 6 {' '.join(f'{rng.randrange(10, 99)}' for _ in range(4))}",
            f"+81-3-{rng.randrange(1000, 9999)}-{rng.randrange(1000, 9999)}",
            f"+91 {rng.randrange(70000, 99999)} {rng.randrange(10000, 99999)}",
            f"tel. 020 7{rng.randrange(100, 999)} {rng.randrange(1000, 9999)}",
            f"Telefon: 0228/{rng.randrange(100000, 999999)}",
        ]
    )


def ipv4(rng: random.Random) -> str:
    first = rng.choice([n for n in range(11, 224) if n not in (100, 127, 169, 172, 192, 198, 203)])
    return f"{first}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"


def ipv6(rng: random.Random) -> str:
    first = rng.choice(["2a00", "2606", "2a02", "2400", "2607"])
    return rng.choice(
        [
            f"{first}:" + ":".join(_letters(rng, HEX, 4) for _ in range(7)),
            f"{first}:{_letters(rng, HEX, 4)}::{_letters(rng, HEX, 4)}",
            f"{first}:{_letters(rng, HEX, 3)}:{_letters(rng, HEX, 4)}::1",
        ]
    )


def credit_card(rng: random.Random) -> str:
    prefix, length, groups = rng.choice(
        [("4", 16, (4, 4, 4, 4)), ("53", 16, (4, 4, 4, 4)), ("37", 15, (4, 6, 5)), ("6011", 16, (4, 4, 4, 4))]
    )
    digits = prefix + _letters(rng, string.digits, length - len(prefix) - 1)
    digits += _luhn_digit(digits)
    separator, parts, start = rng.choice(["", " ", "-"]), [], 0
    for size in groups:
        parts.append(digits[start : start + size])
        start += size
    return separator.join(parts)


def iban(rng: random.Random) -> str:
    country = rng.choice(["DE", "FR", "GB", "NL", "NO", "MT", "CH", "PL", "ES", "IT"])
    body = _letters(rng, string.digits, IBAN_LENGTHS[country] - 4)
    if country in ("GB", "NL", "MT"):
        body = _letters(rng, string.ascii_uppercase, 4) + body[4:]
    check = 98 - int("".join(str(int(c, 36)) for c in f"{body}{country}00")) % 97
    compact = f"{country}{check:02d}{body}"
    return rng.choice([compact, " ".join(compact[i : i + 4] for i in range(0, len(compact), 4))])


def us_ssn(rng: random.Random) -> str:
    area = rng.choice([n for n in range(1, 900) if n != 666])
    return f"{area:03d}-{rng.randrange(1, 100):02d}-{rng.randrange(1, 10000):04d}"


def api_key(rng: random.Random) -> str:
    word = string.ascii_letters + string.digits
    return rng.choice(
        [
            "AKIA" + _letters(rng, string.ascii_uppercase + string.digits, 16),
            "ghp_" + _letters(rng, word, 36),
            "xoxb-" + _letters(rng, string.digits, 12) + "-" + _letters(rng, word, 24),
            "AIza" + _letters(rng, word, 35),
            "sk_live_" + _letters(rng, word, 24),
            "hf_" + _letters(rng, word, 34),
            "sk-proj-" + _letters(rng, word, 48),
        ]
    )


def private_key(rng: random.Random) -> str:
    kind = rng.choice(["RSA ", "EC ", "OPENSSH ", ""])
    lines = "\n".join(_letters(rng, string.ascii_letters + string.digits + "+/", 64) for _ in range(6))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----"


def jwt(rng: random.Random) -> str:
    word = string.ascii_letters + string.digits + "_"
    return f"eyJ{_letters(rng, word, 17)}.eyJ{_letters(rng, word, 40)}.{_letters(rng, word, 43)}"


def url_password(rng: random.Random) -> str:
    word = string.ascii_letters + string.digits
    return f"postgres://{rng.choice(['app', 'root'])}:{_letters(rng, word, 12)}@"


GENERATORS: dict[str, Callable[[random.Random], str]] = {
    "email": email,
    "phone": phone,
    "ipv4": ipv4,
    "ipv6": ipv6,
    "credit_card": credit_card,
    "iban": iban,
    "us_ssn": us_ssn,
    "api_key": api_key,
    "private_key": private_key,
    "jwt": jwt,
    "url_password": url_password,
}
FRAMES = (
    "Please write to {} before Friday.",
    "Our records say: {}, which nobody has checked.",
    "({})",
    "He gave «{}» as his answer. Nothing else.",
    "Kontakt für Rückfragen — {}",
    "{}\nwas the only line in the file",
    "name,value\nclient,{}\n",
    "The old one was {}; the new one isn't known.",
)


def positives(type: str, number: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(value, text that holds it) of one type."""
    rng = random.Random(f"{type}/{seed}")
    for _ in range(number):
        value = GENERATORS[type](rng)
        frame = "connect to {}db.intern-host.de/main" if type == "url_password" else rng.choice(FRAMES)
        yield value, frame.format(value)


def negatives(number: int, seed: int = 0) -> Iterator[str]:
    """Texts with identifiers of things: hashes, UUIDs, OIDs, versions, sections, dates, sizes, file names."""
    rng = random.Random(f"negatives/{seed}")

    def small() -> int:
        return rng.randrange(0, 30)

    makers: list[Callable[[], str]] = [
        lambda: f"commit {_letters(rng, HEX, 40)} fixes it",
        lambda: f"sha256:{_letters(rng, HEX, 64)}",
        lambda: f"md5 {_letters(rng, HEX, 32)}  file.tar",
        lambda: f"id {'-'.join(_letters(rng, HEX, n) for n in (8, 4, 4, 4, 12))} was used",
        lambda: f"OID 1.3.6.1.4.1.{rng.randrange(1, 50000)} of the vendor",
        lambda: f"1.3.6.1.2.1.{small()}.{small()}",
        lambda: f"version {small()}.{small()}.{small()}.{small()} was released",
        lambda: f"updated to v{small()}.{small()}.{small()}.{small()}.",
        lambda: f"see section {rng.randrange(1, 40)}.{small()}.{small()}.{small()} for details",
        lambda: f"§ {rng.randrange(1, 40)}.{small()}.{small()}.{small()} applies",
        lambda: f"{rng.randrange(1, 20)}.{small()}.{small()}.{small()} Scope of the agreement",
        lambda: f"glibc {rng.randrange(2, 9)}.{small()}.{small()}.{small()}-5ubuntu1",
        lambda: f"the address 10.{small()}.{small()}.{small()} or 192.168.{small()}.1 or 127.0.0.1",
        lambda: f"on {rng.randrange(1900, 2030)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d} at 12:34:56",
        lambda: f"timestamp {rng.randrange(1_500_000_000, 1_700_000_000)} and {rng.randrange(10**12, 2 * 10**12)}",
        lambda: f"MAC 00:1a:2b:{_letters(rng, HEX, 2)}:3c:4d",
        lambda: f"fingerprint {':'.join(_letters(rng, HEX, 2) for _ in range(16))}",
        lambda: f"call std::{_letters(rng, 'abcdef', 4)}::{_letters(rng, 'abcdef', 4)}() in C++",
        lambda: f"0x{_letters(rng, HEX, 16)} and 0.{_letters(rng, string.digits, 16)}",
        lambda: f"pi is 3.{_letters(rng, string.digits, 17)}",
        lambda: "write to user@example.com, clone git@github.com:org/repo.git, use @pytest.fixture and logo@2x.png",
        lambda: f"ISBN 978-3-16-1484{rng.randrange(10, 99)}-0, 410 U.S. 113, 42 U.S.C. § 1983, 98 F.2d 3",
        lambda: (
            f"GO:{rng.randrange(10**6, 10**7):07d}, ICD A00.{small()}, CAS {rng.randrange(1000, 9999)}-12-{small() % 9}"
        ),
        lambda: f"{small()} + {small()} = {rng.randrange(60)}, {rng.randrange(10**5)}-{rng.randrange(10**4)}",
        lambda: (
            f"range 100-200-300, part no. {rng.randrange(100, 199)}-{rng.randrange(10, 99)}-{rng.randrange(100, 999)}"
        ),
        lambda: "AKIAIOSFODNN7EXAMPLE and sk-xxxxxxxxxxxxxxxxxxxxxxxx and https://user:password@host/ and $KEY",
    ]
    for index in range(number):
        yield makers[index % len(makers)]()
