"""Checks of arguments, whose errors name the argument, its value and what is accepted."""

import math


def check_positive(name, value):
    """Raise `ValueError` unless `value` is a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} ({value!r}) must be a positive whole number.")


def check_positive_number(name, value):
    """Raise `ValueError` unless `value` is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} ({value!r}) must be a positive number.")


def check_rate(name, value):
    """Raise `ValueError` unless `value` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or not 0 <= value < 1:
        raise ValueError(f"{name} ({value!r}) must be a number in [0, 1).")


def check_choice(name, value, choices):
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in tuple(choices):
        raise ValueError(f"{name} ({value!r}) must be one of {', '.join(map(repr, choices))}.")
