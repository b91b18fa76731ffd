"""Attention, output layers, activations, arg max and cross-entropy by the backend's best kernel."""

import contextlib
import contextvars
import functools

import keras
import numpy as np
from keras import ops

from kerasllm.backend.compilation import name
from kerasllm.backend.steps import is_in_any_step

# Finite in float16, and far below any score.
_masked_score = contextvars.ContextVar("masked_score", default=-3e4)


def masked_score():
    """The score of what attention may not look at."""
    return _masked_score.get()


@contextlib.contextmanager
def small_masked_scores():
    """Inside it, `masked_score` is -100, beside which the others keep some of the 256 steps of 8-bit scores."""
    token = _masked_score.set(-100.0)
    try:
        yield
    finally:
        _masked_score.reset(token)


def attention(q, k, v, mask=None, bias=None, scale=None, grouped=False):
    """softmax(scale q k^T + bias) v by the backend's fused kernel, or None where it has none.

    Args:
        q: (B, N, T, H).
        k, v: (B, G, S, H), G a divisor of N: each key head serves N / G query heads.
        mask: boolean, broadcasts to (B, 1, T, S); True means "may look".
        bias: float, broadcasts to (B, N, T, S).
        scale: factor of the scores. Default: 1 / sqrt(H).
        grouped: whether G is not N. A shape cannot tell: while torch traces a graph, its sizes are tensors.

    Returns:
        (B, N, T, H), or None.
    """
    if name() != "torch":
        return None
    import torch

    if mask is not None:
        # Finite, and so low that any score added to it is lost: a query that may look nowhere gets a mean, not nan.
        lowest = -3e4 if q.dtype == torch.float16 else -1e30
        additive = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~mask, lowest)
        bias = additive if bias is None else bias.to(q.dtype).masked_fill(~mask, lowest)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=grouped)


def product_with_table(x, table):
    """Hidden states (..., D) times E^T, of embeddings E (V, D) of the same dtype: (..., V), in a step of training.

    On TensorFlow a transposed table is a copy, and one more in the gradient. torch adds the gradient of looked up rows
    to that of E in place only where the latter is no view, as it is of a product with `E.T`.
    """
    if name() == "torch":
        return _torch_product_with_table()(x, table)
    if name() == "tensorflow":
        import tensorflow as tf

        logits = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), table, transpose_b=True)
        return tf.reshape(logits, tf.concat([tf.shape(x)[:-1], [table.shape[0]]], 0))
    return ops.matmul(x, ops.transpose(table))


@functools.cache
def _torch_product_with_table():
    import torch

    class ProductWithTable(torch.autograd.Function):
        @staticmethod
        def forward(context, x, table):
            context.save_for_backward(x, table)
            return x @ table.T

        @staticmethod
        def backward(context, d):
            x, table = context.saved_tensors
            needs_x, needs_table = context.needs_input_grad
            d_x = d @ table if needs_x else None
            return d_x, d.flatten(0, -2).T @ x.flatten(0, -2) if needs_table else None

    return ProductWithTable.apply


def gelu_tanh(x):
    """The tanh approximation of GELU, any shape."""
    if name() == "tensorflow" and is_in_any_step():
        # TensorFlow's own has a power in it, whose gradient takes as long as the rest three times; converters know it.
        k = (2 / np.pi) ** 0.5
        return 0.5 * x * (1 + ops.tanh(x * (k + k * 0.044715 * (x * x))))
    return ops.gelu(x, approximate=True)


def write_slots(cache, update, index):
    """Write (B, N, T, H) into the slots `index` .. `index` + T - 1 of a cache (B, N, S, H): the new cache.

    `index` is a scalar, or (B,), a slot for each row. A row whose slots do not all lie in the cache writes into the
    nearest T that do; what becomes of such a scalar depends on the backend.
    """
    update = ops.cast(update, cache.dtype)
    if len(np.shape(index)):
        return _write_rows(cache, update, index)
    if name() == "torch" and not isinstance(index, int):
        import torch

        # An operation that a recording can do in place.
        return cache.index_copy(2, torch.arange(update.shape[2], device=cache.device) + index, update)
    return ops.slice_update(cache, (0, 0, index, 0), update)


