"""`signatures.json`, which says what an exported file holds: written beside it, and checked when it is read.

LiteRT trusts its files: one changed byte may crash the process. So a file is compared with the SHA-256 that was written
down for it, before it is opened; a GB takes less than a second.
"""

import functools
import hashlib

from kerasllm.arguments import shown
from kerasllm.json_files import read_json, write_json

NAME = "signatures.json"
DTYPES = ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64", "string")
TASKS = ("fill_mask", "classify", "tag", "answer", "embed")
MOST_SIZE = 2**31 - 1


def write(folder, file, description):
    """Write the description of a file, or of the folder of a SavedModel, which has no SHA-256.

    Args:
        folder: of the assets.
        file: path of what is described.
        description: dict with `model`, `settings`, `signatures`.
    """
    seal = {"file": {"bytes": file.stat().st_size, "sha256": _digest(file)}} if file.is_file() else {}
    write_json(folder / NAME, {**description, **seal})


def read(folder, file):
    """The name of the model's class, the settings and the signatures of a file, which is as it was written.

    Files that were exported before there were sums are not compared.

    Raises:
        ValueError: the description is malformed, or the file is not what it describes.
    """
    path = folder / NAME
    description = read_json(path)
    expect(path, "model", description.get("model"), _is_string)
    settings, signatures = description.get("settings"), description.get("signatures")
    expect(path, "settings", settings, _is_dict)
    for name, is_right in SETTINGS.items():
        if settings.get(name) is not None:
            expect(path, f"settings.{name}", settings[name], is_right)
    expect(path, "signatures", signatures, _is_dict)
    for name, signature in signatures.items():
        expect(path, f"signatures.{name}", signature, _is_signature)
    _check_functions(path, settings, signatures)
    seal = description.get("file")
    if seal is not None:
        expect(path, "file", seal, lambda x: _is_dict(x) and _is_count(x.get("bytes")) and _is_string(x.get("sha256")))
        _check_file(file, seal)
    return description["model"], settings, signatures


def compare(file, name, described, found):
    """Raise a `ValueError` unless a function takes what the description says: LiteRT takes what it is given.

    Args:
        file: path of the file.
        name, described: the function, as `signatures.json` has it.
        found: its inputs in the file, dict name -> shape, with None or -1 for any size.
    """
    expected = {name: tensor["shape"] for name, tensor in described["inputs"].items()}
    given = {name: [None if size == -1 else int(size) for size in shape] for name, shape in found.items()}
    if given != expected:
        raise ValueError(f"{file}: {name} takes {given!s:.200}, and {NAME} beside it says {expected!s:.200}.")


def expect(path, name, value, is_right):
    """Raise a `ValueError` that names the file unless `is_right(value)`."""
    if not is_right(value):
        raise ValueError(f"{path}: {name} ({shown(value)}) is not what export writes.")


def _check_file(file, seal):
    stat = file.stat()
    is_same = stat.st_size == seal["bytes"]
    if (
        not is_same
        or _known_digest(str(file.absolute()), stat.st_mtime_ns, stat.st_size, stat.st_ino) != seal["sha256"]
    ):
        raise ValueError(f"{file} is damaged, or another than {NAME} beside it describes: export it anew.")


@functools.lru_cache(maxsize=64)
def _known_digest(path, *changed):
    return _digest(path)


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_functions(path, settings, signatures):
    """Raise unless the functions and settings that methods rely on are there."""
    needed = {"decode": ({"tokens", "input_pos"}, {"logits"}), "sample": ({"logits"}, {"token_ids"})}
    needed |= {name: (set(), {"token_ids", "lengths"}) for name in ("generate", "translate", "translate_beams")}
    if "task" in settings:
        needed["forward"] = ({"token_ids"}, set())
    for name, (inputs, outputs) in needed.items():
        if name in signatures:
            found = signatures[name]
            is_whole = inputs <= set(found["inputs"]) and outputs <= set(found["outputs"])
            expect(path, f"signatures.{name}", found, lambda _, is_whole=is_whole: is_whole)
    if "start_token_id" in settings:
        expect(path, "settings.max_length", settings.get("max_length"), _is_positive)
    else:  # A translator's "decode" takes states of any length; of a language model's `Runner` makes the inputs.
        if "decode" in signatures:
            tokens, logits = signatures["decode"]["inputs"]["tokens"], signatures["decode"]["outputs"]["logits"]
            is_fixed = all(None not in x["shape"] for x in signatures["decode"]["inputs"].values())
            expect(path, "signatures.decode", tokens, lambda _: is_fixed and tokens["shape"] and logits["shape"])
        if {"decode", "generate"} & set(signatures):
            for name in ("max_length", "vocabulary_size"):
                expect(path, f"settings.{name}", settings.get(name), _is_positive)
    if settings.get("task") == "classify" or settings.get("task") == "tag":
        expect(path, "settings.labels", settings.get("labels"), _are_strings)
    if "forward" in signatures and "task" in settings:
        shape = signatures["forward"]["inputs"]["token_ids"]["shape"]
        expect(path, "signatures.forward", shape, lambda shape: len(shape) == 2)
        expect(path, "settings.max_length", settings.get("max_length"), lambda x: shape[1] or _is_positive(x))
    for name in signatures:
        if name.startswith("prefill_"):
            shape = signatures[name]["inputs"].get("tokens", {"shape": []})["shape"]
            expect(
                path, f"signatures.{name}", shape, lambda shape, name=name: [str(n) for n in shape[1:]] == [name[8:]]
            )


def _is_signature(value):
    return _is_dict(value) and all(
        _is_dict(value.get(side)) and all(_is_tensor(tensor) for tensor in value[side].values())
        for side in ("inputs", "outputs")
    )


def _is_tensor(value):
    return (
        _is_dict(value)
        and isinstance(value.get("shape"), list)
        and len(value["shape"]) <= 8
        and all(size is None or _is_count(size) for size in value["shape"])
        and value.get("dtype") in DTYPES
    )


def _is_dict(value):
    return isinstance(value, dict)


def _is_string(value):
    return isinstance(value, str)


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_SIZE


def _is_positive(value):
    return _is_count(value) and value > 0


def _are_counts(value):
    return isinstance(value, list) and all(map(_is_count, value))


def _are_strings(value):
    return isinstance(value, list) and bool(value) and all(map(_is_string, value))


SETTINGS = {
    **dict.fromkeys(("max_length", "vocabulary_size", "num_beams", "truncate_at"), _is_positive),
    **dict.fromkeys(("end_token_ids", "prefill_lengths"), _are_counts),
    **dict.fromkeys(("start_token_id", "pad_token_id"), _is_count),
    "task": lambda value: value in TASKS,
    **dict.fromkeys(("segment_ids", "normalize"), lambda value: isinstance(value, bool)),
    "labels": _are_strings,
    "problem_type": lambda value: value in ("single_label", "multi_label", "regression"),
    "prompts": lambda value: _is_dict(value) and all(map(_is_string, value.values())),
    "default_prompt_name": _is_string,
}
