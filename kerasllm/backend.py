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

        return _scan(body, first, (x, *real), like, reverse)

    if _dense.get():
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
                d_x, d_recurrent, (d_h, *d_others) = _pull_back(
                    lambda x, recurrent, states: masked_step(x, recurrent, states, *real),
                    (x, recurrent, states),
                    d_states,
                )
                return (d_h + ops.matmul(d_recurrent, ops.transpose(kernel)), *d_others), (d_x, d_recurrent)

            inputs = (d_outputs, x, recurrent, before, *real)
            d_first, (d_x, d_recurrent) = _scan(body, tuple(d_last), inputs, (x[0], x[0]), not reverse)
            h = ops.reshape(before[0], (-1, before[0].shape[-1]))
            d_flat = ops.reshape(d_recurrent, (-1, d_recurrent.shape[-1]))
            d_kernel, d_bias = ops.matmul(ops.transpose(h), d_flat), ops.sum(d_flat, axis=0)
            return d_x, d_kernel, d_bias, *d_first, *(None for _ in real)

        return (sequences[0], *last), gradient

    return walk(x, kernel, bias, *first, *real)


def _scan(body, carried, inputs, like, reverse):
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

    length = tf.shape(inputs[0])[0]
    if _dense.get():
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
    return carried, outputs if _dense.get() else [o.stack() for o in outputs]


def _pull_back(function, arguments, gradients):
    """The gradients of a function's arguments from those of its results, on jax and tensorflow."""
    if name() == "jax":
        import jax

        return list(jax.vjp(function, *arguments)[1](gradients))
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(arguments)
        results = function(*arguments)
    return tape.gradient(results, arguments, gradients, unconnected_gradients="zero")


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
    """The class to derive an AdamW from: Keras's own; under tensorflow and torch with their fused kernels in it.

    They follow Keras's formula, in a fourth (tensorflow: a kernel a variable) or a fifth (torch: one for all) of the
    time. Under torch `global_clipnorm` scales the gradients in place, as `torch.nn.utils.clip_grad_norm_` does.
    """
    return {"tensorflow": _tensorflow_adamw, "torch": _torch_adamw}.get(name(), lambda: keras.optimizers.AdamW)()


def _tensorflow_adamw():
    import tensorflow as tf

    class FusedAdamW(keras.optimizers.AdamW):
        def update_step(self, gradient, variable, learning_rate):
            if self.amsgrad:
                return super().update_step(gradient, variable, learning_rate)
            index, dtype = self._get_variable_index(variable), variable.dtype
            step = tf.cast(self.iterations + 1, dtype)
            return tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._momentums[index].value.handle,
                v=self._velocities[index].value.handle,
                beta1_power=tf.cast(self.beta_1, dtype) ** step,
                beta2_power=tf.cast(self.beta_2, dtype) ** step,
                lr=tf.cast(learning_rate, dtype),
                beta1=tf.cast(self.beta_1, dtype),
                beta2=tf.cast(self.beta_2, dtype),
                epsilon=tf.cast(self.epsilon, dtype),
                grad=tf.cast(tf.convert_to_tensor(gradient), dtype),  # an embedding's is sparse
            )

    return FusedAdamW


def _torch_adamw():
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
