"""What is set on parts of layers and models, in their configs and files."""

import json

import keras
import numpy as np
import pytest

from kerasllm import BERT, GPT
from kerasllm.layers import FeedForward, MultiHeadAttention, TransformerBlock, TransformerEncoder
from kerasllm.layers.parts import changes, restore
from kerasllm.training import TokenCrossentropy

SMALL = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 8}
IDS = np.arange(12).reshape(2, 6) % 7


def freeze_but_one(encoder):
    encoder.trainable = False
    encoder.blocks[1].attention.query.trainable = True
    encoder.blocks[0].attention.key.bias.trainable = True


def adapt(encoder):
    encoder.blocks[0].attention.query.enable_lora(2, lora_alpha=6)
    encoder.embeddings.token.quantize("int8")
    encoder.embeddings.token.enable_lora(1)


def set_numbers(encoder):
    encoder.blocks[0].dropout.rate = 0.25
    encoder.blocks[1].feed_forward.activation = keras.activations.relu
    encoder.blocks[1].feed_forward_norm.epsilon = 0.1
    encoder.blocks[1].attention.scale = 2.0
    encoder.blocks[0].activity_regularizer = keras.regularizers.L2(0.5)


def state(layer):
    """What a user sees of parts: whether each variable is trained, and the numbers."""
    names = ("rate", "epsilon", "scale", "lora_rank", "lora_alpha", "quantization_mode", "trainable")
    flags = [(v.path, v.trainable, tuple(v.shape)) for v in layer.weights]
    return flags, [[getattr(part, name, None) for name in names] for part in layer._flatten_layers()]


def set_numbers_early(encoder):
    encoder.blocks[0].dropout.rate = 0.25
    encoder.blocks[1].trainable = False


@pytest.mark.once("torch")
@pytest.mark.parametrize("change", [freeze_but_one, adapt, set_numbers, set_numbers_early])
def test_a_layers_config_carries_what_was_set_on_its_parts(change):
    encoder = TransformerEncoder(7, **SMALL, dropout=0.1, name="encoder")
    assert "parts" not in encoder.get_config()
    if change is not set_numbers_early:
        encoder.build((None, 6))
    change(encoder)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(encoder)))
    copy = keras.saving.deserialize_keras_object(config)
    cloned = TransformerEncoder.from_config(copy.get_config())  # before it is built
    for layer in (encoder, copy, cloned):
        layer(IDS)
    assert state(copy) == state(cloned) == state(encoder)
    assert copy.get_config() == encoder.get_config()
    copy.set_weights(encoder.get_weights())
    np.testing.assert_allclose(*(keras.ops.convert_to_numpy(layer(IDS)) for layer in (encoder, copy)), atol=1e-6)


def test_a_layer_that_is_not_trained_has_no_part_that_is():
    block = TransformerBlock(MultiHeadAttention(2), FeedForward(16), trainable=False)
    model = keras.Sequential([keras.Input((3, 8)), block])
    assert block.weights and not model.trainable_variables
    block.trainable = True
    assert len(model.trainable_variables) == len(block.weights)


def user_model(change):
    encoder = BERT(7, **SMALL, num_segments=1, dropout=0.0, pooler=False)
    model = keras.Model(encoder.input, keras.layers.Dense(3, name="top")(encoder(encoder.input)["sequence_output"]))
    change(encoder)
    return model


def language_model(change):
    model = GPT(7, **SMALL, dropout=0.0)
    change(model)
    return model


def freeze(model):
    (model.encoder if hasattr(model, "encoder") else model.decoder).blocks[0].trainable = False


def lora(model):
    model.trainable = False
    model.trainable = True
    for layer in model._flatten_layers():
        if layer.name in ("query", "value", "token"):
            layer.enable_lora(2, lora_alpha=3)
        elif layer.weights and len(list(layer._flatten_layers())) == 1:
            layer.trainable = False


@pytest.mark.in_turn
@pytest.mark.parametrize("make, change", [(user_model, freeze), (language_model, lora)])
def test_training_goes_on_after_loading_as_if_uninterrupted(make, change, tmp_path):
    model = make(change)
    x = {"token_ids": IDS, "padding_mask": np.ones((2, 6), bool)}
    model.compile(keras.optimizers.Adam(0.01), TokenCrossentropy())
    model.fit(x, IDS % 3, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [v.path for v in loaded.trainable_variables] == [v.path for v in model.trainable_variables]
    assert len(model.trainable_variables) < len(model.variables)
    saved = [keras.ops.convert_to_numpy(v.value) for v in model.variables]
    for each in (model, loaded):
        each.fit(x, IDS % 3, epochs=2, verbose=0)
    for a, b, old in zip(model.variables, loaded.variables, saved, strict=True):
        values = [keras.ops.convert_to_numpy(v.value) for v in (a, b)]
        np.testing.assert_allclose(*values, atol=1e-6, err_msg=a.path)
        assert np.array_equal(values[0], old) != a.trainable or a.path.endswith("key/bias"), a.path


def test_parts_of_another_model_are_named():
    model = BERT(7, **SMALL)
    with pytest.raises(ValueError, match="parts .'encoder/block_2'. are none of 'bert'"):
        restore(model, {"encoder/block_2": {"trainable": False}})
    assert changes(model) == {}
