"""TFLite: one file that LiteRT runs on phones, in browsers and on servers, with builtin operations alone."""

import contextlib
import gc
import tempfile

from kerasllm import backend
from kerasllm.backend.recurrence import dense_recurrence
from kerasllm.export import messages, quantization, saved_model, verification

PACKAGES = ("tensorflow", "ai_edge_litert")
STATIC = True
QUANTIZATIONS = ("dynamic_int8", "float16", "int8", "int4")

MAX_BYTES = 2**31 - 2**24
"""Most bytes of float32 weights: a file has less than 2 GiB, also on the way to one of fewer bits."""


def check_path(path):
    """Raise `ValueError` unless a TFLite file may be written to a path, or replace what is there."""
    if path.suffix != ".tflite":
        raise ValueError(f"filepath ({str(path)!r}) must end in '.tflite'.")
    if path.is_dir():
        raise ValueError(f"filepath ({str(path)!r}) is a folder.")


def check_contents(contents):
    """Raise `ValueError` unless a file can hold a model's functions, in the weights that are wanted."""
    size = 4 * contents.model.count_params()
    if size > MAX_BYTES:
        raise ValueError(
            f"the model's weights have {size / 2**30:.2f} GiB in float32; a TFLite file holds less than 2, and with "
            "quantize it is converted from float32. Use the format 'tf_saved_model'."
        )
    if contents.options.quantize == "int8":
        reached = {name for calls in contents.calibration() for name, _ in calls}
        left = [name for name in contents.signatures if name not in reached]
        if left:
            raise ValueError(
                f"signatures: quantize ('int8') cannot calibrate {', '.join(left)}, for TFLite's calibration crashes "
                f"in loops; name others ({', '.join(sorted(reached))}) or take quantize='dynamic_int8'."
            )


def assets_folder(path):
    """The folder beside a file with what belongs to it."""
    return path.with_name(path.name + ".assets")


def write(contents, path):
    """Write a model's functions, which share its weights.

    Args:
        contents: `Contents` of a model under the tensorflow backend, with static options.
        path: of the file.

    Returns:
        What the functions take and give, as `saved_model.write`.

    Raises:
        RuntimeError: the model needs an operation that is not builtin.
    """
    import tensorflow as tf

    quantize = contents.options.quantize
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        with dense_recurrence(), _masks(quantize):
            described = saved_model.write(contents, folder)
        gc.collect()  # the traced functions, which hold the weights a second time
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(contents.signatures))
        # Converters with "select" operations write files that fail on the device.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if quantize in ("float16", "int8"):
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        elif quantize == "int8":
            converter.representative_dataset = lambda: _calibration(contents, folder, described)
        try:
            with messages.without_notes():
                content = converter.convert()
        except Exception as error:
            raise RuntimeError(
                f"TFLite cannot hold {contents.model.name} with builtin operations alone: {error}"
            ) from error
    del converter
    if quantize in ("dynamic_int8", "int4"):
        content = quantization.quantized(content, 8 if quantize == "dynamic_int8" else 4)
    path.write_bytes(content)
    return described


def _masks(quantize):
    return backend.small_masked_scores() if quantize == "int8" else contextlib.nullcontext()


def _calibration(contents, folder, described):
    """Pairs (signature, inputs) of all calls; the float32 functions compute what one takes from the one before."""
    call = saved_model.load(folder)
    for calls in contents.calibration():
        yield from verification.complete(call, described, calls)


def load(path):
    """Load a file: a function (signature, dict of arrays) -> dict of arrays."""
    from ai_edge_litert.interpreter import Interpreter

    opened = {}

    def call(name, inputs):
        if name not in opened:
            opened.clear()  # Each function that has been called holds the weights in an order of its own.
            opened[name] = Interpreter(str(path)).get_signature_runner(name)
            with messages.without_notes():
                return opened[name](**inputs)
        return opened[name](**inputs)

    return call
