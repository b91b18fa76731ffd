"""SavedModel: a folder that TensorFlow, TensorFlow Serving and their kin load without our Python."""

PACKAGES = ("tensorflow",)
STATIC = False
QUANTIZATIONS = ()


def check_path(path):
    """Raise `ValueError` unless a SavedModel may be written to a path, or replace what is there."""
    if path.suffix in (".tflite", ".keras"):
        raise ValueError(f"filepath ({str(path)!r}) must be a folder's, without {path.suffix!r}.")
    if path.exists() and not (path / "saved_model.pb").exists() and not _is_empty_folder(path):
        raise ValueError(f"filepath ({str(path)!r}) exists and is no SavedModel; it is left alone.")


def _is_empty_folder(path):
    return path.is_dir() and not any(path.iterdir())


def assets_folder(path):
    """The folder of what belongs to a SavedModel and is not TensorFlow's."""
    return path / "assets.extra"


def write(contents, path):
    """Write a model's functions; `forward` stands under the name `serving_default` too.

    Args:
        contents: `Contents` of a model under the tensorflow backend.
        path: of the folder.

    Returns:
        What the functions take and give: dict name -> {"inputs", "outputs"}, each name -> {"shape", "dtype"}.
    """
    import tensorflow as tf

    module = tf.Module()
    # The weights must be attributes; were the model one too, each weight would be written twice.
    module.weights = [variable.value for variable in contents.model.weights]
    module.tables = contents.tables()
    functions, described = {}, {}
    for name, signature in contents.signatures.items():
        specs = {
            name: tf.TensorSpec(shape, tf.as_dtype(dtype), name=name)
            for name, (shape, dtype) in signature.inputs.items()
        }
        functions[name] = tf.function(signature.function, autograph=False).get_concrete_function(**specs)
        described[name] = {"inputs": _described(specs), "outputs": _described(functions[name].structured_outputs)}
    default = {"serving_default": functions["forward"]} if "forward" in functions else {}
    tf.saved_model.save(module, str(path), signatures={**default, **functions})
    return described


def _described(specs):
    return {name: {"shape": list(spec.shape), "dtype": spec.dtype.name} for name, spec in specs.items()}


def load(path):
    """Load a folder: a function (signature, dict of arrays) -> dict of arrays."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def call(name, inputs):
        outputs = loaded.signatures[name](**{name: tf.constant(x) for name, x in inputs.items()})
        return {name: y.numpy() for name, y in outputs.items()}

    return call
