"""From rows of token ids to the arrays that `fit` takes: padding, shifting, masking, joining, bucketing."""

import numpy as np

from kerasllm.arguments import check_choice, check_positive, check_rate, shown

IGNORED = -1  # The label of a position that no loss and no metric counts.


def pad(rows, length=None, value=0, side="right", multiple=1):
    """Make one array of rows of unequal length.

    Args:
        rows: B sequences of integers.
        length: T; by default the longest row's length, rounded up to a `multiple`.
        value: stands at the padding.
        side: where the padding is, "right" or "left".

    Returns:
        `(ids, padding_mask)`: (B, T) int32, and (B, T) bool that is True where a row's own ids stand.

    Raises:
        ValueError: no rows, or a row longer than `length`.
    """
    check_choice("side", side, ("right", "left"))
    check_positive("multiple", multiple)
    if len(rows) == 0:
        raise ValueError("rows must hold at least one row.")
    lengths = np.array([len(row) for row in rows])
    if length is None:
        length = int(round_up(lengths.max(), multiple))
    if lengths.max() > length:
        raise ValueError(f"rows[{lengths.argmax()}] has {lengths.max()} ids, length ({length}) must be as large.")
    places = np.arange(length)
    padding_mask = places < lengths[:, None] if side == "right" else places >= length - lengths[:, None]
    ids = np.full((len(rows), length), value, dtype="int32")
    ids[padding_mask] = np.concatenate([as_int32(row, "rows", i) for i, row in enumerate(rows)])
    return ids, padding_mask


def shift(rows, start, end):
    """Inputs and labels of teacher forcing: `[start, *row]` is to predict `[*row, end]`, for each row."""
    rows = [as_int32(row, "rows", i) for i, row in enumerate(rows)]
    start, end = np.array([start], "int32"), np.array([end], "int32")
    return [np.concatenate([start, row]) for row in rows], [np.concatenate([row, end]) for row in rows]


def stripped(row, start, ends):
    """A row of ids without the start and the end token that its tokenizer may have put round it."""
    row = list(row)
    row = row[1:] if row[:1] == [start] else row
    return row[:-1] if row and row[-1] in ends else row


def mask_tokens(token_ids, maskable, mask_id, random_ids, generator, rate=0.15, word_starts=None, num_positions=None):
    """Hide tokens for a masked language model (Devlin et al., 2018, https://arxiv.org/abs/1810.04805, 3.1).

    Of each row's maskable tokens `rate` are chosen, but at least one. Of these 80 % become the mask token,
    10 % a random one and 10 % stay.

    Args:
        token_ids: (B, T) int.
        maskable: (B, T) bool, False at padding and special tokens, which are never chosen.
        mask_id: the id of the mask token.
        random_ids: 1-d array of the ids that a random token is drawn from.
        generator: a `numpy.random.Generator`; an equal one gives an equal result.
        rate: share of the maskable tokens to choose.
        word_starts: (B, T) bool, True at the first token of a word: chooses whole words as long as they fit
            into the row's number, and a part of one word where none fits.
        num_positions: P; by default the largest number chosen in a row.

    Returns:
        `(inputs, masked_positions, labels)`: (B, T) int32, (B, P) int32 ascending, and (B, P) int32, the true
        ids. A row with fewer chosen tokens is filled up with position 0 and label -1.
    """
    check_rate("rate", rate)
    token_ids = as_int32(token_ids, "token_ids")
    maskable = np.asarray(maskable, dtype=bool)
    available = maskable.sum(axis=1)
    wanted = np.minimum(np.maximum(np.rint(available * rate).astype(int), 1), available)  # (B,)
    if num_positions is None:
        num_positions = max(int(wanted.max()), 1)
    if wanted.max() > num_positions:
        raise ValueError(f"num_positions ({num_positions}) must be at least {wanted.max()}, the tokens to mask.")

    priority = np.where(maskable, generator.random(token_ids.shape), 2.0)  # (B, T)
    if word_starts is None:
        ranks = priority.argsort(axis=1).argsort(axis=1)
        chosen = ranks < wanted[:, None]  # (B, T)
    else:
        chosen = np.stack(
            [
                choose_words(m, s, p, n)
                for m, s, p, n in zip(maskable, np.asarray(word_starts, bool), priority, wanted, strict=True)
            ]
        )

    fate = generator.random(token_ids.shape)
    replacements = np.asarray(random_ids, "int32")[generator.integers(len(random_ids), size=token_ids.shape)]
    inputs = np.where(chosen & (fate < 0.8), np.int32(mask_id), token_ids)
    inputs = np.where(chosen & (fate >= 0.8) & (fate < 0.9), replacements, inputs)

    # A stable sort of "not chosen" brings the chosen positions to the front, in their order.
    positions = np.argsort(~chosen, axis=1, kind="stable")[:, :num_positions]
    positions = np.pad(positions, [(0, 0), (0, num_positions - positions.shape[1])])
    filled = np.arange(num_positions) < chosen.sum(axis=1)[:, None]  # (B, P)
    labels = np.where(filled, np.take_along_axis(token_ids, positions, axis=1), IGNORED)
    return inputs, np.where(filled, positions, 0).astype("int32"), labels.astype("int32")


