"""Adapters: LoRA on a model's layers, by itself in files and in memory (Hu et al. 2021, arXiv:2106.09685).

add_lora  ->  fit  ->  save_adapter           a folder of a few megabytes, which PEFT opens too
                  ->  merge_lora  ->  save_to_preset, export       the weights with what was learned in them
load_adapter, or get_adapter and set_adapter: one model, several adapters in turn
"""

import re
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import ops

# A package, whose files are imported when first used: `import kerasllm` brings in no safetensors.
from kerasllm import checkpoints
from kerasllm.arguments import check_positive, check_positive_number, check_text, read_patterns, shown
from kerasllm.generation.sharing import Changes
from kerasllm.layers.adapters import Adaptable, Dense
from kerasllm.models.base import Model
from kerasllm.models.freezing import matching, train_only, uncompiled, variables_of

ALL_LINEAR = "all-linear"
HEADS = r"^(classifier|answer_span)/"  # of BERT's tasks, which begin at random
# Uniform in +-1 / sqrt(in), as PEFT begins; Keras's own is 2.4 times as wide.
BEGINNING = {"scale": 1 / 3, "mode": "fan_in", "distribution": "uniform"}


@dataclass(frozen=True)
class Adapter:
    """What LoRA has learned on a model, on the host.

    Args:
        factors: dict path of a variable -> `kerasllm.checkpoints.peft.Factors`, of the kernels and tables with LoRA.
        whole: dict path of a variable -> array, of those that are trained beside it as they are.
    """

    factors: dict
    whole: dict = field(default_factory=dict)

    @property
    def nbytes(self):
        """Its bytes in memory."""
        return sum(f.a.nbytes + f.b.nbytes for f in self.factors.values()) + sum(a.nbytes for a in self.whole.values())

    def __repr__(self):
        ranks = sorted({factors.a.shape[1] for factors in self.factors.values()})
        return f"Adapter({len(self.factors)} layers of rank {', '.join(map(str, ranks))}, {self.nbytes} bytes)"


def add_lora(model, rank=8, alpha=16, targets=ALL_LINEAR, train_also=None):
    """Train two thin matrices A, B on chosen layers instead of all weights: W becomes W + alpha / rank A B.

    All else is frozen, but for what `train_also` names. It works on float weights and on those of `model.quantize`
    ("int8", "int4"; Dettmers et al. 2023, arXiv:2305.14314), which stay as they are. B begins with zeros: the model
    computes what it did. `compile` comes after it: an optimizer in use is dropped, whose state is of other variables.

    Args:
        model: a model of kerasllm, or a Keras model made of its layers; built.
        rank: the width of A and B.
        alpha: what the product is times, by the rank. rsLoRA (arXiv:2312.03732) is alpha = a sqrt(rank).
        targets: "all-linear": every dense layer but the model's own outputs; or a regular expression, or a list of
            them, one of which is found in a layer's path, such as r"attention/(query|value)$". Tables of embeddings are
            for expressions alone.
        train_also: regular expressions of the paths of variables that are trained as they are, such as "classifier" or
            "norm/". Default: none, but the output layers that a head has beside its encoder.

    Returns:
        The paths of the layers that have LoRA now.

    Raises:
        ValueError: `targets` or `train_also` name nothing, or layers that have LoRA already; the model is not built.

    Example:
        >>> model = kerasllm.GPT.from_preset("path/to/SmolLM2-135M", dtype="bfloat16")
        >>> add_lora(model, rank=16, alpha=32)
        >>> model.compile(AdamW(2e-4), TokenCrossentropy(chunk_size=256))
        >>> model.fit(dataset)
        >>> save_adapter(model, "adapters/support")
    """
    check_positive("rank", rank)
    check_positive_number("alpha", alpha)
    if not model.built:
        raise ValueError(f"model ({model.name!r}) must be built.")
    layers = _targets(model, targets)
    has = [path for path, layer in layers.items() if layer.lora_enabled]
    if has:
        raise ValueError(f"targets ({shown(targets)}): {has[0]} has LoRA already.")
    trained = matching(model, "train_also", train_also) if train_also is not None else matching(model, None, HEADS)
    with Changes.of(model).made("add_lora"):
        for layer in layers.values():
            beginning = keras.initializers.VarianceScaling(**BEGINNING)
            layer.enable_lora(rank, lora_alpha=alpha, a_initializer=beginning)
        train_only(model, trained)
        uncompiled(model)
    return list(layers)


