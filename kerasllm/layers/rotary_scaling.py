"""How rotary positions reach beyond the lengths a model first saw: one function and one row of `KINDS` for each kind.

A function takes the plain frequencies of R rotated channels and gives those of the kind:

    (frequency, parameters, lengths) -> (frequencies, factor)

        frequency     (R/2,) float64 in numpy, in radians a token: base^(-2i/R)
        parameters    what the dict holds, and `rope_theta`, the base, and `rotary_dim`, R
        lengths       (..., 1) or (..., T) int32, the length of the sequence that a token belongs to; None for kinds
                      that do not follow it
        frequencies   (R/2,) in numpy; of a kind that follows the length (..., 1 or T, R/2), a float32 tensor
        factor        a number that cosines and sines are multiplied by

Names, formulas and defaults are those of Hugging Face transformers 5.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from keras import ops

from kerasllm.arguments import check_boolean, check_positive_number, is_number, shown
from kerasllm.stack import ROPE_PARAMETERS


@dataclass(frozen=True)
class Kind:
    """A `rope_type`.

    Args:
        frequencies: the function.
        required, optional: the parameters it reads; an optional one may be None, as if it were left out.
        follows_beyond: the parameter that says up to which length of a sequence the frequencies of its tokens stay as
            they are, where they follow it from there on.
        check: raises a `ValueError` where parameters, each of them right, do not fit together.
    """

    frequencies: Callable
    required: tuple
    optional: tuple = ()
    follows_beyond: str | None = None
    check: Callable = lambda parameters: None


def linear(frequency, parameters, lengths):
    """All frequencies divided by `factor` (Chen et al. 2023, arXiv:2306.15595)."""
    return frequency / parameters["factor"], 1.0


def dynamic(frequency, parameters, lengths):
    """A base that grows with the length, once that exceeds M = `max_position_embeddings` (NTK: bloc97, emozilla 2023).

    s = 1 + factor (length / M - 1),   base' = base s^(R / (R - 2)),   frequency'[i] = frequency[i] s^(-2i / (R - 2))
    """
    rotary_dim, limit = parameters["rotary_dim"], parameters["max_position_embeddings"]
    if rotary_dim <= 2:
        raise ValueError(f"rope_type 'dynamic' must rotate more than 2 channels of a head, not {rotary_dim}.")
    exponents = (-np.arange(0, rotary_dim, 2) / (rotary_dim - 2)).astype("float32")
    excess = ops.maximum(ops.cast(lengths, "float32") - limit, 0.0)  # a difference of small whole numbers: exact
    growth = ops.log(excess * (parameters["factor"] / limit) + 1.0)
    powers = ops.exp(ops.multiply(ops.expand_dims(growth, -1), exponents))
    return ops.multiply(powers, frequency.astype("float32")), 1.0


def llama3(frequency, parameters, lengths):
    """Waves that turn rarely within the first lengths are slowed, quick ones stay (Llama 3.1's released code)."""
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = parameters["original_max_position_embeddings"] * frequency / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - share) * (frequency / parameters["factor"]) + share * frequency, 1.0


