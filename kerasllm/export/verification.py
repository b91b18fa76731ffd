"""Whether an exported file computes what the model computes."""

import contextlib
import functools

import keras
import numpy as np
from keras import ops, tree

from kerasllm import backend
from kerasllm.text.limits import InputLimits

TOLERANCE = 1e-5
"""Largest difference, as a part of the largest output."""

SIZES = ((1, 5), (3, 16))
"""Batch sizes and lengths that are compared."""

CHOICES = ("logits", "probabilities")
"""Words in the names of outputs whose largest number along the last axis is what they are for."""

FOLLOWING = ("lengths", "scores")
"""Outputs that follow from the tokens chosen: where a quantised file chooses others, they say nothing."""


def forward(model, inputs):
    """A model's outputs by name: its own names, or `logits` where it has one output."""
    outputs = model(inputs, training=False)
    return dict(outputs) if isinstance(outputs, dict) else {"logits": outputs}


def example_inputs(model, inputs):
    """Random inputs for a model, padded on the right, in several sizes.

    Args:
        model: a `kerasllm` model.
        inputs: dict name -> (shape, dtype); sizes that it fixes are kept.

    Returns:
        A list of dicts of arrays.

    Raises:
        ValueError: an input has a name that is not ours.
    """
    rng = np.random.default_rng(0)
    return [_example(model, inputs, batch, length, rng) for batch, length in SIZES]


def _example(model, signature, batch, length, rng):
    limit = model.arguments.get("max_sequence_length") or length + 1
    # Sources are longer than targets, and masked positions fewer than tokens.
    sizes = {"B": batch, "S": min(length + 1, limit), "T": min(length, limit), "P": (length + 1) // 2}
    for name, (shape, _) in signature.items():
        for axis, size in zip(axes_of(name), shape, strict=True):
            sizes[axis] = size or sizes[axis]
    example = {}
    for name, (_, dtype) in signature.items():
        batch, length = (sizes[axis] for axis in axes_of(name))
        if name.endswith("padding_mask"):
            example[name] = np.arange(length) < rng.integers(1, length, (batch, 1), endpoint=True)
        else:
            count = sizes["T"] if name == "masked_positions" else _number_of_ids(model, name)
            example[name] = rng.integers(0, count, (batch, length)).astype(dtype)
    return example


def axes_of(name):
    """The letters of the axes of an input (B, ...)."""
    return "B", "S" if name.startswith("source") else "P" if name == "masked_positions" else "T"


def _number_of_ids(model, name):
    ids = InputLimits.of(model.arguments).ids
    if name in ids:
        return ids[name][1]
    raise ValueError(f"verify (True): there is no example for the input {name!r}; pass verify=False.")


def model_outputs(model, examples):
    """A model's outputs on its own backend: for each example a dict of arrays."""
    function = functools.partial(forward, model)
    if keras.backend.backend() != "tensorflow":  # whose graph for each size takes longer than it saves
        function = backend.compiled(function, model)
    with full_precision():
        outputs = [function(tree.map_structure(ops.convert_to_tensor, inputs)) for inputs in examples]
    return [{name: ops.convert_to_numpy(y) for name, y in row.items()} for row in outputs]


def results(call, signatures, calls):
    """What a loaded file gives.

    Args:
        call: function (signature, dict of arrays) -> dict of arrays.
        signatures: what the file's functions take and give, as `saved_model.write` describes it.
        calls: list of lists of calls, see `Check`.

    Returns:
        For each list the outputs of its last call, a dict of arrays.
    """
    found = []
    for sequence in calls:
        *_, last = complete(call, signatures, sequence)
        found.append(call(*last))
    return found


def complete(call, signatures, calls):
    """Calls with all their inputs: pairs (signature, dict of arrays), see `results`; the last is not made."""
    before = None
    for name, given in calls:
        outputs = {} if before is None else call(*before)
        before = name, {key: given[key] if key in given else outputs[key] for key in signatures[name]["inputs"]}
        yield before


def compare(checks, outputs, min_agreement=None):
    """Compare what a file gives with what the model gives.

    Args:
        checks: list of `Check`.
        outputs: as many dicts of arrays.
        min_agreement: None for a file that must give the same: whole numbers and strings equal, floats within
            `TOLERANCE` of the largest. Else the least agreement of a quantised file, over all choices of all checks.

    Returns:
        A list with a dict for each check, for JSON: the `calls`, and for each of the outputs its `shape`, the `largest
        difference` as a part of the largest output, and `agreement` in so many `choices`: the part of the logits or
        probabilities whose largest is the same, of other vectors the mean cosine of both, and of chosen tokens the part
        that is the same up to the first that is not, for what follows has read other tokens. Where a check has labels,
        `loss` is their mean negative log-likelihood by the `model` and by the `file`.

    Raises:
        ValueError: the expected outputs are not finite.
        RuntimeError: the file differs.
    """
    report = []
    for check, given in zip(checks, outputs, strict=True):
        lengths = check.expected.get("lengths")
        entry = {
            name: _compared(name, y, given[name], lengths, min_agreement is None) for name, y in check.expected.items()
        }
        report.append({"calls": [name for name, _ in check.calls], "outputs": entry})
        if check.labels is not None and (check.labels >= 0).any():
            losses = {"model": _loss(check.expected["logits"], check), "file": _loss(given["logits"], check)}
            report[-1]["loss"] = {**losses, "tokens": int((check.labels >= 0).sum())}
    if min_agreement is not None and not (found := agreement(report)) >= min_agreement:
        raise RuntimeError(
            f"the exported file agrees with the model in {found:.3f} of the choices, less than min_agreement "
            f"({min_agreement}). It is not kept."
        )
    return report


def _compared(name, expected, given, lengths, must_be_same):
    if lengths is not None and name == "token_ids" and not must_be_same:
        expected, given = _equally_long(expected, given)
    if expected.shape != given.shape:
        raise RuntimeError(
            f"the exported file's {name} is {given.shape}, the model's {expected.shape}. It is not kept."
        )
    exact = expected.dtype.kind != "f"
    if not exact and not np.isfinite(expected).all():
        raise ValueError(f"the model's {name} are not finite: nothing to compare an export with.")
    difference = None if exact else float(np.abs(given - expected).max() / (np.abs(expected).max() or 1.0))
    same = _same(name, expected, given, lengths)
    entry = {"shape": list(expected.shape), "largest difference": difference}
    if same is not None:
        entry |= {"agreement": float(np.mean(same)), "choices": len(same)}
    if must_be_same and exact and (given != expected).any():
        raise RuntimeError(f"the exported file differs from the model: {name} {given} for {expected}. It is not kept.")
    if not exact and not difference <= (TOLERANCE if must_be_same else np.finfo("f4").max):
        raise RuntimeError(
            f"the exported file differs from the model: {name} {expected.shape} by {difference:.1e} of the "
            f"largest of them, more than {TOLERANCE:.0e}. It is not kept."
        )
    return entry


def _equally_long(*rows):
    """Token ids (..., L), of which each array may end elsewhere, filled up with 0 as files fill them up."""
    length = max(x.shape[-1] for x in rows)
    return [np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])]) for x in rows]