def get_adapter(model):
    """A copy of what LoRA and what is trained beside it hold, an `Adapter`.

    Raises:
        ValueError: no layer has LoRA.
    """
    layers = _with_lora(model)
    adapted = {variable for layer in layers.values() for variable in map(id, layer.lora_factors)}
    factors = {
        _table(layer).path: checkpoints.peft.Factors(*map(_numpy, layer.lora_factors), layer.lora_scale)
        for layer in layers.values()
    }
    whole = {v.path: _numpy(v) for v in model.trainable_variables if id(v) not in adapted}
    return Adapter(factors, whole)


def set_adapter(model, adapter):
    """Give a model another adapter: a layer's rank may differ, and layers that it leaves out lose their LoRA.

    Between adapters of the same layers and ranks only values change, and what is compiled stays. Otherwise an optimizer
    in use is dropped: to train on, `compile` anew. What an adapter holds as a whole stays until another has it too.

    Args:
        model: the model that it was trained on, with LoRA or without.
        adapter: an `Adapter`, or None for the model itself, all of which is trained again.

    Raises:
        ValueError: the adapter is of another model, which stays as it is.
    """
    if adapter is not None and not isinstance(adapter, Adapter):
        raise ValueError(f"adapter ({shown(adapter)}) must be an Adapter or None.")
    new = Adapter({}) if adapter is None else adapter
    tables, variables = {_table(layer).path: layer for layer in _adaptable(model).values()}, variables_of(model)
    for path, shape in [(p, (f.a.shape[0], f.b.shape[1])) for p, f in new.factors.items()]:
        _check_shape(model, path, shape, tables[path].adapted_shape if path in tables else None)
    for path, array in new.whole.items():
        _check_shape(model, path, array.shape, tuple(variables[path].shape) if path in variables else None)
    changed = [
        layer
        for path, layer in tables.items()
        if (layer.lora_rank if layer.lora_enabled else None)
        != (new.factors[path].a.shape[1] if path in new.factors else None)
    ]
    before = [v.path for v in model.trainable_variables]
    with Changes.of(model).made("set_adapter"):
        for layer in changed:
            if layer.lora_enabled:
                layer.disable_lora()
        for path, factors in new.factors.items():
            layer, rank = tables[path], factors.a.shape[1]
            if not layer.lora_enabled:
                layer.enable_lora(rank, lora_alpha=factors.scale * rank)
            # What is compiled holds the layer's alpha as a constant.
            a, b = layer.lora_factors
            a.assign(factors.a)
            b.assign(factors.b * (factors.scale / layer.lora_scale))
        for path, array in new.whole.items():
            variables[path].assign(array)
        train_only(model, set(variables) if adapter is None else set(new.whole))
        if changed or before != [v.path for v in model.trainable_variables]:
            uncompiled(model)


def merge_lora(model):
    """Make what LoRA has learned a part of the weights, which are as fast then as without it, and all trained again.

    `save_to_preset` and `export` do that by themselves, and leave the model as it is.

    Returns:
        The `Adapter`, for `unmerge_lora`.

    Raises:
        ValueError: no layer has LoRA; a layer's weights are quantised, and would be rounded once more.
    """
    adapter = get_adapter(model)
    _add(model, adapter, 1)
    set_adapter(model, None)
    return adapter


def unmerge_lora(model, adapter):
    """The inverse of `merge_lora`, to the last digits of the weights' dtype.

    Args:
        model: the model with the adapter in its weights.
        adapter: what `merge_lora` returned.

    Raises:
        ValueError: as for `set_adapter`; the weights are quantised.
    """
    set_adapter(model, adapter)
    _add(model, adapter, -1)


