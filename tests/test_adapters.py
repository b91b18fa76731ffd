"""Keras's layers with LoRA, and their files."""

import keras
import numpy as np
import pytest

from kerasllm.layers.adapters import Dense, Embedding, ReversibleEmbedding
from kerasllm.models.base import Model
from kerasllm.training import TokenCrossentropy

LAYERS = {
    "dense": lambda: Dense(3, name="layer"),
    "embedding": lambda: Embedding(5, 4, name="layer"),
    "reversible": lambda: ReversibleEmbedding(5, 4, name="layer"),
}


def model_of(name, mode=None, rank=None):
    layer = LAYERS[name]()
    inputs = keras.Input((4,), dtype="float32" if name == "dense" else "int32")
    x = layer(inputs)
    model = keras.Model(inputs, layer(x, reverse=True) if name == "reversible" else x)
    if mode:
        layer.quantize(mode)
    if rank:
        layer.enable_lora(rank, lora_alpha=3)
        for i, v in enumerate(layer.lora_factors):
            v.assign(keras.random.normal(v.shape, seed=i))
    return model, layer


def values(variables):
    return [keras.ops.convert_to_numpy(v.value) for v in variables]


@pytest.mark.in_turn
@pytest.mark.parametrize("mode", [None, "int8"])
@pytest.mark.parametrize("name", LAYERS)
def test_files_keep_the_factors_of_lora(name, mode, tmp_path):
    (model, layer), x = model_of(name, mode, 2), np.arange(8).reshape(2, 4) % 5
    expected = keras.ops.convert_to_numpy(model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    copy = loaded.get_layer("layer")
    assert (copy.lora_rank, copy.lora_alpha, copy.quantization_mode) == (2, 3, mode)
    for a, b in zip(values(layer.weights), values(copy.weights), strict=True):
        assert np.array_equal(a, b)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(loaded(x)), expected, atol=1e-6)

    model.save_weights(tmp_path / "adapted.weights.h5")
    plain, _ = model_of(name, mode)
    plain.save_weights(tmp_path / "plain.weights.h5")
    plain.load_weights(tmp_path / "adapted.weights.h5")  # which merges
    tolerance = 1e-5 if mode is None else 0.2 * np.abs(expected).max()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(plain(x)), expected, atol=tolerance)

    before = values(layer.lora_factors)
    model.load_weights(tmp_path / "plain.weights.h5")
    a, b = values(layer.lora_factors)
    assert np.array_equal(a, before[0]) and not b.any()


def test_quantised_embeddings_have_lora_in_both_directions():
    layer = ReversibleEmbedding(5, 4)
    layer.build()
    x = keras.random.normal((2, 4), seed=0)
    layer.quantize("int8")
    before = keras.ops.convert_to_numpy(layer(x, reverse=True))
    layer.enable_lora(2, lora_alpha=6)
    a, b = layer.lora_factors
    b.assign(keras.ops.ones(b.shape))
    product = 3 * keras.ops.convert_to_numpy(x) @ values([b])[0].T @ values([a])[0].T
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x, reverse=True)), before + product, atol=1e-5)


ROUNDED = keras.quantizers.AbsMaxQuantizer(axis=-1)


@pytest.mark.parametrize(
    ("mode", "config"),
    [
        ("int8", None),
        ("int4", None),
        ("int4", keras.quantizers.Int4QuantizationConfig(activation_quantizer=ROUNDED, block_size=-1)),
    ],
)
def test_gradients_pass_quantised_output_embeddings(mode, config):
    """They are those of the table as it is looked up, and of LoRA; Keras's rounding of the inputs has none."""
    layer, x = ReversibleEmbedding(6, 8), keras.random.normal((3, 8), seed=0)
    layer.build()
    layer.quantize(mode, config=config)
    layer.enable_lora(2, lora_alpha=3)
    for i, v in enumerate(layer.lora_factors):
        v.assign(keras.random.normal(v.shape, seed=i))
    table = keras.ops.convert_to_numpy(layer(np.arange(6)))
    before = keras.layers.Dense(8, use_bias=False)
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layer(before(inputs), reverse=True))
    before.kernel.assign(np.eye(8))
    model.compile(keras.optimizers.SGD(1.0), lambda y, p: keras.ops.sum(y * p, axis=-1))
    labels = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    a, b = (v + 0 for v in values(layer.lora_factors))
    model.fit(x, labels, batch_size=3, verbose=0)
    x, mean = keras.ops.convert_to_numpy(x), labels / 3
    np.testing.assert_allclose(np.eye(8) - values([before.kernel])[0], x.T @ mean @ table, atol=1e-4)
    new_a, new_b = values(layer.lora_factors)
    np.testing.assert_allclose(a - new_a, 1.5 * mean.T @ x @ b.T, atol=1e-4)
    np.testing.assert_allclose(b - new_b, 1.5 * a.T @ mean.T @ x, atol=1e-4)


def test_calibrated_quantisation_is_refused():
    _, layer = model_of("dense")
    config = keras.quantizers.GPTQConfig(dataset=["text"], tokenizer=str)
    with pytest.raises(ValueError, match="mode .'gptq'. must be 'int8', 'int4' or 'float8'"):
        layer.quantize("gptq", config=config)


class Tied(Model):
    """A model of ours, whose output layer is its embeddings."""

    def __init__(self, dtype="float32", name="tied"):
        inputs = keras.Input((None,), dtype="int32")
        layer = ReversibleEmbedding(7, 3, embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0))
        super().__init__(inputs, layer(keras.layers.Dense(3, "tanh", name="dense")(layer(inputs)), reverse=True))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_tied_output_layer_learns_as_that_of_a_plain_model(is_frozen):
    ids = np.random.default_rng(0).integers(0, 7, (6, 5)).astype("int32")
    ours = Tied()
    ours.layers[1].trainable = not is_frozen
    plain = keras.models.clone_model(keras.Model(ours.inputs, ours.outputs))
    start = ours.get_weights()
    plain.set_weights(start)
    for model in (ours, plain):
        model.compile(keras.optimizers.SGD(1.0), TokenCrossentropy())
        model.fit(ids[:, :-1], ids[:, 1:], batch_size=2, shuffle=False, verbose=0)
    for a, b, c in zip(ours.get_weights(), plain.get_weights(), start, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert abs(a - c).max() > 0.01 or is_frozen and a.shape == (7, 3)
