"""SavedModel: a folder that TensorFlow, TensorFlow Serving and their kin load without our Python."""

PACKAGES = ("tensorflow",)
STATIC = False
QUANTIZATIONS = ()
FILE_ENDINGS = (".tflite", ".keras", ".litertlm", ".onnx", ".xml", ".h5", ".pt2")


def check_path(path):
    """Raise `ValueError` unless a SavedModel may be written to a path, or replace what is there."""
    if path.suffix in FILE_ENDINGS:
        raise ValueError(f"filepath ({str(path)!r}) must be a folder's, without {path.suffix!r}.")
    if path.exists() and not (path / "saved_model.pb").exists() and not _is_empty_folder(path):
        raise ValueError(f"filepath ({str(path)!r}) exists and is no SavedModel; it is left alone.")


def _is_empty_folder(path):
    return path.is_dir() and not any(path.iterdir())


def assets_folder(path):
    """The folder of what belongs to a SavedModel and is not TensorFlow's."""
    return path / "assets.extra"


def write(contents, path):
    """Write a model's functions, which stand in three places (`serving.py` says what each takes).

    `signatures` holds them by their names, and as `serving_default` the default one, without its options. As
    attributes of the object that `tf.saved_model.load` gives they take more dtypes, and defaults; `serve` is the
    default one.

    Args:
        contents: `Contents` of a model under the tensorflow backend.
        path: of the folder.

    Returns:
        What the functions take and give: dict name -> {"inputs", "outputs"}, each name -> {"shape", "dtype"}, and
        `default` for the inputs that have one.
    """
    import tensorflow as tf

    from kerasllm.export import serving

    module = tf.Module()
    # The weights must be attributes; were the model one too, each weight would be written twice.
    module.weights = [variable.value for variable in contents.model.weights]
    module.tables = contents.tables()
    functions, described = {}, {}
    for name, signature in contents.signatures.items():
        function = signature.function if contents.options.static else serving.checked(signature)
        functions[name] = tf.function(function, autograph=False).get_concrete_function(**serving.specs(signature))
        described[name] = _described(signature, functions[name].structured_outputs)
    if contents.options.static:
        tf.saved_model.save(module, str(path), signatures=functions)
        return described
    for name, function in functions.items():
        setattr(module, name, serving.restorable(contents.signatures[name], function))
    default = contents.default_signature
    module.serve = getattr(module, default)
    few = serving.without_options(contents.signatures[default], functions[default])
    tf.saved_model.save(module, str(path), signatures={"serving_default": few, **functions})
    return described


def _described(signature, outputs):
    inputs = {name: {"shape": list(shape), "dtype": dtype} for name, (shape, dtype) in signature.inputs.items()}
    for name, default in signature.defaults.items():
        inputs[name] |= {} if default is None else {"default": default}
    outputs = {name: {"shape": list(y.shape), "dtype": y.dtype.name} for name, y in outputs.items()}
    return {"inputs": inputs, "outputs": outputs}


def load(path):
    """Load a folder: a function (signature, dict of arrays) -> dict of arrays."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def call(name, inputs):
        outputs = loaded.signatures[name](**{name: tf.constant(x) for name, x in inputs.items()})
        return {name: y.numpy() for name, y in outputs.items()}

    return call
