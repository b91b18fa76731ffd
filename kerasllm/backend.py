"""The only file that asks which backend runs: compilation and the kernels worth writing three times."""

import contextlib
import contextvars
import functools

import keras
from keras import ops


def name():
    """The backend of this process: "tensorflow", "jax" or "torch"."""
    return keras.backend.backend()


def compiled(function, model):
    """Compile a function of tensors that reads `model`'s variables.

    Args:
        function: takes and returns (nests of) tensors, changes no variable. It is traced once for each set of
            argument shapes and dtypes; torch runs it eagerly.
        model: the `keras.Model` whose variables `function` reads. They are read at every call, so that training,
            `load_weights` or `quantize` between two calls take effect.

    Returns:
        A callable with `function`'s arguments that computes no gradients.
    """
    if name() == "jax":
        import jax

        @jax.jit
        def stateless(values, arguments):
            with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
                return function(*arguments)

        return lambda *arguments: stateless([v.value for v in model.variables], arguments)
    if name() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, reduce_retracing=True, autograph=False)
    if name() == "torch":
        import torch

        return torch.inference_mode()(function)
    raise ValueError(f"backend ({name()!r}) must be one of 'tensorflow', 'jax', 'torch'.")


def attention(q, k, v, mask=None, bias=None):
    """softmax(q k^T / sqrt(H) + bias) v by the backend's fused kernel, or None where it has none.

    Args:
        q: (B, N, T, H).
        k, v: (B, K, S, H), K a divisor of N: each key head serves N / K query heads.
        mask: boolean, broadcasts to (B, 1, T, S); True means "may look".
        bias: float, broadcasts to (B, N, T, S).

    Returns:
        (B, N, T, H), or None.
    """
    if name() != "torch":
        return None
    import torch

    if mask is not None:
        # Finite, so that a query that may look nowhere gets a mean and not nan.
        additive = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~mask, -3e4)
        bias = additive if bias is None else bias.to(q.dtype).masked_fill(~mask, -3e4)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, enable_gqa=k.shape[1] != q.shape[1]
    )


