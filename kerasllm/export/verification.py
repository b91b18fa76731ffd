"""Whether an exported file computes what the model computes."""

import contextlib
import functools

import keras
import numpy as np
from keras import ops, tree

from kerasllm import backend

TOLERANCE = 1e-5
"""Largest difference, as a part of the largest output."""

SIZES = ((1, 5), (3, 16))
"""Batch sizes and lengths that are compared."""


def forward(model, inputs):
    """A model's outputs by name: its own names, or `logits` where it has one output."""
    outputs = model(inputs, training=False)
    return dict(outputs) if isinstance(outputs, dict) else {"logits": outputs}


def example_inputs(model, signature):
    """Random inputs for a model, padded on the right, in several sizes.

    Args:
        model: a `kerasllm` model.
        signature: dict input name -> (shape, dtype); sizes that it fixes are kept.

    Returns:
        A list of dicts of arrays.

    Raises:
        ValueError: an input has a name that is not ours.
    """
    rng = np.random.default_rng(0)
    return [_example(model, signature, batch, length, rng) for batch, length in SIZES]


def _example(model, signature, batch, length, rng):
    limit = model.arguments.get("max_sequence_length") or length + 1
    # Sources are longer than targets, and masked positions fewer than tokens.
    sizes = {"B": batch, "S": min(length + 1, limit), "T": min(length, limit), "P": (length + 1) // 2}
    for name, (shape, _) in signature.items():
        for axis, size in zip(_axes(name), shape, strict=True):
            sizes[axis] = size or sizes[axis]
    example = {}
    for name, (_, dtype) in signature.items():
        batch, length = (sizes[axis] for axis in _axes(name))
        if name.endswith("padding_mask"):
            example[name] = np.arange(length) < rng.integers(1, length, (batch, 1), endpoint=True)
        else:
            count = sizes["T"] if name == "masked_positions" else _number_of_ids(model, name)
            example[name] = rng.integers(0, count, (batch, length)).astype(dtype)
    return example


def _axes(name):
    return "B", "S" if name.startswith("source") else "P" if name == "masked_positions" else "T"


def _number_of_ids(model, name):
    # Source and target may have one vocabulary.
    names = [name.replace("token_ids", "vocabulary_size"), "vocabulary_size"]
    for argument in ["num_segments"] if name == "segment_ids" else names:
        if argument in model.arguments:
            return model.arguments[argument]
    raise ValueError(f"verify (True): there is no example for the input {name!r}; pass verify=False.")


def model_outputs(model, examples):
    """A model's outputs on its own backend: for each example a dict of arrays."""
    function = functools.partial(forward, model)
    if keras.backend.backend() != "tensorflow":  # whose graph for each size takes longer than it saves
        function = backend.compiled(function, model)
    with full_precision():
        outputs = [function(tree.map_structure(ops.convert_to_tensor, inputs)) for inputs in examples]
    return [{name: ops.convert_to_numpy(y) for name, y in row.items()} for row in outputs]


def largest_difference(expected, outputs):
    """The largest difference between two lists of outputs, as a part of the largest output of each name.

    Raises:
        ValueError: the expected outputs are not finite.
        RuntimeError: the difference is larger than `TOLERANCE`.
    """
    largest = 0.0
    for ours, theirs in zip(expected, outputs, strict=True):
        for name, y in ours.items():
            if not np.isfinite(y).all():
                raise ValueError(f"the model's {name} are not finite: nothing to compare an export with.")
            difference = np.abs(theirs[name] - y).max() / (np.abs(y).max() or 1.0)
            if not difference <= TOLERANCE:
                raise RuntimeError(
                    f"the exported file differs from the model: {name} {y.shape} by {difference:.1e} of the "
                    f"largest of them, more than {TOLERANCE:.0e}. It is not kept."
                )
            largest = max(largest, difference)
    return largest


@contextlib.contextmanager
def full_precision():
    """Inside it GPUs multiply float32 matrices in float32, not in TF32."""
    if keras.backend.backend() == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            yield
    elif keras.backend.backend() == "torch":
        import torch

        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(precision)
    else:
        import tensorflow as tf

        enabled = tf.config.experimental.tensor_float_32_execution_enabled()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(enabled)
