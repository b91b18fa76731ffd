import keras
import numpy as np
import pytest

from kerasllm.training.losses import TokenCrossentropy

LABELS = np.array([[2, 0, 4, -1], [1, -1, -1, -1], [3, 3, 0, 2]])
LOGITS = (3 * np.sin(np.arange(60) ** 2 * 0.7)).reshape(3, 4, 5).astype("float32")

# torch.nn.functional.cross_entropy(ignore_index=-1, label_smoothing=...) of these, in float64: the mean, the
# loss of each token of the first row, the gradient at one token of the second row.
OF_TORCH = {
    0.0: (
        3.5210872246999987,
        [1.458408, 5.560179, 5.211408, 0.0],
        [0.0016329, -0.0777611, 0.0012669, 0.0015898, 0.0732714],
    ),
    0.1: (
        3.470151246517408,
        [1.557894, 5.253895, 4.988836, 0.0],
        [-0.0008671, -0.0677611, -0.0012331, -0.0009102, 0.0707714],
    ),
}


def reference(labels, logits, ignore_class=-1, label_smoothing=0.0, weights=1.0):
    """The formula of the docstring and its gradient, in numpy and float64."""
    z = logits.astype("float64") - logits.max(-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    counted = labels != ignore_class
    q = (1 - label_smoothing) * np.eye(z.shape[-1])[labels] + label_smoothing / z.shape[-1]
    weights = counted * weights / max(counted.sum(), 1)
    return -(weights * (q * log_p).sum(-1)).sum(), weights[..., None] * (np.exp(log_p) - q)


def trained(loss, labels, logits, sample_weight=None, dtype="float32"):
    """Loss and gradient by one step of `fit`, of a model whose logits are its weights."""
    rows, *shape = logits.shape
    inputs = keras.Input((), dtype="int32")
    x = keras.layers.Embedding(rows, int(np.prod(shape)), name="logits", dtype=dtype)(inputs)
    model = keras.Model(inputs, keras.layers.Reshape(shape, dtype=dtype)(x))
    model.get_layer("logits").set_weights([logits.reshape(rows, -1)])
    model.compile(keras.optimizers.SGD(1.0), loss=loss)
    arguments = {"sample_weight": sample_weight, "batch_size": rows, "verbose": 0, "shuffle": False}
    history = model.fit(np.arange(rows), labels, **arguments).history
    return history["loss"][0], (logits - model.get_weights()[0].reshape(logits.shape))


@pytest.mark.parametrize("label_smoothing", OF_TORCH)
def test_value_and_gradient_equal_torch(label_smoothing):
    mean, tokens, token_gradient = OF_TORCH[label_smoothing]
    loss = TokenCrossentropy(label_smoothing=label_smoothing)
    value, gradient = trained(loss, LABELS, LOGITS)
    expected, expected_gradient = reference(LABELS, LOGITS, label_smoothing=label_smoothing)
    assert value == pytest.approx(mean, abs=1e-6) and expected == pytest.approx(mean, abs=1e-7)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)
    np.testing.assert_allclose(gradient[1, 0], token_gradient, atol=1e-6)
    assert not gradient[LABELS == -1].any()
    loss = TokenCrossentropy(label_smoothing=label_smoothing, reduction=None)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(loss(LABELS, LOGITS))[0], tokens, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_labels_may_have_any_dtype_that_fit_passes(dtype):
    assert float(TokenCrossentropy()(LABELS.astype(dtype), LOGITS)) == pytest.approx(OF_TORCH[0.0][0], abs=1e-6)


def test_another_ignored_class_and_none():
    ignored = reference(LABELS.clip(0), LOGITS, ignore_class=0)[0]
    assert float(TokenCrossentropy(ignore_class=0)(LABELS.clip(0), LOGITS)) == pytest.approx(ignored, abs=1e-6)
    all_count = reference(LABELS.clip(0), LOGITS, ignore_class=None)[0]
    assert float(TokenCrossentropy(ignore_class=None)(LABELS.clip(0), LOGITS)) == pytest.approx(all_count, abs=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4)])
def test_sample_weights_weigh_rows_or_tokens(shape):
    weights = np.linspace(0.0, 2.0, int(np.prod(shape))).reshape(shape).astype("float32")
    of_tokens = weights.reshape(3, -1)
    expected, expected_gradient = reference(LABELS, LOGITS, weights=of_tokens)
    value, gradient = trained(TokenCrossentropy(), LABELS, LOGITS, weights)
    assert value == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)
    counted = LABELS != -1
    by_weights = expected * counted.sum() / (of_tokens * counted).sum()
    loss = TokenCrossentropy(reduction="mean_with_sample_weight")
    assert float(loss(LABELS, LOGITS, weights)) == pytest.approx(by_weights, abs=1e-6)
    total = TokenCrossentropy(reduction="sum")(LABELS, LOGITS, weights)
    assert float(total) == pytest.approx(expected * counted.sum(), abs=1e-5)


def test_as_many_rows_as_tokens_do_not_confuse_the_weights():
    labels, logits, weights = LABELS[:, :3], LOGITS[:, :3], np.array([1.0, 2.0, 3.0])
    value = float(TokenCrossentropy()(labels, logits, weights))
    assert value == pytest.approx(reference(labels, logits, weights=weights[:, None])[0], abs=1e-6)


def test_a_batch_without_a_token_that_counts_gives_zero():
    value, gradient = trained(TokenCrossentropy(), np.full_like(LABELS, -1), LOGITS)
    assert value == 0.0 and not gradient.any()


def test_padding_changes_nothing():
    labels = np.pad(LABELS, [(0, 0), (0, 3)], constant_values=-1)
    logits = np.pad(LOGITS, [(0, 0), (0, 3), (0, 0)], constant_values=50.0)
    assert float(TokenCrossentropy()(labels, logits)) == pytest.approx(OF_TORCH[0.0][0], abs=1e-6)


def test_large_logits_neither_overflow_nor_lose_the_gradient():
    logits = 1e4 * LOGITS
    value, gradient = trained(TokenCrossentropy(), LABELS, logits)
    assert value == pytest.approx(reference(LABELS, logits)[0], rel=1e-6) and np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_computes_in_float32(dtype):
    half = keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.cast(LOGITS, dtype[6:]), "float32"))
    value, _ = trained(TokenCrossentropy(), LABELS, LOGITS, dtype=dtype)
    assert value == pytest.approx(reference(LABELS, half)[0], abs=1e-6)


def test_a_mask_that_keras_hands_on_changes_nothing():
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(5, 8, mask_zero=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(5)(x))
    token_ids = np.array([[1, 2, 3, 0], [1, 0, 0, 0], [4, 4, 4, 1]])
    model.compile("sgd", loss=TokenCrossentropy())
    value = model.evaluate(token_ids, LABELS, verbose=0)
    assert value == pytest.approx(reference(LABELS, model.predict(token_ids, verbose=0))[0], abs=1e-6)


@pytest.mark.parametrize("wrong", [5, -100])
def test_a_label_out_of_range_is_not_silently_counted(wrong):
    assert np.isnan(float(TokenCrossentropy()(np.where(LABELS == 4, wrong, LABELS), LOGITS)))


def test_config_brings_the_loss_back():
    loss = TokenCrossentropy(ignore_class=0, label_smoothing=0.2, reduction="sum", name="mine")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert (
        copy.get_config()
        == loss.get_config()
        == {
            "ignore_class": 0,
            "label_smoothing": 0.2,
            "reduction": "sum",
            "name": "mine",
        }
    )
