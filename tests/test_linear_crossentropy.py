import keras
import numpy as np
import pytest
from keras import ops

from kerasllm.backend import Product, linear_crossentropy, token_crossentropy

TOKENS, WIDTH, SYMBOLS, CHUNK = 21, 6, 11, 4
RNG = np.random.default_rng(0)
HIDDEN, BIAS = RNG.normal(size=(TOKENS, WIDTH)).astype("float32"), RNG.normal(size=SYMBOLS).astype("float32")
KERNEL = RNG.normal(size=(WIDTH, SYMBOLS)).astype("float32")
LABELS, WEIGHTS = RNG.integers(-1, SYMBOLS, TOKENS).astype("int32"), RNG.random(TOKENS).astype("float32")


def gradients(function, *arrays):
    """A scalar function's value and its gradients, in numpy."""
    variables = [keras.Variable(array) for array in arrays]
    if keras.backend.backend() == "jax":
        import jax

        value, gradients = jax.value_and_grad(function, tuple(range(len(arrays))))(*map(np.asarray, arrays))
    elif keras.backend.backend() == "torch":
        value = function(*(v.value for v in variables))
        value.backward()
        value, gradients = value.detach(), [v.value.grad for v in variables]
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function(*(tf.convert_to_tensor(v) for v in variables))
        gradients = tape.gradient(value, [v.value for v in variables])
    return [ops.convert_to_numpy(x) for x in (value, *gradients)]


def plain(hidden, kernel, bias=None, *, softcap, label_smoothing, weights=WEIGHTS, scale=1.5):
    logits = scale * ops.matmul(hidden, kernel)
    logits = logits if bias is None else logits + bias
    logits = logits if softcap is None else ops.tanh(logits / softcap) * softcap
    losses = token_crossentropy(ops.convert_to_tensor(LABELS), logits, -1, label_smoothing)
    return ops.sum(losses * ops.convert_to_tensor(weights))


def in_chunks(hidden, kernel, bias=None, *, softcap, label_smoothing, is_transposed=False, labels=LABELS, **options):
    kernel = ops.transpose(kernel) if is_transposed else kernel
    product = Product(kernel, bias, is_transposed, 1.5, softcap, options.pop("dtype", "float32"))
    options = {"training": True, "with_hits": True, "chunk_size": CHUNK} | options
    return linear_crossentropy(
        hidden, product, ops.convert_to_tensor(labels), ops.convert_to_tensor(WEIGHTS), -1, label_smoothing, **options
    )


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("arrays", [(HIDDEN, KERNEL), (HIDDEN, KERNEL, BIAS)])
def test_sum_and_gradients_are_those_of_all_logits_at_once(is_transposed, softcap, label_smoothing, arrays):
    options = {"softcap": softcap, "label_smoothing": label_smoothing}
    expected = gradients(lambda *arrays: plain(*arrays, **options), *arrays)
    actual = gradients(lambda *arrays: 3 * in_chunks(*arrays, **options, is_transposed=is_transposed)[0], *arrays)
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(b, 3 * a, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, TOKENS, 1000])
def test_the_size_of_a_chunk_changes_nothing(chunk_size):
    results = in_chunks(HIDDEN, KERNEL, softcap=None, label_smoothing=0.1)
    for a, b in zip(
        results, in_chunks(HIDDEN, KERNEL, softcap=None, label_smoothing=0.1, chunk_size=chunk_size), strict=True
    ):
        np.testing.assert_allclose(ops.convert_to_numpy(b), ops.convert_to_numpy(a), rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_each_token_has_its_crossentropy_and_says_whether_its_label_comes_first(training):
    _, losses, hits = in_chunks(HIDDEN, KERNEL, BIAS, softcap=2.0, label_smoothing=0.1, training=training)
    logits = 2 * np.tanh((1.5 * HIDDEN @ KERNEL + BIAS) / 2)
    expected = token_crossentropy(ops.convert_to_tensor(LABELS), ops.convert_to_tensor(logits), -1)
    np.testing.assert_allclose(ops.convert_to_numpy(losses), ops.convert_to_numpy(expected), atol=1e-5)
    np.testing.assert_array_equal(ops.convert_to_numpy(hits), logits.argmax(-1) == LABELS)


def test_a_batch_in_which_no_token_counts_gives_zero():
    nothing = np.full(TOKENS, -1, "int32")
    for array in gradients(
        lambda *arrays: in_chunks(*arrays, softcap=None, label_smoothing=0.0, labels=nothing)[0], HIDDEN, KERNEL
    ):
        np.testing.assert_array_equal(array, 0)


def test_a_label_that_is_no_class_gives_nan():
    labels = np.where(np.arange(TOKENS) == 3, SYMBOLS, LABELS)
    total, losses, _ = in_chunks(HIDDEN, KERNEL, softcap=None, label_smoothing=0.0, labels=labels)
    assert np.isnan(ops.convert_to_numpy(total))
    np.testing.assert_array_equal(np.isnan(ops.convert_to_numpy(losses)), np.arange(TOKENS) == 3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_multiply_and_all_else_is_float32(dtype):
    options = {"softcap": None, "label_smoothing": 0.0}
    expected = gradients(lambda *arrays: plain(*arrays, **options), HIDDEN, KERNEL)
    actual = gradients(lambda *arrays: in_chunks(*arrays, **options, dtype=dtype)[0], HIDDEN, KERNEL)
    for a, b in zip(expected, actual, strict=True):
        assert b.dtype == "float32"
        np.testing.assert_allclose(b, a, atol=0.03 * np.abs(a).max())


def test_large_logits_lose_nothing():
    hidden, options = 100 * HIDDEN, {"softcap": None, "label_smoothing": 0.0}
    expected = gradients(lambda *arrays: plain(*arrays, **options), hidden, KERNEL)
    actual = gradients(lambda *arrays: in_chunks(*arrays, **options)[0], hidden, KERNEL)
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)
