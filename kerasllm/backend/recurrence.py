"""Walks of recurrent cells over sequences: PyTorch's fused kernels, loops on JAX and TensorFlow."""

import contextlib
import contextvars
import functools
import sys

from keras import ops, tree

from kerasllm.backend.compilation import name


def lstm(x, h, c, kernel, recurrent_kernel, bias, padding_mask=None, reverse=False):
    """Walk an LSTM over a sequence with the fastest kernel; `kerasllm.layers.LSTMCell` is its one step.

    Where `padding_mask` is False the state is carried over and the output is zero, so padding anywhere in a
    row changes nothing else. outputs[:, t] belongs to x[:, t] in both directions.

    Args:
        x: (B, T, I).
        h, c: the state before the first step, (B, U) each, in x's dtype.
        kernel, recurrent_kernel, bias: (I, 4U), (U, 4U), (4U,): gates i f g o, as in Keras.
        padding_mask: boolean (B, T), True where a token is real. Default: every token is.
        reverse: whether the walk goes from the last real token to the first.

    Returns:
        Outputs (B, T, U), and h and c after the last step.
    """
    kernel, recurrent_kernel, bias = map(ops.convert_to_tensor, (kernel, recurrent_kernel, bias))
    if name() == "torch":
        import torch

        weights = [kernel.T, recurrent_kernel.T, bias, torch.zeros_like(bias)]
        return _torch_recurrence(torch.lstm, x, (h, c), weights, padding_mask, reverse)
    return _loop(_lstm_step, ops.matmul(x, kernel), (h, c), recurrent_kernel, bias, padding_mask, reverse)


def _lstm_step(x, recurrent, h, c):
    i, f, g, o = ops.split(x + recurrent, 4, axis=-1)
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    return ops.sigmoid(o) * ops.tanh(c), c


def gru(x, h, kernel, recurrent_kernel, bias, padding_mask=None, reverse=False):
    """Walk a GRU: as `lstm`, with gates z r n in kernels (I, 3U), (U, 3U) and bias (2, 3U); outputs and h."""
    kernel, recurrent_kernel, bias = map(ops.convert_to_tensor, (kernel, recurrent_kernel, bias))
    if name() == "torch":
        import torch

        def reordered(w):  # torch's gates are r z n.
            z, r, n = torch.chunk(w, 3)
            return torch.cat([r, z, n])

        weights = [reordered(w) for w in (kernel.T, recurrent_kernel.T, *bias)]
        return _torch_recurrence(torch.gru, x, (h,), weights, padding_mask, reverse)
    projected = ops.matmul(x, kernel) + bias[0]
    return _loop(_gru_step, projected, (h,), recurrent_kernel, bias[1], padding_mask, reverse)


def _gru_step(x, recurrent, h):
    x_z, x_r, x_n = ops.split(x, 3, axis=-1)
    h_z, h_r, h_n = ops.split(recurrent, 3, axis=-1)
    z, n = ops.sigmoid(x_z + h_z), ops.tanh(x_n + ops.sigmoid(x_r + h_r) * h_n)
    return (z * h + (1 - z) * n,)


def simple_rnn(x, h, kernel, recurrent_kernel, bias, padding_mask=None, reverse=False):
    """Walk a simple RNN: as `lstm`, with kernels (I, U), (U, U) and bias (U,); outputs and h."""
    kernel, recurrent_kernel, bias = map(ops.convert_to_tensor, (kernel, recurrent_kernel, bias))
    if name() == "torch":
        import torch

        weights = [kernel.T, recurrent_kernel.T, bias, torch.zeros_like(bias)]
        return _torch_recurrence(torch.rnn_tanh, x, (h,), weights, padding_mask, reverse)
    return _loop(_simple_step, ops.matmul(x, kernel), (h,), recurrent_kernel, bias, padding_mask, reverse)


def _simple_step(x, recurrent, h):
    return (ops.tanh(x + recurrent),)


