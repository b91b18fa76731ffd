"""Compiled functions and loops; on torch, recordings of their operations."""

import gc
import operator

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import backend

ON_TORCH = keras.backend.backend() == "torch"
ON_JAX_CPU = keras.backend.backend() == "jax" and "cpu" in str(ops.zeros(1).device).lower()
ON_ONEDNN = ON_TORCH and "cuda" not in str(ops.zeros(1).device)


def model(units=16):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((units,)), keras.layers.Dense(units, "tanh"), keras.layers.Dense(units)])


def repeated(layers, rows=1):
    """A compiled function that applies the layers n times and adds up what it has seen."""

    def run(x, n):
        def keep_going(carry, constants):
            return carry[0] < constants

        def step(carry, constants):
            i, x, total = carry
            x = layers(x, training=False)
            return i + 1, x, total + x

        return backend.while_loop(keep_going, step, (0, x, ops.zeros_like(x)), n)

    return backend.compiled(run, layers)


def expected(layers, x, n):
    total = np.zeros_like(x)
    for _ in range(n):
        x = layers.predict(x, verbose=0)
        total = total + x
    return x, total


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_a_loop_equals_plain_python(rows):
    layers = model()
    x = np.random.default_rng(0).normal(size=(rows, 16)).astype("float32")
    run = repeated(layers)
    for n in (3, 1, 0, 5):
        count, last, total = run(ops.convert_to_tensor(x), ops.convert_to_tensor(n))
        assert int(count) == n
        for found, wanted in zip((last, total), expected(layers, x, n), strict=True):
            np.testing.assert_allclose(ops.convert_to_numpy(found), wanted, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_loop_sees_each_change_of_the_weights(rows):
    layers = model()
    x = np.random.default_rng(0).normal(size=(rows, 16)).astype("float32")
    run = repeated(layers)
    for change in range(3):
        for variable in layers.weights:
            variable.assign(variable * 1.5 + 0.1 * change)
        _, last, _ = run(ops.convert_to_tensor(x), ops.convert_to_tensor(2))
        np.testing.assert_allclose(ops.convert_to_numpy(last), expected(layers, x, 2)[0], atol=1e-5)


@pytest.mark.skipif(not ON_JAX_CPU, reason="only jax on a CPU copies kernels")
def test_one_row_reads_transposed_copies_that_die_with_their_kernels():
    from kerasllm.backend import matvec

    layers, before = model(256), len(matvec._copies)
    x = np.random.default_rng(0).normal(size=(1, 256)).astype("float32")
    run = repeated(layers)
    for _ in range(2):
        _, last, _ = run(ops.convert_to_tensor(x), ops.convert_to_tensor(3))
        assert len(matvec._copies) == before + 2
        np.testing.assert_allclose(ops.convert_to_numpy(last), expected(layers, x, 3)[0], atol=1e-5)
        for variable in layers.weights:
            variable.assign(variable * 1.5)
        gc.collect()
        assert len(matvec._copies) == before
    repeated(layers)(ops.convert_to_tensor(np.repeat(x, 8, axis=0)), ops.convert_to_tensor(3))
    assert len(matvec._copies) == before  # many rows read the kernels as they are


@pytest.mark.skipif(not ON_JAX_CPU, reason="only jax on a CPU copies kernels")
def test_a_function_without_one_row_loops_is_traced_once():
    traces = []

    def run(x):
        traces.append(x)
        return layers(x, training=False)

    layers = model()
    function = backend.compiled(run, layers)
    for _ in range(3):
        function(ops.ones((1, 16)))
    assert len(traces) == 1


def test_tensors_that_share_memory_stay_apart():
    def run(n):
        def keep_going(carry, constants):
            return carry[0] < constants

        def step(carry, constants):
            i, a, b = carry
            return (
                i + 1,
                backend.write_slots(a, ops.ones((1, 1, 1, 2)), i),
                backend.write_slots(b, -ops.ones((1, 1, 1, 2)), i),
            )

        zeros = ops.zeros((1, 1, 4, 2))
        return backend.while_loop(keep_going, step, (0, zeros, zeros), n)

    _, a, b = backend.compiled(run, model())(ops.convert_to_tensor(3))
    np.testing.assert_array_equal(ops.convert_to_numpy(a)[0, 0, :, 0], [1, 1, 1, 0])
    np.testing.assert_array_equal(ops.convert_to_numpy(b)[0, 0, :, 0], [-1, -1, -1, 0])


def test_writes_into_equal_tensors_stay_apart():
    """Two buffers of zeros look alike to a recording until they are written into."""

    def run(n):
        def step(carry, constants):
            i, a, b = carry
            one, two = (ops.slice_update(ops.zeros((4,)), (i,), ops.full((1,), value)) for value in (1.0, 2.0))
            return i + 1, a + one, b + two

        return backend.while_loop(lambda c, n: c[0] < n, step, (0, ops.zeros((4,)), ops.zeros((4,))), n)

    _, a, b = backend.compiled(run, model())(ops.convert_to_tensor(3))
    np.testing.assert_array_equal(ops.convert_to_numpy(a), [1, 1, 1, 0])
    np.testing.assert_array_equal(ops.convert_to_numpy(b), [2, 2, 2, 0])


@pytest.mark.skipif(not ON_ONEDNN, reason="only torch on a CPU has oneDNN's kernels")
def test_a_recording_merges_prepares_and_fuses():
    import torch

    from kerasllm.backend.recording import Recording

    layers = model()

    def function(arguments):
        return [layers(arguments[0], training=False) + layers(arguments[0], training=False)]

    for rows in (1, 8):
        with torch.no_grad():
            recording = Recording(function, [torch.ones(rows, 16)], num_donated=0)
        code = recording.run.__self__.code
        assert code.count("torch.ops.mkldnn._linear_pointwise") == 2  # of four products, with their biases
        assert "ops.aten.mm" not in code and "ops.aten.t." not in code and "ops.mkldnn._reorder" not in code
        assert code.count("torch.ops.") <= 5


@pytest.mark.skipif(not ON_ONEDNN, reason="only torch on a CPU has oneDNN's kernels")
def test_recordings_share_what_they_make_of_the_weights():
    import torch

    from kerasllm.backend.recording import Recording

    layers, x = model(), torch.ones(1, 16)

    def function(arguments):
        return [layers(arguments[0], training=False)]

    with torch.no_grad():
        recordings = [Recording(function, [x], num_donated=0) for _ in range(2)]
        for value in (1.0, 2.0):
            layers.set_weights([np.full_like(w, value) for w in layers.get_weights()])
            for recording in recordings:
                recording.refresh()
                torch.testing.assert_close(recording([x]), function([x]))
            first, second = (recording.constants for recording in recordings)
            assert len(first) >= 2 and all(map(operator.is_, first, second))


@pytest.mark.skipif(not ON_TORCH, reason="only torch records")
def test_a_recording_sees_steps_of_fused_optimizers():
    import torch

    from kerasllm.backend.recording import Recording

    layers, x = model(), torch.ones(1, 16)
    recording = Recording(lambda arguments: [layers(arguments[0], training=False)], [x], num_donated=0)
    optimizer = torch.optim.AdamW([v.value for v in layers.trainable_variables], 0.1, fused=True)
    for _ in range(2):
        recording.refresh()
        torch.testing.assert_close(recording([x]), [layers(x, training=False)])
        optimizer.zero_grad()
        layers(x).sum().backward()
        optimizer.step()


@pytest.mark.skipif(not ON_TORCH, reason="only torch records")
def test_a_reshape_that_mixes_rows_is_kept():
    import torch

    from kerasllm.backend.recording import Recording

    weight = torch.nn.Parameter(torch.randn(8, 5))

    def function(arguments):
        return [torch.ops.aten._unsafe_view(arguments[0].view(6, 8) @ weight, [2, 3, 5])]

    x = torch.randn(2, 4, 6)
    with torch.no_grad():
        recording = Recording(function, [x], 0)
        recording.refresh()
        torch.testing.assert_close(recording([x]), function([x]))


@pytest.mark.skipif(not ON_TORCH, reason="only torch records")
@pytest.mark.parametrize("slot", [2, [2]])
def test_a_recording_writes_into_what_is_given_away(slot):
    import torch

    from kerasllm.backend.recording import Recording

    def function(arguments):
        cache, update, slot = arguments
        return (
            [backend.write_slots(cache, update, slot), cache.sum() * 0]
            if reads
            else [backend.write_slots(cache, update, slot)]
        )

    for reads in (False, True):
        arguments = [torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 1, 2), torch.tensor(slot)]
        with torch.no_grad():
            recording = Recording(function, arguments, num_donated=1)
            recording.refresh()
            result = recording(arguments)[0]
        assert (result.data_ptr() == arguments[0].data_ptr()) is not reads
        assert result[0, 0, :, 0].tolist() == [0, 0, 1, 0]
