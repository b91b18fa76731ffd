import functools
import sys

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm import Tokenizer, metrics
from kerasllm.training import SummaryQuality, TokenCrossentropy, TranslationDataset, TranslationQuality

WORDS = "the cat dog sat ran on under mat log a big small".split()
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, size=n)) for n in RNG.integers(4, 7, size=8)]
PAIRS = [(text, text.upper()) for text in TEXTS]
SOURCE, TARGET = Tokenizer.train_words(TEXTS, 40), Tokenizer.train_words([t for _, t in PAIRS], 40)


@functools.cache
def compiled():
    keras.utils.set_random_seed(0)
    sizes, tokenizers = (SOURCE.vocabulary_size, TARGET.vocabulary_size), {"target_tokenizer": TARGET}
    model = kerasllm.LSTMTranslator(*sizes, hidden_dim=8, source_tokenizer=SOURCE, **tokenizers)
    model.compile("adam", loss=TokenCrossentropy())
    return model


def fit(*callbacks, epochs=1):
    dataset = TranslationDataset(PAIRS, SOURCE, TARGET, batch_size=8, multiple=8)
    return compiled().fit(dataset, epochs=epochs, verbose=0, callbacks=list(callbacks)).history


def test_scores_are_those_of_the_translations_and_choose_the_checkpoint(tmp_path):
    path, quality = tmp_path / "best.weights.h5", TranslationQuality(PAIRS[:4], max_new_tokens=6, num_beams=2)
    best = keras.callbacks.ModelCheckpoint(
        path, monitor="val_chrf", mode="max", save_best_only=True, save_weights_only=True
    )
    history = fit(best, quality, epochs=2)
    texts = compiled().translate(TEXTS[:4], max_new_tokens=6, num_beams=2)
    references = [reference for _, reference in PAIRS[:4]]
    assert history["val_bleu"][-1] == pytest.approx(metrics.bleu(texts, references)[0])
    assert history["val_chrf"][-1] == pytest.approx(metrics.chrf(texts, references)[0])
    assert len(history["val_bleu"]) == 2 and path.exists()


def test_a_perfect_model_has_the_best_scores(monkeypatch):
    monkeypatch.setattr(type(compiled()), "translate", lambda model, texts, **options: [t.upper() for t in texts])
    history = fit(TranslationQuality(PAIRS), SummaryQuality(PAIRS))
    assert [*history["val_bleu"], *history["val_chrf"]] == pytest.approx([100, 100])
    assert history["val_rouge1"] == history["val_rouge2"] == history["val_rougeL"] == [1.0]


@pytest.mark.slow
def test_it_measures_every_so_many_epochs():
    assert len(fit(SummaryQuality(PAIRS[:2], every=2, max_new_tokens=3), epochs=3)["val_rougeL"]) == 1


@pytest.mark.parametrize("make, package", [(TranslationQuality, "sacrebleu"), (SummaryQuality, "rouge_score")])
def test_a_missing_package_is_named(make, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"{make.__name__} needs {package}: `pip install 'kerasllm.metrics.'`"):
        make(PAIRS)


def test_bad_pairs_and_options_are_named():
    for arguments, match in [
        (([],), "pairs .*must not be empty"),
        ((["a b"],), r"pairs\[0\] .'a b'. must be a \(source, reference\)"),
        (([("a", 3)],), r"the reference of pairs\[0\] .3. must be a string"),
        (([("a", " ")],), r"the reference of pairs\[0\] .* must not be empty"),
        ((PAIRS, 0), "every .0. must be a positive"),
    ]:
        with pytest.raises(ValueError, match=match):
            TranslationQuality(*arguments)
    with pytest.raises(ValueError, match="num_return_sequences must be left out"):
        TranslationQuality(PAIRS, num_return_sequences=2)
    with pytest.raises(ValueError, match="Unknown generation arguments: beams"):
        fit(TranslationQuality(PAIRS, beams=3))