def scan(step, carried, inputs, like):
    """Walk `carried, output = step(carried, inputs at t)` over all t: a loop of any layers, with its gradient.

    Args:
        step: function of tensors that draws no random numbers.
        carried: tuple of tensors (B, U), which each step replaces by others of their shapes and dtypes.
        inputs: nest of tensors (B, T, ...), each (B, ...) at t.
        like: a tensor (B, D) of an output's shape and dtype.

    Returns:
        What the last step carries, and the outputs (B, T, D).
    """
    inputs = tree.map_structure(lambda x: ops.swapaxes(x, 0, 1), inputs)
    if name() == "torch" or (name() == "jax" and not _is_traced((carried, inputs))):
        carried, outputs = _unrolled(step, carried, inputs)
        return carried, ops.swapaxes(outputs, 0, 1)
    if name() == "tensorflow":
        import tensorflow as tf

        batch_size = tf.shape(tree.flatten(inputs)[0])[1]
        carried = tuple(tf.reshape(s, (batch_size, s.shape[1])) for s in carried)  # as in `_loop`

    def body(before, inputs):
        after, output = step(before, inputs)
        if name() == "tensorflow":
            for old, new in zip(before, after, strict=True):
                new.set_shape(old.shape)
        return after, (output,)

    carried, (outputs,) = over_steps(body, carried, inputs, (like,), reverse=False)
    return carried, ops.swapaxes(outputs, 0, 1)


def _is_traced(nest):
    """Whether jax compiles or differentiates: else it would compile a scan anew at every call."""
    import jax

    return any(isinstance(x, jax.core.Tracer) for x in tree.flatten(nest))


def _unrolled(step, carried, inputs):
    """`over_steps` as a plain loop."""
    x, outputs = tree.flatten(inputs)[0], []
    length, is_meta = x.shape[0], getattr(x, "is_meta", False)
    for t in range(1 if is_meta else length):  # Keras asks torch for shapes with lengths that would take long.
        carried, output = step(carried, tree.map_structure(lambda x, t=t: x[t], inputs))
        outputs.append(output)
    return carried, output.expand(length, *output.shape) if is_meta else ops.stack(outputs)


_dense = contextvars.ContextVar("dense", default=False)


@contextlib.contextmanager
def dense_recurrence():
    """Inside it, TensorFlow traces recurrences in a form that TFLite's builtin operations cover.

    Outputs go to a dense buffer, which has no gradient, for a TensorArray of open batch does not convert. The
    other backends do as always. `keras.Model.export(format="litert")` needs no such context: it is noticed.
    """
    token = _dense.set(True)
    try:
        yield
    finally:
        _dense.reset(token)


def _is_dense():
    if _dense.get():
        return True
    frame = sys._getframe()
    while frame and frame.f_globals.get("__name__") != "keras.src.export.litert":  # which says in no other way what for
        frame = frame.f_back
    return frame is not None


def not_folded(x):
    """x; inside `dense_recurrence` behind an operation through which TFLite's converter folds no factor.

    Else it would write weights that have two uses twice: as they are, and times the scale of the norm before.
    """
    return ops.maximum(x, -3e38) if _dense.get() else x


