"""A keyed permutation of 0 … size-1 that is evaluated at any index without being stored.

It is a Feistel network with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002) with
the multiplications of splitmix64 as its round function; it scatters rows well and is no cipher. Only stable parts of
numpy are used (`Philox.random_raw`, wrapping uint64 arithmetic), so a key means the same order on every host.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import xxhash

NUM_ROUNDS = 6
_SMALL = 16
"""Below this size a Feistel network is visibly uneven, and a stored shuffle costs nothing."""

# Places in an array of parameters: the keys of the rounds, size, right bits, left and right mask, the stored shuffle.
_SIZE = NUM_ROUNDS
_TABLE = NUM_ROUNDS + 4
_WORD = (1 << 64) - 1

Network = Callable[[np.ndarray, np.ndarray], np.ndarray]


def derive_key(*parts: str | int) -> int:
    """A 128-bit key from a tuple of names and numbers: xxh3-128 of its JSON, so ("a", 12) and ("a1", 2) differ."""
    return xxhash.xxh3_128_intdigest(json.dumps(parts, ensure_ascii=False).encode())


class Permutation:
    """A bijection of 0 … size-1 chosen by a 128-bit key; about 60 ns an index in bulk and no memory.

    Raises ValueError if size < 1 or size > 2**62.
    """

    def __init__(self, size: int, key: int) -> None:
        (self._parameters,) = drawn_parameters([size], [key])
        self.size = size

    def __call__(self, index: np.ndarray | Sequence[int]) -> np.ndarray:
        """Images of `index` (integers [n] within 0 … size-1) as int64 [n]; raises IndexError outside that range."""
        values = self._checked(index)
        return permuted(values, self._parameters[:, None], np.zeros(values.size, dtype=np.int64))

    def inverse(self, image: np.ndarray | Sequence[int]) -> np.ndarray:
        """The indices whose images are `image` (integers [n] within 0 … size-1), as int64 [n].

        Walking the same cycle backwards ends at the same index, so this costs what the permutation costs. Raises
        IndexError outside that range.
        """
        values = self._checked(image)
        if self.size < _SMALL:
            return np.argsort(self._parameters[_TABLE : _TABLE + self.size])[values]
        return _walk(values, self._parameters[:, None], _inverse_network)

    def _checked(self, index: np.ndarray | Sequence[int]) -> np.ndarray:
        values = np.atleast_1d(np.asarray(index, dtype=np.int64))
        if values.size and (values.min() < 0 or values.max() >= self.size):
            raise IndexError(f"index outside 0 to {self.size - 1}")
        return values


def drawn_parameters(sizes: Sequence[int], keys: Sequence[int]) -> list[np.ndarray]:
    """The parameters of permutations of 0 … size-1 under 128-bit keys, for `permuted`: a uint64 array each.

    Raises ValueError for a size < 1 or > 2**62.
    """
    generator = np.random.Philox(key=0)  # one for all: setting its state takes a third of the time of making one
    return [_parameters(generator, size, key) for size, key in zip(sizes, keys, strict=True)]


def _parameters(generator: np.random.Philox, size: int, key: int) -> np.ndarray:
    if not 1 <= size <= 2**62:
        raise ValueError(f"size {size} is outside 1 to 2**62")
    generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": np.zeros(4, np.uint64), "key": np.array([key & _WORD, key >> 64], np.uint64)},
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    raw = generator.random_raw(_SMALL)
    bits = (size - 1).bit_length()
    right = bits - bits // 2
    numbers = [size, right, (1 << bits // 2) - 1, (1 << right) - 1]
    table = _fisher_yates(size, raw) if size < _SMALL else np.empty(0)
    parameters = np.zeros(_TABLE + _SMALL, dtype=np.uint64)
    parameters[:_TABLE] = [*raw[:NUM_ROUNDS].tolist(), *numbers]
    parameters[_TABLE : _TABLE + table.size] = table
    return parameters


def permuted(index: np.ndarray, parameters: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Images (int64 [num]) of `index` (int64 [num]) under the permutations `which` (int64 [num]).

    `parameters` is uint64 [parameter, permutation], from `drawn_parameters`; an index must be below its
    permutation's size. With one permutation `which` is not looked at.
    """
    single = parameters.shape[1] == 1
    image = _walk(index, parameters[:_TABLE] if single else parameters[:_TABLE].take(which, axis=1), _network)
    small = np.flatnonzero(parameters[_SIZE] < _SMALL)
    if small.size:
        places = np.flatnonzero(np.isin(which, small))
        image[places] = parameters[_TABLE + index[places], which[places]]
    return image


def _walk(values: np.ndarray, parameters: np.ndarray, network: Network) -> np.ndarray:
    """Apply the network until every value is back within its size; `parameters` are [parameter, 1 or num]."""
    image = network(values.astype(np.uint64), parameters)
    outside = np.flatnonzero(image >= parameters[_SIZE])
    while outside.size:
        chosen = parameters if parameters.shape[1] == 1 else parameters[:, outside]
        image[outside] = network(image[outside], chosen)
        outside = outside[image[outside] >= chosen[_SIZE]]
    return image.astype(np.int64)


def _network(value: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    right_bits, left_mask, right_mask = parameters[_SIZE + 1 : _TABLE]
    left, right = value >> right_bits, value & right_mask
    for number, key in enumerate(parameters[:NUM_ROUNDS]):
        if number % 2 == 0:
            left = left ^ (_mix(right ^ key) & left_mask)
        else:
            right = right ^ (_mix(left ^ key) & right_mask)
    return (left << right_bits) | right


def _inverse_network(value: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    right_bits, left_mask, right_mask = parameters[_SIZE + 1 : _TABLE]
    left, right = value >> right_bits, value & right_mask
    for number, key in reversed(list(enumerate(parameters[:NUM_ROUNDS]))):
        if number % 2 == 0:
            left = left ^ (_mix(right ^ key) & left_mask)
        else:
            right = right ^ (_mix(left ^ key) & right_mask)
    return (left << right_bits) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) without its first shift: the halves are short."""
    value = value * np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _fisher_yates(size: int, raw: np.ndarray) -> np.ndarray:
    table = np.arange(size, dtype=np.int64)
    for last in range(size - 1, 0, -1):
        other = int(raw[last]) % (last + 1)
        table[last], table[other] = table[other], table[last]
    return table
