"""Heads of attention: how much each matters on data, and models without those that do not (Michel et al. 2019)."""

import re

import keras
import numpy as np
from keras import ops

from kerasllm.arguments import check_positive, shown
from kerasllm.models.base import Model
from kerasllm.models.reshaping import rebuilt
from kerasllm.training.losses import TokenCrossentropy

OF_BLOCK = re.compile(r"^(?:encoder|decoder)/block_(\d+)/attention/(query|key|value|output)/(kernel|bias)$")


def head_scores(model, x, y, loss=None):
    """How much the loss depends on each head: the mean over rows of |dL / dm_h|, arXiv:1905.10650.

    m_h is what the head's result is multiplied with, 1 in the model. Nothing is dropped out, and the model stays as it
    is. Each row is a step of its own: some hundred rows are enough.

    Args:
        model: a BERT head or a GPT.
        x: dict of the model's inputs, arrays of R rows.
        y: labels, R rows; with x what `arrays()` of a dataset of `kerasllm.training` gives.
        loss: of Keras or kerasllm. Default: `TokenCrossentropy()`, which does for classifiers as well.

    Returns:
        (L, N) float32 of L blocks of N heads, 0 or more.

    Raises:
        ValueError: the model has no such heads, LoRA, or quantised weights; there are no rows.

    Example:
        >>> scores = head_scores(model, *dataset.arrays())
        >>> smaller = kerasllm.prune_heads(model, 8, scores)
    """
    _check_model(model)
    x = {name: np.asarray(values) for name, values in x.items()} if isinstance(x, dict) else x
    if not isinstance(x, dict) or not x or not all(v.ndim and len(v) == len(y) and len(v) for v in x.values()):
        raise ValueError(f"x ({shown(x)}) must be a dict of the model's inputs, of as many rows as y, one at least.")
    probe = rebuilt(model, {"dropout": 0.0}, {}, None)
    kernels = {}
    for v in probe.weights:
        match = OF_BLOCK.match(v.path)
        v.trainable = match is not None and match.group(2, 3) == ("output", "kernel")
        if v.trainable:
            kernels[int(match[1])] = v
    values = {i: np.array(ops.convert_to_numpy(v.value), "float32") for i, v in kernels.items()}
    # A step of plain descent, of rate 1, takes the gradient away from the weights.
    probe.compile(keras.optimizers.SGD(1.0), TokenCrossentropy() if loss is None else loss)
    num_heads = model.arguments["num_heads"]
    scores = np.zeros((len(kernels), num_heads))
    for row in range(len(y)):
        probe.train_on_batch({name: v[row : row + 1] for name, v in x.items()}, np.asarray(y)[row : row + 1])
        for i, v in kernels.items():
            gradient = values[i] - ops.convert_to_numpy(v.value)
            # m_h scales the rows of W that read head h: dL / dm_h = sum of W dL / dW over them.
            scores[i] += np.abs((values[i] * gradient).reshape(num_heads, -1).sum(-1))
            v.assign(values[i])
    return (scores / len(y)).astype("float32")


def prune_heads(model, num_heads, scores):
    """A model with fewer heads: in each block those of the largest scores, with their weights.

    The number of heads is one of the whole stack, so each block loses as many. Fine-tuning wins back most of what that
    costs. `save_to_preset` writes kerasllm's own layout.

    Args:
        model: as for `head_scores`; it stays as it is.
        num_heads: how many are kept in each block.
        scores: (L, N) of `head_scores`.

    Returns:
        The new model, of the same class; it is not compiled.

    Raises:
        ValueError: the model has no such heads, or is quantised; `scores` are not of its shape, or not finite.
    """
    _check_model(model)
    check_positive("num_heads", num_heads)
    before, depth = model.arguments["num_heads"], model.arguments["num_layers"]
    if num_heads > before:
        raise ValueError(f"num_heads ({num_heads}) must be at most the model's ({before}).")
    try:
        scores = np.asarray(scores, "float64")
    except (TypeError, ValueError):
        scores = np.zeros(0)
    if scores.shape != (depth, before) or not np.isfinite(scores).all():
        raise ValueError(f"scores {scores.shape} must be ({depth}, {before}) finite numbers, of the blocks' heads.")
    kept = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :num_heads], axis=1)
    head_dim = model.arguments.get("head_dim") or model.arguments["hidden_dim"] // before

    def cut(path, array):
        match = OF_BLOCK.match(path)
        if not match or match.group(2, 3) == ("output", "bias"):
            return array
        axis = 0 if match[2] == "output" else array.ndim - 1
        places = (kept[int(match[1])][:, None] * head_dim + np.arange(head_dim)).reshape(-1)
        return np.take(array, places, axis)

    arguments = {"num_heads": int(num_heads), "head_dim": head_dim, "num_key_value_heads": None}
    return rebuilt(model, arguments, {}, None, edit=cut)


def _check_model(model):
    has_heads = isinstance(model, Model) and any(OF_BLOCK.match(v.path) for v in model.weights)
    if not has_heads or hasattr(model, "encoder") and hasattr(model, "decoder"):
        raise ValueError(f"model ({shown(model)}) must be a BERT, one of its heads, or a GPT.")
    arguments = model.arguments
    if arguments["num_key_value_heads"] not in (None, arguments["num_heads"]):
        raise ValueError(f"model: its heads share {arguments['num_key_value_heads']} heads of keys and values.")
    if arguments["positions"] in ("relative", "alibi"):
        raise ValueError(f"model: positions ({arguments['positions']!r}) are by heads, which would not be the same.")
    if any(getattr(layer, "lora_enabled", False) for layer in model._flatten_layers()):
        raise ValueError("model: it has LoRA; merge_lora comes first.")
