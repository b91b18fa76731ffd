"""Safetensors and JSON files: read without trust, written as a whole or not at all."""

import json
import math
import os
import re
import secrets
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from kerasllm import writing
from kerasllm.arguments import shown
from kerasllm.json_files import existing_file, parse_json, read_json, write_json

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
TORCH_WEIGHTS, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
WRITING_ID = "kerasllm_writing_id"
MOST_INDEX_BYTES = 2**24  # names of a hundred thousand tensors
# What a preset consists of. Files of these names in a folder are replaced together.
PRESET_FILE = re.compile(
    r"(generation_)?config\.json|(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
    r"|((source|target)_)?(tokenizer(_config)?|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|((source|target)_)?(vocab\.txt|merges\.txt|chat_template\.jinja|(spiece|sentencepiece\.bpe|tokenizer)\.model)"
    r"|(source|target)\.spm|additional_chat_templates|modules\.json"
    r"|(config_sentence_transformers|sentence_[\w-]+_config)\.json|\d+_(Pooling|Dense|Normalize)"
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
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def read_tensors(folder):
    """The tensors of a folder's `model.safetensors`, or of the shards its index names; else of `pytorch_model.bin`.

    Returns:
        dict name -> read-only array. The files are memory-mapped: an array is read when its values are.

    Raises:
        ValueError: names the file that is missing, cut off or malformed, or whose pickle holds more than tensors.
        ImportError: there is only `pytorch_model.bin`, and torch is not installed.
    """
    folder = Path(folder)
    layouts = (
        (WEIGHTS, INDEX, read_safetensors),
        (TORCH_WEIGHTS, TORCH_INDEX, _read_torch_file),
    )
    for whole, index, read in layouts:
        if (folder / whole).exists():
            return read(folder / whole)
        if (folder / index).exists():
            return _read_shards(folder / index, Path(whole).suffix, read)
    return read_safetensors(folder / WEIGHTS)


def _read_torch_file(path):
    from kerasllm.backend.torch_files import read_torch_file

    return read_torch_file(existing_file(path))


def _read_shards(index, suffix, read):
    shard_of = read_json(index, most_bytes=MOST_INDEX_BYTES).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise ValueError(f"{index} must have a weight_map from tensor names to file names.")
    tensors, shards = {}, sorted(set(shard_of.values()))
    for shard in shards:
        if re.fullmatch(rf"[\w.-]+\{suffix}", shard) is None:
            raise ValueError(f"{index} names the shard {shown(shard)}, which is no file name in its folder.")
        found = read(index.with_name(shard))
        differing = sorted(set(found) ^ {name for name, place in shard_of.items() if place == shard})
        if differing:
            raise ValueError(f"{index} and {shard} hold different tensors: {', '.join(differing[:12])}.")
        tensors |= found
    totals = {match[1] for shard in shards if (match := re.search(r"-\d+-of-(\d+)\.", shard))}
    written = {_writing_id(index.with_name(shard)) for shard in shards} if suffix == ".safetensors" else {None}
    if len(totals) > 1 or len(written) > 1:
        raise ValueError(f"{index} names shards that were not written together: {', '.join(shards[:12])}.")
    return tensors


def _writing_id(path):
    """What the shards that we wrote at one time have in common; None for those of others."""
    with safe_open(path, framework="numpy") as file:
        return (file.metadata() or {}).get(WRITING_ID)


def read_safetensors(path):
    """The tensors of one file, memory-mapped: dict name -> read-only array."""
    path = existing_file(path)
    try:
        # The library checks the header: its size, the bounds of the tensors, that they don't overlap.
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    data = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if start > MOST_INDEX_BYTES:
        raise ValueError(f"{path}: its header is longer than {MOST_INDEX_BYTES} bytes.")
    header = parse_json(data[8:start].tobytes(), f"{path}: its header")
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, data[start:], entry) for name, entry in header.items()}


def _tensor(path, name, data, entry):
    dtype, (begin, end) = entry["dtype"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"{path}: dtype ({shown(dtype)}) of tensor {name:.80} must be one of {', '.join(DTYPES)}.")
    return np.asarray(data[begin:end]).view(DTYPES[dtype]).reshape(entry["shape"])


def write_tensors(folder, tensors, max_shard_size=None):
    """Write `model.safetensors` into a folder, or shards with their index, as transformers names them.

    Args:
        folder: path of the folder.
        tensors: dict name -> array, or anything with `shape`, `dtype` and `__array__`; asked for one after another.
        max_shard_size: the most bytes of tensors in a file, a number or a string such as "5GB". A larger tensor has a
            file of its own.
    """
    folder, sizes = Path(folder), {name: _num_bytes(tensor) for name, tensor in tensors.items()}
    limit = _bytes_of(max_shard_size) if max_shard_size is not None else sum(sizes.values())
    shards, room = [[]], limit
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS, tensors)
        return
    shard_of, metadata = {}, {WRITING_ID: secrets.token_hex(8)}
    for i, names in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        shard_of |= dict.fromkeys(names, file)
        write_safetensors(folder / file, {name: tensors[name] for name in names}, metadata)
    write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": shard_of})


def write_safetensors(path, tensors, metadata=None):
    """Write one file of tensors, dict name -> array or the like, and strings that its header has as well."""
    # The wider types first, so that every tensor lies at a multiple of its type's size.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    # transformers 4 refuses a file that doesn't say which framework's layouts it keeps.
    header, end = {"__metadata__": {"format": "pt", **(metadata or {})}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + _num_bytes(tensor)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(header).encode("utf-8")
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors.values():
            # In the order of its axes, whatever its strides are. Not by its own type: bfloat16 has no buffer.
            file.write(np.asarray(tensor, order="C").reshape(-1).view(np.uint8))


def _num_bytes(tensor):
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _bytes_of(size):
    match = re.fullmatch(r"(\d+)\s*([KMGT]?B)", str(size).upper())
    number, unit = (int(match[1]), match[2]) if match else (size, "B")
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"max_shard_size ({shown(size)}) must be a positive whole number of bytes, or such as '5GB'.")
    return number * 1000 ** ("B", "KB", "MB", "GB", "TB").index(unit)


@contextmanager
def replaced_folder(folder, goes=PRESET_FILE.fullmatch):
    """Write a preset as a whole: the block writes to a folder whose files take their places in `folder` at its end.

    If the block fails, or the process ends before it does, `folder` stays as it was. Files of an older preset that the
    new one lacks, those whose names `goes` takes, are removed; other files in `folder` are left alone.

    Example:
        >>> with replaced_folder("presets/tiny") as staging:
        ...     write_json(staging / "config.json", config)
        ...     write_tensors(staging, tensors)

    Raises:
        ValueError: the folder cannot be written.
    """
    described = f"folder ({str(folder)!r})"
    folder = writing.resolved(folder, described)
    if os.path.lexists(folder):
        with writing.staged(folder, goes, described) as staging:
            yield staging
        return
    with writing.scratch(folder.parent, described) as own:
        staging = own / folder.name
        staging.mkdir()
        yield staging
        try:
            os.rename(staging, folder)
        except OSError:  # another writer was first
            with writing.staged(folder, goes, described) as new:
                for path in staging.iterdir():
                    os.replace(path, new / path.name)
