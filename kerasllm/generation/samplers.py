"""Choosing a token: a pure function `(logits, uniform) -> ids`, and the uniform numbers it takes."""

from keras import ops

# Floats are summed in blocks of this size: a running sum of 50,000 probabilities, added one after the other
# in float32, is off by up to 1e-3, and differs between backends.
BLOCK = 256


def sample(logits, uniform):
    """Draw tokens from the softmax of the logits, by inverting the cumulative distribution.

    The tokens stand in vocabulary order, not in the order of their probabilities, so that logits that differ
    by rounding give the same token unless `uniform` lies at an edge of the distribution.

    Args:
        logits: (B, V). Tokens at minus infinity are never drawn.
        uniform: (B,) float32 in (0, 1].

    Returns:
        (B,) int32.
    """
    logits = ops.cast(logits, "float32")
    weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    return first_reaching(weights, uniform[:, None] * ops.sum(weights, axis=-1, keepdims=True))


def first_reaching(weights, target):
    """Index of the first positive weight at which the running sum reaches `target`.

    Args:
        weights: (B, V) float32, not negative, at least one positive in a row.
        target: (B, 1) float32, positive. Above the sum, the last positive weight is taken.

    Returns:
        (B,) int32.
    """
    batch, size = ops.shape(weights)[0], weights.shape[-1]
    num_blocks = -(-size // BLOCK)
    weights = ops.pad(weights, [[0, 0], [0, num_blocks * BLOCK - size]])
    blocks = ops.reshape(weights, (batch, num_blocks, BLOCK))
    sums = ops.sum(blocks, axis=-1)  # (B, V / BLOCK)

    block = _search(sums, target)[:, None]  # (B, 1)
    before = ops.sum(ops.where(_positions(sums) < block, sums, 0.0), axis=-1, keepdims=True)
    inside = ops.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0]  # (B, BLOCK)
    return block[:, 0] * BLOCK + _search(inside, target - before)


def _search(weights, target):
    """`first_reaching` for a few weights.

    Only a positive weight is taken, because a backend's running sum may rise by rounding where the weight is
    zero; and the last one, where rounding keeps the whole sum below the target.
    """
    positive = weights > 0
    reached = ops.logical_and(positive, ops.cumsum(weights, axis=-1) >= target)
    first = ops.min(ops.where(reached, _positions(weights), weights.shape[-1]), axis=-1)
    last = ops.max(ops.where(positive, _positions(weights), 0), axis=-1)
    return ops.minimum(first, last)


def _positions(x):
    return ops.arange(x.shape[-1], dtype="int32")[None]


def uniform(seed, prompt_index, sequence_index, count, xp=ops):
    """Uniform numbers in (0, 1], a function of four integers alone.

    Nothing is remembered between draws, so that a row draws the same numbers in any batch (Salmon et al.,
    "Parallel random numbers: as easy as 1, 2, 3", 2011). The arithmetic is int32 that wraps round, which
    numpy, the backends and TFLite's builtin operations do alike, bit for bit.

    Args:
        seed: (...,) int32, as the other three; they broadcast. `wrap_seed` gives it.
        prompt_index: the prompt's place in the call.
        sequence_index: the sample's place among those of its prompt.
        count: tokens that the row has generated so far.
        xp: the namespace to compute in, `keras.ops` or `numpy`.

    Returns:
        (...,) float32, multiples of 2**-24.
    """
    # Its own multiplier spreads each index over all bits: no row walks through the numbers of another.
    bits = _mix(xp.bitwise_xor(seed, xp.multiply(prompt_index, -1640531535)), xp)
    bits = _mix(xp.bitwise_xor(bits, xp.multiply(sequence_index, -2048144777)), xp)
    bits = _mix(xp.bitwise_xor(bits, xp.multiply(count, -1028477379)), xp)
    high = xp.add(_logical_right_shift(bits, 8, xp), 1)  # 1 .. 2**24, exact in float32
    return xp.multiply(xp.array(high, dtype="float32"), 2.0**-24)


def wrap_seed(seed):
    """The int32 with the bits of `seed`, an integer in [0, 2**32)."""
    return seed - 2**32 if seed >= 2**31 else seed


def _mix(x, xp):
    """Scramble an int32 so that each bit depends on all others: Chris Wellons's `lowbias32`.

    The addition comes on top: without it, zero would stay zero.
    """
    x = xp.add(x, 1013904223)
    x = xp.bitwise_xor(x, _logical_right_shift(x, 16, xp))
    x = xp.multiply(x, 2146121005)  # 0x7feb352d
    x = xp.bitwise_xor(x, _logical_right_shift(x, 15, xp))
    x = xp.multiply(x, -2073254261)  # 0x846ca68b
    return xp.bitwise_xor(x, _logical_right_shift(x, 16, xp))


def _logical_right_shift(x, shift, xp):
    """Shift zeros in from the left.

    The shift of an int32 copies the sign, which adds -2**(32 - shift) where it is set. A bitwise and would
    remove that too, but TFLite has none.
    """
    return xp.subtract(xp.right_shift(x, shift), xp.multiply(xp.right_shift(x, 31), 2 ** (32 - shift)))
