"""What tells a real hit of a PII pattern from a number that looks like one: checksums, ranges and the words before it.

Every check is a pure function of the hit and the text around it, so that each can be tested on its own. None of them
knows whether a person exists: the aim is that identifiers of things (OIDs, versions, sections, hashes) are left alone.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """A stretch of text that fits a pattern, with what stands before and after it in UTF-8."""

    text: str
    before: bytes
    """Up to 40 bytes before it."""
    after: bytes
    """Up to 8 bytes after it."""


_WORD_BYTES = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_DIGITS = frozenset(b"0123456789")


def stands_alone(hit: Hit, joiners: bytes = b"") -> bool:
    """Whether no letter, digit, underscore or byte of `joiners` touches the hit.

    A joiner after it counts only if a letter or digit follows, so a full stop at the end of a sentence doesn't.
    """
    if hit.before and (hit.before[-1] in _WORD_BYTES or hit.before[-1] in joiners):
        return False
    if not hit.after:
        return True
    joined = len(hit.after) > 1 and hit.after[0] in joiners and hit.after[1] in _WORD_BYTES
    return hit.after[0] not in _WORD_BYTES and not joined


def luhn(digits: str) -> bool:
    """Whether decimal digits have a right check digit (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


_CARD_LENGTHS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"3(?:0[0-5]|[689])"), (14, 16)),
    (re.compile(r"35(?:2[89]|[3-8])"), (16, 17, 18, 19)),
    (re.compile(r"6(?:011|5|4[4-9])"), (16, 17, 18, 19)),
    (re.compile(r"62"), (16, 17, 18, 19)),
)
_CARD_GROUPS = ((4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3))


def is_credit_card(hit: Hit) -> bool:
    """An issuer's prefix with a length of that issuer, in its groups or none, and Luhn's check digit."""
    if not stands_alone(hit, b".-:/#=") or hit.before.endswith(b"0x"):
        return False
    groups = re.split(r"[ -]", hit.text)
    if len(groups) > 1 and tuple(map(len, groups)) not in _CARD_GROUPS:
        return False
    digits = "".join(groups)
    if len(set(digits)) < 3:
        return False
    fits = any(prefix.match(digits) and len(digits) in lengths for prefix, lengths in _CARD_LENGTHS)
    return fits and luhn(digits)


IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15,
    "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19,
    "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip
"""Country -> characters of its IBANs (SWIFT IBAN registry)."""


