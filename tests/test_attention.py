"""Multi-head attention: parity with Keras's, grouped heads, masks, cache."""

import keras
import numpy as np
import pytest
from checks import check_layer
from keras import ops

from kerasllm.layers import MultiHeadAttention, RotaryPositions
from kerasllm.layers.attention import causal_mask

to_numpy = ops.convert_to_numpy


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def keras_twin(layer, query_shape, context_shape):
    """A `keras.layers.MultiHeadAttention` or `GroupQueryAttention` with our layer's weights."""
    if layer.num_key_value_heads == layer.num_heads:
        twin = keras.layers.MultiHeadAttention(layer.num_heads, layer.head_dim)
    else:
        twin = keras.layers.GroupQueryAttention(layer.head_dim, layer.num_heads, layer.num_key_value_heads)
    twin.build(query_shape, context_shape)
    twin.set_weights([to_numpy(w).reshape(v.shape) for w, v in zip(layer.weights, twin.weights, strict=True)])
    return twin


@pytest.mark.parametrize("num_key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_keras_with_the_same_weights(num_key_value_heads, causal):
    layer = MultiHeadAttention(4, num_key_value_heads=num_key_value_heads)
    x = normal(2, 5, 16)
    output = layer(x, use_causal_mask=causal)
    for v in layer.weights:
        v.assign(normal(*v.shape, seed=1) / 4)
    twin = keras_twin(layer, x.shape, x.shape)
    output, weights = layer(x, use_causal_mask=causal, return_attention_scores=True)
    expected, expected_weights = twin(x, x, use_causal_mask=causal, return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(output), to_numpy(expected), atol=2e-6)
    np.testing.assert_allclose(to_numpy(weights), to_numpy(expected_weights), atol=2e-6)


def test_cross_attention_with_a_mask_equals_keras():
    layer = MultiHeadAttention(2)
    query, context = normal(2, 3, 8), normal(2, 5, 12, seed=1)
    padding_mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
    output = layer(query, context, attention_mask=padding_mask[:, None, None])
    twin = keras_twin(layer, query.shape, context.shape)
    expected = twin(query, context, attention_mask=padding_mask[:, None])
    np.testing.assert_allclose(to_numpy(output), to_numpy(expected), atol=2e-6)


@pytest.mark.parametrize("num_key_value_heads", [4, 2])
def test_the_fused_kernel_equals_the_plain_form(num_key_value_heads):
    layer = MultiHeadAttention(4, num_key_value_heads=num_key_value_heads)
    x, mask = normal(2, 5, 16), np.tril(np.ones((5, 5), bool))[None, None]
    bias = normal(1, 4, 5, 5, seed=2)
    fused = layer(x, attention_mask=mask, attention_bias=bias)
    plain, weights = layer(x, attention_mask=mask, attention_bias=bias, return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(fused), to_numpy(plain), atol=2e-6)
    assert to_numpy(weights)[0, 0, 0, 1:].max() == 0


def test_steps_through_a_cache_equal_the_whole_sequence():
    layer, rotary = MultiHeadAttention(4, num_key_value_heads=2), RotaryPositions()
    x = normal(2, 6, 16)
    whole = layer(x, use_causal_mask=True, rotary=rotary.tables(np.arange(6), 4))
    cache = (ops.zeros((2, 2, 8, 4)),) * 2
    steps = []
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        tables = rotary.tables(np.arange(start, stop), 4)
        y, cache = layer(x[:, start:stop], use_causal_mask=True, rotary=tables, cache=cache, index=start)
        steps.append(to_numpy(y))
    np.testing.assert_allclose(np.concatenate(steps, axis=1), to_numpy(whole), atol=2e-6)


def test_a_query_that_may_look_nowhere_stays_finite_in_half_precision():
    layer = MultiHeadAttention(2, dtype="bfloat16")
    output = layer(normal(1, 3, 8), attention_mask=np.zeros((1, 1, 3, 3), bool))
    assert np.isfinite(to_numpy(ops.cast(output, "float32"))).all()


def test_dropout_acts_in_training_only():
    layer = MultiHeadAttention(2, dropout=0.5)
    x = normal(1, 4, 8)
    assert np.array_equal(to_numpy(layer(x)), to_numpy(layer(x)))
    assert not np.allclose(to_numpy(layer(x, training=True)), to_numpy(layer(x)))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="tracers of torch make tensors of sizes")
@pytest.mark.parametrize("num_key_value_heads", [2, 1])
def test_an_attention_can_be_traced(num_key_value_heads):
    import torch

    layer, x = MultiHeadAttention(2, num_key_value_heads=num_key_value_heads), torch.ones(2, 3, 8)
    expected = layer(x)
    with torch.no_grad():
        traced = torch.jit.trace(layer, (x,), check_trace=False)
    np.testing.assert_allclose(to_numpy(traced(x)), to_numpy(expected), atol=1e-6)


def test_causal_mask_starts_at_the_index():
    expected = [[True, True, True, False, False], [True, True, True, True, False]]
    assert to_numpy(causal_mask(2, 5, index=2))[0, 0].tolist() == expected


def test_keeps_the_layer_contract():
    def make(**kwargs):
        return MultiHeadAttention(4, num_key_value_heads=2, **kwargs)

    # Softmax does not feel a bias that all keys share.
    check_layer(make, normal(2, 5, 16), arguments={"use_causal_mask": True}, lengths=(5,), unreached=("key/bias",))
