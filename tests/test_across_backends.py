"""What one backend writes another reads: torch writes for one; the other pairs are slow tests."""

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


SAMPLED = {"max_new_tokens": 5, "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 7}
BEAMS = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2}
# What each model writes: a seeded sample under penalties or beams, as decoders and as translators; a filled mask.
WRITE = {
    "gpt": lambda model: str(model.generate([[1, 2], [3]], **SAMPLED)),
    "llama": lambda model: str(model.generate([[1, 2], [3]], **BEAMS)),
    "masked_lm": lambda model: model.fill_mask("the [MASK]", top_k=1)[0]["token_str"],
    "rnn": lambda model: str(model.generate([[1, 2], [3]], **SAMPLED)),
    "lstm_translator": lambda model: model.translate("the cat", **BEAMS),
    "transformer_translator": lambda model: model.translate("the cat", **SAMPLED),
}


def answers(model):
    """Weights and outputs."""
    rng = np.random.default_rng(0)
    x = {name: rng.integers(1, 5, (2, 4)).astype("int32") for name in model.input}
    x |= {name: np.ones((2, 4), bool) for name in x if name.endswith("padding_mask")}
    x |= {name: x[name] % 2 for name in x if name in ("segment_ids", "masked_positions")}
    outputs = keras.tree.flatten(model.predict_on_batch(x))
    found = {f"weight {v.path}": keras.ops.convert_to_numpy(v.value) for v in model.weights}
    return found | {f"output {i}": y for i, y in enumerate(outputs)}


def answers_and_text(name, model):
    return answers(model) | ({"text": np.array(WRITE[name](model))} if name in WRITE else {})


def first_losses(model, name):
    """The losses of the first ten steps of training, of a model without dropout."""
    dataset = make_dataset(name, model)
    model.compile(kerasllm.training.AdamW(1e-3, weight_decay=0.1), kerasllm.training.TokenCrossentropy(chunk_size=4))
    losses = []
    keep = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(float(logs["loss"])))
    model.fit(dataset, epochs=10, verbose=0, callbacks=[keep])
    # The mean over the epoch so far is that of one step where an epoch has one.
    return np.array(losses[:10])


def make_dataset(name, model):
    """Texts for a model's training, all in one batch."""
    options = {"batch_size": 8, "max_length": 16, "multiple": 16}
    if "translator" in name:
        both = model.source_tokenizer, model.target_tokenizer
        return kerasllm.training.TranslationDataset(list(zip(TEXTS, TEXTS[::-1], strict=True)), *both, **options)
    if name == "masked_lm":
        return kerasllm.training.MaskedLMDataset(TEXTS, model.tokenizer, **options)
    return kerasllm.training.LanguageModelDataset(TEXTS, model.tokenizer, sequence_length=8, batch_size=8)


OFTEN = ("gpt", "masked_lm", "lstm_translator")  # trained in every run
SELDOM = ("rnn", "transformer_translator")
READ = """
import sys, pathlib, keras, numpy as np, kerasllm
sys.path.insert(0, {tests!r})
from test_across_backends import answers, answers_and_text, first_losses
folder = pathlib.Path({folder!r})
for name, type_name in {types!r}.items():
    copy = getattr(kerasllm, type_name).from_preset(folder / name)
    np.savez(folder / f"{{name}}-preset.npz", **answers_and_text(name, copy))
    if name in {trained!r}:
        copy = getattr(kerasllm, type_name).from_preset(folder / name, dropout=0.0)
        np.savez(folder / f"{{name}}-losses.npz", losses=first_losses(copy, name))
    saved = keras.models.load_model(folder / f"{{name}}.keras")
    np.savez(folder / f"{{name}}-keras.npz", **answers(saved))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    keras.utils.set_random_seed(0)
    types, expected = {}, {}
    for name, model in make_models().items():
        model.save_to_preset(folder / name)
        model.save(folder / f"{name}.keras")
        types[name], expected[name] = type(model).__name__, answers_and_text(name, model)
    return folder, types, expected


# Of this backend: the one that reads it in every run, and the other one.
READERS = {"jax": ("torch", "tensorflow"), "torch": ("tensorflow", "jax"), "tensorflow": ("jax", "torch")}
FIRST, SECOND = READERS[keras.backend.backend()]
CASES = [
    (FIRST, OFTEN),
    pytest.param(FIRST, SELDOM, marks=pytest.mark.slow),
    pytest.param(SECOND, OFTEN + SELDOM, marks=pytest.mark.slow),
]


@pytest.mark.once("torch")
@pytest.mark.parametrize(("reader", "trained"), CASES)
def test_a_preset_and_a_keras_file_give_the_same_model_and_training_under(reader, trained, written):
    folder, types, expected = written
    program = READ.format(tests=os.path.dirname(__file__), folder=str(folder), types=types, trained=trained)
    environment = {**os.environ, "KERAS_BACKEND": reader}
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    for name, answer in expected.items():
        for kind in ("preset", "keras"):
            read = np.load(folder / f"{name}-{kind}.npz")
            for key, value in answer.items():
                if key == "text" and kind == "keras":
                    continue
                if key.startswith("output"):
                    np.testing.assert_allclose(read[key], value, atol=1e-5, err_msg=f"{name} {kind} {key}")
                else:
                    assert np.array_equal(read[key], value), f"{name} {kind} {key}: {read[key]} is not {value}"
    for name in trained:
        model = getattr(kerasllm, types[name]).from_preset(folder / name, dropout=0.0)
        losses = first_losses(model, name)
        assert losses[-1] < losses[0] - 1e-3
        np.testing.assert_allclose(np.load(folder / f"{name}-losses.npz")["losses"], losses, atol=1e-4, err_msg=name)