def _torch_recurrence(kernel, x, states, weights, padding_mask, reverse):
    """Run `torch.lstm`, `torch.gru` or `torch.rnn_tanh`; with a mask, over the real tokens, packed."""
    import torch

    if x.is_meta:  # Keras asks for shapes, and would compute them where this fails
        return x.new_empty(*x.shape[:2], states[0].shape[1]), *map(torch.empty_like, states)

    # One after the other in one buffer, as cuDNN wants them: it would copy them at every call and warn.
    buffer = torch.cat([w.flatten() for w in weights])
    weights = [part.view(w.shape) for part, w in zip(buffer.split([w.numel() for w in weights]), weights, strict=True)]

    def run(x, *batch_sizes, states, **options):
        states = tuple(s.unsqueeze(0).contiguous() for s in states)
        states = states if kernel is torch.lstm else states[0]
        options |= {"has_biases": True, "num_layers": 1, "dropout": 0.0, "bidirectional": False}
        # In evaluation cuDNN keeps nothing for the gradient.
        outputs, *states = kernel(x, *batch_sizes, states, weights, train=torch.is_grad_enabled(), **options)
        return outputs, [s.squeeze(0) for s in states]

    if padding_mask is None:
        outputs, states = run(x.flip(1) if reverse else x, states=states, batch_first=True)
        return outputs.flip(1) if reverse else outputs, *states

    # Packed: the first token of each row's walk, the longest row first; the second token of each; and so on.
    batch, length = padding_mask.shape
    lengths, step = padding_mask.sum(1), padding_mask.cumsum(1)  # step 1, 2, .. at real tokens
    step = lengths[:, None] - step if reverse else step - 1
    rows = torch.argsort(lengths, descending=True)
    place = torch.where(padding_mask, step * batch + torch.argsort(rows)[:, None], batch * length)
    lengths = lengths.cpu()  # where batch_sizes must be
    batch_sizes = (torch.arange(int(lengths.max()), device="cpu")[:, None] < lengths).sum(1)
    outputs = x.new_zeros(batch * length, states[0].shape[1])
    if len(batch_sizes):
        tokens = torch.argsort(place.flatten())[: int(lengths.sum())]
        rows = rows[: int(batch_sizes[0])]  # Rows without a token keep their state.
        packed = x.flatten(0, 1).index_select(0, tokens)
        packed, last = run(packed, batch_sizes, states=[s.index_select(0, rows) for s in states])
        outputs = outputs.index_copy(0, tokens, packed)
        states = [s.index_copy(0, rows, new) for s, new in zip(states, last, strict=True)]
    return outputs.reshape(batch, length, -1), *states


def _loop(step, x, states, kernel, bias, padding_mask, reverse):
    """Walk `states = step(x_t, states[0] @ kernel + bias, *states)` over x (B, T, G), on jax and tensorflow."""
    x = ops.transpose(x, (1, 0, 2))
    real = () if padding_mask is None else (ops.expand_dims(ops.transpose(padding_mask), -1),)  # (T, B, 1)
    if name() == "tensorflow":
        import tensorflow as tf

        # The loop asks that a state's static shape is the same before and after a step, the gradient for tensors.
        states = [tf.reshape(s, (tf.shape(x)[1], s.shape[1])) for s in states]
        kernel, bias = tf.convert_to_tensor(kernel), tf.convert_to_tensor(bias)
    outputs, *states = _walk_function(step, reverse)(x, kernel, bias, tuple(states), real)
    for mask in real:
        outputs = ops.where(mask, outputs, ops.zeros_like(outputs))
    return ops.transpose(outputs, (1, 0, 2)), *states


@functools.cache
def _walk_function(step, reverse):
    walk = functools.partial(_walk, step, reverse)
    if name() != "jax":
        return walk
    import jax

    return jax.jit(walk)  # once, or every eager call would compile its scan anew


