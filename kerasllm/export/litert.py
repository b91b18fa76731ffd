"""TFLite: one file that LiteRT runs on phones, in browsers and on servers, with builtin operations alone."""

import tempfile

from kerasllm import backend
from kerasllm.export import saved_model

PACKAGES = ("tensorflow", "ai_edge_litert")
STATIC = True
QUANTIZATIONS = ("dynamic_int8", "float16")


def check_path(path):
    """Raise `ValueError` unless a TFLite file may be written to a path, or replace what is there."""
    if path.suffix != ".tflite":
        raise ValueError(f"filepath ({str(path)!r}) must end in '.tflite'.")
    if path.is_dir():
        raise ValueError(f"filepath ({str(path)!r}) is a folder.")


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

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        with backend.dense_recurrence():
            described = saved_model.write(contents, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(contents.signatures))
        # Converters with "select" operations write files that fail on the device.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if contents.options.quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if contents.options.quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            content = converter.convert()
        except Exception as error:
            raise RuntimeError(
                f"TFLite cannot hold {contents.model.name} with builtin operations alone: {error}"
            ) from error
    path.write_bytes(content)
    return described


def load(path):
    """Load a file: a function (signature, dict of arrays) -> dict of arrays."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    return lambda name, inputs: interpreter.get_signature_runner(name)(**inputs)
