"""Checks of arguments, whose errors name the argument, its value and what is accepted."""

import math
import os
import re
from collections.abc import Hashable, KeysView, Mapping, Set
from numbers import Integral, Real
from pathlib import Path

import numpy as np

NAN_REASON = "its weights or its inputs hold NaN, or its numbers overflow"  # how errors of such outputs end
SMALLEST, LARGEST = 1e-37, 3e38  # what a positive float32 is between, and its size below
MOST = 2**31
"""Above all numbers of things: what counts them, and their ids, are int32."""


def shown(value, length=80):
    """A value as messages say it: the beginning of its `repr`."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a {type(value).__name__}"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def plain(value):
    """A number, a string or a truth value of numpy's as Python's own, which JSON can hold; others as they are."""
    return value.item() if isinstance(value, np.generic) else value


def is_whole(value):
    """Whether it is a whole number, Python's or numpy's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value):
    """Whether it is a finite number, Python's or numpy's."""
    return isinstance(value, Real) and not isinstance(value, bool) and -math.inf < value < math.inf


def check_positive(name, value):
    """Raise `ValueError` unless `value` is a positive whole number."""
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} ({shown(value)}) must be a positive whole number.")
    _check_not_huge(name, value)


def check_from_zero(name, value):
    """Raise `ValueError` unless `value` is a whole number, 0 or more, below 2**31."""
    if not is_whole(value) or value < 0:
        raise ValueError(f"{name} ({shown(value)}) must be a non-negative whole number.")
    _check_not_huge(name, value)


def check_seed(name, value):
    """Raise `ValueError` unless `value` is a whole number in [0, 2**64)."""
    if not is_whole(value) or not 0 <= value < 2**64:
        raise ValueError(f"{name} ({shown(value)}) must be a non-negative whole number below 2**64.")


def check_whole(name, value):
    """Raise `ValueError` unless `value` is a whole number."""
    if not is_whole(value):
        raise ValueError(f"{name} ({shown(value)}) must be a whole number.")
    _check_not_huge(name, value)


def _check_not_huge(name, value):
    if value >= MOST:
        raise ValueError(f"{name} ({shown(value)}) must be less than 2**31.")


def check_positive_number(name, value):
    """Raise `ValueError` unless `value` is a positive, finite number, also as float32."""
    if not is_number(value) or not SMALLEST < value <= LARGEST:
        raise ValueError(f"{name} ({shown(value)}) must be a positive number that float32 holds.")


def check_rate(name, value):
    """Raise `ValueError` unless `value` is a number in [0, 1)."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} ({shown(value)}) must be a number in [0, 1).")


def check_fraction(name, value):
    """Raise `ValueError` unless `value` is a number in (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{name} ({shown(value)}) must be a number in (0, 1].")


def check_part(name, value):
    """Raise `ValueError` unless `value` is a number in [0, 1]."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} ({shown(value)}) must be a number in [0, 1].")


def check_boolean(name, value):
    """Raise `ValueError` unless `value` is True or False, Python's or numpy's."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise ValueError(f"{name} ({shown(value)}) must be True or False.")


def check_choice(name, value, choices):
    """Raise `ValueError` unless `value` is one of `choices`."""
    if not isinstance(value, Hashable) or value not in tuple(choices):
        raise ValueError(f"{name} ({shown(value)}) must be one of {', '.join(map(repr, choices))}.")


def check_function(name, value):
    """Raise `ValueError` unless `value` can be called."""
    if not callable(value):
        raise ValueError(f"{name} ({shown(value)}) must be a function.")


def read_path(name, value):
    """A path, a string or a `Path`, as a `Path`."""
    if not isinstance(value, str | os.PathLike) or str(value) == "" or "\0" in str(value):
        raise ValueError(f"{name} ({shown(value)}) must be a path, a string or a pathlib.Path.")
    return Path(value)


def check_text(name, text):
    """Raise `ValueError` unless `text` is a string of whole characters: Python's may hold halves, lone surrogates."""
    if not isinstance(text, str):
        raise ValueError(f"{name} ({shown(text)}) must be a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"a lone surrogate, {text[error.start]!r}, at {error.start}"
        raise ValueError(f"{name} ({shown(text)}) holds {half}; it must be text that UTF-8 can hold.") from error


def check_sequence(name, value):
    """Raise `ValueError` unless `value` is an iterable of things in order: no string, no mapping, no set."""
    is_one = isinstance(value, str | bytes | bytearray | Mapping) or getattr(value, "ndim", 1) == 0
    if is_one or isinstance(value, Set) and not isinstance(value, KeysView):  # a dict's keys have an order
        raise ValueError(f"{name} ({shown(value)}) must be a sequence, such as a list.")
    if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__") or isinstance(value, type):
        raise ValueError(f"{name} ({shown(value)}) must be a sequence, such as a list.")


def read_sequence(name, value):
    """The list of an iterable. Strings, mappings and sets, read as letters and keys of some order, are errors."""
    check_sequence(name, value)
    return list(value)


def read_strings(name, value, least=1):
    """The list of an iterable of strings, so many at least."""
    texts = read_sequence(name, value)
    if len(texts) < least:
        raise ValueError(f"{name} ({shown(value)}) must not be empty.")
    for i, text in enumerate(texts):
        check_text(f"{name}[{i}]", text)
    return texts


def read_patterns(name, value, least=1):
    """A tuple of regular expressions, strings, of one or a list of them; raise `ValueError` for anything else."""
    patterns = tuple(read_strings(name, [value] if isinstance(value, str) else value, least))
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name} ({shown(pattern)}) must be a regular expression: {error}.") from error
    return patterns


def read_texts(name, texts):
    """A string or a list of strings as a checked list, and the function that undoes it on the results.

    Raises:
        ValueError: `texts` is no string and no non-empty list of strings, or a text is empty or no text of UTF-8.
    """
    if isinstance(texts, str):
        if not texts.strip():
            raise ValueError(f"{name} ({shown(texts)}) must not be empty.")
        check_text(name, texts)
        return [texts], lambda results: results[0]
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"{name} ({shown(texts, 200)}) must be a string or a non-empty list of strings.")
    blank = next((i for i, t in enumerate(texts) if not t.strip()), None)
    if blank is not None:
        raise ValueError(f"{name}[{blank}] ({shown(texts[blank])}) must not be empty.")
    for i, text in enumerate(texts):
        check_text(f"{name}[{i}]", text)
    return list(texts), lambda results: results


def check_numbers(name, array, where):
    """Raise `FloatingPointError` unless what a model has computed, an array, is finite."""
    if not np.isfinite(array).all():
        raise FloatingPointError(f"The model's {name} are NaN or infinite {where}: {NAN_REASON}.")
