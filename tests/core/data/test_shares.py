import random

import pytest

from core.data.shares import apportion, mix_sizes
from core.errors import DataError


@pytest.mark.parametrize(
    ("available", "weights", "sizes"),
    [
        ([100, 100], [1, 3], [33, 100]),
        ([100, 100], [0.9, 0.1], [100, 11]),
        ([30, 10], [3, 1], [30, 10]),
        ([10, 1000], [1, 1.5], [10, 15]),
        ([10, 10, 10], [1, 1, 2], [5, 5, 10]),
    ],
)
def test_known_mixes(available, weights, sizes):
    assert mix_sizes(available, weights) == sizes


def test_random_mixes_keep_their_shares_and_exhaust_a_source():
    rng = random.Random(0)
    for _ in range(200):
        count = rng.randint(2, 4)
        available = [rng.randint(200, 5000) for _ in range(count)]
        weights = [rng.uniform(0.2, 3) for _ in range(count)]
        sizes = mix_sizes(available, weights)
        total = sum(sizes)
        assert all(0 < size <= have for size, have in zip(sizes, available, strict=True))
        assert all(abs(s / total - w / sum(weights)) <= 0.02 for s, w in zip(sizes, weights, strict=True))
        # Largest: some source is used up, but for rounding.
        assert any(have - size <= have / size for size, have in zip(sizes, available, strict=True))


def test_impossible_mix_is_explained():
    with pytest.raises(
        DataError, match=r"too small for the wanted shares \(0.700 of 3 rows, 0.300 of 1 rows\)"
    ):
        mix_sizes([3, 1], [0.7, 0.3])


def test_apportion_is_exact_in_sum_and_near_in_parts():
    rng = random.Random(1)
    for _ in range(500):
        raw = [rng.random() + 0.01 for _ in range(rng.randint(1, 5))]
        shares = [value / sum(raw) for value in raw]
        total = rng.randint(0, 1000)
        sizes = apportion(total, shares)
        assert sum(sizes) == total
        assert all(abs(size - total * share) < 1 for size, share in zip(sizes, shares, strict=True))
    assert apportion(1000, [0.8, 0.1, 0.1]) == [800, 100, 100]
