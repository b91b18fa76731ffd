import keras
import numpy as np
import pytest

from kerasllm import Tokenizer
from kerasllm.models.base import Model
from kerasllm.training import StopOnNaN, TokenCrossentropy, TranslationDataset

WORDS = "the cat dog sat ran on under mat log a big small".split()
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, size=n)) for n in RNG.integers(1, 7, size=13)]
TOKENIZER = Tokenizer.train_words(TEXTS, 40)
SIZE, BATCH = TOKENIZER.vocabulary_size, 2
ROWS = 8
IDS = RNG.integers(1, SIZE, (ROWS, 4)).astype("int32")
Y = RNG.integers(1, SIZE, (ROWS, 4))
WEIGHTS = np.ones((ROWS, 4), "float32")
WEIGHTS[5] = np.inf  # as no check lets pass, but for tensors and other data


class Tiny(Model):
    """As small as a model of ours can be."""

    def __init__(self, inputs, dtype="float32", name="tiny"):
        given = {name: keras.Input((None,), dtype="int32", name=name) for name in inputs}
        last = given[[name for name in inputs if name.endswith("token_ids")][-1]]
        super().__init__(given, keras.layers.Dense(SIZE)(keras.layers.Embedding(SIZE, 4)(last)))


def compiled(inputs=("token_ids",), make=Tiny, **options):
    model = make(inputs)
    model.compile(keras.optimizers.SGD(0.1), loss=TokenCrossentropy(), **options)
    return model


def plain(inputs):
    """The same as a `keras.Model`."""
    return keras.Model((model := Tiny(inputs)).inputs, model.outputs)


class Poison(keras.callbacks.Callback):
    """Makes the weights NaN before a step."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.place = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            self.model.trainable_variables[0].assign(self.model.trainable_variables[0] * float("nan"))


def batches():
    while True:
        for i in range(0, ROWS, BATCH):
            yield {"token_ids": IDS[i : i + BATCH]}, Y[i : i + BATCH], WEIGHTS[i : i + BATCH]


def fit(model, guard, *callbacks, data=None, **options):
    data, options = data or (batches(),), {"steps_per_epoch": 4} | options
    return model.fit(*data, callbacks=[*callbacks, guard], **{"epochs": 2, "verbose": 0} | options)


@pytest.mark.parametrize("make", [Tiny, plain])
def test_the_batch_of_the_first_bad_loss_is_named_and_saved(make, tmp_path):
    path = tmp_path / "runs" / "nan.npz"
    with pytest.raises(FloatingPointError, match="The loss is (nan|inf) in epoch 0, step 2 .*nan.npz"):
        fit(compiled(make=make), StopOnNaN(path))
    saved = np.load(path)
    assert set(saved) == {f"step_{i}/{name}" for i in (1, 2) for name in ("token_ids", "labels", "sample_weight")}
    for i in (1, 2):
        np.testing.assert_array_equal(saved[f"step_{i}/token_ids"], IDS[i * BATCH : (i + 1) * BATCH])
        np.testing.assert_array_equal(saved[f"step_{i}/labels"], Y[i * BATCH : (i + 1) * BATCH])
    assert np.isinf(saved["step_2/sample_weight"][1]).all()


@pytest.mark.parametrize("shuffle", [True, False])  # Keras's own shuffling of the batches, too
def test_examples_of_our_datasets_are_named(shuffle, tmp_path):
    dataset = TranslationDataset([(t, t) for t in TEXTS], TOKENIZER, TOKENIZER, BATCH, multiple=2)
    model = compiled(["source_token_ids", "source_padding_mask", "target_token_ids", "target_padding_mask"])
    with pytest.raises(FloatingPointError, match="in epoch 1, step 3 .*, of examples") as error:
        fit(model, StopOnNaN(tmp_path / "x.npz"), Poison(1, 3), data=(dataset,), shuffle=shuffle, steps_per_epoch=None)
    saved = np.load(tmp_path / "x.npz")
    examples = saved["step_3/examples"]
    assert str(examples.tolist()) in str(error.value)
    for row, example in zip(saved["step_3/source_token_ids"], examples, strict=True):
        assert [i for i in row if i] == list(dataset.sources[example])


def test_it_may_stop_as_keras_does_and_save_nothing(tmp_path, capsys):
    history = fit(compiled(), StopOnNaN(None, raise_error=False), Poison(1, 1), data=({"token_ids": IDS}, Y))
    assert len(history.history["loss"]) == 2 and "in epoch 1, step 1" in capsys.readouterr().out


@pytest.mark.parametrize("make", [Tiny, plain])
@pytest.mark.parametrize("batch, steps", [(1, "steps 0 to 2"), (3, "steps 3 to 3|step 3 ")])
def test_seldom_looks_name_all_batches_since_the_last(make, batch, steps, tmp_path):
    data = {"token_ids": IDS}, Y
    with pytest.raises(FloatingPointError, match=f"in epoch 1, (one of the )?({steps})"):
        options = {"data": data, "batch_size": BATCH, "shuffle": False, "steps_per_epoch": None}
        fit(compiled(make=make), StopOnNaN(tmp_path / "x.npz", every=3), Poison(1, batch), **options)
    saved = np.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(saved[f"step_{batch}/token_ids"], IDS[batch * BATCH : (batch + 1) * BATCH])


def test_a_gradient_that_is_not_finite_ends_it_too(tmp_path):
    class Measured(keras.callbacks.Callback):
        writes_logs = True

        def on_train_batch_end(self, batch, logs=None):
            logs["gradient_norm"] = float("inf") if batch == 2 else 1.0

    with pytest.raises(FloatingPointError, match="The gradient_norm is inf in epoch 0, step 2"):
        fit(compiled(), StopOnNaN(tmp_path / "x.npz"), Measured(), data=({"token_ids": IDS}, Y), batch_size=BATCH)


def test_a_sound_training_is_left_alone():
    losses = []
    for callbacks in [], [StopOnNaN()], [StopOnNaN(every=3)]:
        keras.utils.set_random_seed(0)
        losses.append(compiled().fit({"token_ids": IDS}, Y, batch_size=3, verbose=0, callbacks=callbacks).history)
    assert losses[0] == losses[1] == losses[2]


def test_after_fit_the_function_of_training_is_keras_s_own():
    model = compiled()
    model.fit({"token_ids": IDS}, Y, verbose=0)
    function = model.train_function
    model.fit({"token_ids": IDS}, Y, verbose=0, callbacks=[StopOnNaN()])
    assert model.train_function is function


@pytest.mark.parametrize("arguments", [{"file": "x.txt"}, {"file": 3}, {"raise_error": 1}, {"every": 0}])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} .*must"):
        StopOnNaN(**arguments)
