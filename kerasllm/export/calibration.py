"""The caller's own texts or ids, on which a quantised file is calibrated and compared."""

from collections.abc import Mapping

import numpy as np

from kerasllm.arguments import shown
from kerasllm.text.limits import InputLimits, as_array


def read(model, options, data):
    """Inputs of a model's `forward` from what the caller gives.

    Args:
        model: a `kerasllm` model.
        options: `Options`.
        data: None; or a list whose entries are texts, lists of ids, or dicts of the model's inputs.

    Returns:
        A tuple of dicts input name -> nested lists, which JSON holds.

    Raises:
        ValueError: the data is none of these, or does not fit the model.
    """
    if options.quantize == "int8" and not data:
        raise ValueError(
            "calibration_data (None) must be given for quantize ('int8'): texts, lists of ids or dicts of inputs, some "
            "dozens as the model will meet them."
        )
    if data is None:
        return ()
    if options.quantize is None:
        raise ValueError("calibration_data must be None where quantize is None.")
    if isinstance(data, str | Mapping) or not hasattr(data, "__len__") or not len(data):
        raise ValueError(f"calibration_data ({shown(data)}) must be a list of texts, lists of ids or dicts of inputs.")
    return tuple(_inputs(model, options, i, entry) for i, entry in enumerate(data))


def _inputs(model, options, i, entry):
    name = f"calibration_data[{i}]"
    inputs = entry if isinstance(entry, Mapping) else _of_one_sequence(model, name, entry)
    if set(inputs) != set(model.input):
        raise ValueError(f"{name} has the inputs {', '.join(inputs)}; the model takes {', '.join(model.input)}.")
    inputs = {key: as_array(f"{name}: {key}", x) for key, x in inputs.items()}
    for key, x in inputs.items():
        wanted = (options.inputs or {}).get(key, model.input[key].shape)
        fixed = len(wanted) == x.ndim and all(b in (None, a) for a, b in zip(x.shape, wanted, strict=True))
        if not fixed:
            raise ValueError(f"{name}: {key} has the shape {x.shape}, forward takes {tuple(wanted)}.")
    try:
        InputLimits.of(model.arguments).check(inputs)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return {key: x.tolist() for key, x in inputs.items()}


def _of_one_sequence(model, name, entry):
    if set(model.input) - {"token_ids", "padding_mask", "segment_ids"}:
        raise ValueError(f"{name} must be a dict of the model's inputs: {', '.join(model.input)}.")
    ids = model.required_tokenizer().encode(entry) if isinstance(entry, str) else entry
    ids = as_array(name, ids)
    limit = model.arguments["vocabulary_size"]
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= limit:
        raise ValueError(f"{name} ({shown(entry)}) must be a text, or a list of ids from 0 to {limit - 1}.")
    values = {"token_ids": ids, "padding_mask": np.ones(len(ids), bool), "segment_ids": np.zeros(len(ids), int)}
    return {key: values[key][None] for key in model.input}
