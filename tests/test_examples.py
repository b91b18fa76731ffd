"""The examples run from top to bottom, on a little text and tiny models."""

import importlib
import math
import pathlib
import random

import numpy as np
import pytest

from kerasllm import datasets

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
NOUNS = {"cat": "gato", "dog": "perro", "boy": "niño", "king": "rey", "book": "libro", "horse": "caballo"}
VERBS = {"sees": "ve", "wants": "quiere", "has": "tiene", "knows": "conoce"}


@pytest.fixture(autouse=True)
def little_text(monkeypatch):
    """The corpora of the examples become a few sentences."""
    chance = random.Random(0)
    pairs = []
    for _ in range(150):
        (a, x), (b, y) = chance.sample(sorted(NOUNS.items()), 2)
        verb, verbo = chance.choice(sorted(VERBS.items()))
        pairs.append((f"The {a} {verb} the {b}.", f"El {x} {verbo} el {y}."))
    texts = [" ".join(english for english, _ in pairs[i : i + 10]) for i in range(0, 150, 10)]
    monkeypatch.setattr(datasets, "tatoeba", lambda max_words=None: split(pairs))
    monkeypatch.setattr(datasets, "wikitext2", lambda unit="document": split(texts))
    monkeypatch.setattr(datasets, "movie_reviews", lambda source=None: split([(text, 1) for text in texts]))
    monkeypatch.syspath_prepend(EXAMPLES)


def split(examples):
    tenth = len(examples) // 10
    return datasets.Splits(examples[: -2 * tenth], examples[-2 * tenth : -tenth], examples[-tenth:])


@pytest.mark.parametrize("script", ["train_translator", "pretrain_bert", "train_gpt", "train_rnn_language_model"])
def test_every_script_trains_a_model_and_measures_it(script, monkeypatch):
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "NUM_LAYERS", 1, raising=False)  # A second layer only takes longer to compile.
    model, validation_data, figures = module.main(tiny=True)
    inputs, labels = validation_data[0]
    assert model.predict_on_batch(inputs).shape[:2] == labels.shape
    for _, value, trivial in figures:
        assert math.isfinite(value)
        assert trivial and all(map(math.isfinite, trivial.values()))


@pytest.mark.slow
def test_the_demo_walks_the_whole_road(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    importlib.import_module("demo").main(tiny=True)
    table = capsys.readouterr().out.split("==== On held-out text")[1]
    assert all(name in table for name in ("translator", "BERT", "GPT"))


def test_the_word_dictionary_learns_which_word_is_which():
    baselines = importlib.import_module("baselines")
    dictionary = baselines.word_dictionary(datasets.tatoeba().train)
    assert all(dictionary[english] == spanish for english, spanish in (NOUNS | VERBS).items())
    assert baselines.translate_words("The dog knows Tom!", dictionary) == "El perro conoce tom!"


def test_the_trigram_is_a_distribution_and_knows_what_follows():
    baselines = importlib.import_module("baselines")
    train = np.array([1, 2, 3, 1, 2, 3, 1, 2, 4, 0, 3, 3, 1, 2, 3, 4, 5, 2, 4])
    for history in ([1, 2], [4, 4], [0, 2], [5, 5]):
        chances = [math.exp(-baselines.trigram_loss(train, np.array([*history, w]), 6)) for w in range(6)]
        assert math.isclose(sum(chances), 1.0)
        assert history != [1, 2] or np.argmax(chances) == 3


def test_the_unigram_counts_every_symbol_once_more():
    baselines = importlib.import_module("baselines")
    assert math.isclose(baselines.unigram_loss(np.array([0, 0, 1]), np.array([2]), 3), math.log(6))