def _walk(step, reverse, x, kernel, bias, first, real):
    """Outputs (T, B, U) and last states (B, U) from x (T, B, G), first states and real, () or ((T, B, 1),).

    The gradient is written out, so that the kernel's is one product over all steps: automatic differentiation adds
    up T thin ones, the most expensive part of the way back.
    """
    num_states = len(first)

    def masked_step(x, recurrent, states, real=None):
        new = step(x, recurrent, *states)
        return new if real is None else tuple(ops.where(real, a, b) for a, b in zip(new, states, strict=True))

    def forward(x, kernel, bias, first, real, like):
        def body(states, inputs):
            x, *real = inputs
            recurrent = ops.matmul(states[0], kernel) + bias
            states = masked_step(x, recurrent, states, *real)
            return states, (*states, recurrent)[: len(like)]

        return over_steps(body, first, (x, *real), like, reverse)

    if name() == "tensorflow" and _is_dense():
        last, (outputs,) = forward(x, kernel, bias, first, real, first[:1])
        return outputs, *last

    @ops.custom_gradient
    def walk(x, kernel, bias, *others):
        first, real = others[:num_states], others[num_states:]
        last, (*sequences, recurrent) = forward(x, kernel, bias, first, real, (*first, x[0]))

        def gradient(*d_results):
            d_outputs, *d_last = d_results if len(d_results) > 1 else d_results[0]  # tensorflow's way, jax's way
            before = [  # the states that each step began with
                ops.concatenate([s[1:], f[None]] if reverse else [f[None], s[:-1]])
                for f, s in zip(first, sequences, strict=True)
            ]

            def body(d_states, inputs):
                d_h, x, recurrent, states, *real = inputs
                d_states = (d_states[0] + d_h, *d_states[1:])
                d_x, d_recurrent, (d_h, *d_others) = pull_back(
                    lambda x, recurrent, states: masked_step(x, recurrent, states, *real),
                    (x, recurrent, states),
                    d_states,
                )
                return (d_h + ops.matmul(d_recurrent, ops.transpose(kernel)), *d_others), (d_x, d_recurrent)

            inputs = (d_outputs, x, recurrent, before, *real)
            d_first, (d_x, d_recurrent) = over_steps(body, tuple(d_last), inputs, (x[0], x[0]), not reverse)
            h = ops.reshape(before[0], (-1, before[0].shape[-1]))
            d_flat = ops.reshape(d_recurrent, (-1, d_recurrent.shape[-1]))
            d_kernel, d_bias = ops.matmul(ops.transpose(h), d_flat), ops.sum(d_flat, axis=0)
            return d_x, d_kernel, d_bias, *d_first, *(None for _ in real)

        return (sequences[0], *last), gradient

    return walk(x, kernel, bias, *first, *real)


def over_steps(body, carried, inputs, like, reverse):
    """`carried, outputs[t] = body(carried, inputs[t])` for each t, as `jax.lax.scan`, on jax and tensorflow.

    Args:
        carried: tuple of tensors.
        inputs: nest of tensors (T, ...).
        like: a tensor for each output at one t that has its shape and dtype.
    """
    if name() == "jax":
        import jax

        return jax.lax.scan(body, carried, inputs, reverse=reverse)
    import tensorflow as tf

    length, dense = tf.shape(tf.nest.flatten(inputs)[0])[0], _is_dense()
    if dense:
        outputs = [tf.zeros((length, *ops.shape(a)), a.dtype) for a in like]
        read, write = tf.gather, lambda output, t, a: ops.slice_update(output, (t, 0, 0), a[None])
    else:
        outputs = [tf.TensorArray(a.dtype, length, element_shape=a.shape) for a in like]
        inputs = tf.nest.map_structure(lambda a: tf.TensorArray(a.dtype, length).unstack(a), inputs)
        read, write = tf.TensorArray.read, tf.TensorArray.write

    def step(t, carried, outputs):
        slot = length - 1 - t if reverse else t
        carried, new = body(carried, tf.nest.map_structure(lambda a: read(a, slot), inputs))
        return t + 1, tuple(carried), [write(o, slot, a) for o, a in zip(outputs, new, strict=True)]

    _, carried, outputs = tf.while_loop(
        lambda t, *_: t < length, step, (0, tuple(carried), outputs), maximum_iterations=length
    )
    return carried, outputs if dense else [o.stack() for o in outputs]


def pull_back(function, arguments, gradients):
    """The gradients of a function's arguments from those of its results, on jax and tensorflow."""
    if name() == "jax":
        import jax

        return list(jax.vjp(function, *arguments)[1](gradients))
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(arguments)
        results = function(*arguments)
    return tape.gradient(results, arguments, gradients, unconnected_gradients="zero")
