"""What a run is made of, described so that another process can tell whether its own is the same."""

import hashlib
import os
from collections.abc import Mapping

import keras
import numpy as np

from kerasllm.arguments import plain, shown
from kerasllm.training.callback_states import arguments_of

ROWS = 256  # so many rows, from all over it, stand for a long list or a large array
LARGE = 2**26  # bytes
DATA = ("x", "y", "sample_weight")


def described_run(model, arguments, callbacks):
    """A nest of plain values that is equal for equal runs.

    Args:
        model: a compiled model.
        arguments: dict of all arguments of `fit`.
        callbacks: those whose state is kept.
    """
    left_out = {"self", "epochs", "verbose", "callbacks", "validation_data", *DATA}
    validation = keras.utils.unpack_x_y_sample_weight(arguments["validation_data"])
    return {
        "model": described_model(model),
        "optimizer": described(model.optimizer),
        "compile": _described_compilation(model),
        "data": {name: described_data(arguments[name]) for name in DATA},
        "validation_data": {name: described_data(x) for name, x in zip(DATA, validation, strict=True)},
        "fit": {name: described(value) for name, value in arguments.items() if name not in left_out},
        "callbacks": {
            f"{i} {type(callback).__name__}": described(arguments_of(callback)) for i, callback in enumerate(callbacks)
        },
    }


def described_model(model):
    """The class of a model, its arguments, and shape, dtype and `trainable` of its variables."""
    variables = [[list(v.shape), keras.backend.standardize_dtype(v.dtype), v.trainable] for v in model.variables]
    return {**_described_object(model), "variables": variables}


def _described_compilation(model):
    try:
        config = model.get_compile_config()
    except (TypeError, ValueError, NotImplementedError):  # a loss of the user's own that Keras cannot write
        config = {"loss": model.loss}
    return described({name: value for name, value in config.items() if name != "optimizer"})


def described_data(data):
    """An argument of `fit` that gives data: arrays by some of their rows, a dataset of ours by some of its examples."""
    if hasattr(data, "description"):
        return described(data.description())
    if isinstance(data, keras.utils.PyDataset):
        return {"class": _name(type(data)), "batches": data.num_batches}
    if hasattr(data, "element_spec"):  # of tf.data
        return {"class": _name(type(data)), "elements": str(data.element_spec)}
    return described(data)


def described(value):
    """A nest of plain values for anything. Names that Keras counts up (`adam_1`) are left out."""
    value = plain(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): described(x) for name, x in value.items() if name != "name"}
    if isinstance(value, list | tuple):
        return [described(x) for x in value] if len(value) <= ROWS else _described_sequence(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _described_array(value)
    return _described_object(value)


def _described_sequence(values):
    some = [values[i] for i in np.linspace(0, len(values) - 1, ROWS).astype(int)]
    return {"length": len(values), "some": [described(x) for x in some]}


def _described_array(array):
    shape, dtype = [*array.shape], keras.backend.standardize_dtype(array.dtype)
    if isinstance(array, np.ndarray) and array.nbytes > LARGE and shape[0] > ROWS:
        array = array[np.linspace(0, shape[0] - 1, ROWS).astype(int)]
    array = np.ascontiguousarray(keras.ops.convert_to_numpy(array))
    data = repr(array.tolist()).encode() if array.dtype.kind in "OU" else array.tobytes()
    return {"shape": shape, "dtype": dtype, "sha256": hashlib.sha256(data).hexdigest()}


def _described_object(value):
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return {"class": _name(value)}
    try:
        config = described(value.get_config())
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        config = None
    return {"class": _name(type(value)), "config": config}


def _name(value):
    return f"{getattr(value, '__module__', None) or type(value).__module__}.{value.__qualname__}"


def difference(before, now, name=""):
    """The first difference between two descriptions as a sentence, or None."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(now.keys() - before.keys())]:
            found = difference(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
            if found:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        found = (difference(a, b, f"{name}[{i}]") for i, (a, b) in enumerate(zip(before, now, strict=True)))
        return next(filter(None, found), None)
    # Not a number is equal to itself here.
    return None if before == now or repr(before) == repr(now) else f"{name} was {shown(before)} and is {shown(now)}"
