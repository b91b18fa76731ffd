"""Cross-entropy of hidden states and an output layer's matrix, a chunk of tokens at a time: no (M, V) logits.

The gradient is written out: that of a chunk's logits is multiplied with the matrix and the hidden states at once, so
that logits need be neither kept nor computed again (as in Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989).
"""

import dataclasses
import functools

from keras import ops

from kerasllm.backend.compilation import name
from kerasllm.backend.kernels import is_argmax, is_class
from kerasllm.backend.tape import on_tape


@dataclasses.dataclass(frozen=True)
class Product:
    """What an output layer computes: logits y = scale x W + bias, or c tanh(y / c).

    Args:
        kernel: W, (D, V) float, or (V, D).
        bias: (V,), or None.
        is_transposed: whether W is (V, D).
        scale: a number.
        softcap: c, or None.
        dtype: in which W is multiplied.
    """

    kernel: object
    bias: object = None
    is_transposed: bool = False
    scale: float = 1.0
    softcap: float | None = None
    dtype: str = "float32"


def linear_crossentropy(
    x, product, labels, weights, ignore_class, label_smoothing, chunk_size, training, with_hits=False
):
    """The weighted sum of the tokens' cross-entropies, which `kernels.token_crossentropy` defines.

    Args:
        x: hidden states (M, D).
        product: a `Product`.
        labels: (M,) int.
        weights: (M,) float32.
        ignore_class, label_smoothing: as for `kernels.token_crossentropy`. Nothing is computed for ignored tokens.
        chunk_size: the tokens of a chunk C: logits (C, V) exist at a time.
        training: whether the sum has a gradient, by x, kernel and bias.
        with_hits: whether hits are asked for.

    Returns:
        The sum, a scalar; the cross-entropies (M,) without label smoothing; the hits (M,), 1.0 where the label has the
        largest logit. The latter two have no gradient, and are 0 where a token is ignored.
    """
    kernel, *bias = map(_value, [product.kernel, *([] if product.bias is None else [product.bias])])
    counted = ops.ones_like(labels, "bool") if ignore_class is None else ops.not_equal(labels, ignore_class)
    known = is_class(labels, kernel.shape[0 if product.is_transposed else 1])
    labels = ops.where(known, ops.cast(labels, "int32"), 0)
    # Halves lose what is far below 1, as the share of one token in a batch may be.
    largest = ops.maximum(ops.max(ops.abs(weights)), 1e-30)
    walk = functools.partial(
        _torch_walk if name() == "torch" else _walk,
        product=dataclasses.replace(product, kernel=None, bias=None),
        label_smoothing=label_smoothing,
        chunk_size=chunk_size,
        with_hits=with_hits,
    )
    function = _differentiable(walk) if training else lambda *inputs: walk(*inputs, training=False)[0]
    x = ops.cast(x, product.dtype)
    total, losses, hits = function(x, kernel, *bias, labels, counted, ops.where(counted, weights / largest, 0.0))
    is_wrong = counted & ~known
    total = total * largest + ops.where(ops.any(is_wrong), float("nan"), 0.0)
    return total, *(ops.where(is_wrong, float("nan"), a) for a in (losses, hits))


def _value(variable):
    """A tensor, which `ops.convert_to_tensor` makes of no variable of TensorFlow's."""
    if name() != "tensorflow":
        return ops.convert_to_tensor(variable)
    import tensorflow as tf

    return tf.convert_to_tensor(variable)


def _differentiable(walk):
    """The function of (x, kernel, [bias], labels, counted, shares) whose gradients a walk computes with its results."""
    if name() == "torch":
        return _torch_function(walk)
    if name() == "jax":
        import jax

        function = jax.custom_vjp(lambda *inputs: walk(*inputs, training=False)[0])

        def backward(gradients, d_results):
            return *(d_results[0].astype(g.dtype) * g for g in gradients), None, None, None

        function.defvjp(functools.partial(walk, training=True), backward)
        return function
    return functools.partial(_recorded_on_tensorflow, walk)


def _recorded_on_tensorflow(walk, *inputs):
    """A walk with its gradients, for `tf.GradientTape`."""
    import tensorflow as tf

    def forward(*inputs):
        (total, *others), gradients = walk(*inputs, training=True)

        def backward(d):
            return [*(tf.cast(d, g.dtype) * g for g in gradients), None, None, None]

        return [tf.identity(total)], backward, others

    (total,), others = on_tape(forward, inputs)
    return total, *others


