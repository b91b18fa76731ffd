"""Masks of attention: boolean, True means "may look"."""

from keras import ops


def causal_mask(query_length, key_length, index=0, window=None):
    """Query t sits in slot s = index + t and sees slots 0 .. s, or the last `window` of them: (1, 1, T, S) boolean."""
    query_slots = ops.reshape(ops.arange(query_length, dtype="int32") + index, (1, 1, -1, 1))
    key_slots = ops.reshape(ops.arange(key_length, dtype="int32"), (1, 1, 1, -1))
    mask = ops.less_equal(key_slots, query_slots)
    return mask if window is None else ops.logical_and(mask, key_slots > query_slots - window)


def padding_attention_mask(padding_mask):
    """Every query sees the real keys: (B, S) boolean or 0/1 -> (B, 1, 1, S) boolean."""
    return ops.expand_dims(ops.expand_dims(ops.cast(padding_mask, "bool"), 1), 1)


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