def yarn(frequency, parameters, lengths):
    """As llama3, with a ramp over channels, and attention that is sharpened (Peng et al. 2023, arXiv:2309.00071)."""
    factor, base, rotary_dim = _factor(parameters), parameters["rope_theta"], parameters["rotary_dim"]
    if base <= 1:
        raise ValueError(f"base ({base}) must be greater than 1 for rope_type 'yarn'.")

    def channel(turns):  # which turns so often within the first lengths
        length = parameters["original_max_position_embeddings"]
        return rotary_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = channel(parameters.get("beta_fast", 32)), channel(parameters.get("beta_slow", 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    high += 0.001 if low == high else 0
    share = np.clip((np.arange(len(frequency)) - low) / (high - low), 0.0, 1.0)
    return share * (frequency / factor) + (1 - share) * frequency, _sharpness(factor, parameters)


def _sharpness(factor, parameters):
    if "attention_factor" in parameters:
        return parameters["attention_factor"]
    log_factor = max(math.log(factor), 0.0)
    scales = [parameters.get(name, 0) for name in ("mscale", "mscale_all_dim")]
    above, below = scales if all(scales) else (1, 0)
    return (0.1 * above * log_factor + 1) / (0.1 * below * log_factor + 1)


def longrope(frequency, parameters, lengths):
    """Each frequency divided by a number of its own, one for short sequences, one for long ones (arXiv:2402.13753)."""
    for name in FACTOR_LISTS:
        if len(parameters[name]) != len(frequency):
            raise ValueError(
                f"rope_scaling[{name!r}] ({shown(parameters[name])}) must hold {len(frequency)} numbers, half as many "
                f"as the channels of a head that are rotated, not {len(parameters[name])}."
            )
    short, long = ((frequency / np.array(list(parameters[name]))).astype("float32") for name in FACTOR_LISTS)
    limit = parameters["original_max_position_embeddings"]
    frequencies = ops.where(ops.expand_dims(lengths > limit, -1), long, short)
    if "attention_factor" in parameters:
        return frequencies, parameters["attention_factor"]
    factor = _factor(parameters)
    return frequencies, 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(limit))


def _factor(parameters):
    """By how much the lengths grow."""
    if "factor" in parameters:
        return parameters["factor"]
    return parameters["max_position_embeddings"] / parameters["original_max_position_embeddings"]


def _check_bands(parameters):
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    if low >= high:
        raise ValueError(f"rope_scaling: low_freq_factor ({low}) must be less than high_freq_factor ({high}).")


def _check_yarn(parameters):
    if not {"factor", "max_position_embeddings"} & set(parameters):
        raise ValueError(f"rope_scaling ({shown(parameters)}) must hold factor or max_position_embeddings.")


def _check_longrope(parameters):
    names = ("attention_factor", "factor", "max_position_embeddings")
    if not set(names) & set(parameters):
        raise ValueError(f"rope_scaling ({shown(parameters)}) must hold one of {', '.join(names)}.")
    length = parameters["original_max_position_embeddings"]
    if length <= 1:  # whose logarithm divides
        raise ValueError(f"rope_scaling['original_max_position_embeddings'] ({shown(length)}) must be greater than 1.")


FACTOR_LISTS = ("short_factor", "long_factor")
FIRST_LENGTH, LENGTH = "original_max_position_embeddings", "max_position_embeddings"
KINDS = {
    "linear": Kind(linear, *ROPE_PARAMETERS["linear"]),
    "dynamic": Kind(dynamic, *ROPE_PARAMETERS["dynamic"], follows_beyond=LENGTH),
    "llama3": Kind(llama3, *ROPE_PARAMETERS["llama3"], check=_check_bands),
    "yarn": Kind(yarn, *ROPE_PARAMETERS["yarn"], check=_check_yarn),
    "longrope": Kind(longrope, *ROPE_PARAMETERS["longrope"], follows_beyond=FIRST_LENGTH, check=_check_longrope),
}


def read_rope_scaling(scaling):
    """The `Kind` and the parameters of a dict of `rope_type` and what that reads, without those that are None.

    Raises:
        ValueError: the type is unknown, a parameter is missing, unknown or out of range, or two contradict each other.
    """
    name = scaling.get("rope_type") if isinstance(scaling, dict) else None
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"rope_scaling ({shown(scaling)}) must be a dict whose rope_type is one of {list(KINDS)}.")
    kind = KINDS[name]
    if not set(kind.required) <= set(scaling) <= {"rope_type", *kind.required, *kind.optional}:
        may = f", and may hold {', '.join(kind.optional)}" if kind.optional else ""
        raise ValueError(
            f"rope_scaling ({shown(scaling)}) of rope_type {name!r} must hold {', '.join(kind.required)}{may}."
        )
    parameters = {key: value for key, value in scaling.items() if key != "rope_type"}
    for key, value in scaling.items():
        if value is None and key in kind.optional and key != "truncate":  # which transformers takes for False
            del parameters[key]
        elif key != "rope_type":
            CHECKS.get(key, check_positive_number)(f"rope_scaling[{key!r}]", value)
    kind.check(parameters)
    return kind, parameters


def _check_from_zero(name, value):
    if value != 0:
        check_positive_number(name, value)


def _check_list(name, value):
    if not isinstance(value, list | tuple) or not value or not all(map(is_number, value)) or min(value) <= 0:
        raise ValueError(f"{name} ({shown(value)}) must be a list of positive numbers.")


CHECKS = {
    "truncate": check_boolean,
    "mscale": _check_from_zero,  # 0 is as if it were left out
    "mscale_all_dim": _check_from_zero,
    "short_factor": _check_list,
    "long_factor": _check_list,
}