def iban_checks(compact: str) -> bool:
    """Whether an IBAN without spaces has its country's length and the remainder 1 modulo 97 (ISO 13616)."""
    if len(compact) != IBAN_LENGTHS.get(compact[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def cut_iban(text: str) -> str | None:
    """The IBAN that a candidate begins with, as it is written there; None if there is none.

    A pattern can't know where it ends, as lengths differ by country and a word in capitals may follow.
    """
    length, taken = IBAN_LENGTHS.get(text[:2], 0), 0
    for place, character in enumerate(text):
        taken += character not in " -"
        if taken == length:
            found, rest = text[: place + 1], text[place + 1 :]
            is_whole = not rest[:1].isalnum()
            return found if is_whole and iban_checks(re.sub("[ -]", "", found)) else None
    return None


_NUMBERED_THING = re.compile(
    rb"(?:\b(?:v|ver|vers|version|versions|rel|release|releases|rev|revision|build|firmware|driver|kernel|section|sections"
    rb"|ec|sec|sect|chapter|ch|clause|article|art|paragraph|para|rule|rules|part|appendix|annex|figure|fig|table|item|step"
    rb"|oid|oids|asn|schedule|subsection|reg|regulation|spec|standard|upgrade|update)\.?|\xc2\xa7+)[\s:=#(\"'v-]*$",
    re.IGNORECASE,
)
_OF_A_NETWORK = re.compile(
    rb"\b(?:ips?|ipv4|addr(?:ess|esses)?|hosts?|hostname|server|nameserver|dns|ping|router|gateway|peer|client|from|via|proxy"
    rb"|traceroute|ssh|login|https?)\b[^\n]{0,24}$",
    re.IGNORECASE,
)
_MAX_SECTION = 50
_PREFIX_LENGTH = re.compile(rb"/\d{1,3}\b")


def is_public_ipv4(hit: Hit) -> bool:
    """A globally reachable IPv4 address that isn't a network, a version, a section or a part of a longer number."""
    if not stands_alone(hit, b".-+~") or hit.before[-1:] in (b"-", b"."):
        return False
    if _NUMBERED_THING.search(hit.before):
        return False
    parts = hit.text.split(".")
    if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts):
        return False
    # Four small numbers are a section, a version or an enzyme far more often than the one address in 700 is.
    if max(map(int, parts)) <= _MAX_SECTION and not _OF_A_NETWORK.search(hit.before):
        return False
    if _PREFIX_LENGTH.match(hit.after):
        return False  # a network, not a host
    address = ipaddress.IPv4Address(hit.text)
    return address.is_global and not address.is_multicast


_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def is_public_ipv6(hit: Hit) -> bool:
    """A globally reachable IPv6 address out of 2000::/3, the only range given out so far (RFC 4291, IANA)."""
    if not stands_alone(hit, b":.-") or hit.after[:1] == b":" or _PREFIX_LENGTH.match(hit.after):
        return False
    try:
        address = ipaddress.IPv6Address(hit.text)
    except ValueError:
        return False
    return address in _GLOBAL_UNICAST and address.is_global and len(hit.text.split(":", 1)[0]) == 4


_RESERVED_DOMAIN = re.compile(
    r"(?:^|\.)(?:example\.(?:com|org|net|edu)|example|test|invalid|localhost|local|localdomain|internal|lan)$", re.I
)
_NO_DOMAIN = re.compile(
    r"(?:png|jpe?g|gif|svg|webp|ico|bmp|tiff?|pdf|py|[jt]sx?|css|html?|xml|json|ya?ml|txt|md|rst|sh|c|h|cc|cpp|hpp|rs|go|rb"
    r"|java|class|jar|so|dll|exe|zip|gz|tar|bz2|xz|deb|rpm|service|socket|target|timer|mount|slice|scope|conf|cfg|ini|log"
    r"|bak)",
    re.IGNORECASE,
)
_SHARED_ACCOUNTS = frozenset({"git", "svn", "hg"})


def is_email(hit: Hit) -> bool:
    """An address whose domain isn't reserved (RFC 2606, 6761) or a file's ending, and that isn't git@host:path."""
    local, domain = hit.text.rsplit("@", 1)
    if hit.before and (hit.before[-1] in _WORD_BYTES or hit.before[-1] in b"@/"):
        return False
    if hit.after and (hit.after[0] in _WORD_BYTES or hit.after[0] == ord("@")):
        return False
    if not local or local in _SHARED_ACCOUNTS or local[0] in ".-" or ".." in hit.text:
        return False
    return not _NO_DOMAIN.fullmatch(domain.rsplit(".", 1)[1]) and not _RESERVED_DOMAIN.search(domain)


_PHONE_CONTEXT = re.compile(
    rb"\b(?:phone|telephone|tel|mobile|cell|fax|call|telefon|fon|handy|t(?:\xc3\xa9|e)l(?:\xc3\xa9|e)?(?:phone)?|whatsapp|sms"
    rb"|telefono|tel(?:\xc3\xa9|e)fono)\b[^\n0-9]{0,12}$",
    re.IGNORECASE,
)
_COUNTRY_CODE = re.compile(
    r"1|7|2[07]|21[12368]|2[2-6]\d|29[0178]|3[0-469]|3[578]\d|4[013-9]|42[013]|5[1-8]|5[09]\d|6[0-6]|67[02-9]|68\d|69[0-2]"
    r"|8[1246]|80[08]|85[02356]|87\d|88[0-36-8]|9[0-58]|96\d|97[0-7]|99[2-68]"
)


def _many_of_one(digits: str) -> bool:
    return len(set(digits[-6:])) == 1


def is_international_phone(hit: Hit) -> bool:
    """+ and a country's code, 9 to 15 digits in all, 11 with the code 1 (ITU-T E.164)."""
    if not stands_alone(hit, b"+-.") or hit.before[-1:] in (b")", b"*") or re.fullmatch(r"\+\d+\.\d+", hit.text):
        return False
    digits = re.sub(r"\D", "", hit.text.replace("(0)", ""))
    if digits[0] == "1":
        return len(digits) == 11 and digits[1] in "23456789" and digits[4] in "23456789" and not _many_of_one(digits)
    return 9 <= len(digits) <= 15 and bool(_COUNTRY_CODE.match(digits)) and not _many_of_one(digits)


def is_north_american_phone(hit: Hit) -> bool:
    """Area code and exchange that can exist (NANP: neither begins with 0 or 1, nor ends in 11)."""
    if not stands_alone(hit, b".-/+") or _NUMBERED_THING.search(hit.before):
        return False
    digits = re.sub(r"\D", "", hit.text)[-10:]
    area, exchange = digits[:3], digits[3:6]
    return area[1:] != "11" and exchange[1:] != "11" and not _many_of_one(digits)


def is_national_phone(hit: Hit) -> bool:
    """A number that begins with 0, 8 to 13 digits, with a word such as tel or phone before it."""
    digits = re.sub(r"\D", "", hit.text)
    return stands_alone(hit, b".-/") and 8 <= len(digits) <= 13 and bool(_PHONE_CONTEXT.search(hit.before))


def is_us_ssn(hit: Hit) -> bool:
    """Parts that the Social Security Administration gives out: no area 000, 666 or 9xx, no group 00, no serial 0000."""
    area, group, serial = re.split(r"[- ]", hit.text)
    given_out = area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"
    return stands_alone(hit, b".-/+") and given_out and hit.text not in ("078-05-1120", "219-09-9999")


def is_secret(hit: Hit) -> bool:
    """A key that stands alone and isn't made of one or two characters, as in EXAMPLE and XXXX."""
    body = re.sub(r"[^A-Za-z0-9]", "", hit.text)[4:]
    return stands_alone(hit, b"-") and len(set(body)) > 5 and "EXAMPLE" not in hit.text


def is_whole(hit: Hit) -> bool:
    """The pattern says enough."""
    return True


def is_password(hit: Hit) -> bool:
    """A password in a URL that isn't a variable or a word that stands for one."""
    password = hit.text.split("://", 1)[1].split(":", 1)[1].rsplit("@", 1)[0]
    return not re.fullmatch(r"(?i)[$<{%\[].*|pass(?:word|wd)?|pw|secret|x+|\*+|\.+", password)
