"""Our own layout, for models that no foreign family can say: variables and arguments by their names."""

import numpy as np

from kerasllm.arguments import shown
from kerasllm.checkpoints import weight_map

MODEL_TYPE = "kerasllm"
ARCHITECTURES = {}  # config.json names our class
FIELDS = {"model_type", "architectures", "arguments", "parts"}
NOT_SAID = ("name", "tokenizer", "source_tokenizer", "target_tokenizer")  # arguments that no config has


def read_config(config, class_name, tensor_names):
    """The arguments of a model from config.json."""
    unknown = sorted(set(config) - FIELDS)
    if unknown:
        raise ValueError(f"config.json: {', '.join(unknown)} is unknown.")
    if not isinstance(config.get("arguments"), dict):
        raise ValueError(f"config.json: arguments ({shown(config.get('arguments'))}) must be an object.")
    arguments = config["arguments"]
    wrong = {name: arguments[name] for name in NOT_SAID if name in arguments}
    # Of a dict Keras would make an object.
    wrong |= {name: value for name, value in arguments.items() if name == "dtype" and not isinstance(value, str)}
    if wrong:
        said = ", ".join(f"{name} ({shown(value)})" for name, value in wrong.items())
        raise ValueError(f"config.json: arguments must not say {said}.")
    return arguments


def read_parts(config):
    """What is set on parts of the model, a dict, or None."""
    parts = config.get("parts")
    if parts is not None and not (isinstance(parts, dict) and all(isinstance(part, dict) for part in parts.values())):
        raise ValueError(f"config.json: parts ({shown(parts)}) must be an object of objects.")
    _check_objects(parts)
    return parts


def _check_objects(value):
    """Raise `ValueError` if a nest describes Python objects other than Keras's quantizers, which a file may make."""
    if isinstance(value, dict):
        named = value.get("registered_name")
        if named is not None:
            raise ValueError(f"config.json: parts: registered_name ({shown(named)}) must be null.")
        if value.keys() & {"class_name", "module"} and value.get("module") != "keras.quantizers":
            raise ValueError(f"config.json: parts: module ({shown(value.get('module'))}) must be 'keras.quantizers'.")
        value = value.values()
    for entry in value if not isinstance(value, str | int | float | None) else ():
        _check_objects(entry)


def write_config(class_name, arguments):
    """config.json for any model."""
    return {"arguments": arguments}


def read_weights(class_name, arguments, tensors, shapes):
    """Values of the variables: dict path -> array."""
    return weight_map.read(_rows(shapes), tensors, shapes, dtypes=weight_map.FLOATS | {np.dtype("int8")})


def write_weights(class_name, arguments, arrays):
    """The tensors of a checkpoint, named by the variables' paths."""
    return weight_map.write(_rows(arrays), arrays)


def _rows(paths):
    return weight_map.expand([(path, path, weight_map.same) for path in paths], num_layers=1)
