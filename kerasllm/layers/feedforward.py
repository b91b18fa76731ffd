"""The position-wise half of a Transformer block."""

import keras

from kerasllm import backend
from kerasllm.arguments import check_boolean, check_positive, check_rate, shown
from kerasllm.layers.adapters import Dense
from kerasllm.layers.base import Layer, build_once, method_of_graph, new_initializer


def get_activation(name):
    """The activation function called `name`: any of Keras's, or "gelu_tanh", the approximation GPT-2 uses."""
    if isinstance(name, str) and name == "gelu_tanh":
        return gelu_tanh
    try:
        if isinstance(name, dict):  # of which Keras makes objects
            raise ValueError
        return keras.activations.get(name)
    except (ValueError, TypeError):
        raise ValueError(f"activation ({shown(name)}) must be 'gelu_tanh' or the name of a Keras activation.") from None


@keras.saving.register_keras_serializable("kerasllm")
def gelu_tanh(x):
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return backend.gelu_tanh(x)


@keras.saving.register_keras_serializable("kerasllm")
class FeedForward(Layer):
    """y = W_output activation(W_input x + b) + b, for each position alike (Vaswani et al. 2017).

    Args:
        intermediate_dim: width F between the two projections.
        activation: name of the activation, or "gelu_tanh"; or a function or layer.
        use_bias: whether the projections have a bias.
        dropout: rate at which intermediate channels are dropped in training.
        kernel_initializer: initializer of the kernels.

    Call arguments:
        x: (B, T, D).

    Returns:
        (B, T, D).
    """

    def __init__(
        self,
        intermediate_dim,
        activation="gelu",
        use_bias=True,
        dropout=0.0,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive("intermediate_dim", intermediate_dim)
        check_rate("dropout", dropout)
        check_boolean("use_bias", use_bias)
        self.intermediate_dim = intermediate_dim
        self.activation = get_activation(activation)
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.supports_masking = True

    def build(self, x_shape):
        """Create the projections for x (B, T, D)."""
        self.input_projection = self._projection("input", self.intermediate_dim, x_shape)
        self.output_projection = self._projection("output", x_shape[-1], (*x_shape[:-1], self.intermediate_dim))
        if isinstance(self.activation, keras.layers.Layer):
            build_once(self.activation, (*x_shape[:-1], self.intermediate_dim))

    def _projection(self, name, units, input_shape):
        layer = Dense(
            units,
            use_bias=self.use_bias,
            kernel_initializer=new_initializer(self.kernel_initializer),
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build(input_shape)
        return layer

    def call(self, x, training=None):
        """Widen, activate, narrow."""
        return self.output_projection(self.dropout(self.hidden(x), training=training))

    @method_of_graph
    def hidden(self, x):
        """The activated intermediate channels: (B, T, D) -> (B, T, F)."""
        return self.activation(self.input_projection(x))

    def compute_output_shape(self, x_shape):
        """The shape of x: (B, T, D)."""
        return x_shape


@keras.saving.register_keras_serializable("kerasllm")
class GatedFeedForward(FeedForward):
    """y = W_output (activation(W_gate x) * W_input x), each with its bias (Shazeer 2020, arXiv:2002.05202).

    Args:
        intermediate_dim: width F between the projections.
        activation: name of the gate's activation; "silu" makes a SwiGLU, "gelu" a GEGLU.
        **kwargs: as for `FeedForward`.

    Call arguments:
        x: (B, T, D).

    Returns:
        (B, T, D).
    """

    def build(self, x_shape):
        """Create the projections for x (B, T, D)."""
        super().build(x_shape)
        self.gate_projection = self._projection("gate", self.intermediate_dim, x_shape)

    @method_of_graph
    def hidden(self, x):
        """The gated intermediate channels: (B, T, D) -> (B, T, F)."""
        return self.activation(self.gate_projection(x)) * self.input_projection(x)


def SwiGLU(intermediate_dim, **kwargs):
    """A `GatedFeedForward` with the gate silu(x) = x sigmoid(x), as in Llama."""
    return GatedFeedForward(intermediate_dim, activation="silu", **kwargs)


def GEGLU(intermediate_dim, **kwargs):
    """A `GatedFeedForward` with the gate gelu(x), as in T5 v1.1 (which takes `activation="gelu_tanh"`)."""
    return GatedFeedForward(intermediate_dim, **{"activation": "gelu", **kwargs})