def choose_words(maskable, word_starts, priority, wanted):
    """One row of whole-word masking: (T,) bool with at most `wanted` True, words of low `priority` first."""
    chosen = np.zeros(len(maskable), dtype=bool)
    # A token that must not be masked ends a word.
    begins = maskable & (word_starts | ~np.concatenate([[False], maskable[:-1]]))
    words = np.where(maskable, np.cumsum(begins), 0)  # (T,): 0 is no word
    first = np.flatnonzero(begins)
    order = 1 + np.argsort(priority[first])
    sizes = np.bincount(words, minlength=len(first) + 1)
    left = wanted
    for word in order:
        if sizes[word] <= left:
            chosen |= words == word
            left -= sizes[word]
        if left == 0:
            break
    if wanted and not chosen.any():
        chosen[np.flatnonzero(words == order[0])[:wanted]] = True
    return chosen


def stream(documents, start=None, end=None, dtype="int32"):
    """Documents as `start, ids, end, start, ids, end, ...`.

    Where `start` and `end` are the same token it stands once between two documents.

    Args:
        documents: sequence of arrays of token ids.
        start, end: ids put before and after every document, or None.
        dtype: of the result.

    Returns:
        (N,) ids.
    """
    before, after = ([] if x is None else [x] for x in (start, end))
    last = after if start == end else []
    after = [] if start == end else after
    size = sum(map(len, documents)) + (len(before) + len(after)) * len(documents) + len(last)
    ids, place = np.empty(size, dtype), 0
    for i, document in enumerate(documents):
        for piece in (before, as_int32(document, "documents", i), after):
            ids[place : place + len(piece)] = piece
            place += len(piece)
    ids[place:] = last
    return ids


def bucket(lengths, batch_size, multiple=8, generator=None, max_length=None):
    """Batch examples of like length, in few different shapes: JAX and XLA compile each shape anew.

    The examples are sorted by their length, rounded up to a `multiple`, and cut into batches from the longest
    on. So every batch is full but the last, that of the shortest, and no example is lost. Among equal lengths
    the order is random.

    Args:
        lengths: (N,) or (N, C) int, C lengths for each example, as of a source and a target; the largest of
            them decides the batch.
        batch_size: examples in a batch.
        multiple: widths are multiples of it.
        generator: a `numpy.random.Generator`; without one, equal lengths keep their order.
        max_length: no width is larger, even if it is no multiple. No example may be longer.

    Returns:
        A list of `(indices, widths)` from the widest batch to the narrowest: (b,) int, and a tuple of C
        widths. A width never grows along the list; there are at most as many shapes as rounded lengths, and
        one more.
    """
    check_positive("batch_size", batch_size)
    order, longest, widths = _from_the_shortest(lengths, multiple, generator, max_length)
    order = order[::-1]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    ends = np.searchsorted(longest, longest[::-1][::batch_size], side="right")
    return [(b, tuple(map(int, widths[end - 1]))) for b, end in zip(batches, ends, strict=True)]


