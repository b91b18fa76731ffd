"""What is set on the parts of a layer or model after it is made: what is trained, LoRA, quantisation, rates.

A constructor does not know it, so a config says it beside its arguments, under "parts": for each part that is not as
the constructor made it, by the names on the way to it (the layer or model itself is ""):

    {"encoder": {"trainable": False}, "encoder/block_1": {"trainable": True}, "head": {"lora": {"rank": 4, "alpha": 8}}}

    trainable      whether it is trained, where that differs from the layer around it
    variables      the same of its own variables, where that differs from what the layer says
    quantization   its `QuantizationConfig`, serialised
    lora           rank and alpha
    dtype          the name of its dtype policy, before it was quantised
    rate, ...      one of ATTRIBUTES, a number, or what Keras makes of a function
"""

import contextlib
import gc
import json
import weakref

import keras

from kerasllm.arguments import check_boolean, check_positive, check_positive_number, check_rate, shown

ATTRIBUTES = ("activation", "activity_regularizer", "base", "epsilon", "rate", "scale", "sliding_window")
# What a part computes depends on these; on the others, how it is trained.
COMPUTED = ("quantization", "lora", "activation", "base", "epsilon", "scale", "sliding_window")

_made = weakref.WeakKeyDictionary()


def remember(layers):
    """Keep how layers are that were just made, and their parts, for `changes` to compare with."""
    for layer in layers:
        for part in layer._flatten_layers():
            if part not in _made:
                names = ("dtype_policy", *ATTRIBUTES)
                _made[part] = {name: getattr(part, name) for name in names if hasattr(part, name)}


def changes(layer, trainable=True):
    """What was set on the parts of a layer or model: the dict that the file's docstring describes.

    Args:
        layer: the layer or model.
        trainable: whether its constructor lets it be trained.
    """
    walked = _walk(layer)
    parts = {path: _change(part, trainable if around is None else around.trainable) for path, part, around in walked}
    return {path: change for path, change in parts.items() if change}


def _change(part, trainable):
    made, change = _made.get(part, {}), {}
    if part.trainable != trainable:
        change["trainable"] = part.trainable
    flags = {v.name: v.trainable for v in part._trainable_variables if v.trainable != _is_trained(part, v)}
    if flags:
        change["variables"] = flags
    for name in ATTRIBUTES:
        if name in made and getattr(part, name) != made[name]:
            change[name] = _serialized(getattr(part, name))
    if made and _unquantized(part.dtype_policy) != _unquantized(made["dtype_policy"]):
        change["dtype"] = _unquantized(part.dtype_policy)
    if part.quantization_mode and not (made and made["dtype_policy"].quantization_mode):
        change["quantization"] = keras.saving.serialize_keras_object(part.quantization_config)
    if getattr(part, "lora_enabled", False):
        change["lora"] = {"rank": part.lora_rank, "alpha": part.lora_alpha}
    return json.loads(json.dumps(change))  # as a file has it, without tuples


def restore(layer, parts):
    """Set on the parts of a built layer or model what `changes` has found.

    Raises:
        ValueError: `parts` names a part that the layer has not, or says of one what none has.
    """
    if not isinstance(parts, dict) or not all(isinstance(change, dict) for change in parts.values()):
        raise ValueError(f"config: parts ({shown(parts)}) must be an object of objects.")
    walked = list(_walk(layer))
    unknown = sorted(parts.keys() - {path for path, _, _ in walked})
    if unknown:
        raise ValueError(f"config: parts ({', '.join(map(repr, unknown[:4]))}) are none of {layer.name!r}.")
    for path, part, _ in walked:
        _check(path, part, parts.get(path, {}))
    with cheap_collections():
        for path, part, _ in walked:
            try:
                _restore(part, parts.get(path, {}))
            except (TypeError, AttributeError, KeyError) as error:  # Keras's, of what it does not understand
                raise ValueError(f"config: parts: {path} ({shown(parts[path])}): {error}") from error
    for path, part, around in walked:  # at the end, for LoRA sets it too; and without recursion, for parts are shared
        change = parts.get(path, {})
        part._trainable = change.get("trainable", (part if around is None else around).trainable)
        for v in part._trainable_variables:
            v.trainable = change.get("variables", {}).get(v.name, _is_trained(part, v))


