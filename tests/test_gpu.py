"""What only a GPU does: cuDNN's recurrences, half-precision attention kernels, scaled losses of mixed float16."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import GPT, layers
from kerasllm.training import AdamW, TokenCrossentropy

pytestmark = pytest.mark.gpu


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_the_lstm_equals_keras_lstm_on_cudnn():
    keras_lstm = keras.layers.LSTM(64, return_sequences=True)  # its arguments are those that cuDNN asks for
    lstm = layers.Recurrent(64, "lstm")
    x, mask = normal(8, 33, 32), np.arange(33) < np.arange(12, 34, 3)[:, None]
    keras_lstm(x), lstm(x)
    lstm.set_weights(keras_lstm.get_weights())
    for padding_mask in (None, mask):
        outputs, _ = lstm(x, padding_mask=padding_mask)
        expected = ops.convert_to_numpy(keras_lstm(x, mask=padding_mask))
        real = 1.0 if padding_mask is None else mask[:, :, None]  # Keras repeats the last output in the padding.
        np.testing.assert_allclose(ops.convert_to_numpy(outputs), expected * real, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_attention_is_near_float32(dtype, masked):
    layer, half = (layers.MultiHeadAttention(4, num_key_value_heads=2, dtype=d) for d in ("float32", dtype))
    x = normal(2, 256, 128)
    mask = (np.arange(256) < np.array([[256], [100]]))[:, None, None] if masked else None
    call = {"attention_mask": mask, "use_causal_mask": True}
    layer(x), half(x)
    half.set_weights(layer.get_weights())
    expected = ops.convert_to_numpy(layer(x, **call))
    outputs = ops.convert_to_numpy(ops.cast(half(x, **call), "float32"))
    # Half precision carries 11 (float16) or 8 (bfloat16) bits; a head sums 32 products.
    np.testing.assert_allclose(outputs, expected, atol=(4e-3 if dtype == "float16" else 3e-2) * np.abs(expected).max())


def test_a_gpt_learns_in_mixed_float16():
    model = GPT(50, num_layers=2, num_heads=4, hidden_dim=64, max_sequence_length=64, dtype="mixed_float16")
    model.compile(keras.optimizers.LossScaleOptimizer(AdamW(3e-3, global_clipnorm=1.0)), TokenCrossentropy())
    start = np.random.default_rng(0).integers(0, 50, (64, 1))
    tokens = (start + np.arange(33)) % 50
    inputs = {"token_ids": tokens[:, :-1], "padding_mask": np.ones((64, 32), bool)}
    losses = model.fit(inputs, tokens[:, 1:], batch_size=16, epochs=15, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0] / 2
