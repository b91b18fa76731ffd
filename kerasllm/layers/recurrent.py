"""Recurrent networks: cells, which are one readable step, and the layer that walks a cell over a sequence."""

import keras
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_choice, check_positive, check_rate
from kerasllm.layers.base import Layer, first_given, method_of_graph
from kerasllm.layers.masks import check_padding_mask


class RecurrentCell(Layer):
    """The base of the cells: kernels in Keras's layout, and the zero state.

    `call(x, states)` is one step, and `step(W x, states)` what follows its first product. `walk` is the same along a
    whole sequence, by the cell's `recurrence`, the fast kernel of `kerasllm.backend`. The first of the states is the
    output.
    """

    num_gates = num_states = 1
    recurrence = None

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        check_positive("units", units)
        self.units = units

    @property
    def state_size(self):
        """The width of each state, as `keras.layers.RNN` asks for it."""
        return [self.units] * self.num_states

    def get_initial_state(self, batch_size):
        """The state before the first step: zeros, (B, U) each."""
        return [ops.zeros((batch_size, units), dtype=self.compute_dtype) for units in self.state_size]

    def build(self, x_shape):
        """Create W, the `kernel`, and U, the `recurrent_kernel`, for x (B, I); a cell adds its bias."""
        width = self.num_gates * self.units
        self.kernel = self.add_weight(shape=(x_shape[-1], width), initializer="glorot_uniform", name="kernel")
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, width), initializer=_orthogonal, name="recurrent_kernel"
        )

    def call(self, x, states):
        """One step."""
        return self.step(ops.matmul(x, self.kernel), states)

    @method_of_graph
    def walk(self, x, states, padding_mask=None, reverse=False):
        """All steps over x (B, T, I): outputs (B, T, U) and the last states."""
        weights = self.kernel, self.recurrent_kernel, self.bias
        outputs, *states = self.recurrence(x, *states, *weights, padding_mask, reverse)
        return outputs, states


def _orthogonal(shape, dtype=None):
    # Backends have no QR decomposition in bfloat16.
    return ops.cast(keras.initializers.Orthogonal()(shape, "float32"), dtype)


@keras.saving.register_keras_serializable("kerasllm")
class SimpleRNNCell(RecurrentCell):
    """One step of a simple recurrent network.

        h_t = tanh(W x_t + U h_{t-1} + b)

    Equal to `keras.layers.SimpleRNNCell` with the same weights.
    Source: Elman 1990, "Finding Structure in Time".

    Args:
        units: width U of the state.

    Call arguments:
        x: (B, I), one position of a sequence.
        states: [h], (B, U).

    Returns:
        h, and the new states [h].
    """

    recurrence = staticmethod(backend.simple_rnn)

    def build(self, x_shape):
        """Create W (I, U), U (U, U) and b (U,) for x (B, I)."""
        super().build(x_shape)
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def step(self, x, states):
        """What follows the product x = W x_t (B, U)."""
        (h,) = states
        h = ops.tanh(x + ops.matmul(h, self.recurrent_kernel) + self.bias)
        return h, [h]


@keras.saving.register_keras_serializable("kerasllm")
class LSTMCell(RecurrentCell):
    """One step of a long short-term memory.

        i, f, g, o = W x_t + U h_{t-1} + b
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t)

    The bias of the forget gate f starts at 1. Equal to `keras.layers.LSTMCell` with the same weights.
    Sources: Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000; its bias: Jozefowicz et al. 2015.

    Args:
        units: width U of each state.

    Call arguments:
        x: (B, I), one position of a sequence.
        states: [h, c], (B, U) each.

    Returns:
        h, and the new states [h, c].
    """

    num_gates, num_states = 4, 2
    recurrence = staticmethod(backend.lstm)

    def build(self, x_shape):
        """Create W (I, 4U), U (U, 4U) and b (4U,) for x (B, I)."""
        super().build(x_shape)
        self.bias = self.add_weight(shape=(4 * self.units,), initializer=_forget_gate_ones, name="bias")

    def step(self, x, states):
        """What follows the product x = W x_t (B, 4U)."""
        h, c = states
        gates = x + ops.matmul(h, self.recurrent_kernel) + self.bias
        i, f, g, o = ops.split(gates, 4, axis=-1)
        c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
        h = ops.sigmoid(o) * ops.tanh(c)
        return h, [h, c]


def _forget_gate_ones(shape, dtype=None):
    i, f, g, o = ops.split(ops.zeros(shape, dtype), 4)
    return ops.concatenate([i, f + 1, g, o])


