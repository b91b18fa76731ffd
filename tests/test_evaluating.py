import functools

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import Tokenizer
from kerasllm.models.base import Model
from kerasllm.training import AdamW, EvaluateEvery, LanguageModelDataset, Perplexity, TokenCrossentropy

ROWS, BATCH, LENGTH = 12, 2, 5
STEPS = ROWS // BATCH
IDS = np.random.default_rng(0).integers(1, 20, (ROWS, LENGTH + 1)).astype("int32")
X, Y = {"token_ids": IDS[:, :-1], "padding_mask": np.ones((ROWS, LENGTH), "int32")}, IDS[:, 1:]
HELD_OUT = {name: x[:5] for name, x in X.items()}, Y[:5][:, ::-1].copy()


class Tiny(Model):
    """As small as a model of ours can be."""

    def __init__(self, dtype="float32", name="tiny"):
        inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in X}
        hidden = keras.layers.Dropout(0.3)(keras.layers.Embedding(20, 4)(inputs["token_ids"]))
        super().__init__(inputs, keras.layers.Dense(20)(hidden))


def plain():
    """The same as a `keras.Model`."""
    return keras.Model((model := Tiny()).inputs, model.outputs)


class StepLogs(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.logs, self.weights = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))


@functools.cache
def compiled(make):
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(AdamW(0.01), loss=TokenCrossentropy(), metrics=[Perplexity()])
    model.fit(X, Y, batch_size=BATCH, verbose=0)
    return model, [np.array(ops.convert_to_numpy(v)) for v in [*model.variables, *model.optimizer.variables]]


def fit(*callbacks, make=Tiny, **options):
    """Train from the same state."""
    model, state = compiled(make)
    for variable, value in zip([*model.variables, *model.optimizer.variables], state, strict=True):
        variable.assign(value)
    keras.utils.set_random_seed(0)
    return model, model.fit(
        X, Y, callbacks=list(callbacks), **{"batch_size": BATCH, "epochs": 2, "verbose": 0} | options
    )


@pytest.mark.parametrize("make", [Tiny, plain])
def test_training_is_the_same_with_and_without(make):
    """Also its order, which Keras draws anew in each epoch, and its dropout."""
    logs = []
    for callbacks in [], [EvaluateEvery(2, HELD_OUT, batch_size=2)]:
        steps = StepLogs()
        model, _ = fit(*callbacks, steps, make=make)
        logs.append([{name: x[name] for name in ("loss", "perplexity")} for x in steps.logs])
        logs.append([ops.convert_to_numpy(v) for v in model.weights])
    assert logs[0] == logs[2]
    for a, b in zip(logs[1], logs[3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_results_are_those_of_evaluate_and_of_validation_data():
    every = EvaluateEvery(4, HELD_OUT)
    model, history = fit(every)
    now = model.evaluate(*HELD_OUT, verbose=0, return_dict=True)
    # Keras's own validation draws from PyTorch's generator, and so changes the next epoch.
    _, expected = fit(validation_data=HELD_OUT, epochs=1)
    for name in ("val_loss", "val_perplexity"):
        assert history.history[name][:1] == pytest.approx(expected.history[name], rel=1e-5)
    assert every.history["step"] == [4, 6, 8, 12]  # 6 is the end of the epoch
    assert every.history["val_loss"][1::2] == history.history["val_loss"]
    assert every.history["val_loss"][-1] == pytest.approx(now["loss"], rel=1e-6)


def test_logs_of_the_step_have_them_for_callbacks_listed_before():
    steps = StepLogs()
    fit(steps, EvaluateEvery(4, HELD_OUT), epochs=1)
    assert ["val_loss" in x for x in steps.logs] == [False, False, False, True, False, False]


def test_an_evaluation_is_an_epoch_to_its_own_callbacks(tmp_path):
    path = tmp_path / "best.weights.h5"
    best = keras.callbacks.ModelCheckpoint(path, save_best_only=True, save_weights_only=True, monitor="val_loss")
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", patience=2, mode="max")  # it falls
    every = EvaluateEvery(1, HELD_OUT, callbacks=[best, stop])
    model, history = fit(every, epochs=3)
    assert len(every.history["step"]) <= STEPS and len(history.history["loss"]) == 1
    model.load_weights(path)
    assert model.evaluate(*HELD_OUT, verbose=0)[0] == pytest.approx(min(every.history["val_loss"]), rel=1e-5)


def test_validation_of_fit_goes_before_it():
    _, history = fit(EvaluateEvery(2, HELD_OUT), validation_data=(X, Y), epochs=1)
    _, expected = fit(validation_data=(X, Y), epochs=1)
    assert history.history["val_loss"] == pytest.approx(expected.history["val_loss"], rel=1e-5)


def test_what_cannot_be_evaluated_is_refused():
    tokenizer = Tokenizer.train_words(["a b c d"], 20)
    dataset = LanguageModelDataset(["a b c d"], tokenizer, sequence_length=4)
    for arguments, match in [
        ((0, HELD_OUT), "n_steps .0. must be"),
        ((1, None), "dataset .None. must be"),
        ((1, dataset), "dataset with shuffle=False"),
        ((1, HELD_OUT, [3]), r"callbacks\[0\] .3. must be a keras.callbacks.Callback"),
    ]:
        with pytest.raises(ValueError, match=match):
            EvaluateEvery(*arguments)
    with pytest.raises(ValueError, match="verbose .1. must be left out"):
        EvaluateEvery(1, HELD_OUT, verbose=1)
