"""Presets of KerasHub: our models answer as its own, and files that lie are refused."""

import json
import re
import shutil
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from kerasllm import BERT, GPT
from kerasllm.checkpoints import describe, keras_hub
from kerasllm.checkpoints.presets import read_preset

DATA = Path(__file__).parent / "data" / "keras_hub"


@pytest.mark.once("torch")
@pytest.mark.parametrize("name, model_class", [("bert", BERT), ("gpt2", GPT), ("llama", GPT)])
def test_the_model_answers_as_keras_hubs(name, model_class, tmp_path):
    answers = dict(np.load(DATA / name / "answers.npz"))
    model = model_class.from_preset(DATA / name)
    outputs = model({x: answers[x] for x in model.input}, training=False)
    outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
    real = answers["padding_mask"]
    for output, values in outputs.items():
        values, expected = keras.ops.convert_to_numpy(values), answers[output]
        if values.ndim == 3:
            values, expected = values[real], expected[real]
        np.testing.assert_allclose(values, expected, atol=2e-5 * np.abs(expected).max())
    assert ("tokenizer" in model.tokenizers) == ("text_ids" in answers)
    if "text_ids" in answers:
        ids = [i for i in model.tokenizer.encode("the cat sat") if i not in model.tokenizer.special_ids]
        assert ids == [i for i in answers["text_ids"].tolist() if i]
    model.save_to_preset(tmp_path)  # as Hugging Face has it
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == name


def test_a_preset_is_described_by_keras_hubs_names():
    found = describe(DATA / "bert")
    assert (found.family, found.class_names) == ("BertBackbone", ("BERT",))
    assert found.tokenizer_files == ("vocab.txt",) and found.arguments["num_layers"] == 2


def test_bfloat16_is_read_as_such(tmp_path):
    with h5py.File(tmp_path / keras_hub.WEIGHTS, "w") as file:
        file["a/vars/0"] = np.array([1.5, -2.0], "float16")
        half = file.create_dataset("b/vars/0", data=np.array([0x3FC0, 0xC000], "uint16").view("V2"))
        half.attrs["dtype"] = "bfloat16"
    for tensor in keras_hub._read_tensors(tmp_path / keras_hub.WEIGHTS).values():
        np.testing.assert_array_equal(tensor.astype("float32"), [1.5, -2.0])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"rope_position_scaling_factor": 2.0}, "rope_position_scaling_factor .2.0."),
        ({"vocabulary_size": None}, "vocabulary_size .None."),
        ({"surprise": 1}, "surprise .1. is unknown"),
        ({"hidden_dim": 16}, "misshaped"),
        ({"num_layers": 1}, "extra tensors"),
        ({"dtype": {"class_name": "QuantizedDTypePolicy"}}, "dtype"),
    ],
)
def test_a_config_that_says_something_else_is_refused(change, words, tmp_path):
    shutil.copytree(DATA / "llama", tmp_path / "llama")
    path = tmp_path / "llama" / "config.json"
    config = json.loads(path.read_text())
    config["config"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        GPT.from_preset(tmp_path / "llama")


@pytest.mark.parametrize("change", [{"oov_token": "[OOV]"}, {"suffix_indicator": "@@"}, {"split": False}, {"split": 1}])
def test_a_tokenizer_that_cuts_otherwise_is_refused(change, tmp_path):
    shutil.copytree(DATA / "bert", tmp_path / "bert")
    path = tmp_path / "bert" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["config"] |= change
    path.write_text(json.dumps(tokenizer))
    [(name, value)] = change.items()
    with pytest.raises(ValueError, match=re.escape(f"{name} ({value!r}) must be")):
        BERT.from_preset(tmp_path / "bert")


def test_another_backbone_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"registered_name": "keras_hub>Bloom", "class_name": "Bloom", "config": {}}')
    with pytest.raises(ValueError, match="model_type .'Bloom'. must be one of .*'GPT2Backbone'"):
        read_preset(tmp_path, GPT)


def test_weights_that_lie_elsewhere_or_are_no_weights_are_refused(tmp_path):
    path = tmp_path / keras_hub.WEIGHTS
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 10)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (4,), "f4", external=[(str(secret), 0, 16)])
    with pytest.raises(ValueError, match="x must lie in one piece in the file"):
        keras_hub._read_tensors(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (2**40,), "f4", chunks=(2,))  # of zeros, which take no place
    with pytest.raises(ValueError, match="x must lie in one piece in the file"):
        keras_hub._read_tensors(path)
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(ValueError, match="x: dtype .int64. must be one of"):
        keras_hub._read_tensors(path)
    with h5py.File(path, "w") as file:
        file["ours"] = np.ones(3, "f4")
        file["theirs"] = h5py.ExternalLink(str(DATA / "bert" / keras_hub.WEIGHTS), "layers")
        file["again"] = file["/"]  # a circle
    assert set(keras_hub._read_tensors(path)) == {"ours"}
    path.write_bytes((DATA / "bert" / keras_hub.WEIGHTS).read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a whole HDF5 file"):
        keras_hub._read_tensors(path)
