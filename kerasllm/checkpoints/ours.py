"""Our own layout, for models that no foreign family can say: variables and arguments by their names."""

from kerasllm.checkpoints import weight_map

MODEL_TYPE = "kerasllm"
ARCHITECTURES = {}  # config.json names our class
FIELDS = {"model_type", "architectures", "arguments"}


def read_config(config, class_name, tensor_names):
    """The arguments of a model from config.json."""
    unknown = sorted(set(config) - FIELDS)
    if unknown:
        raise ValueError(f"config.json: {', '.join(unknown)} is unknown.")
    if not isinstance(config.get("arguments"), dict):
        raise ValueError(f"config.json: arguments ({config.get('arguments')!r}) must be an object.")
    return config["arguments"]


def write_config(class_name, arguments):
    """config.json for any model."""
    return {"arguments": arguments}


def read_weights(class_name, arguments, tensors, shapes):
    """Values of the variables: dict path -> array."""
    return weight_map.read(_rows(shapes), tensors, shapes)


def write_weights(class_name, arguments, arrays):
    """The tensors of a checkpoint, named by the variables' paths."""
    return weight_map.write(_rows(arrays), arrays)


def _rows(paths):
    return weight_map.expand([(path, path, weight_map.same) for path in paths], num_layers=1)