def _write_rows(cache, update, index):
    """`write_slots` for an `index` (B,)."""
    length = ops.shape(update)[2]
    index = ops.clip(ops.cast(index, "int32"), 0, ops.shape(cache)[2] - length)
    if name() == "jax":
        import jax

        return jax.vmap(lambda row, x, i: jax.lax.dynamic_update_slice(row, x, (0, i, 0)))(cache, update, index)
    slots = ops.expand_dims(index, 1) + ops.arange(length, dtype="int32")  # (B, T)
    if name() == "torch":
        # As `index_copy`, an operation that a recording can do in place.
        return cache.scatter(2, slots.long()[:, None, :, None].expand(update.shape), update)
    import tensorflow as tf

    rows, heads, length = tf.unstack(tf.shape(update)[:3])
    grid = tf.meshgrid(tf.range(rows), tf.range(heads), tf.range(length), indexing="ij")
    places = tf.stack([*grid[:2], tf.broadcast_to(slots[:, None], (rows, heads, length))], axis=-1)  # (B, N, T, 3)
    return tf.tensor_scatter_nd_update(cache, places, update)


def argmax(x):
    """Index of the largest entry of the last axis, the first one of equals: (..., V) -> (...) int32.

    `keras.ops.argmax` brings a bitwise and, which TFLite's builtin operations lack, into a TensorFlow graph.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        return tf.argmax(x, axis=-1, output_type=tf.int32)
    return ops.cast(ops.argmax(x, axis=-1), "int32")


def token_crossentropy(labels, logits, ignore_class=None, label_smoothing=0.0):
    """Cross-entropy of each token in float32: labels (M,) int, logits (M, V) -> (M,).

    It is 0 where the label is `ignore_class`, nan where it is no class, otherwise

    -sum_v q_v log softmax(logits)_v  with  q = (1 - label_smoothing) * one_hot(label) + label_smoothing / V
    """
    num_classes = logits.shape[-1]
    is_known = is_class(labels, num_classes)
    labels, logits = ops.cast(labels, "int32"), ops.cast(logits, "float32")
    picked = ops.where(is_known, labels, 0)
    if name() == "torch":
        import torch

        # Fused: half the time of logsumexp and gather, a third of Keras's sparse_categorical_crossentropy.
        losses = torch.nn.functional.cross_entropy(
            logits, picked.long(), reduction="none", label_smoothing=label_smoothing
        )
    elif name() == "tensorflow" and not label_smoothing:
        import tensorflow as tf

        # Fused: it makes the gradient in the same pass.
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(picked, logits)
    else:
        if name() == "tensorflow":
            # Without XLA, as on a CPU, the gradient of a gather is a scatter that costs more than these products.
            target = ops.sum(logits * ops.one_hot(picked, num_classes, dtype="float32"), axis=-1)
        else:
            target = ops.take_along_axis(logits, picked[:, None], axis=-1)[:, 0]
        if label_smoothing:
            target = (1 - label_smoothing) * target + label_smoothing * ops.mean(logits, axis=-1)
        losses = ops.logsumexp(logits, axis=-1) - target
    losses = ops.where(is_known, losses, float("nan"))
    return losses if ignore_class is None else ops.where(labels == ignore_class, 0.0, losses)


def is_class(labels, num_classes):
    """Whether each label is one of the classes: whole, 0 to `num_classes` - 1; also of floats, cut off elsewhere."""
    known = (labels >= 0) & (labels < num_classes)
    return known & (ops.floor(labels) == labels) if "float" in keras.backend.standardize_dtype(labels.dtype) else known


def is_argmax(labels, logits):
    """Whether each label has the largest logit, the first of equals: labels (M,), logits (M, V) -> (M,) bool."""
    labels = ops.cast(labels, "int32")
    if name() != "jax":
        return argmax(logits) == labels
    # jax's argmax is a slow loop on a CPU; XLA fuses these comparisons into one pass, twenty times as fast.
    labels = labels[:, None]
    picked = ops.take_along_axis(logits, labels, axis=-1)
    before = ops.arange(logits.shape[-1]) < labels
    return ~ops.any((logits > picked) | ((logits == picked) & before), axis=-1)
