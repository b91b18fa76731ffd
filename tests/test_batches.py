import numpy as np
import pytest

from kerasllm.text import batches

ROWS = [[5, 6, 7], [8], [9, 10, 11, 12]]


def make_rows(count=40, length=30, seed=0):
    """(B, T) ids from 10 on, padded with 0, and what may be masked: neither padding nor the two ends."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, length + 1, size=count)
    lengths[0] = length
    rows = [rng.integers(10, 100, size=n) for n in lengths]
    ids, padding_mask = batches.pad(rows)
    maskable = padding_mask.copy()
    maskable[:, 0] = False
    maskable[np.arange(count), lengths - 1] = False
    return ids, maskable


def mask(ids, maskable, seed=0, **arguments):
    return batches.mask_tokens(ids, maskable, 1, np.arange(10, 100), np.random.default_rng(seed), **arguments)


# pad and shift


def test_pad_right_and_left():
    ids, padding_mask = batches.pad(ROWS)
    np.testing.assert_array_equal(ids, [[5, 6, 7, 0], [8, 0, 0, 0], [9, 10, 11, 12]])
    assert ids.dtype == "int32" and padding_mask.dtype == bool
    left, left_mask = batches.pad(ROWS, side="left", value=-1)
    np.testing.assert_array_equal(left, [[-1, 5, 6, 7], [-1, -1, -1, 8], [9, 10, 11, 12]])
    np.testing.assert_array_equal(left_mask, left >= 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pad_keeps_every_id_in_order(side):
    ids, padding_mask = batches.pad(ROWS, length=9, side=side)
    assert ids.shape == (3, 9)
    assert [row[real].tolist() for row, real in zip(ids, padding_mask, strict=True)] == ROWS


def test_pad_to_a_multiple():
    assert batches.pad(ROWS, multiple=8)[0].shape == (3, 8)
    assert batches.pad(ROWS, multiple=4)[0].shape == (3, 4)
    assert batches.pad([[], [1]])[1].tolist() == [[False], [True]]


def test_shift_predicts_each_token_and_the_end():
    inputs, labels = batches.shift([[5, 6], []], 1, 2)
    assert [row.tolist() for row in inputs] == [[1, 5, 6], [1]]
    assert [row.tolist() for row in labels] == [[5, 6, 2], [2]]


def test_what_a_tokenizer_puts_round_a_row_is_stripped():
    rows = ([1, 5, 6, 2], [5, 6], [1, 5], [5, 2], [1, 1, 2, 2], [], [1], [2])
    assert [batches.stripped(row, 1, (2, 3)) for row in rows] == [[5, 6], [5, 6], [5], [5], [1, 2], [], [], []]


# mask_tokens


@pytest.mark.parametrize("word_starts", [False, True])
def test_only_maskable_tokens_are_masked_and_labels_are_the_true_ids(word_starts):
    ids, maskable = make_rows()
    starts = np.random.default_rng(1).random(ids.shape) < 0.5 if word_starts else None
    inputs, positions, labels = mask(ids, maskable, word_starts=starts)
    real = labels != -1
    rows = np.broadcast_to(np.arange(len(ids))[:, None], positions.shape)
    assert maskable[rows[real], positions[real]].all()
    np.testing.assert_array_equal(ids[rows[real], positions[real]], labels[real])
    assert (positions[~real] == 0).all()
    # Each position once and in order; all others are untouched.
    assert all((np.diff(row[r]) > 0).all() for row, r in zip(positions, real, strict=True))
    touched = np.zeros(ids.shape, bool)
    touched[rows[real], positions[real]] = True
    np.testing.assert_array_equal(inputs[~touched], ids[~touched])


def test_the_shares_are_those_of_devlin():
    ids, maskable = make_rows(count=2000, length=60)
    inputs, positions, labels = mask(ids, maskable)
    real = labels != -1
    assert abs(real.sum() / maskable.sum() - 0.15) < 0.005
    chosen = np.take_along_axis(inputs, positions, axis=1)[real]
    n = len(chosen)
    assert abs((chosen == 1).sum() / n - 0.8) < 0.02
    kept = chosen == labels[real]
    assert abs(kept.sum() / n - 0.1 - 0.1 / 90) < 0.02
    random = chosen[(chosen != 1) & ~kept]
    assert len(np.unique(random)) == 90 and random.min() >= 10


def test_every_row_has_its_number_and_at_least_one():
    ids, maskable = make_rows()
    maskable[1] = False
    maskable[2] = False
    maskable[2, 1] = True
    _, _, labels = mask(ids, maskable)
    expected = np.maximum(np.rint(0.15 * maskable.sum(axis=1)), 1)
    expected[1] = 0
    np.testing.assert_array_equal((labels != -1).sum(axis=1), expected)


def test_masks_depend_on_the_generator_alone():
    ids, maskable = make_rows()
    first, second, other = mask(ids, maskable), mask(ids, maskable), mask(ids, maskable, seed=1)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    assert ids[maskable].min() >= 10  # The given array is not written to.


def test_whole_words_are_masked_whole():
    ids, maskable = make_rows(count=200)
    starts = np.random.default_rng(1).random(ids.shape) < 0.6
    _, positions, labels = mask(ids, maskable, rate=0.4, word_starts=starts)
    begins = maskable & (starts | ~np.pad(maskable, [(0, 0), (1, 0)])[:, :-1])
    words = np.where(maskable, np.cumsum(begins, axis=1), 0)
    budget = np.rint(0.4 * maskable.sum(axis=1))
    whole = 0
    for row in range(len(ids)):
        chosen = np.zeros(ids.shape[1], bool)
        chosen[positions[row][labels[row] != -1]] = True
        assert 1 <= chosen.sum() <= max(budget[row], 1)
        if all(chosen[words[row] == word].all() for word in np.unique(words[row][chosen])):
            whole += 1
        else:
            # None of the words was short enough.
            assert np.bincount(words[row])[1:].min() > budget[row]
    assert whole > 190


def test_a_word_longer_than_the_number_is_masked_in_part():
    ids = np.arange(10, 20)[None]
    starts = np.zeros((1, 10), bool)
    _, positions, labels = mask(ids, np.ones((1, 10), bool), rate=0.3, word_starts=starts)
    assert positions.tolist() == [[0, 1, 2]] and labels.tolist() == [[10, 11, 12]]


def test_num_positions_pads_the_positions():
    ids, maskable = make_rows(count=3, length=10)
    _, positions, labels = mask(ids, maskable, num_positions=25)
    assert positions.shape == labels.shape == (3, 25)
    assert (labels[:, 5:] == -1).all()


# stream


def test_documents_follow_one_another_between_start_and_end():
    assert batches.stream([[11, 12], [13]], 1, 2).tolist() == [1, 11, 12, 2, 1, 13, 2]
    assert batches.stream([[11, 12], [13]], 2, 2).tolist() == [2, 11, 12, 2, 13, 2]
    assert batches.stream([[11, 12], [13]], 1).tolist() == [1, 11, 12, 1, 13]
    assert batches.stream([[11, 12], [13]], end=2).tolist() == [11, 12, 2, 13, 2]
    assert batches.stream([np.array([11, 12]), [13]], dtype="uint16").dtype == "uint16"
    assert batches.stream([]).tolist() == []


# bucket


@pytest.mark.parametrize("columns", [None, 1, 2])
@pytest.mark.parametrize("count", [1, 7, 64, 1000])
def test_buckets_hold_every_example_once_in_full_batches_that_are_wide_enough(columns, count):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, size=count if columns is None else (count, columns))
    plan = batches.bucket(lengths, 8, 16, rng)
    np.testing.assert_array_equal(np.sort(np.concatenate([i for i, _ in plan])), np.arange(count))
    assert all(len(indices) == 8 for indices, _ in plan[:-1])
    table = lengths.reshape(count, -1)
    for indices, widths in plan:
        assert len(widths) == table.shape[1]
        assert all(w % 16 == 0 for w in widths)
        assert (table[indices] <= widths).all()
    assert len({(len(i), w) for i, w in plan}) <= 4 + 1
    narrowing = np.array([widths for _, widths in plan])
    assert (np.diff(narrowing, axis=0) <= 0).all()


def test_buckets_are_drawn_anew_by_another_generator_but_keep_their_shapes():
    lengths = np.random.default_rng(0).integers(1, 60, size=(500, 2))
    plans = [batches.bucket(lengths, 8, 8, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    same = [all((a[0] == b[0]).all() for a, b in zip(plans[0], plan, strict=True)) for plan in plans[1:]]
    assert same == [True, False]
    assert len({tuple((len(i), w) for i, w in plan) for plan in plans}) == 1


def test_a_short_second_side_stays_narrow():
    lengths = np.stack([np.arange(1, 101), np.full(100, 5)], axis=1)
    assert {widths[1] for _, widths in batches.bucket(lengths, 10, 8)} == {8}


@pytest.mark.parametrize("columns", [None, 1, 2])
@pytest.mark.parametrize("count", [1, 7, 64, 1000])
def test_buckets_by_tokens_hold_every_example_once_and_few_shapes(columns, count):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 61, size=count if columns is None else (count, columns))
    table = lengths.reshape(count, -1)
    for batch_tokens, max_length in ((200, None), (1000, 60), (61, None), (60, 60), (10**6, 64)):
        plan = batches.bucket_tokens(lengths, batch_tokens, 8, rng, max_length)
        np.testing.assert_array_equal(np.sort(np.concatenate([i for i, _ in plan])), np.arange(count))
        shapes = [(len(indices), *widths) for indices, widths in plan]
        full = {max(widths): len(indices) for indices, widths in plan[1:]}
        for indices, widths in plan:
            assert (table[indices] <= widths).all() and len(indices) * max(widths) <= batch_tokens
            assert max(widths) % 8 == 0 or max(widths) == min(batch_tokens, max_length or batch_tokens)
        for rows, *widths in shapes[1:]:  # of a width all have as many rows, and no eight more would go in
            assert rows == full[max(widths)] and (rows % 8 == 0 or rows < 8)
            assert (rows + 8 if rows >= 8 else rows + 1) * max(widths) > batch_tokens
        assert len(set(shapes)) <= len({-(-n // 8) for n in table.max(axis=1)}) + 1
        narrowing = np.array(shapes)
        assert (np.diff(narrowing[:, 0]) >= 0).all() and (np.diff(narrowing[:, 1:], axis=0) <= 0).all()


def test_buckets_by_tokens_waste_little():
    lengths = np.random.default_rng(0).integers(1, 65, size=(20000, 2))
    plan = batches.bucket_tokens(lengths, 4096, 8)
    sizes = [len(indices) * max(widths) for indices, widths in plan]
    assert len(plan) < 1.05 * batches.round_up(lengths, 8).max(axis=1).sum() / 4096
    assert np.mean(sizes[1:]) > 0.95 * 4096


def test_buckets_by_tokens_keep_their_shapes_with_another_generator():
    lengths = np.random.default_rng(0).integers(1, 60, size=(500, 2))
    plans = [batches.bucket_tokens(lengths, 500, 8, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    same = [all((a[0] == b[0]).all() for a, b in zip(plans[0], plan, strict=True)) for plan in plans[1:]]
    assert same == [True, False]
    assert len({tuple((len(i), w) for i, w in plan) for plan in plans}) == 1


# check_ids and bad input


def test_check_ids_names_the_wrong_id():
    batches.check_ids(np.array([[0, 9]]), 10)
    batches.check_ids([[0, 9], []], 10)
    with pytest.raises(ValueError, match="token_ids holds 10; the vocabulary's ids are 0 to 9"):
        batches.check_ids([3, 10], 10)
    with pytest.raises(ValueError, match=r"rows\[1\] holds -1"):
        batches.check_ids([[3], [-1]], 10, "rows")
    with pytest.raises(ValueError, match="must hold integers"):
        batches.check_ids([0.5], 10)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: batches.pad([]), "at least one row"),
        (lambda: batches.pad(ROWS, length=3), r"rows\[2\] has 4 ids, length .3."),
        (lambda: batches.pad(ROWS, side="middle"), "side .'middle'. must be one of"),
        (lambda: batches.pad(ROWS, multiple=0), "multiple .0. must be a positive"),
        (lambda: batches.bucket([], 4), "at least one example"),
        (lambda: batches.bucket([3], 0), "batch_size .0. must be a positive"),
        (lambda: batches.bucket_tokens([], 4), "at least one example"),
        (lambda: batches.bucket_tokens([3], 0), "batch_tokens .0. must be a positive"),
        (lambda: batches.bucket_tokens([3, 9], 8), "lengths.1. .9. must be at most batch_tokens .8."),
        (lambda: mask(*make_rows(), rate=1.5), "rate .1.5. must be a number"),
        (lambda: mask(*make_rows(), num_positions=1), "num_positions .1. must be at least"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
