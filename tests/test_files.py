import json
import os
import pickle
import shutil
import struct
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from kerasllm.checkpoints import files
from kerasllm.checkpoints.weight_map import LazyArray

TENSORS = {
    "a": np.arange(6, dtype="float32").reshape(2, 3),
    "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "c": np.array(3, "float16"),
    "empty": np.zeros((0, 4), "float32"),
    "ids": np.arange(3),
}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_raw(path, header, data=b""):
    header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_tensors_come_back_as_they_were(tmp_path):
    files.write_tensors(tmp_path, TENSORS)
    tensors = files.read_tensors(tmp_path)
    assert set(tensors) == set(TENSORS)
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape) == (TENSORS[name].dtype, TENSORS[name].shape)
        np.testing.assert_array_equal(tensor, TENSORS[name])


def test_the_metadata_say_what_transformers_asks_for(tmp_path):
    files.write_tensors(tmp_path, TENSORS)
    with safe_open(tmp_path / files.WEIGHTS, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_transposed_arrays_are_written_by_value(tmp_path):
    files.write_tensors(tmp_path, {"a": TENSORS["a"].T, "b": TENSORS["a"][:, ::2]})
    tensors = files.read_tensors(tmp_path)
    np.testing.assert_array_equal(tensors["a"], TENSORS["a"].T)
    np.testing.assert_array_equal(tensors["b"], TENSORS["a"][:, ::2])


def test_tensors_are_mapped_and_cannot_be_written(tmp_path):
    files.write_tensors(tmp_path, TENSORS)
    tensor = files.read_tensors(tmp_path)["a"]
    assert isinstance(tensor.base.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tensor[0, 0] = 1


def test_shards_are_read_through_their_index(tmp_path):
    for i, name in enumerate(["a", "b"]):
        files.write_tensors(tmp_path, {name: TENSORS[name]})
        os.rename(tmp_path / files.WEIGHTS, tmp_path / f"model-0000{i}-of-00002.safetensors")
    index = {"a": "model-00000-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}
    files.write_json(tmp_path / files.INDEX, {"metadata": {}, "weight_map": index})
    assert set(files.read_tensors(tmp_path)) == {"a", "b"}

    files.write_json(tmp_path / files.INDEX, {"weight_map": {**index, "c": index["a"]}})
    with pytest.raises(ValueError, match="different tensors: c"):
        files.read_tensors(tmp_path)
    (tmp_path / index["b"]).unlink()
    files.write_json(tmp_path / files.INDEX, {"weight_map": index})
    with pytest.raises(ValueError, match="has no model-00001-of-00002.safetensors"):
        files.read_tensors(tmp_path)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "a.bin", ""])
def test_a_shard_outside_the_folder_is_refused(tmp_path, shard):
    files.write_json(tmp_path / files.INDEX, {"weight_map": {"a": shard}})
    with pytest.raises(ValueError, match="no file name in its folder"):
        files.read_tensors(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_a_malformed_index_is_refused(tmp_path, index):
    files.write_json(tmp_path / files.INDEX, index)
    with pytest.raises(ValueError, match="must have a weight_map"):
        files.read_tensors(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 8, 40, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path, length):
    files.write_tensors(tmp_path, TENSORS)
    path = tmp_path / files.WEIGHTS
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        files.read_tensors(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**40]},
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "X32", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]},
        "nonsense",
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, entry):
    write_raw(tmp_path / files.WEIGHTS, {"x": entry}, b"\0" * 8)
    with pytest.raises(ValueError, match="model.safetensors"):
        files.read_tensors(tmp_path)


