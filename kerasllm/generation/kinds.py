"""The values that options of generation take in a call."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

from kerasllm.arguments import LARGEST, MOST, SMALLEST, is_number, is_whole, plain


def held(value):
    """A value as a config keeps it: lists as tuples, which do not change, and numpy's numbers as Python's."""
    if isinstance(value, list | tuple):
        return tuple(map(held, value))
    return {plain(key): plain(x) for key, x in value.items()} if isinstance(value, dict) else plain(value)


@dataclass(frozen=True)
class Kind:
    """The values that an option takes.

    Args:
        accepted: in words, for errors.
        accepts: value -> whether it is one of them.
        hold: value -> as a config keeps it.
    """

    accepted: str
    accepts: Callable
    hold: Callable = held


def whole(least, below=MOST):
    """The `Kind` of whole numbers in a range."""
    return Kind(f"an integer >= {least} and < {below}", lambda value: is_whole(value) and least <= value < below)


def real(accepted, in_range):
    """The `Kind` of numbers in a range."""
    return Kind(accepted, lambda value: is_number(value) and in_range(value))


def is_id(value):
    """Whether it is a token id, of whatever vocabulary, or another count."""
    return is_whole(value) and 0 <= value < MOST


def _is_list(value, is_item):
    return isinstance(value, list | tuple) and all(map(is_item, value))


def _is_text(value):
    return isinstance(value, str) and value != ""


def _is_word(value):
    return _is_text(value) or _is_list(value, is_id) and len(value) > 0


def _is_stop(value):
    return is_id(value) or _is_text(value)


def _is_bias(value):
    return FINITE.accepts(value) or isinstance(value, Real) and value == -math.inf


WARMTH = real("a finite number >= 0", lambda x: 0 <= x <= LARGEST)
PART = real("a number in (0, 1]", lambda x: 0 < x <= 1)
FRACTION = real("a number in (0, 1)", lambda x: 0 < x < 1)
FACTOR = real("a finite number > 0", lambda x: SMALLEST < x <= LARGEST)
FINITE = real("a finite number", lambda x: abs(x) <= LARGEST)
BOOLEAN = Kind("True or False", lambda value: isinstance(value, bool))
EARLY = Kind("False, True or 'never'", lambda x: isinstance(x, bool) or isinstance(x, str) and x == "never")
IDS = Kind("a list of token ids", lambda value: _is_list(value, is_id))
DECAY = Kind(
    "a pair of an integer >= 0 and a number > 0",
    lambda x: isinstance(x, list | tuple) and len(x) == 2 and is_id(x[0]) and FACTOR.accepts(x[1]),
)
BIAS = Kind(
    "a dict of token ids >= 0 and numbers below infinity",
    lambda x: isinstance(x, dict) and all(map(is_id, x)) and all(map(_is_bias, x.values())),
)
DICT = Kind("a dict", lambda value: isinstance(value, dict))
WORDS = Kind(
    "a list of non-empty strings or non-empty lists of token ids",
    lambda value: value is None or _is_list(value, _is_word),
    lambda value: held(value or ()),
)
STOPS = Kind(
    "a token id, a non-empty string, or a list of such",
    lambda value: value is None or _is_stop(value) or _is_list(value, _is_stop),
    lambda value: (value,) if _is_stop(value) else held(value or ()),
)