def save_adapter(model, folder, base=None):
    """Write what LoRA and what is trained beside it hold, in PEFT's layout: both files or none.

    `PeftModel.from_pretrained(transformers_model, folder)` opens it on the model that `save_to_preset` of this one
    would write. Where transformers has no such model, the layers have our own names, and `load_adapter` alone opens it.

    Args:
        model: a model of kerasllm with LoRA.
        folder: path of the folder, made if need be.
        base: what the model is called that the adapter is for, for instance the name it has on the Hub.

    Raises:
        ValueError: no layer has LoRA, or one that PEFT adapts in another way; the folder cannot be written.
    """
    _check_class(model)
    adapter = get_adapter(model)
    if base is not None:
        check_text("base", base)
    checkpoints.peft.write_adapter(
        folder, type(model).__name__, model.arguments, _shapes(model), adapter.factors, adapter.whole, base
    )


def load_adapter(model, folder):
    """Read an adapter of `save_adapter`, or of PEFT, into a model: as `set_adapter` of `read_adapter`.

    Args:
        model: the model that it was trained on, a model of kerasllm.
        folder: path of a folder with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ValueError: as for `read_adapter` and `set_adapter`.
    """
    set_adapter(model, read_adapter(model, folder))


def read_adapter(model, folder):
    """The `Adapter` that a folder holds for a model, which stays as it is.

    Args: as for `load_adapter`.

    Raises:
        ValueError: a file is missing or malformed, or is of another model; or says something that is not computed here,
            such as `use_dora`.

    Example:
        >>> adapters = {name: read_adapter(model, f"adapters/{name}") for name in ("support", "sales")}
        >>> set_adapter(model, adapters["sales"])
    """
    _check_class(model)
    factors, whole = checkpoints.peft.read_adapter(folder, type(model).__name__, model.arguments, _shapes(model))
    return Adapter(factors, {path: np.array(array) for path, array in whole.items()})


def _add(model, adapter, sign):
    """Add or take away the products of an adapter's factors."""
    tables = {_table(layer).path: layer for layer in _adaptable(model).values()}
    quantized = [path for path in adapter.factors if tables[path].quantization_mode is not None]
    if quantized:
        raise ValueError(f"{quantized[0]} is quantized: what LoRA has learned would be lost in rounding.")
    with Changes.of(model).made("merge_lora"):
        for path, factors in adapter.factors.items():
            variable = _table(tables[path])
            product = ops.matmul(*(ops.convert_to_tensor(f) for f in factors[:2]))
            merged = ops.cast(variable.value, "float32") + sign * factors.scale * product
            variable.assign(ops.cast(merged, variable.dtype))


def _adaptable(model):
    """The layers that may have LoRA: dict path -> layer."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, Adaptable) and layer.built]
    return {_table(layer).path.rpartition("/")[0]: layer for layer in layers}


def _with_lora(model):
    layers = {path: layer for path, layer in _adaptable(model).items() if layer.lora_enabled}
    if not layers:
        raise ValueError(f"model ({model.name!r}) has no layer with LoRA: `add_lora` gives it some.")
    return layers


def _targets(model, targets):
    layers = _adaptable(model)
    if targets == ALL_LINEAR:
        own = set(map(id, model.layers))
        chosen = {p: layer for p, layer in layers.items() if isinstance(layer, Dense) and id(layer) not in own}
    else:
        patterns = read_patterns("targets", targets)
        chosen = {p: layer for p, layer in layers.items() if any(re.search(pattern, p) for pattern in patterns)}
        idle = [pattern for pattern in patterns if not any(re.search(pattern, p) for p in layers)]
        if idle:
            raise ValueError(f"targets: {shown(idle[0])} is found in none of {shown(list(layers), 400)}.")
    if not chosen:
        raise ValueError(f"targets ({shown(targets)}): {type(model).__name__} has no such layer that LoRA can adapt.")
    return chosen


def _check_class(model):
    if not isinstance(model, Model):
        raise ValueError(f"model ({shown(model)}) must be one of kerasllm's: files have the names of its layers.")


def _check_shape(model, path, shape, own):
    if own != shape:
        has = "no such layer" if own is None else own
        raise ValueError(f"adapter: {path} {shape} is of another model: {model.name!r} has {has}.")


def _table(layer):
    """The variable of a layer that LoRA adapts."""
    return getattr(layer, f"_{layer.adapted}")


def _shapes(model):
    shapes = {path: tuple(variable.shape) for path, variable in variables_of(model).items()}
    return shapes | {_table(layer).path: layer.adapted_shape for layer in _adaptable(model).values()}


def _numpy(variable):
    return np.array(ops.convert_to_numpy(variable.value))
