"""Each processor against numpy, against transformers where it is installed, and against stored numbers."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import backend
from kerasllm.generation import processors


@functools.cache
def compiled_process(shape, has_top_k, has_top_p):
    """`process` with tensors for all values: one function for each shape of the logits."""

    def process(logits, temperature, top_k, top_p):
        return processors.process(logits, temperature, top_k if has_top_k else None, top_p if has_top_p else None)

    return backend.compiled(process, keras.Model())


def processed(logits, temperature=1.0, top_k=None, top_p=None):
    process = compiled_process(logits.shape, top_k is not None, top_p is not None)
    values = [ops.convert_to_tensor(value or 0, dtype="float32") for value in (temperature, top_k, top_p)]
    return ops.convert_to_numpy(process(ops.convert_to_tensor(logits), *values))


def kept(logits, **options):
    """The sets of tokens that are left, row by row."""
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in processed(np.array(logits, "float32"), **options)]


LOGITS = (3 * np.random.default_rng(0).normal(size=(6, 300))).astype("float32")


@pytest.mark.parametrize("temperature", [0.1, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 300, 1000])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.9, 0.999])
def test_processing_equals_transformers(temperature, top_k, top_p):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    expected = torch.tensor(LOGITS)
    chain = [transformers.TemperatureLogitsWarper(temperature)]
    chain += [] if top_k is None else [transformers.TopKLogitsWarper(top_k)]
    chain += [] if top_p is None else [transformers.TopPLogitsWarper(top_p)]
    for processor in chain:
        expected = processor(None, expected)
    np.testing.assert_allclose(processed(LOGITS, temperature, top_k, top_p), expected.numpy(), rtol=1e-6)


def test_processing_equals_the_stored_numbers():
    logits = np.array([[0.5, -1.0, 2.0, 1.9, -3.0, 0.0, 1.0, 2.5]], "float32")
    low = -np.inf
    expected = [[low, low, 4.0, 3.8, low, low, low, 5.0]]
    np.testing.assert_allclose(processed(logits, temperature=0.5, top_k=5, top_p=0.85), expected, rtol=1e-6)


def test_top_p_is_taken_of_what_top_k_leaves():
    logits = np.log([[0.4, 0.3, 0.2, 0.1]])
    assert kept(logits, top_p=0.69) == [[0, 1]]
    assert kept(logits, top_k=2, top_p=0.69) == [[0, 1]]
    assert kept(logits, top_k=2, top_p=0.55) == [[0]]


@pytest.mark.parametrize("k", [1, 2, 3, 299, 300, 301, 10**9])
def test_top_k_keeps_k_tokens(k):
    result = processed(LOGITS, top_k=k)
    assert (np.isfinite(result).sum(axis=-1) == min(k, 300)).all()
    largest = np.sort(LOGITS, axis=-1)[:, ::-1][:, : min(k, 300)]
    np.testing.assert_array_equal(np.sort(result, axis=-1)[:, ::-1][:, : min(k, 300)], largest)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.95])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    for row, left in zip(LOGITS.astype("float64"), kept(LOGITS, top_p=p), strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        assert probabilities[left].sum() >= p
        assert probabilities[left].sum() - probabilities[left].min() < p
        assert probabilities[left].min() > np.delete(probabilities, left).max()


def test_tokens_equal_to_the_last_one_are_kept():
    assert kept([[2.0, 1.0, 3.0, 1.0, 0.0, 1.0]], top_k=3) == [[0, 1, 2, 3, 5]]
    assert kept([[0.0, 0.0, 0.0, 0.0]], top_k=1) == [[0, 1, 2, 3]]
    assert kept([[0.0, 0.0, 0.0, 0.0]], top_p=0.3) == [[0, 1, 2, 3]]
    assert kept([[0.0, -0.0, -1.0]], top_k=1) == [[0, 1]]


def test_neighbouring_floats_are_told_apart():
    for value in (1e-30, 1.0, -1.0, 1e30, -1e-30):
        pair = np.array([[value, np.nextafter(np.float32(value), np.float32(np.inf))]], "float32")
        assert kept(pair, top_k=1) == [[1]]


def test_every_filter_leaves_the_most_probable_token():
    spread = [[-1e30, -1e4, 1e4, 0.0], [0.0, 1e-8, 2e-8, 1e-7]]
    for options in ({"top_k": 1}, {"top_p": 1e-7}, {"top_k": 1, "top_p": 1e-7, "temperature": 1e-6}):
        for row, left in zip(spread, kept(spread, **options), strict=True):
            assert int(np.argmax(row)) in left


def test_rows_are_filtered_each_on_its_own():
    together = processed(LOGITS, top_k=20, top_p=0.8)
    for row, expected in zip(LOGITS, together, strict=True):
        np.testing.assert_array_equal(processed(row[None], top_k=20, top_p=0.8)[0], expected)


def test_half_precision_logits_become_float32():
    assert processed(ops.cast(LOGITS, "bfloat16"), top_p=0.5).dtype == "float32"