def _same(name, expected, given, lengths=None):
    """How far each choice, or vector, is the same: a vector; None where the output follows from others."""
    if name in FOLLOWING:
        return None
    if expected.dtype.kind == "f":
        if any(word in name for word in CHOICES):
            return (given.argmax(-1) == expected.argmax(-1)).ravel()
        norms = np.linalg.norm(given, axis=-1) * np.linalg.norm(expected, axis=-1)
        return ((given * expected).sum(-1) / np.maximum(norms, np.finfo("f4").tiny)).ravel()
    same = given == expected
    if expected.ndim < 2:
        return np.atleast_1d(same)
    # Each sequence as far as its first difference.
    rows = same.reshape(-1, same.shape[-1])
    compared = np.cumsum(~rows, axis=1) - ~rows == 0
    if lengths is not None:  # after them comes nothing
        compared &= np.arange(rows.shape[1]) < lengths.reshape(-1, 1)
    return rows[compared]


def _loss(logits, check):
    """The mean negative log-likelihood of a check's labels."""
    is_label = check.labels >= 0
    logits = logits[is_label].astype("float64")
    logits -= logits.max(-1, keepdims=True)
    picked = np.take_along_axis(logits, check.labels[is_label][:, None], axis=-1)[:, 0]
    return float(np.mean(np.log(np.exp(logits).sum(-1)) - picked))


def agreement(report):
    """The agreement over all choices of a report of `compare`; 1 where there are none."""
    entries = [entry for check in report for entry in check["outputs"].values() if "agreement" in entry]
    weights = [entry["choices"] for entry in entries]
    return float(np.average([entry["agreement"] for entry in entries], weights=weights)) if entries else 1.0


def parity(report):
    """A report of `compare` for JSON, with its whole agreement, and the perplexity of the labels if there are any."""
    losses = [check["loss"] for check in report if "loss" in check]
    whole = {"agreement": agreement(report)}
    if losses:
        tokens = [loss["tokens"] for loss in losses]
        means = [np.average([loss[key] for loss in losses], weights=tokens) for key in ("model", "file")]
        before, after = np.exp(means).tolist()
        whole["perplexity"] = {"model": before, "file": after, "change": after / before - 1, "tokens": sum(tokens)}
    return {**whole, "checks": report}


def summary(report):
    """A report of `compare` in a few words."""
    entries = [entry for check in report for entry in check["outputs"].values()]
    if not entries:
        return ""
    difference = max((entry["largest difference"] or 0.0 for entry in entries), default=0.0)
    return f", within {difference:.0e} of the model's largest output, {agreement(report):.1%} of the choices the same"


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
