"""Files that lie: thousands of changed headers are read or refused by a ValueError, quickly and in little memory."""

import json
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import test_gguf

from kerasllm import GPT
from kerasllm.checkpoints import files, gguf, llama, weight_map
from kerasllm.checkpoints.presets import read_preset

LLAMA = Path(__file__).parent / "data" / "llama"
MOST_BYTES = 16 * 2**20
NUMBERS = [0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
VALUES = [
    *(None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 1.5, 1e308, float("nan"), float("inf"), -float("inf")),
    *(
        "",
        "x",
        "../x",
        "/etc/passwd",
        "F64",
        "BF16",
        "llama",
        [],
        [0],
        [[1]],
        [2**62, 2**62],
        {},
        {"a": {}},
        [0, 2**63],
    ),
]


def shapes_of(folder):
    tensors, layout = files.read_tensors(folder), {True: (-1, weight_map.transposed), False: (1, weight_map.same)}
    rows = llama.LLAMA.expanded({"num_layers": 2, "tie_embeddings": False})
    return {row.paths[0]: tensors[row.name].shape[:: -1 if row.layout is layout[True][1] else 1] for row in rows}


SHAPES = shapes_of(LLAMA)


def read(source):
    """Everything but the model: its arguments and the values of its variables."""
    arrays = read_preset(source, GPT).read_weights(SHAPES)
    return {path: np.asarray(array).sum() for path, array in arrays.items()}


def outcomes(trials, change, read):
    """The share of what `change(random)` made that `read` refused, which must be all that went wrong."""
    random, refused = np.random.default_rng(0), 0
    for trial in range(trials):
        changed, start = change(random), time.perf_counter()
        if trial % 10 == 0:  # it takes five times as long
            tracemalloc.start()
        try:
            read()
        except ValueError:
            refused += 1
        if trial % 10 == 0:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MOST_BYTES, f"{peak} bytes for {changed}"
        assert time.perf_counter() - start < 1, changed
    return refused / trials


def copied(folder, *names):
    for name in names:
        (folder / name).write_bytes((LLAMA / name).read_bytes())


def changed_bytes(random, content, header):
    """Bytes of the header made random, cut off, or made a number of 4 or 8 bytes that means trouble."""
    content = bytearray(content)
    kind = random.integers(4)
    if kind == 0:
        return content[: random.integers(len(content))]
    for _ in range(random.integers(1, 4)):
        place = random.integers(header)
        if kind == 1:
            content[place] = random.integers(256)
        else:
            number = struct.pack("<Q", NUMBERS[random.integers(len(NUMBERS))])[: (4, 8)[kind - 2]]
            content[place : place + len(number)] = number
    return content


def changed_json(random, value):
    """A JSON value in which some values are others, or are gone, or are there twice."""
    if isinstance(value, dict | list) and value and random.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[random.integers(len(keys))]
        copy = value.copy()
        if random.random() < 0.1:
            del copy[key]
        else:
            copy[key] = changed_json(random, value[key])
        if isinstance(copy, dict) and random.random() < 0.1:
            copy[f"{key}x"] = VALUES[random.integers(len(VALUES))]
        return copy
    return VALUES[random.integers(len(VALUES))]


def test_headers_of_safetensors(tmp_path):
    content = (LLAMA / files.WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header, path = json.loads(content[8:end]), tmp_path / files.WEIGHTS
    copied(tmp_path, "config.json")

    def change(random):
        if random.random() < 0.5:
            path.write_bytes(changed_bytes(random, content, end))
            return
        changed = header
        for _ in range(random.integers(1, 3)):
            changed = changed_json(random, changed)
        changed = json.dumps(changed).encode()
        path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[end:])

    assert 0.5 < outcomes(500, change, lambda: read(tmp_path)) < 1


def test_configs_and_indices(tmp_path):
    copied(tmp_path, files.WEIGHTS)
    (tmp_path / files.WEIGHTS).rename(tmp_path / "model-00001-of-00001.safetensors")
    config = files.read_json(LLAMA / files.CONFIG)
    names = files.read_safetensors(tmp_path / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}

    def change(random):
        both = [config, index]
        both[random.integers(2)] = changed_json(random, both[random.integers(2)])
        for name, value in zip((files.CONFIG, files.INDEX), both, strict=True):
            (tmp_path / name).write_text(json.dumps(value))
        return both

    assert 0.5 < outcomes(400, change, lambda: read(tmp_path)) < 1


def test_headers_of_gguf(tmp_path):
    pytest.importorskip("gguf")
    path = test_gguf.write(tmp_path / "model.gguf", test_gguf.byte_level()[1])
    content = path.read_bytes()
    header = content.index(b"output.weight") + 400

    def read_all():
        config, tensors, _ = gguf.read(path)
        return config, [np.asarray(tensor).sum() for tensor in tensors.values()]

    def change(random):
        path.write_bytes(changed_bytes(random, content, header))

    assert 0.5 < outcomes(250, change, read_all) < 1


def test_a_config_of_a_billion_blocks_is_refused_before_they_are_counted(tmp_path):
    copied(tmp_path, files.WEIGHTS)
    config = files.read_json(LLAMA / files.CONFIG) | {"num_hidden_layers": 10**9}
    files.write_json(tmp_path / files.CONFIG, config)
    with pytest.raises(ValueError, match="num_layers .1000000000. must be at most"):
        read(tmp_path)


def test_counts_beyond_a_gguf_file_are_refused_at_once(tmp_path):
    start = b"GGUF" + struct.pack("<I", 3)
    array = struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<II", 9, 8)
    for content in (
        start + struct.pack("<QQ", 2**63, 0),
        start + struct.pack("<QQ", 0, 2**63),
        start + array + struct.pack("<Q", 2**60),
        start + array[:-4] + struct.pack("<IQ", 10, 2**60),
        start + array[:-4] + struct.pack("<IQ", 9, 2) * 1000,
        start + struct.pack("<QQQ", 0, 1, 2**62),
        b"",
    ):
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(ValueError, match="not a whole GGUF file"):
            gguf.read(tmp_path / "model.gguf")


def test_long_lists_in_a_gguf_file_are_refused_at_once(tmp_path):
    start = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a"
    for kind, count in ((8, 2**24), (0, 2**27), (7, 2**27)):
        with open(tmp_path / "model.gguf", "wb") as file:
            file.write(start + struct.pack("<IIQ", 9, kind, count))
            file.truncate(2**27 + 100)  # of zeros: empty strings
        begin = time.perf_counter()
        with pytest.raises(ValueError, match="its arrays have more than"):
            gguf.read(tmp_path / "model.gguf")
        assert time.perf_counter() - begin < 1


def test_an_archive_that_is_larger_than_its_file_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "whole.bin")
    with zipfile.ZipFile(tmp_path / "whole.bin") as whole:
        with zipfile.ZipFile(tmp_path / files.TORCH_WEIGHTS, "w", zipfile.ZIP_DEFLATED) as bomb:
            for name in whole.namelist():
                bomb.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match="pytorch_model.bin is refused.*compressed"):
        files.read_tensors(tmp_path)


def test_an_archive_whose_list_says_other_names_than_its_entries_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(2)}, tmp_path / files.TORCH_WEIGHTS)
    content = (tmp_path / files.TORCH_WEIGHTS).read_bytes()
    (tmp_path / files.TORCH_WEIGHTS).write_bytes(content.replace(b"/data/0", b"/data/1", 1))
    with pytest.raises(ValueError, match="pytorch_model.bin is refused.*differ"):
        files.read_tensors(tmp_path)
