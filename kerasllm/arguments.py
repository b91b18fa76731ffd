"""Checks of arguments, whose errors name the argument, its value and what is accepted."""

import math
from collections.abc import Mapping, Set

import numpy as np

NAN_REASON = "its weights or its inputs hold NaN, or its numbers overflow"  # how errors of such outputs end

LARGEST = 3e38  # what float32 holds


def check_positive(name, value):
    """Raise `ValueError` unless `value` is a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} ({value!r}) must be a positive whole number.")


def check_positive_number(name, value):
    """Raise `ValueError` unless `value` is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
        raise ValueError(f"{name} ({value!r}) must be a positive number.")


def check_rate(name, value):
    """Raise `ValueError` unless `value` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or not 0 <= value < 1:
        raise ValueError(f"{name} ({value!r}) must be a number in [0, 1).")


def check_part(name, value):
    """Raise `ValueError` unless `value` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} ({value!r}) must be a number in [0, 1].")


def check_boolean(name, value):
    """Raise `ValueError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} ({value!r:.80}) must be True or False.")


def check_choice(name, value, choices):
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in tuple(choices):
        raise ValueError(f"{name} ({value!r}) must be one of {', '.join(map(repr, choices))}.")


def check_text(name, text):
    """Raise `ValueError` unless `text` is a string of whole characters: Python's may hold halves, lone surrogates."""
    if not isinstance(text, str):
        raise ValueError(f"{name} ({text!r:.80}) must be a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"a lone surrogate, {text[error.start]!r}, at {error.start}"
        raise ValueError(f"{name} ({text!r:.80}) holds {half}; it must be text that UTF-8 can hold.") from error


def read_sequence(name, value):
    """The list of an iterable. Strings, mappings and sets, read as letters, keys, in no order, are errors, and None."""
    if isinstance(value, str | bytes | Mapping | Set | None) or not hasattr(value, "__iter__"):
        raise ValueError(f"{name} ({value!r:.80}) must be a sequence, such as a list.")
    return list(value)


def read_texts(name, texts):
    """A string or a list of strings as a checked list, and the function that undoes it on the results.

    Raises:
        ValueError: `texts` is no string and no non-empty list of strings, or a text is empty or no text of UTF-8.
    """
    if isinstance(texts, str):
        if not texts.strip():
            raise ValueError(f"{name} ({texts!r}) must not be empty.")
        check_text(name, texts)
        return [texts], lambda results: results[0]
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"{name} ({texts!r:.200}) must be a string or a non-empty list of strings.")
    blank = next((i for i, t in enumerate(texts) if not t.strip()), None)
    if blank is not None:
        raise ValueError(f"{name}[{blank}] ({texts[blank]!r}) must not be empty.")
    for i, text in enumerate(texts):
        check_text(f"{name}[{i}]", text)
    return list(texts), lambda results: results


def check_numbers(name, array, where):
    """Raise `FloatingPointError` unless what a model has computed, an array, is finite."""
    if not np.isfinite(array).all():
        raise FloatingPointError(f"The model's {name} are NaN or infinite {where}: {NAN_REASON}.")
