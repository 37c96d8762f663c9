from __future__ import annotations

import pickle
import time
from collections import Counter

import pytest

from cpt_dist.corpus.step import CuratedDocument, Dropped
from cpt_dist.corpus.steps.pii import DETECTORS, Pii, find_pii
from cpt_dist.corpus.steps.pii_checks import Hit, cut_iban, is_public_ipv4, luhn
from cpt_dist.curation_config import PII_TYPES, PiiConfig
from cpt_dist.errors import UserError
from tests.helpers.pii_sets import GENERATORS, negatives, positives


def found_in(text: str) -> list[tuple[str, str]]:
    data = text.encode()
    return [(hit.type, data[hit.start : hit.end].decode()) for hit in find_pii(data)]


@pytest.mark.parametrize("type", GENERATORS)
def test_recall_of_every_detector_is_at_least_98_percent(type):
    cases = list(positives(type, 400))
    missed = [
        (value, found_in(text))
        for value, text in cases
        if (type, value.removeprefix("tel. ").removeprefix("Telefon: ")) not in found_in(text)
    ]
    assert len(missed) <= 0.02 * len(cases), missed[:5]


def test_nothing_is_found_where_nothing_is():
    hits = [(text, found_in(text)) for text in negatives(1300) if found_in(text)]
    assert hits == []


def test_every_type_of_the_configuration_has_a_detector_and_a_generator():
    assert set(PII_TYPES) == {detector.type for detector in DETECTORS} == set(GENERATORS)


def test_equal_texts_stay_equal(document):
    text = "a@gmx.de and b@gmx.de and a@gmx.de"
    step = Pii(PiiConfig())
    first = step(document(text)).text
    step(document("c@gmx.de"))
    assert step(document(text)).text == first == "[EMAIL] and [EMAIL] and [EMAIL]"


def test_with_a_key_the_same_value_gets_the_same_placeholder_and_another_key_another(document, monkeypatch):
    step = Pii(PiiConfig(key_variable="PII_KEY"))
    monkeypatch.setenv("PII_KEY", "first-secret")
    first, second, again = step(document("a@gmx.de b@gmx.de a@gmx.de")).text.split()
    assert first == again != second
    assert first.startswith("[EMAIL-")
    monkeypatch.setenv("PII_KEY", "second-secret")
    assert step(document("a@gmx.de")).text != first
    assert b"secret" not in pickle.dumps(step)


def test_a_missing_key_is_an_error_that_names_the_variable(document, monkeypatch):
    monkeypatch.delenv("PII_KEY", raising=False)
    with pytest.raises(UserError, match="PII_KEY"):
        Pii(PiiConfig(key_variable="PII_KEY"))(document("a@gmx.de"))


def test_policies_mask_drop_count_and_off(document):
    text = "a@gmx.de, 85.88.8.8, 536-22-1234, AKIAQ2W3E4R5T6Y7U8I9"
    policies = {"ipv4": "count", "us_ssn": "off"}
    result = Pii(PiiConfig(policies=policies))(document(text))
    assert isinstance(result, CuratedDocument)
    assert result.text == "[EMAIL], 85.88.8.8, 536-22-1234, [API_KEY]"
    assert Counter(result.counts) == Counter(
        {"pii_email": 1, "pii_email_masked": 1, "pii_ipv4": 1, "pii_api_key": 1, "pii_api_key_masked": 1}
    )
    dropped = Pii(PiiConfig(policies={"api_key": "drop"}))(document(text))
    assert dropped == Dropped("pii", "1 x api_key")
    assert isinstance(Pii(PiiConfig(policies={"api_key": "drop"}, drop_from=2))(document(text)), CuratedDocument)


def test_a_text_without_hits_is_returned_as_it_is(document, prose):
    given = document(prose)
    assert Pii(PiiConfig())(given) is given


def test_an_oid_keeps_its_numbers_and_a_section_too():
    for text in (
        "OID 1.3.6.1.4.1.343",
        "section 12.4.1.1",
        "version 2.38.1.10",
        "version 2.38.1.110",
        "12.4.1.1 Scope",
        "2015-05-20  3.8.10.2",
        "3-kinase activity; EC:2.7.1.151; inositol",
        "tricyclo(3.3.1.13,7)decan",
        "the networks 128.1.0.0/16 and 2001:4f8:3:ba::/64",
    ):
        assert found_in(text) == [], text
    assert found_in("the name server 8.8.8.8 answers") == [("ipv4", "8.8.8.8")]
    assert found_in("host 212.58.244.23.") == [("ipv4", "212.58.244.23")]


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "127.0.0.1", "224.0.0.1", "203.0.113.9", "0.0.0.0"])
def test_addresses_that_name_nobody_are_left(address):
    assert not is_public_ipv4(Hit(address, b"", b""))


def test_check_digits():
    assert luhn("4539578763621486")
    assert not luhn("4539578763621487")
    assert cut_iban("GB82 WEST 1234 5698 7654 32 IS MINE") == "GB82 WEST 1234 5698 7654 32"
    assert cut_iban("GB82 WEST 1234 5698 7654 33") is None


@pytest.mark.parametrize("type", ["credit_card", "iban"])
def test_a_wrong_check_digit_is_no_hit(type):
    for value, _ in positives(type, 60):
        wrong = value[:-1] + str((int(value[-1]) + 1) % 10)
        assert found_in(f"The number is {wrong}, isn't it?") == [], wrong


def test_patterns_are_linear_in_the_length_of_hostile_text():
    # The worst texts for a pattern that goes back: long runs of what may begin a hit and never ends one.
    def seconds(length: int) -> float:
        text = ("a." * length + " " + "1-" * length + " " + "+1 " * length + "eyJ" * length).encode()
        start = time.process_time()
        find_pii(text)
        return time.process_time() - start

    seconds(1000)
    assert seconds(80_000) < 40 * max(seconds(8_000), 0.002)
