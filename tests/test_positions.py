"""Positions against KerasHub's layers and against the formulas of the papers."""

import numpy as np
import pytest
from checks import check_layer
from keras import ops

from kerasllm.layers import (
    ALiBi,
    LearnedPositions,
    RelativePositionBias,
    RotaryPositions,
    SinusoidalPositions,
)

to_numpy = ops.convert_to_numpy


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def test_learned_positions_add_rows_of_their_table():
    layer = LearnedPositions(8)
    x = normal(2, 3, 4)
    positions = np.array([[5, 6, 7], [0, 1, 2]])
    output = layer(x, positions)
    np.testing.assert_allclose(to_numpy(output), x + to_numpy(layer.embeddings)[positions], atol=1e-6)
    np.testing.assert_allclose(to_numpy(layer(x))[0], to_numpy(layer(x, positions))[1] + x[0] - x[1], atol=1e-6)


def test_learned_positions_refuse_longer_sequences():
    with pytest.raises(ValueError, match=r"sequence length \(9\) .* max_sequence_length \(8\)"):
        LearnedPositions(8)(normal(1, 9, 4))


def test_sinusoidal_positions_equal_keras_hub():
    keras_hub = pytest.importorskip("keras_hub")
    x = normal(2, 7, 12)
    expected = x + to_numpy(keras_hub.layers.SinePositionEncoding()(x))
    np.testing.assert_allclose(to_numpy(SinusoidalPositions()(x)), expected, atol=2e-6)


def test_rotary_positions_equal_keras_hub():
    keras_hub = pytest.importorskip("keras_hub")
    x = normal(2, 3, 7, 8)  # (B, N, T, H); KerasHub's is (B, T, N, H)
    expected = keras_hub.layers.RotaryEmbedding()(x.transpose(0, 2, 1, 3))
    actual = to_numpy(RotaryPositions()(x)).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(actual, to_numpy(expected), atol=2e-6)


def test_rotary_products_depend_on_the_distance_only():
    layer, q, k = RotaryPositions(), normal(1, 1, 1, 8), normal(1, 1, 1, 8)[..., ::-1].copy()

    def product(i, j):
        return (to_numpy(layer(q, np.array([i]))) * to_numpy(layer(k, np.array([j])))).sum()

    assert product(3, 1) == pytest.approx(product(12, 10), abs=1e-5)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)


def test_rotary_positions_refuse_odd_heads():
    with pytest.raises(ValueError, match=r"head_dim \(5\) must be even"):
        RotaryPositions()(normal(1, 1, 2, 5))


# Key position - query position, and their buckets by transformers 5.23's T5Attention (32 buckets, distance 128).
DISTANCES = [-200, -128, -100, -64, -33, -20, -16, -15, -9, -8, -7, -1, 0, 1, 5, 8, 15, 17, 40, 90, 130]
BUCKETS = {
    True: [15, 15, 15, 14, 12, 10, 10, 9, 8, 8, 7, 1, 0, 17, 21, 24, 25, 26, 28, 30, 31],
    False: [31, 31, 30, 26, 21, 17, 16, 15, 9, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
}


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_buckets_equal_those_of_t5(bidirectional):
    layer = RelativePositionBias(1, bidirectional=bidirectional)
    layer.build(None)
    layer.embeddings.assign(np.arange(32.0)[:, None])
    distances = np.array(DISTANCES)
    bias = to_numpy(layer(np.array([300]), 300 + distances))[0, 0, 0]
    assert bias.astype(int).tolist() == BUCKETS[bidirectional]


@pytest.mark.parametrize("num_heads", [8, 6])
def test_alibi_equals_keras_hub_at_the_last_query(num_heads):
    keras_hub = pytest.importorskip("keras_hub")
    expected = to_numpy(keras_hub.layers.AlibiBias()(np.zeros((1, num_heads, 5, 5), "float32")))[0, :, -1]
    actual = to_numpy(ALiBi(num_heads)(np.arange(5), np.arange(5)))[0, :, -1]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_alibi_is_steepest_in_the_first_head():
    bias = to_numpy(ALiBi(8)(np.arange(4), np.arange(4)))[0]
    assert bias[0, 3].tolist() == [-1.5, -1.0, -0.5, 0.0]
    assert bias[7, 3, 0] == pytest.approx(-3 / 256)


@pytest.mark.parametrize("make", [lambda **k: LearnedPositions(8, **k), SinusoidalPositions])
def test_position_embeddings_keep_the_layer_contract(make):
    check_layer(make, normal(2, 5, 4), lengths=(5,))


def test_rotary_positions_keep_the_layer_contract():
    check_layer(RotaryPositions, normal(2, 3, 5, 4), lengths=(5,))


def test_split_sinusoids_are_the_interleaved_ones_in_another_order():
    x = np.zeros((1, 5, 9), "float32")
    interleaved = to_numpy(SinusoidalPositions()(x))
    split = to_numpy(SinusoidalPositions(interleaved=False)(x))
    np.testing.assert_array_equal(split, np.concatenate([interleaved[..., 0::2], interleaved[..., 1::2]], axis=-1))


@pytest.mark.parametrize("arguments", [{"num_buckets": 3}, {"max_distance": 8}])
def test_buckets_that_hold_nothing_are_refused(arguments):
    with pytest.raises(ValueError, match="num_buckets|max_distance"):
        RelativePositionBias(2, **arguments)
