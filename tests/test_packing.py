"""Packing of documents into rows."""

import numpy as np
import pytest

from kerasllm.text.packing import best_fit


def one_after_the_other(sizes, capacity):
    """The room that is left in the rows of best-fit decreasing, item by item."""
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - size)
    return sorted(rooms)


@pytest.mark.parametrize("capacity, count, largest", [(7, 40, 7), (64, 500, 64), (64, 300, 9), (1, 3, 1), (1000, 1, 5)])
def test_groups_of_one_size_are_packed_as_item_by_item(capacity, count, largest):
    sizes = np.random.default_rng(count).integers(1, largest + 1, count)
    items, starts = best_fit(sizes, capacity)
    assert sorted(items) == list(range(count))
    rows = [sizes[items[a:b]] for a, b in zip(starts[:-1], starts[1:], strict=True)]
    assert all(len(row) and (np.diff(row) <= 0).all() for row in rows)
    assert sorted(capacity - row.sum() for row in rows) == one_after_the_other(sizes, capacity)
