"""TFLite: one file that LiteRT runs on phones, in browsers and on servers, with builtin operations alone."""

import tempfile

from kerasllm import backend
from kerasllm.export import saved_model

PACKAGES = ("tensorflow", "ai_edge_litert")


def check_path(path):
    """Raise `ValueError` unless a TFLite file may be written to a path, or replace what is there."""
    if path.suffix != ".tflite":
        raise ValueError(f"filepath ({str(path)!r}) must end in '.tflite'.")
    if path.is_dir():
        raise ValueError(f"filepath ({str(path)!r}) is a folder.")


def write(model, path, signature):
    """Write a model's forward pass as the signature `serving_default`.

    It is the file's only one: a second name for it would be a second copy of its graph, and
    `get_signature_runner()` would ask which.

    Args:
        model: a model under the tensorflow backend.
        path: of the file.
        signature: dict input name -> (shape, dtype).

    Raises:
        RuntimeError: the model needs an operation that is not builtin.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        with backend.dense_recurrence():
            saved_model.write(model, folder, signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        # Converters with "select" operations write files that fail on the device.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            content = converter.convert()
        except Exception as error:
            raise RuntimeError(f"TFLite cannot hold {model.name} with builtin operations alone: {error}") from error
    path.write_bytes(content)


def run(path, examples):
    """Load a file and run it: a list of dicts of arrays in, a list of dicts of arrays out."""
    from ai_edge_litert.interpreter import Interpreter

    function = Interpreter(str(path)).get_signature_runner("serving_default")
    return [function(**inputs) for inputs in examples]
