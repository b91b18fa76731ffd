import functools
import json

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm import Tokenizer
from kerasllm.training import AdamW, GenerateExamples, LanguageModelDataset, TokenCrossentropy, TranslationDataset

WORDS = "the cat dog sat ran on under mat log a big small".split()
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, size=n)) for n in RNG.integers(3, 7, size=24)]
TOKENIZER = Tokenizer.train_words(TEXTS, 40)
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16, "dropout": 0.2}


def gpt():
    return kerasllm.GPT(TOKENIZER.vocabulary_size, **SIZES, tokenizer=TOKENIZER)


def translator():
    tokenizers = {"source_tokenizer": TOKENIZER, "target_tokenizer": TOKENIZER}
    return kerasllm.TransformerTranslator(*[TOKENIZER.vocabulary_size] * 2, **SIZES, **tokenizers)


def data(make):
    if make is gpt:
        return LanguageModelDataset(TEXTS, TOKENIZER, batch_size=4, sequence_length=8)
    return TranslationDataset([(t, t) for t in TEXTS], TOKENIZER, TOKENIZER, batch_size=8, multiple=8)


@functools.cache
def compiled(make):
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(AdamW(0.1), loss=TokenCrossentropy())
    model.fit(data(make), verbose=0)
    state = [np.array(ops.convert_to_numpy(v)) for v in [*model.weights, *model.optimizer.variables, *seeds(model)]]
    return model, state


def seeds(model):
    return [v for v in model.non_trainable_variables if "seed" in v.path]


class StepLosses(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


def losses(make, *callbacks):
    """The losses of two epochs from the same state."""
    (model, state), recorded = compiled(make), StepLosses()
    keras.utils.set_random_seed(0)
    for variable, value in zip([*model.weights, *model.optimizer.variables, *seeds(model)], state, strict=True):
        variable.assign(value)
    model.fit(data(make), epochs=2, verbose=0, callbacks=[*callbacks, recorded])
    return recorded.losses


@pytest.mark.parametrize("make", [gpt, pytest.param(translator, marks=pytest.mark.slow)])
def test_training_is_the_same_with_and_without_and_texts_are_those_of_the_weights(make, tmp_path, capsys):
    """Also its order, which Keras draws anew in each epoch, and its dropout."""
    file, options = tmp_path / "runs" / "texts.jsonl", {"max_new_tokens": 12, "temperature": 2.0, "seed": 3}
    expected = losses(make)
    assert losses(make, GenerateExamples(["the cat", "a dog"], every=2, file=file, **options)) == expected
    assert len(set(expected)) > 2
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [x["step"] for x in lines] == [2 * (1 + i // 2) for i in range(len(lines))]
    assert [x["prompt"] for x in lines[:2]] == ["the cat", "a dog"]
    model, _ = compiled(make)
    now = (model.generate if make is gpt else model.translate)(["the cat", "a dog"], **options)
    assert [x["text"] for x in lines[-2:]] == now and len(expected) % 2 == 0
    assert make is translator or len({tuple(x["text"] for x in lines[i : i + 2]) for i in range(0, len(lines), 2)}) > 1
    printed = capsys.readouterr().out
    assert f"After {len(expected)} steps:" in printed and repr(now[0]) in printed


def test_by_default_it_writes_at_the_ends_of_epochs(capsys):
    steps = len(losses(gpt, GenerateExamples("the", max_new_tokens=2, num_return_sequences=2)))
    printed = capsys.readouterr().out.split()
    assert [int(printed[i + 1]) for i, word in enumerate(printed) if word == "After"] == [steps // 2, steps]


def test_what_cannot_be_written_is_refused_before_training():
    for arguments, match in [
        ({"prompts": []}, "prompts"),
        ({"prompts": "a", "every": 0}, "every .0. must be 'epoch' or a positive whole number"),
        ({"prompts": "a", "file": ""}, "file .''. must be a path"),
    ]:
        with pytest.raises(ValueError, match=match):
            GenerateExamples(**arguments)
    with pytest.raises(ValueError, match="Unknown generation arguments: max_tokens"):
        losses(gpt, GenerateExamples("the", max_tokens=3))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="model .Sequential. must be one that writes"):
        model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0, callbacks=[GenerateExamples("a")])