def argmax(x):
    """Index of the largest entry of the last axis, the first one of equals: (..., V) -> (...) int32.

    `keras.ops.argmax` brings a bitwise and, which TFLite's builtin operations lack, into a TensorFlow graph.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        return tf.argmax(x, axis=-1, output_type=tf.int32)
    return ops.cast(ops.argmax(x, axis=-1), "int32")


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
    return _loop(_lstm_step, ops.matmul(x, kernel) + bias, (h, c), (recurrent_kernel,), padding_mask, reverse)


def _lstm_step(x, states, recurrent_kernel):
    h, c = states
    i, f, g, o = ops.split(x + ops.matmul(h, recurrent_kernel), 4, axis=-1)
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
    projected, weights = ops.matmul(x, kernel) + bias[0], (recurrent_kernel, bias[1])
    return _loop(_gru_step, projected, (h,), weights, padding_mask, reverse)


def _gru_step(x, states, recurrent_kernel, bias):
    (h,) = states
    x_z, x_r, x_n = ops.split(x, 3, axis=-1)
    h_z, h_r, h_n = ops.split(ops.matmul(h, recurrent_kernel) + bias, 3, axis=-1)
    z, n = ops.sigmoid(x_z + h_z), ops.tanh(x_n + ops.sigmoid(x_r + h_r) * h_n)
    return (z * h + (1 - z) * n,)


def simple_rnn(x, h, kernel, recurrent_kernel, bias, padding_mask=None, reverse=False):
    """Walk a simple RNN: as `lstm`, with kernels (I, U), (U, U) and bias (U,); outputs and h."""
    kernel, recurrent_kernel, bias = map(ops.convert_to_tensor, (kernel, recurrent_kernel, bias))
    if name() == "torch":
        import torch

        weights = [kernel.T, recurrent_kernel.T, bias, torch.zeros_like(bias)]
        return _torch_recurrence(torch.rnn_tanh, x, (h,), weights, padding_mask, reverse)
    projected = ops.matmul(x, kernel) + bias
    return _loop(_simple_step, projected, (h,), (recurrent_kernel,), padding_mask, reverse)


def _simple_step(x, states, recurrent_kernel):
    return (ops.tanh(x + ops.matmul(states[0], recurrent_kernel)),)


_dense = contextvars.ContextVar("dense", default=False)


@contextlib.contextmanager
def dense_recurrence():
    """Inside it, TensorFlow traces recurrences in a form that TFLite's builtin operations cover.

    Outputs go to a dense buffer, which has no gradient, for a TensorArray of open batch does not convert. The
    other backends do as always.
    """
    token = _dense.set(True)
    try:
        yield
    finally:
        _dense.reset(token)


def _torch_recurrence(kernel, x, states, weights, padding_mask, reverse):
    """Run `torch.lstm`, `torch.gru` or `torch.rnn_tanh`; with a mask, over the real tokens, packed."""
    import torch

    weights = [w.contiguous() for w in weights]

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


def _loop(step, x, states, weights, padding_mask, reverse):
    """Walk `step(x_t, states, *weights) -> states` over a projected input (B, T, G), on jax and tensorflow."""
    x = ops.transpose(x, (1, 0, 2))
    real = None if padding_mask is None else ops.expand_dims(ops.transpose(padding_mask), -1)  # (T, B, 1)
    walk = _jax_walk(step, reverse) if name() == "jax" else functools.partial(_tensorflow_walk, step, reverse)
    outputs, states = walk(x, real, tuple(states), weights)
    if real is not None:
        outputs = ops.where(real, outputs, ops.zeros_like(outputs))
    return ops.transpose(outputs, (1, 0, 2)), *states


def _masked_step(step, x, real, states, weights):
    new = step(x, states, *weights)
    return new if real is None else tuple(ops.where(real, a, b) for a, b in zip(new, states, strict=True))


@functools.cache  # One compiled function, or every eager call would compile its scan anew.
def _jax_walk(step, reverse):
    import jax

    @jax.jit
    def walk(x, real, states, weights):
        def body(states, inputs):
            states = _masked_step(step, *inputs, states, weights)
            return states, states[0]

        states, outputs = jax.lax.scan(body, states, (x, real), reverse=reverse)
        return outputs, states

    return walk


def _tensorflow_walk(step, reverse, x, real, states, weights):
    import tensorflow as tf

    length, batch = ops.shape(x)[:2]
    # The loop asks that a state's static shape is the same before and after a step.
    states = [tf.reshape(s, (batch, s.shape[1])) for s in states]
    if _dense.get():
        outputs = tf.zeros((length, batch, states[0].shape[1]), x.dtype)
        read, write = tf.gather, lambda outputs, t, h: ops.slice_update(outputs, (t, 0, 0), h[None])
    else:
        outputs = tf.TensorArray(x.dtype, length, element_shape=states[0].shape)
        x, real = (None if s is None else tf.TensorArray(s.dtype, length).unstack(s) for s in (x, real))
        read, write = tf.TensorArray.read, tf.TensorArray.write

    def body(t, outputs, *states):
        slot = length - 1 - t if reverse else t
        real_t = None if real is None else read(real, slot)
        states = _masked_step(step, read(x, slot), real_t, states, weights)
        return t + 1, write(outputs, slot, states[0]), *states

    _, outputs, *states = tf.while_loop(
        lambda t, *_: t < length, body, (0, outputs, *states), maximum_iterations=length
    )
    return (outputs if _dense.get() else outputs.stack()), states


def token_crossentropy(labels, logits, ignore_class=None, label_smoothing=0.0):
    """Cross-entropy of each token in float32: labels (M,) int, logits (M, V) -> (M,), 0 where ignored.

    -sum_v q_v log softmax(logits)_v  with  q = (1 - label_smoothing) * one_hot(label) + label_smoothing / V
    """
    labels, logits = ops.cast(labels, "int32"), ops.cast(logits, "float32")
    num_classes = logits.shape[-1]
    if name() == "torch":
        import torch

        # Fused: half the time of logsumexp and gather, a third of Keras's sparse_categorical_crossentropy.
        return torch.nn.functional.cross_entropy(
            logits,
            labels.long(),
            ignore_index=-(2**31) if ignore_class is None else ignore_class,
            reduction="none",
            label_smoothing=label_smoothing,
        )
    is_class = (labels >= 0) & (labels < num_classes)
    picked = ops.where(is_class, labels, 0)
    if name() == "tensorflow":
        # Without XLA, as on a CPU, the gradient of a gather is a scatter that costs more than these products.
        target = ops.sum(logits * ops.one_hot(picked, num_classes, dtype="float32"), axis=-1)
    else:
        target = ops.take_along_axis(logits, picked[:, None], axis=-1)[:, 0]
    if label_smoothing:
        target = (1 - label_smoothing) * target + label_smoothing * ops.mean(logits, axis=-1)
    losses = ops.where(is_class, ops.logsumexp(logits, axis=-1) - target, float("nan"))
    return losses if ignore_class is None else ops.where(labels == ignore_class, 0.0, losses)


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


def adamw_class():
    """The class to derive an AdamW from: Keras's own; under torch with fused kernels in place of Keras's.

    They update all variables at once, with Keras's formula, in a fifth of the time. `global_clipnorm` scales the
    gradients in place, as `torch.nn.utils.clip_grad_norm_` does.
    """
    if name() != "torch":
        return keras.optimizers.AdamW
    import torch
    from torch.optim.adam import adam

    # What `keras.optimizers.AdamW(...)` makes under torch; a subclass of that name would miss it.
    torch_adamw = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))

    class FusedAdamW(torch_adamw):
        def _parallel_update_step(self, grads, variables, learning_rate):
            if self.amsgrad:
                return super()._parallel_update_step(grads, variables, learning_rate)
            indices = [self._get_variable_index(v) for v in variables]
            done = float(self.iterations)
            adam(
                [v.value for v in variables],
                grads,
                [self._momentums[i].value for i in indices],
                [self._velocities[i].value for i in indices],
                max_exp_avg_sqs=[],
                state_steps=list(torch.full((len(grads),), done, device=grads[0].device)),
                fused=True,
                amsgrad=False,
                beta1=self.beta_1,
                beta2=self.beta_2,
                lr=float(learning_rate),
                weight_decay=0.0,  # Keras has decayed the variables already.
                # torch adds epsilon after the correction of the velocities' bias, Keras before it.
                eps=self.epsilon / (1 - self.beta_2 ** (done + 1)) ** 0.5,
                maximize=False,
            )

        def _clip_gradients(self, grads):
            if self.global_clipnorm is None:
                return super()._clip_gradients(grads)
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_mul_(grads, self.global_clipnorm / norm.clamp(min=self.global_clipnorm))
            return grads

    return FusedAdamW
