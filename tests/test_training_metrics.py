import keras
import numpy as np
import pytest

from kerasllm.training.losses import TokenCrossentropy
from kerasllm.training.metrics import Perplexity, TokenAccuracy

RNG = np.random.default_rng(0)
LABELS = np.array([[2, 0, 4, -1], [1, -1, -1, -1], [3, 3, 0, 2]])
LOGITS = RNG.normal(size=(3, 4, 5)).astype("float32")


def crossentropies(labels, logits):
    z = logits.astype("float64")
    picked = np.take_along_axis(z, labels.clip(0)[..., None], -1)[..., 0]
    return np.log(np.exp(z).sum(-1)) - picked


def updated(metric, *batches):
    for batch in batches:
        metric.update_state(*batch)
    return float(metric.result())


def test_perplexity_is_exact_over_unequal_batches():
    counted = LABELS != -1
    expected = np.exp(crossentropies(LABELS, LOGITS)[counted].mean())
    batches = [(LABELS[:1], LOGITS[:1]), (LABELS[1:], LOGITS[1:])]
    assert updated(Perplexity(), *batches) == pytest.approx(expected, rel=1e-6)
    assert updated(Perplexity(), (LABELS, LOGITS)) == pytest.approx(expected, rel=1e-6)


def test_uniform_logits_have_the_perplexity_of_the_vocabulary():
    assert updated(Perplexity(), (LABELS, np.zeros((3, 4, 5)))) == pytest.approx(5)


def test_accuracy_is_exact_over_unequal_batches():
    counted = LABELS != -1
    expected = (LOGITS.argmax(-1) == LABELS)[counted].mean()
    batches = [(LABELS[:1], LOGITS[:1]), (LABELS[1:], LOGITS[1:])]
    assert 0 < expected < 1 and updated(TokenAccuracy(), *batches) == pytest.approx(expected)


def test_accuracy_takes_the_first_of_equal_logits():
    assert updated(TokenAccuracy(), (LABELS, np.zeros((3, 4, 5)))) == pytest.approx(2 / 8)


def test_accuracy_equals_argmax_where_many_logits_are_equal():
    logits = RNG.integers(0, 3, size=(20, 30, 7)).astype("float32")
    labels = RNG.integers(0, 7, size=(20, 30))
    assert updated(TokenAccuracy(), (labels, logits)) == pytest.approx((logits.argmax(-1) == labels).mean())


@pytest.mark.parametrize("metric", [Perplexity, TokenAccuracy])
def test_padding_and_reset(metric):
    labels = np.pad(LABELS, [(0, 0), (0, 3)], constant_values=-1)
    logits = np.pad(LOGITS, [(0, 0), (0, 3), (0, 0)], constant_values=9.0)
    object = metric()
    value = updated(object, (LABELS, LOGITS))
    assert updated(object, (labels, logits)) == pytest.approx(value)
    object.reset_state()
    assert float(object.count) == 0 and updated(object, (LABELS[1:], LOGITS[1:])) != pytest.approx(value)
    ignored = np.where(LABELS == -1, 7, LABELS)
    assert updated(metric(ignore_class=7), (ignored, LOGITS)) == pytest.approx(value)


def test_none_counts_every_label():
    labels = LABELS.clip(0)
    expected = np.exp(crossentropies(labels, LOGITS).mean())
    assert updated(Perplexity(ignore_class=None), (labels, LOGITS)) == pytest.approx(expected)


def test_nothing_counted_yet_is_no_error():
    nothing = (np.full_like(LABELS, -1), LOGITS)
    assert updated(Perplexity()) == 1.0 and updated(Perplexity(), nothing) == 1.0
    assert updated(TokenAccuracy()) == 0.0 and updated(TokenAccuracy(), nothing) == 0.0


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4)])
def test_weights_weigh_rows_or_tokens(shape):
    weights = np.linspace(0.0, 2.0, int(np.prod(shape))).reshape(shape)
    of_tokens = weights.reshape(3, -1) * (LABELS != -1)
    mean = (of_tokens * crossentropies(LABELS, LOGITS)).sum() / of_tokens.sum()
    assert updated(Perplexity(), (LABELS, LOGITS, weights)) == pytest.approx(np.exp(mean), rel=1e-6)
    mean = (of_tokens * (LOGITS.argmax(-1) == LABELS)).sum() / of_tokens.sum()
    assert updated(TokenAccuracy(), (LABELS, LOGITS, weights)) == pytest.approx(mean)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_keep_counting_under_half_precision(dtype):
    labels, logits = np.tile(LABELS, (100, 1)), np.tile(LOGITS, (100, 1, 1))
    half = keras.ops.cast(logits, dtype)
    metric, accuracy = Perplexity(dtype=dtype), TokenAccuracy(dtype=dtype)
    for _ in range(3):
        metric.update_state(labels, half)
        accuracy.update_state(labels, half)
    assert float(metric.count) == 2400 == float(accuracy.count)
    rounded = keras.ops.convert_to_numpy(keras.ops.cast(half, "float32"))
    expected = np.exp(crossentropies(labels, rounded)[labels != -1].mean())
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


def model_of_logits(**compiled):
    inputs = keras.Input((None,), dtype="int32")
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Embedding(5, 3)(inputs)))
    model.compile("adam", loss=TokenCrossentropy(), **compiled)
    return model


def test_compile_fit_evaluate_save(tmp_path):
    jit_compile = keras.backend.backend() == "tensorflow" or "auto"  # Keras uses XLA there on a GPU only.
    model = model_of_logits(metrics=[Perplexity(), TokenAccuracy()], jit_compile=jit_compile)
    x = LABELS.clip(0)
    history = model.fit(x, LABELS, validation_data=(x, LABELS), batch_size=2, verbose=0).history
    assert {"perplexity", "accuracy", "val_perplexity", "val_accuracy"} < set(history)
    counted = LABELS != -1
    logits = model.predict(x, verbose=0)
    results = model.evaluate(x, LABELS, batch_size=2, return_dict=True, verbose=0)
    perplexity = np.exp(crossentropies(LABELS, logits)[counted].mean())
    assert results["perplexity"] == pytest.approx(perplexity, rel=1e-5) == history["val_perplexity"][0]
    assert results["accuracy"] == pytest.approx((logits.argmax(-1) == LABELS)[counted].mean())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    again = loaded.evaluate(x, LABELS, batch_size=2, return_dict=True, verbose=0)
    assert again == pytest.approx(results, rel=1e-5)


def test_early_stopping_knows_that_less_perplexity_is_better():
    model = model_of_logits(metrics=[Perplexity(), TokenAccuracy()])
    x, y = LABELS.clip(0), LABELS
    stops = [keras.callbacks.EarlyStopping(name, patience=5) for name in ("val_perplexity", "val_accuracy")]
    model.fit(x, y, validation_data=(x, y), epochs=2, callbacks=stops, verbose=0)
    assert [stop.monitor_op(1.0, 2.0) for stop in stops] == [True, False]


@pytest.mark.parametrize("metric", [Perplexity(ignore_class=0, name="mine"), TokenAccuracy(ignore_class=None)])
def test_config_brings_the_metric_back(metric):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert type(copy) is type(metric) and copy.get_config() == metric.get_config()
    assert (copy.ignore_class, copy.name) == (metric.ignore_class, metric.name)