def _walk(x, kernel, *others, product, label_smoothing, chunk_size, with_hits, training):
    """Results and gradients on jax and tensorflow, in a loop of as many steps as the tokens that count need."""
    *bias, labels, counted, shares = others
    num_tokens = ops.shape(x)[0]
    # Those that count first. One more row stands for what the last chunk lacks.
    order = ops.cast(ops.argsort(ops.cast(~counted, "int32")), "int32")
    order = ops.concatenate([order, ops.full((chunk_size,), num_tokens, "int32")])
    x, labels, shares = (ops.pad(a, [[0, 1]] + [[0, 0]] * (len(a.shape) - 1)) for a in (x, labels, shares))
    matrix = ops.cast(kernel, product.dtype)

    def step(start, total, losses, hits, *gradients):
        rows = ops.slice(order, (start,), (chunk_size,))
        h, y, share = (ops.take(a, rows, axis=0) for a in (x, labels, shares))
        logits = _logits(h, matrix, bias, product)  # (C, V)
        loss, d = _crossentropies(logits, y)
        losses = ops.scatter_update(losses, rows[:, None], loss)
        if label_smoothing:
            normalizer = loss + ops.take_along_axis(logits, y[:, None], axis=-1)[:, 0]
            loss = (1 - label_smoothing) * loss + label_smoothing * (normalizer - ops.mean(logits, axis=-1))
        total = total + ops.sum(share * loss)
        if with_hits:
            hits = ops.scatter_update(hits, rows[:, None], ops.cast(is_argmax(y, logits), "float32"))
        if training:
            if label_smoothing:
                d = _plus_at(d, y, label_smoothing) - label_smoothing / logits.shape[-1]
            if product.softcap is not None:
                d = d * (1 - ops.square(logits / product.softcap))
            d_x, d_kernel, *d_bias = gradients
            d_bias = [b + ops.matmul(share, d) for b in d_bias]
            # Shares weigh the hidden states, which are smaller than the logits.
            share = ops.cast(share[:, None], product.dtype)
            d_h, d_matrix = _products(ops.cast(d, product.dtype), share * h, matrix, product)
            d_x = ops.scatter_update(d_x, rows[:, None], share * d_h)
            gradients = d_x, d_kernel + ops.cast(d_matrix, d_kernel.dtype), *d_bias
        return start + chunk_size, total, losses, hits, *gradients

    zeros = [ops.zeros(()), ops.zeros((num_tokens + 1,)), ops.zeros((num_tokens + 1,))]
    gradients = [ops.zeros_like(x), ops.zeros_like(kernel), *map(ops.zeros_like, bias)] if training else []
    end, start = ops.sum(ops.cast(counted, "int32")), ops.zeros((), "int32")
    _, total, losses, hits, *gradients = _loop(lambda start, *_: start < end, step, (start, *zeros, *gradients))
    if training:
        gradients[0] = gradients[0][:-1]
    # The row that stands for none was written too.
    return (total, *(ops.where(counted, a[:-1], 0.0) for a in (losses, hits))), gradients


def _loop(condition, step, values):
    """`keras.ops.while_loop`, on TensorFlow with one chunk begun ahead: ten, its default, are the logits again."""
    if name() != "tensorflow":
        return ops.while_loop(condition, step, values)
    import tensorflow as tf

    return tf.while_loop(condition, step, values, parallel_iterations=2)


def _logits(h, matrix, bias, product):
    """The logits (C, V) float32 of hidden states (C, D)."""
    logits = ops.einsum("cd,vd->cv" if product.is_transposed else "cd,dv->cv", h, matrix)
    logits = ops.cast(logits, "float32")
    logits = logits if product.scale == 1 else logits * product.scale
    logits = logits + bias[0] if bias else logits
    return logits if product.softcap is None else ops.tanh(logits / product.softcap) * product.softcap


def _products(d, h, matrix, product):
    """The gradients of hidden states (C, D) and matrix from that of the logits, (C, V)."""
    if product.scale != 1:
        d = d * product.scale
    # On TensorFlow a transpose is a copy, which einsum does without.
    if product.is_transposed:
        return ops.einsum("cv,vd->cd", d, matrix), ops.einsum("cv,cd->vd", d, h)
    return ops.einsum("cv,dv->cd", d, matrix), ops.einsum("cd,cv->dv", h, d)


