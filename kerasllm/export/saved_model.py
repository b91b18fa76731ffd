"""SavedModel: a folder that TensorFlow, TensorFlow Serving and their kin load without our Python."""

from kerasllm.export.verification import forward

PACKAGES = ("tensorflow",)


def check_path(path):
    """Raise `ValueError` unless a SavedModel may be written to a path, or replace what is there."""
    if path.suffix in (".tflite", ".keras"):
        raise ValueError(f"filepath ({str(path)!r}) must be a folder's, without {path.suffix!r}.")
    if path.exists() and not (path / "saved_model.pb").exists() and not _is_empty_folder(path):
        raise ValueError(f"filepath ({str(path)!r}) exists and is no SavedModel; it is left alone.")


def _is_empty_folder(path):
    return path.is_dir() and not any(path.iterdir())


def write(model, path, signature):
    """Write a model's forward pass, under the names `serving_default` and `forward`.

    Args:
        model: a model under the tensorflow backend.
        path: of the folder.
        signature: dict input name -> (shape, dtype).
    """
    import tensorflow as tf

    specs = {name: tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in signature.items()}
    module = tf.Module()
    # The weights must be attributes; were the model one too, each weight would be written twice.
    module.weights = [variable.value for variable in model.weights]
    function = tf.function(lambda **inputs: forward(model, inputs), autograph=False)
    function = function.get_concrete_function(**specs)
    tf.saved_model.save(module, str(path), signatures={"serving_default": function, "forward": function})


def run(path, examples):
    """Load a folder and run it: a list of dicts of arrays in, a list of dicts of arrays out."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    outputs = [function(**{name: tf.constant(x) for name, x in inputs.items()}) for inputs in examples]
    return [{name: y.numpy() for name, y in row.items()} for row in outputs]
