"""Keras's int8 layers, whose products torch does on a CPU by oneDNN's kernel."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from test_compilation import ON_ONEDNN, ON_TORCH, model, repeated

from kerasllm import backend

# Activations of 8 bits, Keras's default, and of 12, that of our models.
INT8 = [
    None,
    keras.quantizers.Int8QuantizationConfig(
        activation_quantizer=keras.quantizers.AbsMaxQuantizer(-1, (-2032, 2032), output_dtype="int32")
    ),
]


@pytest.mark.parametrize("config", INT8)
@pytest.mark.parametrize("rows", [1, 8])
def test_int8_layers_give_what_keras_gives(rows, config):
    layers = model(32)
    x = np.random.default_rng(1).normal(size=(rows, 32)).astype("float32")
    layers.quantize("int8", config=config)
    _, last, _ = repeated(layers)(ops.convert_to_tensor(x), ops.convert_to_tensor(2))
    wanted = layers(layers(x, training=False), training=False)
    np.testing.assert_allclose(ops.convert_to_numpy(last), ops.convert_to_numpy(wanted), atol=1e-5)


def test_a_function_of_int8_layers_gives_what_keras_gives():
    layers = model(32)
    layers.quantize("int8")

    def run(arguments):
        return {"y": layers(arguments["x"], training=False), "zeros": (ops.zeros((2,)),)}

    function = backend.compiled(run, layers)
    for seed in range(3):
        x = ops.convert_to_tensor(np.random.default_rng(seed).normal(size=(4, 32)).astype("float32"))
        found = function({"x": x})
        wanted = layers(x, training=False)
        np.testing.assert_allclose(ops.convert_to_numpy(found["y"]), ops.convert_to_numpy(wanted), atol=1e-5)
        np.testing.assert_array_equal(ops.convert_to_numpy(found["zeros"][0]), [0, 0])
        if ON_TORCH:
            found["zeros"][0].add_(1)  # the results are the caller's own


@pytest.mark.skipif(not ON_ONEDNN, reason="only torch on a CPU has oneDNN's kernels")
def test_processors_without_products_of_8_bits_give_what_keras_gives():
    """oneDNN's kernels for them add products in 16 bits."""
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "int8_layers_give or function_of_int8"]
    done = subprocess.run(command, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True)
    assert done.returncode == 0 and "5 passed" in done.stdout, done.stdout


@pytest.mark.skipif(not ON_ONEDNN, reason="only torch on a CPU has oneDNN's kernels")
@pytest.mark.parametrize("config", INT8)
def test_int8_layers_run_on_the_int8_kernel(config):
    import torch

    from kerasllm.backend.recording import Recording

    layers = model(32)
    layers.quantize("int8", config=config)
    with torch.no_grad():
        recording = Recording(lambda arguments: [layers(arguments[0], training=False)], [torch.ones(1, 32)], 0)
    code = recording.run.__self__.code
    assert code.count("torch.ops.onednn.qlinear_pointwise") == 2
    assert "ops.onednn.qlinear_prepack" not in code and "aten.mm" not in code
