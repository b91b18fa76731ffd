"""JSON, checked as it is read: it comes with models that strangers made. No other package is needed."""

import json
import math
import re
from pathlib import Path

from kerasllm.arguments import shown

MOST_JSON_BYTES = 2**27  # of a tokenizer or a corpus
MOST_CONFIG_BYTES = 2**22  # of a file of settings
MOST_LEVELS = 64
MOST_DIGITS = 100  # tokenizers write 10^30 for no limit
LONG_NUMBER = re.compile(rf"\d{{{MOST_DIGITS + 1}}}")
ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path, kind=dict, most_bytes=MOST_JSON_BYTES):
    """The object (dict) in a JSON file, or the array where `kind` is list; any value where it is `object`.

    Raises:
        ValueError: names the file, which is missing or longer than `most_bytes`, or as `parse_json` says.
    """
    path = existing_file(path)
    try:
        if path.stat().st_size > most_bytes:
            raise ValueError(f"{path} is longer than {most_bytes} bytes.")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return parse_json(content, path, kind)


def read_settings(path, kind=dict):
    """The same of a file of settings, which is short."""
    return read_json(path, kind, MOST_CONFIG_BYTES)


def parse_json(text, name, kind=dict):
    """The object (dict) in a JSON text, str or UTF-8 bytes, called `name` in errors; `kind` as for `read_json`.

    Raises:
        ValueError: the text is no JSON, nests deeper than `MOST_LEVELS`, has a key twice, a number that is none or
            beyond floats and `MOST_DIGITS`, a string that UTF-8 cannot hold, or holds a value of another kind.
    """
    try:
        text = text if isinstance(text, str) else str(text, "utf-8")
        # What all of these say, others read in ways of their own. Python calls `parse_int` for each number: of a
        # vocabulary that takes as long as all else.
        parse_int = _integer if LONG_NUMBER.search(text) else None
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_float, parse_int=parse_int
        )
        if ESCAPED_HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        _check_levels(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not a whole JSON file: {error}") from error
    if not isinstance(value, kind):
        expected = {dict: "an object", list: "an array"}[kind]
        raise ValueError(f"{name} holds {type(value).__name__}, expected {expected}.")
    return value


def write_json(path, value):
    """Write a JSON file that people can read."""
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def existing_file(path):
    """The path of a file that is there, or a `ValueError`."""
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"folder ({str(path.parent)!r}) does not exist.")
    if not path.is_file():
        raise ValueError(f"folder ({str(path.parent)!r}) has no {path.name}.")
    return path


def _object(pairs):
    value = dict(pairs)
    if len(value) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return value


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON number")


def _float(digits):
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits:.80} is too large a number")
    return value


def _integer(digits):
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"{digits:.80} ... is too large a number")
    return int(digits)


def _check_levels(value):
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"it nests deeper than {MOST_LEVELS} levels")
