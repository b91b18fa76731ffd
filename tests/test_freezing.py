"""What is trained, by its path."""

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm import freeze, unfreeze
from kerasllm.training import ClassificationDataset


def model_of():
    return kerasllm.BERTClassifier(20, num_layers=2, num_heads=2, hidden_dim=8, labels=2, dropout=0.0)


def fit(model):
    ids = np.arange(8).reshape(2, 4)
    inputs = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": np.ones_like(ids, bool)}
    model.compile(keras.optimizers.Adam(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(inputs, np.array([0, 1]), verbose=0)


@pytest.mark.once("tensorflow", "torch")
def test_what_is_frozen_stays_and_files_keep_it(tmp_path):
    model = model_of()
    fit(model)
    frozen = freeze(model, ["encoder/", "pooler"], but="block_1/")
    assert not model.compiled and frozen and not any("block_1" in path for path in frozen)
    before = {v.path: ops.convert_to_numpy(v.value).copy() for v in model.weights}
    fit(model)
    changed = {v.path for v in model.weights if not np.array_equal(ops.convert_to_numpy(v.value), before[v.path])}
    assert changed <= {v.path for v in model.weights} - set(frozen) and "classifier/kernel" in changed
    assert {path for path in changed if "block_1/attention/query/kernel" in path}
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [v.path for v in loaded.trainable_variables] == [v.path for v in model.trainable_variables]
    assert set(unfreeze(model, "pooler")) == {"pooler/kernel", "pooler/bias"}
    assert set(unfreeze(model)) == set(frozen) - {"pooler/kernel", "pooler/bias"}
    assert len(model.trainable_variables) == len(model.weights)


def test_what_keras_has_frozen_thaws_by_its_path():
    model = model_of()
    model.encoder.trainable = False
    assert freeze(model, "encoder/") == []
    thawed = unfreeze(model, "block_1/")
    assert thawed and all("block_1/" in path for path in thawed)
    assert {v.path.split("/")[0] for v in model.trainable_variables} == {"encoder", "pooler", "classifier"}


def test_lora_keeps_its_weights_frozen():
    model = model_of()
    kerasllm.add_lora(model, 2, 2, "query")
    unfreeze(model)
    frozen = [v.path for v in model.weights if not v.trainable]
    assert frozen == [f"encoder/block_{i}/attention/query/kernel" for i in range(2)]


def test_a_pattern_that_is_found_nowhere_is_named():
    for arguments in (("enc0der",), (["encoder", "x/"],), ("encoder/", "nowhere"), ("(",)):
        with pytest.raises(ValueError, match="is found in no path|patterns"):
            freeze(model_of(), *arguments)
    with pytest.raises(ValueError, match="built Keras model"):
        freeze(ClassificationDataset, "a")