def _check(path, part, change):
    """Raise `ValueError` where a file says of a part what `changes` never does."""
    accepted = {"trainable", "variables", "quantization", "lora", "dtype"} | {n for n in ATTRIBUTES if hasattr(part, n)}
    unknown = sorted(change.keys() - accepted)
    if unknown:
        raise ValueError(f"config: parts: {shown(path)} has no {', '.join(unknown):.80}.")
    for name, value in change.items():
        said = f"parts: {path}: {name}"
        if name == "trainable":
            check_boolean(said, value)
        elif name == "rate":
            check_rate(said, value)
        elif name in ("base", "epsilon"):
            check_positive_number(said, value)
        elif name == "scale" and value is not None:
            (check_boolean if isinstance(part.scale, bool) else check_positive_number)(said, value)
        elif name == "sliding_window" and value is not None:
            check_positive(said, value)
        elif name in ("variables", "lora", "quantization") and not isinstance(value, dict):
            raise ValueError(f"{said} ({shown(value)}) must be an object.")
        elif name == "dtype" and not isinstance(value, str):
            raise ValueError(f"{said} ({shown(value)}) must be a name.")
    for name, value in change.get("variables", {}).items():
        check_boolean(f"parts: {path}: variables: {name}", value)
    if "lora" in change:
        check_positive(f"parts: {path}: lora: rank", change["lora"].get("rank"))
        check_positive_number(f"parts: {path}: lora: alpha", change["lora"].get("alpha"))


def _restore(part, change):
    if "dtype" in change:
        part.dtype_policy = change["dtype"]
    for name in set(ATTRIBUTES) & set(change):
        value = change[name]
        value = keras.activations.get(value) if name == "activation" else value
        value = float(value) if name in ("epsilon", "scale") and not isinstance(value, bool | None) else value
        setattr(part, name, keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value)
    if "quantization" in change and not part.quantization_mode:
        config = keras.saving.deserialize_keras_object(change["quantization"])
        for quantizer in (config.weight_quantizer, config.activation_quantizer):
            if not isinstance(quantizer, keras.quantizers.Quantizer | None):
                raise TypeError(f"{shown(quantizer)} is no quantizer")
        part.quantize(config.mode, config=config)
    if "lora" in change and not part.lora_enabled:
        part.enable_lora(change["lora"]["rank"], lora_alpha=change["lora"]["alpha"])


@contextlib.contextmanager
def cheap_collections():
    """Spare what is there now from Python's collector: Keras runs it for each layer that is quantised."""
    frozen = gc.get_freeze_count()
    if frozen:
        gc.collect()  # or what is garbage now would stay, with what others have frozen
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


def computed(parts):
    """Those of `changes` on which the results of a model depend whose LoRA is merged, as far as it can be."""
    kept = {}
    for path, change in parts.items():
        change = {name: value for name, value in change.items() if name in COMPUTED}
        if "quantization" not in change:
            change.pop("lora", None)
        if change:
            kept[path] = change
    return kept


def _walk(layer, path="", around=None, seen=None):
    """Yield a layer and all its parts once, as (path, part, the part around it), from outside inwards."""
    seen = set() if seen is None else seen
    if id(layer) in seen:
        return
    seen.add(id(layer))
    yield path, layer, around
    names = {}
    for part in layer._flatten_layers(include_self=False, recursive=False):
        names[part.name] = names.get(part.name, -1) + 1
        name = f"{part.name}:{names[part.name]}" if names[part.name] else part.name
        yield from _walk(part, f"{path}/{name}" if path else name, layer, seen)


def _is_trained(part, variable):
    """Whether a layer trains a variable of its own: LoRA leaves alone what it adapts."""
    adapted = getattr(part, "lora_enabled", False) and variable.name in ("kernel", "embeddings")
    return part.trainable and not adapted


def _serialized(value):
    if callable(value) and not isinstance(value, keras.Regularizer):
        return keras.activations.serialize(value)
    plain = value is None or isinstance(value, bool | int | float)
    return value if plain else keras.saving.serialize_keras_object(value)


def _unquantized(policy):
    return policy.name.rpartition("_from_")[2]