def bucket_tokens(lengths, batch_tokens, multiple=8, generator=None, max_length=None):
    """Batch examples of like length, each batch of about as many tokens, in few different shapes.

    The measure is that of `--max-tokens` of fairseq (Ott et al., 2019, https://arxiv.org/abs/1904.01038): rows x width,
    padding included, of the wider side where there are several. For each width the rows are as many as there can be, of
    which multiples of 8 are taken where there are 8 or more. The examples are taken from the shortest on; those that do
    not fill a batch of their width go into one of the next, and what is left in the end is a batch of the widest. So
    every batch is full but one, and no example is lost.

    Args:
        lengths, multiple, generator, max_length: as for `bucket`.
        batch_tokens: the most tokens of a batch, and of an example. No width is larger, even if it is no multiple.

    Returns:
        A list as that of `bucket`. The batch that may not be full is the first, so that along the list no width grows
        and rows do not become fewer; there are at most as many shapes as rounded lengths, and one more.
    """
    check_positive("batch_tokens", batch_tokens)
    for place in np.argwhere(np.asarray(lengths) > batch_tokens)[:1]:
        length = np.asarray(lengths)[tuple(place)]
        raise ValueError(f"lengths[{place[0]}] ({length}) must be at most batch_tokens ({batch_tokens}).")
    limit = batch_tokens if max_length is None else min(max_length, batch_tokens)
    order, longest, widths = _from_the_shortest(lengths, multiple, generator, limit)
    batches, start = [], 0
    for width in np.unique(longest):
        rows = batch_tokens // int(width)
        rows -= rows % 8 if rows >= 8 else 0
        end = int(np.searchsorted(longest, width, side="right"))
        shape = tuple(map(int, widths[end - 1]))
        batches += [(order[i : i + rows], shape) for i in range(start, end - rows + 1, rows)]
        start = end - (end - start) % rows
    if start < len(order):
        batches.append((order[start:], tuple(map(int, widths[-1]))))
    return batches[::-1]


def _from_the_shortest(lengths, multiple, generator, max_length):
    """Examples in the order of their longest sides: `(order, longest, widths)`.

    Returns:
        The indices (N,); their longest sides, rounded up to a multiple (N,); and how wide a batch (N, C) is that holds
        an example and all before it.
    """
    check_positive("multiple", multiple)
    lengths = np.asarray(lengths)
    if len(lengths) == 0:
        raise ValueError("lengths must hold at least one example.")
    rounded = round_up(np.maximum(lengths, 1), multiple).reshape(len(lengths), -1)  # (N, C)
    if max_length is not None:
        rounded = np.minimum(rounded, max_length)
    longest = rounded.max(axis=1)  # (N,)
    order = np.arange(len(lengths)) if generator is None else generator.permutation(len(lengths))
    order = order[np.argsort(-longest[order], kind="stable")][::-1]
    return order, longest[order], np.maximum.accumulate(rounded[order], axis=0)


def check_ids(ids, vocabulary_size, name="token_ids"):
    """Raise `ValueError` unless `ids`, an array or rows of integers, lie in 0 to `vocabulary_size - 1`."""
    if isinstance(ids, list | tuple) and ids and not np.isscalar(ids[0]):
        for index, row in enumerate(ids):
            check_ids(row, vocabulary_size, f"{name}[{index}]")
        return
    try:
        ids = np.asarray(ids)
    except ValueError as error:
        raise ValueError(f"{name} ({shown(ids)}) must be rows of integers.") from error
    if ids.size and ids.dtype.kind not in "iu":
        raise ValueError(f"{name} ({ids.dtype}) must hold integers.")
    for wrong in ids[(ids < 0) | (ids >= vocabulary_size)][:1]:
        raise ValueError(f"{name} holds {wrong}; the vocabulary's ids are 0 to {vocabulary_size - 1}.")


def as_int32(values, name, *place):
    """Whole numbers as an int32 array, which would wrap larger ones round and cut fractions off; or a `ValueError`."""
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.empty(0, "O")  # of rows that differ in length
    if array.dtype == np.int32:
        return array
    if array.dtype.kind in "iub" and (not array.size or -(2**31) <= array.min() and array.max() < 2**31):
        return array.astype("int32")
    if array.dtype.kind == "f" and not array.size:
        return array.astype("int32")  # of []
    raise ValueError(f"{name}{list(place) or ''} ({shown(values)}) must hold whole numbers of 32 bits.")


def round_up(lengths, multiple):
    """`lengths` rounded up to a multiple of `multiple`."""
    return -(-lengths // multiple) * multiple


def bucket_length(length, limit=None):
    """The next power of two, at most `limit`: lengths of few values, since each is compiled anew."""
    power = 1 << (length - 1).bit_length()
    return power if limit is None else min(power, limit)


def bucket_rows(count):
    """The rows of a batch that `count` are filled up to, for the same reason: 1, 2, 4, 8, 12, 16, 24, 32, 48, ...

    A row more costs a step of decoding little where there are few, since reading the weights is most of it: of a model
    of 35 million weights on a CPU with jax 5 rows take 74 ms, 8 take 79, 9 take 96, 12 take 111 and 16 take 126.
    """
    power = bucket_length(count)
    return 3 * power // 4 if power > 8 and count <= 3 * power // 4 else power


def filled(array, size, value):
    """An array (N, ...) with copies of `value` behind it, as far as `size` rows."""
    return np.concatenate([array, np.full((size - len(array), *array.shape[1:]), value, array.dtype)])
