"""Promises of the keyed permutation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.data.permutation import Permutation, derive_key


@given(size=st.integers(1, 5000), key=st.integers(0, 2**128 - 1))
@settings(max_examples=100, deadline=None)
def test_every_index_has_one_image_and_every_image_one_index(size, key):
    assert sorted(Permutation(size, key)(np.arange(size)).tolist()) == list(range(size))


@given(size=st.one_of(st.integers(1, 100), st.integers(1, 2**62)), key=st.integers(0, 2**128 - 1), data=st.data())
@settings(max_examples=200, deadline=None)
def test_the_inverse_gives_back_every_index(size, key, data):
    index = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    permutation = Permutation(size, key)
    assert permutation.inverse(permutation(index)).tolist() == index
    assert permutation(permutation.inverse(index)).tolist() == index


@pytest.mark.parametrize("size", [*range(1, 40), 255, 256, 257, 65535, 65536, 65537])
def test_sizes_around_powers_of_two_are_permuted_whole(size):
    assert np.array_equal(np.sort(Permutation(size, 7)(np.arange(size))), np.arange(size))


def test_the_image_of_an_index_does_not_depend_on_what_is_asked_with_it():
    permutation = Permutation(10**9 + 7, 3)
    together = permutation(np.array([5, 10**9, 17, 5]))
    assert together.tolist() == [int(permutation([index])[0]) for index in (5, 10**9, 17, 5)]


def test_other_keys_give_other_orders_with_independent_places():
    size, num_keys = 16, 4000
    first = np.array([Permutation(size, derive_key("a", key))([0])[0] for key in range(num_keys)])
    expected = num_keys / size
    chi_square = ((np.bincount(first, minlength=size) - expected) ** 2 / expected).sum()
    assert chi_square < 37.7  # 15 degrees of freedom, one in a thousand


def test_neighbours_do_not_stay_neighbours():
    image = Permutation(100_000, 11)(np.arange(100_000)).astype(float)
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02


def test_keys_tell_the_bounds_of_their_parts():
    assert derive_key("a", 12) != derive_key("a1", 2)
    assert derive_key("rows", 1, "x", 8, 0, 0) != derive_key("rows", 0, "x", 8, 0, 1)


def test_the_order_is_that_of_earlier_versions():
    assert Permutation(1000, 42)(np.arange(6)).tolist() == GOLDEN_LARGE
    assert Permutation(10, 42)(np.arange(10)).tolist() == GOLDEN_SMALL
    assert derive_key("rows", 1, "domain", 2048, 0, 0) == GOLDEN_KEY


@pytest.mark.parametrize("index", [-1, 100])
def test_an_index_outside_is_refused(index):
    with pytest.raises(IndexError, match="0 to 99"):
        Permutation(100, 1)([index])


def test_an_empty_set_has_no_permutation():
    with pytest.raises(ValueError, match="size 0"):
        Permutation(0, 1)


GOLDEN_LARGE = [677, 490, 252, 504, 810, 47]
GOLDEN_SMALL = [3, 6, 8, 1, 7, 4, 9, 2, 5, 0]
GOLDEN_KEY = 175704892721197620701629795090934065356
