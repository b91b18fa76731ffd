"""Safetensors and JSON files: read without trust, written as a whole or not at all."""

import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
# What a preset consists of. Files of these names in a folder are replaced together.
PRESET_FILE = re.compile(
    r"config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|((source|target)_)?tokenizer(_config)?\.json"
    r"|modules\.json|sentence_bert_config\.json|1_Pooling"
)
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_tensors(folder):
    """The tensors of a folder's `model.safetensors`, or of the shards its index names.

    Returns:
        dict name -> read-only array. The files are memory-mapped: an array is read when its values are.

    Raises:
        ValueError: names the file that is missing, cut off or malformed.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return read_safetensors(folder / WEIGHTS)
    shard_of = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise ValueError(f"{folder / INDEX} must have a weight_map from tensor names to file names.")
    tensors = {}
    for shard in sorted(set(shard_of.values())):
        if re.fullmatch(r"[\w.-]+\.safetensors", shard) is None:
            raise ValueError(f"{folder / INDEX} names the shard {shard!r}, which is no file name in its folder.")
        tensors.update(read_safetensors(folder / shard))
    if set(tensors) != set(shard_of):
        names = sorted(set(tensors) ^ set(shard_of))
        raise ValueError(f"{folder / INDEX} and its shards hold different tensors: {', '.join(names[:12])}.")
    return tensors


def read_safetensors(path):
    """The tensors of one file, memory-mapped: dict name -> read-only array."""
    path = _existing(path)
    try:
        # The library checks the header: its size, the bounds of the tensors, that they don't overlap.
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    data = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, data[start:], entry) for name, entry in header.items()}


def _tensor(path, name, data, entry):
    dtype, (begin, end) = entry["dtype"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"{path}: dtype ({dtype!r}) of tensor {name} must be one of {', '.join(DTYPES)}.")
    return np.asarray(data[begin:end]).view(DTYPES[dtype]).reshape(entry["shape"])


def read_json(path, kind=dict):
    """The object (dict) in a JSON file, or the array where `kind` is list."""
    path = _existing(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is not a whole JSON file: {error}") from error
    if not isinstance(value, kind):
        expected = {dict: "an object", list: "an array"}[kind]
        raise ValueError(f"{path} holds {type(value).__name__}, expected {expected}.")
    return value


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON number")


def _existing(path):
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"folder ({str(path.parent)!r}) does not exist.")
    if not path.is_file():
        raise ValueError(f"folder ({str(path.parent)!r}) has no {path.name}.")
    return path


def write_tensors(folder, tensors):
    """Write `model.safetensors` into a folder, as transformers wants it."""
    folder = Path(folder)
    # The library writes the memory behind an array in its order, whatever the strides.
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    try:
        # transformers 4 refuses a file that doesn't say which framework's layouts it keeps.
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        # The library lets the owner alone read it; we, whoever may read the folder.
        (folder / WEIGHTS).chmod(folder.stat().st_mode & 0o666)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def write_json(path, value):
    """Write a JSON file that people can read."""
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def replaced_folder(folder):
    """Write a preset as a whole: a temporary folder whose files move into `folder` when the block succeeds.

    If the block fails or is interrupted, `folder` stays as it was. Files of an older preset that the new one
    lacks are removed; other files in `folder` are left alone.

    Example:
        >>> with replaced_folder("presets/tiny") as staging:
        ...     write_json(staging / "config.json", config)
        ...     write_tensors(staging, tensors)

    Raises:
        ValueError: the folder cannot be written.
    """
    folder, temporary = Path(folder), None
    try:
        # On the same disk as the target, so that moving is renaming.
        parent = folder if folder.is_dir() else folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=parent))
        staging = temporary / "preset"
        staging.mkdir()
        yield staging
        _put_in_place(staging, folder)
    except OSError as error:
        raise ValueError(f"folder ({str(folder)!r}) cannot be written: {error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(staging, folder):
    if not folder.exists():
        os.replace(staging, folder)
        return
    new = {path.name for path in staging.iterdir()}
    old = {path.name for path in folder.iterdir() if PRESET_FILE.fullmatch(path.name)}
    for name in new:
        if (folder / name).is_dir() and not (staging / name).is_dir():
            raise IsADirectoryError(f"{folder / name} is a folder")
    for name in sorted(new, key=lambda name: name == CONFIG):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        os.replace(staging / name, folder / name)
    for name in old - new:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()
