"""JSON files, checked as they are read: they come with models that strangers made. No other package is needed."""

import json
from pathlib import Path

MOST_JSON_BYTES = 2**27


def read_json(path, kind=dict):
    """The object (dict) in a JSON file, or the array where `kind` is list."""
    path = existing_file(path)
    if path.stat().st_size > MOST_JSON_BYTES:
        raise ValueError(f"{path} is longer than {MOST_JSON_BYTES} bytes.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is not a whole JSON file: {error}") from error
    if not isinstance(value, kind):
        expected = {dict: "an object", list: "an array"}[kind]
        raise ValueError(f"{path} holds {type(value).__name__}, expected {expected}.")
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


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON number")
