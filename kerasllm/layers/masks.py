"""Masks of attention: boolean, True means "may look"."""

import numpy as np
from keras import ops
from keras.backend import standardize_dtype


def causal_mask(query_length, key_length, index=0, window=None):
    """Query t sits in slot s = index + t and sees slots 0 .. s, or the last `window` of them.

    Returns:
        (1, 1, T, S) boolean for a scalar `index`, (B, 1, T, S) for (B,), a slot for each row.
    """
    query_slots = slots_from(index, ops.arange(query_length, dtype="int32"))
    if len(query_slots.shape) == 2:
        query_slots = ops.expand_dims(ops.expand_dims(query_slots, 1), -1)  # (B, 1, T, 1)
    else:
        query_slots = ops.reshape(query_slots, (1, 1, -1, 1))
    key_slots = ops.reshape(ops.arange(key_length, dtype="int32"), (1, 1, 1, -1))
    mask = ops.less_equal(key_slots, query_slots)
    return mask if window is None else ops.logical_and(mask, key_slots > query_slots - window)


def slots_from(index, steps):
    """The slots that lie `steps` (T,) after `index`: (T,) for a scalar, (B, T) for (B,), a slot for each row."""
    return steps + (ops.expand_dims(ops.cast(index, "int32"), 1) if len(np.shape(index)) else index)


def check_index(index, x):
    """Raise `ValueError` unless `index` is a scalar or has a slot for each row of x (B, ...), as far as is known."""
    shape, rows = tuple(np.shape(index)), x.shape[0]
    if shape and (len(shape) > 1 or _differ(shape[0], rows)):
        raise ValueError(f"index of shape {shape} must be a scalar or of shape (B,), here {(rows,)}.")


def check_padding_mask(name, padding_mask, x):
    """Raise `ValueError` unless a mask (B, T) has the first axes of x, as far as they are known."""
    shape, (rows, length) = tuple(np.shape(padding_mask)), tuple(x.shape)[:2]
    if len(shape) != 2 or _differ(shape[0], rows) or _differ(shape[1], length):
        raise ValueError(f"{name} of shape {shape} must be of shape (B, T), here {(rows, length)}.")


def check_attention_mask(attention_mask, query, num_heads, keys):
    """Raise `ValueError` unless a mask is of booleans, or 0 and 1, and fits queries (B, T, D) and keys (B, N, S, H)."""
    rows, length = tuple(query.shape)[:2]
    shape, wanted = tuple(np.shape(attention_mask)), (rows, num_heads, length, keys.shape[2])
    fits = len(shape) <= 4 and not any(
        a != 1 and _differ(a, b) for a, b in zip(shape[::-1], wanted[::-1], strict=False)
    )
    if not fits or not standardize_dtype(getattr(attention_mask, "dtype", "float32")).startswith(
        ("bool", "int", "uint")
    ):
        raise ValueError(
            f"attention_mask of shape {shape} must be boolean, and broadcast to (B, N, T, S), here {wanted}."
        )


def _differ(a, b):
    return None not in (a, b) and a != b


def padding_attention_mask(padding_mask):
    """Every query sees the real keys: (B, S) boolean or 0/1 -> (B, 1, 1, S) boolean."""
    return ops.expand_dims(ops.expand_dims(ops.cast(padding_mask, "bool"), 1), 1)


def same_document_mask(position_ids):
    """Every query sees the document it stands in, which begins wherever a position is not one more than that before.

    So transformers reads `position_ids` of packed rows (masking_utils.find_packed_sequence_indices).

    Args:
        position_ids: (B, T) int.

    Returns:
        (B, 1, T, T) boolean.
    """
    begins = ops.cast(ops.not_equal(position_ids[:, 1:], position_ids[:, :-1] + 1), "int32")
    documents = ops.pad(ops.cumsum(begins, axis=1), ((0, 0), (1, 0)))  # (B, T)
    return ops.expand_dims(ops.equal(ops.expand_dims(documents, 2), ops.expand_dims(documents, 1)), 1)


def num_seen_keys(attention_mask):
    """How many keys the queries of a row see between them: (B, 1, T, S) boolean -> (B, 1) int32."""
    return ops.sum(ops.cast(ops.any(attention_mask, axis=2), "int32"), axis=-1)


def implicit_attention_mask(mask, cache=None, index=0):
    """What Keras's mask of a sequence (B, T), or None, says of the keys: (B, 1, 1, S) boolean, or None.

    With a cache it says so only where the sequence is the first thing in it.
    """
    if mask is None:
        return None
    if cache is not None:
        if not isinstance(index, int) or index:
            raise ValueError(
                "attention_mask (None) must be given to a step with a cache whose input carries a Keras mask: the mask "
                "does not say which slots before `index` are padding."
            )
        mask = ops.pad(mask, ((0, 0), (0, ops.shape(cache[0])[2] - ops.shape(mask)[1])))
    return padding_attention_mask(mask)
