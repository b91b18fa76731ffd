"""A model as others see it: its config and weights with what LoRA has learned as a part of them."""

from functools import partial

import keras
import numpy as np
from keras import ops

from kerasllm.checkpoints.weight_map import LazyArray
from kerasllm.layers import parts


def merged_config(model):
    """A model's config without what only its training needs, and without the LoRA that `merged_arrays` merges."""
    changes = parts.computed(parts.changes(model))
    return {**model.get_config(), "parts": changes}


def merged_arrays(model):
    """A model's weights by their paths, those of LoRA as part of what it adapts, unless that is quantised.

    Returns:
        Dict path -> array that is made when it is asked for.
    """
    arrays, merged = {v.path: _array(v, lambda v=v: ops.convert_to_numpy(v.value)) for v in model.weights}, set()
    if len(arrays) < len(model.weights):
        raise ValueError(f"model ({model.name!r}) has several variables of one path: their layers need other names.")
    for layer in model._flatten_layers():
        if getattr(layer, "lora_enabled", False) and not layer.quantization_mode:
            name = "kernel" if hasattr(layer, "_kernel") else "embeddings"
            variable, factors = getattr(layer, f"_{name}"), [getattr(layer, f"lora_{name}_{f}") for f in "ab"]
            arrays[variable.path] = _array(variable, partial(_with_lora, layer, variable, factors))
            merged |= {factor.path for factor in factors}
    return {path: array for path, array in arrays.items() if path not in merged}


def _with_lora(layer, variable, factors):
    weights, a, b = (ops.convert_to_numpy(ops.cast(v.value, "float32")) for v in (variable, *factors))
    return weights + layer.lora_alpha / layer.lora_rank * np.matmul(a, b)


def _array(variable, read):
    dtype = np.dtype(keras.backend.standardize_dtype(variable.dtype))
    return LazyArray(tuple(variable.shape), dtype, lambda: read().astype(dtype))


def rounds_activations(model):
    """Whether layers of a model round what they read to whole numbers."""
    return any(getattr(layer, "inputs_quantizer", None) for layer in model._flatten_layers())