def _crossentropies(logits, labels):
    """The cross-entropies (C,) of logits (C, V), and their gradients (C, V), which make one pass on TensorFlow."""
    if name() == "tensorflow":
        import tensorflow as tf

        return tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=labels)
    top, p = ops.max(logits, axis=-1, keepdims=True), ops.softmax(logits, axis=-1)
    # The largest is at least 1 / V, and so as exact as the sum of exponentials that it was divided by.
    loss = -ops.log(ops.max(p, axis=-1)) + (top - ops.take_along_axis(logits, labels[:, None], axis=-1))[:, 0]
    return loss, _plus_at(p, labels, -1.0)


def _plus_at(d, places, amount):
    """D (C, V), plus a number at one place (C,) of each row."""
    if name() == "jax":  # which fuses this with what comes before and after
        return d + amount * (places[:, None] == ops.arange(d.shape[-1], dtype="int32"))
    import tensorflow as tf

    rows = tf.range(tf.shape(places)[0])
    return tf.tensor_scatter_nd_add(d, tf.stack([rows, places], axis=1), tf.fill(tf.shape(rows), amount))


def _torch_function(walk):
    """`_differentiable` on torch."""
    import torch

    class LinearCrossentropy(torch.autograd.Function):
        @staticmethod
        def forward(context, *inputs):
            results, context.gradients = walk(*inputs, training=True)
            context.mark_non_differentiable(*results[1:])
            return results

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context, d_total, *_):
            gradients, context.gradients = context.gradients, None  # they are given away, to be scaled in place
            if gradients is None:
                raise RuntimeError("The gradient of a cross-entropy in chunks is computed once.")
            return *(g.mul_(d_total) for g in gradients), None, None, None

    return LinearCrossentropy.apply


def _torch_walk(x, kernel, *others, product, label_smoothing, chunk_size, with_hits, training):
    """Results and gradients on torch, in two buffers of a chunk's logits."""
    import torch

    *bias, labels, counted, shares = others
    matrix = kernel.to(x.dtype)
    matrix = matrix.T if product.is_transposed else matrix  # (D, V)
    total, losses, hits = x.new_zeros((), dtype=torch.float32), *torch.zeros((2, len(x)), device=x.device)
    gradients = [torch.zeros_like(a) for a in (x, kernel, *bias)] if training else []
    buffers = x.new_empty((2, min(chunk_size, len(x)), matrix.shape[1]))
    for rows in counted.nonzero()[:, 0].split(chunk_size):
        h, y, share = x[rows], labels[rows].long()[:, None], shares[rows]
        logits = torch.mm(h, matrix, out=buffers[0, : len(rows)]).float()  # (C, V)
        if product.scale != 1:
            logits.mul_(product.scale)
        if bias:
            logits.add_(bias[0])
        if product.softcap is not None:
            logits.div_(product.softcap).tanh_().mul_(product.softcap)
        top, place = logits.max(dim=-1, keepdim=True)
        target = logits.gather(1, y)
        p = torch.softmax(logits, dim=-1, out=buffers[1, : len(rows)] if x.dtype == torch.float32 else None)
        normalizer = -p.gather(1, place).log()
        loss = (normalizer + (top - target))[:, 0]
        losses[rows] = loss
        if label_smoothing:
            loss = (1 - label_smoothing) * loss
            loss += label_smoothing * (normalizer + (top - logits.mean(dim=-1, keepdim=True)))[:, 0]
        total += (share * loss).sum()
        if with_hits:
            hits[rows] = (place == y)[:, 0].float()
        if training:
            d = p.scatter_add_(1, y, torch.full_like(target, label_smoothing - 1))
            if label_smoothing:
                d.sub_(label_smoothing / d.shape[1])
            if product.softcap is not None:
                d.addcmul_(d, logits.div_(product.softcap).square_(), value=-1)
            # Shares and scale weigh the hidden states, which are smaller than the logits.
            d_x, d_kernel, *d_bias = gradients
            for d_b in d_bias:
                d_b.addmv_(d.T, share)
            d, share = d.to(x.dtype), (share * product.scale)[:, None].to(x.dtype)
            d_x[rows] = torch.mm(d, matrix.T).mul_(share)
            left, right = (d.T, h * share) if product.is_transposed else ((h * share).T, d)
            if d_kernel.dtype == x.dtype:
                d_kernel.addmm_(left, right)
            else:
                d_kernel.add_(torch.mm(left, right))
    return (total, losses, hits), gradients