def test_overlapping_tensors_are_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write_raw(tmp_path / files.WEIGHTS, {"x": entry, "y": entry}, b"\0" * 8)
    with pytest.raises(ValueError, match="model.safetensors"):
        files.read_tensors(tmp_path)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.* does not exist"):
        files.read_tensors(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no model.safetensors"):
        files.read_tensors(tmp_path)
    with pytest.raises(ValueError, match="has no config.json"):
        files.read_json(tmp_path / "config.json")


def write(folder, value, fail=None):
    with files.replaced_folder(folder) as staging:
        files.write_json(staging / "config.json", {"value": value})
        files.write_tensors(staging, {"x": np.full(3, value, "float32")})
        if fail:
            raise fail


def test_a_folder_appears_and_is_replaced(tmp_path):
    folder = tmp_path / "presets" / "tiny"
    for value in (1, 2):
        write(folder, value)
        assert set(contents(folder)) == {"config.json", "model.safetensors"}
        assert files.read_json(folder / "config.json") == {"value": value}
        np.testing.assert_array_equal(files.read_tensors(folder)["x"], np.full(3, value))
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_files_are_readable_by_those_who_may_read_the_folder(tmp_path):
    write(tmp_path / "new", 1)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    assert len(modes) == 1
    assert (tmp_path / "new").stat().st_mode & 0o444 == modes.pop() & 0o444


@pytest.mark.parametrize("failure", [RuntimeError("half way"), KeyboardInterrupt(), OSError("disk full")])
def test_a_save_that_fails_half_way_leaves_the_old_preset_whole(tmp_path, failure):
    write(tmp_path / "preset", 1)
    before = contents(tmp_path / "preset")
    with pytest.raises(ValueError if isinstance(failure, OSError) else type(failure)):
        write(tmp_path / "preset", 2, fail=failure)
    assert contents(tmp_path / "preset") == before
    assert [path.name for path in tmp_path.iterdir()] == ["preset"]


def test_a_save_that_fails_half_way_leaves_no_new_folder(tmp_path):
    with pytest.raises(RuntimeError):
        write(tmp_path / "preset", 2, fail=RuntimeError())
    assert not list(tmp_path.iterdir())


def test_tensors_are_made_one_after_another_and_a_failure_leaves_the_old_preset_whole(tmp_path):
    write(tmp_path / "preset", 1)
    before, made = contents(tmp_path / "preset"), []

    def make(name):
        made.append(name)
        if len(made) == 3:
            raise OSError("No space left on device")
        return TENSORS["a"]

    lazy = {name: LazyArray((2, 3), np.dtype("float32"), partial(make, name)) for name in "abcd"}
    with pytest.raises(ValueError, match="cannot be written: No space left"):
        with files.replaced_folder(tmp_path / "preset") as staging:
            files.write_tensors(staging, lazy)
    assert made == ["a", "b", "c"] and contents(tmp_path / "preset") == before


def test_other_files_stay_and_stale_ones_go(tmp_path):
    for name in ("README.md", "tokenizer.json", "source_tokenizer.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name).write_text("old")
    (tmp_path / "notes").mkdir()
    write(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "notes",
    }


def test_a_target_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="file.* cannot be written"):
            write(folder, 1)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "preset" / "model.safetensors").mkdir(parents=True)
    (tmp_path / "preset" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="model.safetensors is a folder"):
        write(tmp_path / "preset", 1)
    assert (tmp_path / "preset" / "config.json").read_text() == "{}"


def test_large_tensors_are_parted_as_transformers_names_them(tmp_path):
    tensors = {name: np.full(size, size, "float32") for name, size in (("a", 20), ("b", 5), ("c", 4), ("d", 3))}
    files.write_tensors(tmp_path, tensors, max_shard_size="36B")
    index = files.read_json(tmp_path / files.INDEX)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index == {
        "metadata": {"total_size": 128},
        "weight_map": {"a": shards[0], "b": shards[1], "c": shards[1], "d": shards[2]},
    }
    assert {path.name for path in tmp_path.iterdir()} == {files.INDEX, *shards}
    for name, tensor in files.read_tensors(tmp_path).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    files.write_tensors(tmp_path / "..", tensors, max_shard_size=128)
    assert (tmp_path / ".." / files.WEIGHTS).exists()


