"""Models that are built with given values: in their dtype, in little memory, and whole or not at all."""

import json
import os
import subprocess
import sys
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


# In a fresh process, whose memory nothing else takes. What is kept is anonymous; the most that was taken at a time
# counts the file too, which is all in memory before.
MEASURE = """
import gc, json, sys
from functools import partial
sys.path.insert(0, {tests!r})
import keras, numpy as np
from test_variables import built_with, embedding

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

rows, width, dtype = {rows}, {width}, {dtype!r}
array = np.memmap({path!r}, "float32", "w+", shape=(rows, width))
array[:] = 1
built_with(partial(embedding, 4, 3, dtype), lambda shapes: dict.fromkeys(shapes, array[:4, :3]))  # imports
gc.collect()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the most so far is what is taken now
kept, most = memory("RssAnon"), memory("VmHWM")
model = built_with(partial(embedding, rows, width, dtype), lambda shapes: dict.fromkeys(shapes, array))
getattr(model.weights[0].value, "block_until_ready", lambda: None)()  # jax copies in the background
gc.collect()
print(json.dumps([memory("RssAnon") - kept, memory("VmHWM") - most]))
assert (keras.ops.convert_to_numpy(model.weights[0]) == 1).all()
"""


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


@pytest.mark.in_turn
@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2)])
def test_the_memory_taken_is_that_of_the_variables(dtype, size, tmp_path):
    rows, width = 2**14, 2**10  # 64 MB in the file
    tests, path = os.path.dirname(__file__), str(tmp_path / "values")
    program = MEASURE.format(tests=tests, path=path, rows=rows, width=width, dtype=dtype)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # variables of a GPU are not in this memory
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    kept, most = json.loads(child.stdout.splitlines()[-1])
    assert size * rows * width - 2**23 <= kept <= 1.3 * size * rows * width + 2**23
    assert most <= 3.3 * size * rows * width + 2**23, "one array at a time, which the backend may copy"


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
