"""Changing the distribution before a token is drawn: pure functions on logits (B, V).

Their parameters are tensors, so that changing a value never recompiles. A token that may not be drawn gets
minus infinity; every filter leaves the most probable token.
"""

import numpy as np
from keras import ops


def process(logits, temperature, top_k=None, top_p=None):
    """Apply temperature, then top-k, then top-p: the order of transformers.

    Args:
        logits: (B, V).
        temperature, top_k, top_p: scalar float32 tensors; None leaves a filter out.

    Returns:
        (B, V) float32.
    """
    logits = apply_temperature(ops.cast(logits, "float32"), temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return logits


def apply_temperature(logits, temperature):
    """Divide the logits (B, V) by a positive scalar."""
    return logits / temperature


def keep_top_k(logits, k):
    """Keep the k largest logits of a row, and those equal to the k-th. From V on, k keeps all."""
    return _keep_largest(logits, ops.ones_like(logits), k)


def keep_top_p(logits, p):
    """Keep the largest logits until their probability reaches p, and those equal to the last of them.

    Holtzman et al., "The curious case of neural text degeneration", 2019.
    """
    weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    return _keep_largest(logits, weights, p * ops.sum(weights, axis=-1, keepdims=True))


def _keep_largest(logits, weights, target):
    """Keep the largest logits until their weights sum to `target`, and those equal to the last of them.

    The last one is found without a sort, bit by bit: 32 sums over the row cost a third of sorting 50,000
    logits, on jax a tenth.

    Args:
        logits: (B, V) float32.
        weights: (B, V) float32, not negative.
        target: scalar or (B, 1) float32; where it is not reached, all logits are kept.
    """
    keys = _ordered_integers(logits)
    bits = ops.convert_to_tensor(np.array([-(2**31)] + [2**bit for bit in range(30, -1, -1)], dtype="int32"))

    def set_bit(i, lowest):
        higher = lowest + bits[i]
        reached = ops.sum(ops.where(keys >= higher, weights, 0.0), axis=-1, keepdims=True) >= target
        return ops.where(reached, higher, lowest)

    # The smallest int32 with its highest bit set wraps round to zero.
    lowest = ops.full((ops.shape(logits)[0], 1), -(2**31), dtype="int32")
    lowest = ops.fori_loop(0, 32, set_bit, lowest)
    return ops.where(keys < lowest, -float("inf"), logits)


def _ordered_integers(x):
    """int32 in the order of the float32 `x`: their bits, which grow with the size of the number."""
    bits = ops.view(x, dtype="int32")
    return ops.where(bits < 0, -(2**31) - bits, bits)
