"""What one backend writes another reads: with the runs on each backend, all nine pairs."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import kerasllm

SMALL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16}
TEXTS = ["the cat sat on the mat .", "the dog ran to the cat .", "a bird sings"]


def make_models():
    words = kerasllm.Tokenizer.train_words(TEXTS, 40)
    pieces = kerasllm.Tokenizer.train_wordpiece(TEXTS, 60)
    n, m = words.vocabulary_size, pieces.vocabulary_size
    both = {"source_tokenizer": words, "target_tokenizer": words}
    return {
        "gpt": kerasllm.GPT(n, **SMALL, tokenizer=words),
        "llama": kerasllm.GPT(n, **SMALL, norm="rms", positions="rotary", gated=True, tie_embeddings=False),
        "bert": kerasllm.BERT(m, **SMALL, tokenizer=pieces),
        "masked_lm": kerasllm.BERTMaskedLM(m, **SMALL, tokenizer=pieces),
        "rnn": kerasllm.RNNLanguageModel(n, hidden_dim=8, num_attention_heads=2, tokenizer=words),
        "lstm_translator": kerasllm.LSTMTranslator(n, n, hidden_dim=8, **both),
        "transformer_translator": kerasllm.TransformerTranslator(n, n, **SMALL, **both),
    }


def answers(model, text=True):
    """Weights, outputs, and what the model writes: a seeded sample under penalties, beams, a filled mask."""
    rng = np.random.default_rng(0)
    x = {name: rng.integers(1, 5, (2, 4)).astype("int32") for name in model.input}
    x |= {name: np.ones((2, 4), bool) for name in x if name.endswith("padding_mask")}
    x |= {name: x[name] % 2 for name in x if name in ("segment_ids", "masked_positions")}
    outputs = keras.tree.flatten(model.predict_on_batch(x))
    found = {f"weight {v.path}": keras.ops.convert_to_numpy(v.value) for v in model.weights}
    found |= {f"output {i}": y for i, y in enumerate(outputs)}
    if not text:
        return found
    options = {"max_new_tokens": 5, "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 7}
    beams = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2}
    if hasattr(model, "translate"):
        found["text"] = np.array(model.translate("the cat", **options))
        found["beams"] = np.array(model.translate("the cat", **beams))
    elif hasattr(model, "fill_mask"):
        found["text"] = np.array(model.fill_mask("the [MASK]", top_k=1)[0]["token_str"])
    elif hasattr(model, "generate"):
        found["text"] = np.array(str(model.generate([[1, 2], [3]], **options)))
        found["beams"] = np.array(str(model.generate([[1, 2], [3]], **beams)))
    return found


READ = """
import sys, pathlib, keras, numpy as np, kerasllm
sys.path.insert(0, {tests!r})
from test_across_backends import answers, make_models
for name, model in make_models().items():
    folder = pathlib.Path({folder!r})
    np.savez(folder / f"{{name}}-preset.npz", **answers(type(model).from_preset(folder / name)))
    saved = keras.models.load_model(folder / f"{{name}}.keras")
    np.savez(folder / f"{{name}}-keras.npz", **answers(saved, text=False))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    keras.utils.set_random_seed(0)
    expected = {}
    for name, model in make_models().items():
        model.save_to_preset(folder / name)
        model.save(folder / f"{name}.keras")
        expected[name] = answers(model)
    return folder, expected


@pytest.mark.parametrize("reader", ["jax", "tensorflow", "torch"])
def test_a_preset_and_a_keras_file_give_the_same_model_under(reader, written):
    folder, expected = written
    program = READ.format(tests=os.path.dirname(__file__), folder=str(folder))
    environment = {**os.environ, "KERAS_BACKEND": reader}
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    for name, answer in expected.items():
        for kind in ("preset", "keras"):
            read = np.load(folder / f"{name}-{kind}.npz")
            for key, value in answer.items():
                if key in ("text", "beams") and kind == "keras":
                    continue
                if key.startswith("output"):
                    np.testing.assert_allclose(read[key], value, atol=1e-5, err_msg=f"{name} {kind} {key}")
                else:
                    assert np.array_equal(read[key], value), f"{name} {kind} {key}: {read[key]} is not {value}"
