"""Feed-forward layers against their equations."""

import keras
import numpy as np
import pytest
from checks import check_layer
from keras import ops

from kerasllm.backend import steps
from kerasllm.layers import GEGLU, FeedForward, GatedFeedForward, SwiGLU

to_numpy = ops.convert_to_numpy
X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")


def test_feed_forward_is_two_dense_layers():
    layer = FeedForward(16, activation="relu")
    layer(X)
    w1, b1, w2, b2 = layer.get_weights()
    np.testing.assert_allclose(to_numpy(layer(X)), np.maximum(X @ w1 + b1, 0) @ w2 + b2, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "activation"),
    [(SwiGLU, keras.activations.silu), (GEGLU, keras.activations.gelu)],
)
def test_gated_feed_forward_multiplies_by_the_activated_gate(make, activation):
    layer = make(16, use_bias=False)
    layer(X)
    w_input, w_output, w_gate = layer.get_weights()
    expected = (to_numpy(activation(ops.convert_to_tensor(X @ w_gate))) * (X @ w_input)) @ w_output
    np.testing.assert_allclose(to_numpy(layer(X)), expected, atol=1e-5)


def test_gelu_tanh_is_the_approximation_in_calls_and_in_training():
    activation, x = FeedForward(8, activation="gelu_tanh").activation, np.linspace(-6, 6, 101).astype("float32")
    expected = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    for function in (activation, steps.marked("a model", activation)):
        np.testing.assert_allclose(to_numpy(function(ops.convert_to_tensor(x))), expected, atol=1e-6)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match=r"activation \('glue'\)"):
        FeedForward(8, activation="glue")


@pytest.mark.parametrize("make", [FeedForward, GatedFeedForward])
def test_keep_the_layer_contract(make):
    check_layer(lambda **kwargs: make(16, activation="gelu", **kwargs), X, lengths=(5,))