def test_shards_that_do_not_belong_together_are_told(tmp_path):
    for name, num_tensors in (("first", 4), ("second", 4), ("third", 6)):
        tensors = {key: np.full(9, num_tensors, "float32") for key in "abcdef"[:num_tensors]}
        (tmp_path / name).mkdir()
        files.write_tensors(tmp_path / name, tensors, max_shard_size=72)

    def told(names):
        """What is said of shards of several presets under the first's index."""
        (tmp_path / "mixed").mkdir()
        files.write_json(tmp_path / "mixed" / files.INDEX, index)
        for i, name in enumerate(names, start=1):
            [path] = (tmp_path / name).glob(f"model-0000{i}-of-*")
            target = sorted(set(index["weight_map"].values()))[i - 1]
            (tmp_path / "mixed" / target).write_bytes(path.read_bytes())
        try:
            return sorted(files.read_tensors(tmp_path / "mixed"))
        except ValueError as error:
            return str(error)
        finally:
            shutil.rmtree(tmp_path / "mixed")

    index = files.read_json(tmp_path / "first" / files.INDEX)
    assert told(["first", "first"]) == told(["second", "second"]) == ["a", "b", "c", "d"]
    assert "not written together" in told(["first", "second"])
    index["weight_map"] |= {"c": "model-00002-of-00003.safetensors", "d": "model-00002-of-00003.safetensors"}
    assert "not written together" in told(["first", "first"])
    index["weight_map"] = dict.fromkeys("cd", "model-00001-of-00002.safetensors") | dict.fromkeys(
        "ab", "model-00002-of-00002.safetensors"
    )
    assert "model-00001-of-00002.safetensors hold different tensors: a, b, c, d" in told(["first", "first"])


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "", "5 G", "-5GB", "5.5GB"])
def test_a_size_of_shards_that_is_none_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match="max_shard_size"):
        files.write_tensors(tmp_path, TENSORS, size)


class Attack:
    """What a pickle may do to those who load it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_of_torch_are_read_where_there_is_no_other(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}
    for options in ({}, {"_use_new_zipfile_serialization": False}):  # the layout of before 2020
        torch.save(tensors, tmp_path / "pytorch_model.bin", **options)
        found = files.read_tensors(tmp_path)
        for name in tensors:
            assert found[name].dtype == TENSORS[name].dtype
            np.testing.assert_array_equal(found[name], TENSORS[name])
        with pytest.raises(ValueError, match="read-only"):
            found["a"][0, 0] = 1
    (tmp_path / "pytorch_model.bin").unlink()

    index = {name: f"pytorch_model-0000{i}-of-00002.bin" for i, name in enumerate(tensors, start=1)}
    for name, shard in index.items():
        torch.save({name: tensors[name]}, tmp_path / shard)
    files.write_json(tmp_path / "pytorch_model.bin.index.json", {"weight_map": index})
    assert set(files.read_tensors(tmp_path)) == {"a", "b"}
    files.write_json(tmp_path / "pytorch_model.bin.index.json", {"weight_map": index | {"a": "../x.bin"}})
    with pytest.raises(ValueError, match="no file name in its folder"):
        files.read_tensors(tmp_path)

    (tmp_path / "pytorch_model.bin").write_bytes(b"no file of torch's")
    files.write_tensors(tmp_path, {"c": TENSORS["c"]})
    assert set(files.read_tensors(tmp_path)) == {"c"}


@pytest.mark.parametrize("pickled_by", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, pickled_by):
    torch = pytest.importorskip("torch")
    content, path = {"a": torch.ones(2), "b": Attack(tmp_path / "hacked")}, tmp_path / "pytorch_model.bin"
    if pickled_by == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"b": content["b"]}))
    with pytest.raises(ValueError, match="pytorch_model.bin is refused"):
        files.read_tensors(tmp_path)
    assert not (tmp_path / "hacked").exists()
    torch.load(path, weights_only=False) if pickled_by == "torch" else pickle.loads(path.read_bytes())
    assert (tmp_path / "hacked").exists(), "the attack must be one"


def test_files_of_torch_that_hold_something_else_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    for content in (
        [1],
        {"a": 1},
        {1: torch.ones(2)},
        {"a": torch.ones(1).expand(2**40)},
        {"a": torch.ones(2).to_sparse()},
    ):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match="pytorch_model.bin"):
            files.read_tensors(tmp_path)
