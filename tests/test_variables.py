"""Models that are built with given values: in their dtype, in little memory, and whole or not at all."""

import gc
import threading
from functools import partial

import keras
import numpy as np
import pytest

from kerasllm.backend.variables import built_with
from kerasllm.checkpoints.weight_map import LazyArray
from kerasllm.layers import Recurrent


def embedding(rows, width, dtype):
    inputs = keras.Input((None,), dtype="int32")
    return keras.Model(inputs, keras.layers.Embedding(rows, width, dtype=dtype, name="table")(inputs))


def anonymous_memory():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "mixed_bfloat16"])
def test_variables_get_the_values_in_their_dtype_and_memory_of_their_own(dtype, tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    np.save(tmp_path / "values.npy", values)
    array = np.load(tmp_path / "values.npy", mmap_mode="r")
    model = built_with(partial(embedding, 4, 3, dtype), lambda shapes: dict.fromkeys(shapes, array))
    variable = model.weights[0]
    stored = keras.ops.convert_to_tensor(values, "float32" if dtype.startswith("mixed") else dtype)
    assert variable.dtype == keras.backend.standardize_dtype(stored.dtype)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), keras.ops.convert_to_numpy(stored))
    variable.assign(variable + 1)
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), values)


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2)])
def test_the_memory_taken_is_that_of_the_variables(dtype, size, tmp_path):
    rows, width = 2**14, 2**10  # 64 MB in the file
    array = np.memmap(tmp_path / "values", "float32", "w+", shape=(rows, width))
    built_with(partial(embedding, 4, 3, dtype), lambda shapes: {path: np.ones((4, 3)) for path in shapes})  # imports
    gc.collect()
    start, most, done = anonymous_memory(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            most[0] = max(most[0], anonymous_memory() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = built_with(partial(embedding, rows, width, dtype), lambda shapes: dict.fromkeys(shapes, array))
    done.set()
    watcher.join()
    kept = anonymous_memory() - start
    assert kept <= 1.3 * size * rows * width + 2**23
    assert most[0] <= 3.3 * size * rows * width + 2**23, "one array at a time, which the backend may copy"
    assert model.count_params() == rows * width


def test_a_model_that_is_refused_takes_no_memory_and_leaves_nothing_behind():
    def refuse(shapes):
        assert shapes == {"table/embeddings": (2**31 - 1, 2**10)}
        raise ValueError("no such tensor")

    with pytest.raises(ValueError, match="no such tensor"):
        built_with(partial(embedding, 2**31 - 1, 2**10, "float32"), refuse)  # 8 TB
    assert np.isfinite(keras.ops.convert_to_numpy(embedding(4, 3, "float32").weights[0].value)).all()


def test_no_initial_value_is_drawn_not_even_for_shapes():
    def fail(shape, dtype=None):
        raise AssertionError

    def build():
        inputs = keras.Input((None,), dtype="int32")
        x = keras.layers.Embedding(4, 3, embeddings_initializer=fail, name="table")(inputs)
        return keras.Model(inputs, keras.layers.Dropout(0.5)(Recurrent(5, name="walk")(x)[0]))

    model = built_with(build, lambda shapes: {path: np.ones(shape) for path, shape in shapes.items()})
    assert all((keras.ops.convert_to_numpy(v.value) == 1).all() for v in model.weights)
    seeds = [v for v in model.variables if v.path not in {w.path for w in model.weights}]
    assert seeds and all(keras.ops.convert_to_numpy(v.value).any() for v in seeds), "their own initial values"


def test_an_array_that_cannot_be_read_is_an_error_of_the_whole():
    def fail():
        raise ValueError("the disk is gone")

    lazy = LazyArray((4, 3), np.dtype("float32"), fail)
    with pytest.raises(ValueError, match="the disk is gone"):
        built_with(partial(embedding, 4, 3, "float32"), lambda shapes: dict.fromkeys(shapes, lazy))
    assert embedding(4, 3, "float32").weights[0].shape == (4, 3)
