"""Which documents share a row."""

import numpy as np


def best_fit(sizes, capacity):
    """Pack items into rows: the largest first, each into the fullest row that has room (best-fit decreasing).

    Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv:2404.10830. Items of one size are packed
    together, so that time grows with the number of items and of different sizes alone.

    Args:
        sizes: (N,) int, each from 1 to `capacity`.
        capacity: of a row.

    Returns:
        (items, starts): the items of row r are `items[starts[r] : starts[r + 1]]`, largest first; (N,) and (R + 1,)
        int64.
    """
    sizes = np.asarray(sizes)
    by_size = np.argsort(-sizes, kind="stable")
    ends = np.flatnonzero(np.diff(sizes[by_size], append=0))  # the last item of each size
    row_of, num_rows = np.empty(len(sizes), "int64"), 0
    free, occupied = {}, 0  # room -> arrays of rows; an int whose bit says whether there are any
    start = 0
    for end in ends + 1:
        size, items = int(sizes[by_size[start]]), by_size[start:end]
        start = end
        while len(items):
            fitting = occupied >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
                rows = free[room].pop()
                if not free[room]:
                    occupied ^= 1 << room
            else:
                room = capacity
                rows = np.arange(num_rows, num_rows + -(-len(items) // (capacity // size)))
                num_rows += len(rows)
            each = room // size  # a row stays the fullest until it has no room for another
            whole = min(len(rows), len(items) // each)
            row_of[items[: whole * each]] = np.repeat(rows[:whole], each)
            left = [(rows[:whole], room - each * size)]
            items, rows = items[whole * each :], rows[whole:]
            if len(items) and len(rows):  # fewer than `each`
                row_of[items] = rows[0]
                left.append((rows[:1], room - len(items) * size))
                items, rows = items[:0], rows[1:]
            for rows_left, room_left in [*left, (rows, room)]:
                if len(rows_left) and room_left:
                    free.setdefault(room_left, []).append(rows_left)
                    occupied |= 1 << room_left
    items = by_size[np.argsort(row_of[by_size], kind="stable")]
    return items, np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=num_rows))])
