"""Keras's frugal optimizers, and ours, with every model: they train, are saved, and go on alike."""

import functools
import itertools

import keras
import numpy as np
import pytest
from keras import ops
from test_models import (
    ENCODERS,
    LANGUAGE_MODELS,
    SMALL,
    TRANSLATORS,
    V,
    encoder_batch,
    ids,
    language_batch,
    translation_batch,
)

from kerasllm import BERTEmbedder, BERTQuestionAnswerer, BERTTokenClassifier, Summarizer
from kerasllm.training import AdamW, Muon, TokenCrossentropy

OPTIMIZERS = {
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "lion": lambda: keras.optimizers.Lion(0.003, weight_decay=0.1),
    "muon": lambda: Muon(0.01, weight_decay=0.1),
    "adamw": lambda: AdamW(0.01, weight_decay=0.1, gradient_accumulation_steps=2, use_ema=True),
}
LOSS = TokenCrossentropy()
VECTORS = {"sequence_output": "mse", "pooled_output": "mse"}


def bert(cls, **given):
    return lambda: cls(V, **SMALL, max_sequence_length=32, dropout=0.0, **given)


# Whose dropout is not 0 otherwise: a file does not hold what its random numbers have come to.
DROPPING = ("gru", "rnn", "general", "dot", "none", "pre-norm")


def made(models):
    return {name: functools.partial(make, **({"dropout": 0.0} if name in DROPPING else {})) for name, make in models}


MODELS = {
    **{name: (make, language_batch(), LOSS) for name, make in made(LANGUAGE_MODELS.items()).items()},
    **{name: (make, translation_batch(), LOSS) for name, make in made(TRANSLATORS.items()).items()},
    **{name: (make, encoder_batch(name), VECTORS if name == "bert" else LOSS) for name, make in ENCODERS.items()},
    "summarizer": (bert(Summarizer), translation_batch(), LOSS),
    "token_classifier": (bert(BERTTokenClassifier, labels=3), (encoder_batch("bert")[0], ids(4, 6, size=3)), LOSS),
    "answerer": (bert(BERTQuestionAnswerer), (encoder_batch("bert")[0], None), "mse"),
    "embedder": (bert(BERTEmbedder), (encoder_batch("bert")[0], None), "mse"),
}
# One of each optimizer; together they have most of what the others are made of.
OFTEN = {
    ("gpt", "muon"),
    ("gemma", "adafactor"),
    ("lstm", "lion"),
}
CASES = [
    pytest.param(*case, marks=[] if case in OFTEN else [pytest.mark.slow])
    for case in itertools.product(MODELS, OPTIMIZERS)
]


@pytest.mark.in_turn
@pytest.mark.parametrize("name, optimizer", CASES)
def test_a_model_trains_is_saved_and_goes_on_alike(name, optimizer, tmp_path):
    make, (x, y), loss = MODELS[name]
    model = make()
    if y is None:
        y = keras.tree.map_structure(lambda a: np.ones(a.shape, "float32"), model(x))
    model.compile(OPTIMIZERS[optimizer](), loss=loss)
    before = model.get_weights()

    def fit(model):
        return model.fit(x, y, epochs=2, batch_size=2, shuffle=False, verbose=0).history["loss"]

    losses = fit(model)
    assert np.isfinite(losses).all() and losses[1] < losses[0]
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(model.optimizer)
    fit(model)
    fit(loaded)
    kept = (*model.weights, *model.optimizer.variables)
    again = (*loaded.weights, *loaded.optimizer.variables)
    for a, b in zip(kept, again, strict=True):
        values = (ops.convert_to_numpy(v.value) for v in (a, b))
        np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-6, err_msg=a.path)
