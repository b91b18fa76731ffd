"""Permutations that are computed one place at a time."""

import numpy as np
import pytest

from kerasllm.text.shuffling import permuted


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000])
def test_every_place_is_taken_once(size):
    for epoch in range(10):
        assert sorted(permuted(np.arange(size), size, 0, epoch)) == list(range(size))


def test_places_are_computed_one_by_one():
    whole = permuted(np.arange(1000), 1000, 3, 1)
    np.testing.assert_array_equal(permuted(np.array([[7, 999], [0, 7]]), 1000, 3, 1), whole[[[7, 999], [0, 7]]])
    assert (permuted(np.arange(1000), 1000, 3, 2) != whole).mean() > 0.9
    assert permuted(np.array([10**15 - 1]), 10**15, 0) < 10**15


def test_orders_look_random():
    size, orders = 20, 2000
    counts = np.zeros((size, size))
    for key in range(orders):
        counts[np.arange(size), permuted(np.arange(size), size, key)] += 1
    expected = orders / size
    chi_square = ((counts - expected) ** 2 / expected).sum() / (size - 1) ** 2
    assert 0.7 < chi_square < 1.3  # 1 on the average, with a deviation of 0.07
    order = permuted(np.arange(100_000), 100_000, 0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