@keras.saving.register_keras_serializable("kerasllm")
class GRUCell(RecurrentCell):
    """One step of a gated recurrent unit.

        z = sigmoid(W_z x_t + b_z + U_z h_{t-1} + d_z)
        r = sigmoid(W_r x_t + b_r + U_r h_{t-1} + d_r)
        n = tanh(W_n x_t + b_n + r * (U_n h_{t-1} + d_n))
        h_t = z * h_{t-1} + (1 - z) * n

    Equal to `keras.layers.GRUCell` (`reset_after=True`, its default) with the same weights.
    Source: Cho et al. 2014, arXiv:1406.1078; with the reset gate after the product, as in cuDNN.

    Args:
        units: width U of the state.

    Call arguments:
        x: (B, I), one position of a sequence.
        states: [h], (B, U).

    Returns:
        h, and the new states [h].
    """

    num_gates = 3
    recurrence = staticmethod(backend.gru)

    def build(self, x_shape):
        """Create W (I, 3U), U (U, 3U) and the biases b and d, together (2, 3U), for x (B, I)."""
        super().build(x_shape)
        self.bias = self.add_weight(shape=(2, 3 * self.units), initializer="zeros", name="bias")

    def step(self, x, states):
        """What follows the product x = W x_t (B, 3U)."""
        (h,) = states
        b, d = self.bias[0], self.bias[1]
        x_z, x_r, x_n = ops.split(x + b, 3, axis=-1)
        h_z, h_r, h_n = ops.split(ops.matmul(h, self.recurrent_kernel) + d, 3, axis=-1)
        z = ops.sigmoid(x_z + h_z)
        r = ops.sigmoid(x_r + h_r)
        n = ops.tanh(x_n + r * h_n)
        h = z * h + (1 - z) * n
        return h, [h]


CELLS = {"lstm": LSTMCell, "gru": GRUCell, "simple": SimpleRNNCell}


@keras.saving.register_keras_serializable("kerasllm")
class Recurrent(Layer):
    """A recurrent layer over a sequence: the walk of its cell, in the backend's fastest form.

    Where `padding_mask` is False the states are carried over and the output is zero, wherever in a row that
    is. outputs[:, t] belongs to x[:, t] in both directions. `keras.layers.RNN(layer.cell)` computes the same,
    slowly.

    Args:
        units: width U of the outputs and of each state.
        cell: "lstm", "gru" or "simple".
        reverse: whether the walk goes from the last real token to the first.
        dropout: rate at which entries of x are dropped in training, at each position anew.

    Call arguments:
        x: (B, T, I).
        initial_state: [h, c] of an LSTM, [h] of the others, (B, U) each. Default: zeros.
        padding_mask: boolean or 0/1 (B, T), True where a token is real. Default: every token is.
        mask, x_mask: Keras's mask of x (B, T), which Keras passes by itself, in place of `padding_mask`.

    Returns:
        Outputs (B, T, U), and the states after the walk: [h, c] or [h].

    Example:
        >>> encoder, decoder = Recurrent(256), Recurrent(256)
        >>> memory, states = encoder(source, padding_mask=source_padding_mask)
        >>> outputs, states = decoder(target, initial_state=states)
    """

    def __init__(self, units, cell="lstm", reverse=False, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        check_choice("cell", cell, CELLS)
        check_rate("dropout", dropout)
        self.reverse = reverse
        self.cell = CELLS[cell](units, dtype=self.dtype_policy, name="cell")
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.supports_masking = True

    def build(self, x_shape):
        """Build the cell for x (B, T, I)."""
        self.cell.build((x_shape[0], x_shape[-1]))

    def call(self, x, initial_state=None, padding_mask=None, mask=None, x_mask=None, training=None):
        """Walk the cell over x; the arguments are in the class docstring."""
        padding_mask = first_given(padding_mask, mask, x_mask)
        if padding_mask is not None:
            check_padding_mask("padding_mask", padding_mask, x)
        x = self.dropout(x, training=training)
        states = self.cell.get_initial_state(ops.shape(x)[0]) if initial_state is None else list(initial_state)
        if len(states) != self.cell.num_states:
            raise ValueError(f"initial_state must be {self.cell.num_states} tensors, not {len(states)}.")
        if padding_mask is not None:
            return self.cell.walk(x, states, ops.cast(padding_mask, "bool"), self.reverse)
        if x.shape[1] == 1:  # A step of decoding needs no loop.
            h, states = self.cell(ops.squeeze(x, 1), states)
            return ops.expand_dims(h, 1), states
        return self.cell.walk(x, states, None, self.reverse)

    def compute_output_shape(self, x_shape):
        """Shapes of the outputs (B, T, U) and of each state (B, U)."""
        batch, length, _ = x_shape
        return (batch, length, self.cell.units), [(batch, units) for units in self.cell.state_size]
