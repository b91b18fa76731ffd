"""Presets by name: taken from a cache as huggingface_hub lays it out, through that library, without a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kerasllm.checkpoints import hub
from kerasllm.checkpoints.presets import read_preset

LLAMA = Path(__file__).parent / "data" / "llama"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = ("config.json", "model.safetensors")


def cached(cache, name="org/tiny", commit=COMMIT, files=FILES):
    """A repository with one revision, main, in a cache."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "snapshots" / commit).mkdir(parents=True)
    for i, file in enumerate(files):
        shutil.copy(LLAMA / file, folder / "blobs" / str(i))
        (folder / "snapshots" / commit / file).symlink_to(f"../../blobs/{i}")
    return folder / "snapshots" / commit


def run(code, cache):
    """What a fresh process prints, which sees this cache and no network."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


READ = """
import json, sys
from kerasllm.checkpoints import files, hub
found = {}
for name in NAMES:
    try:
        folder = hub.local(name)
        found[name] = [files.read_json(folder / "config.json")["hidden_size"], len(files.read_tensors(folder))]
    except ValueError as error:
        found[name] = str(error)
print(json.dumps([found, "keras" in sys.modules]))
"""


def test_a_model_of_the_hub_is_taken_from_the_cache(tmp_path):
    pytest.importorskip("huggingface_hub")
    cached(tmp_path)
    cached(tmp_path, "lonely")
    names = ["hf://org/tiny", f"hf://org/tiny@{COMMIT}", "hf://lonely", "hf://org/other", "hf://org/tiny@v2"]
    found, needed_keras = run(f"NAMES = {names}" + READ, tmp_path)
    assert [found[name] for name in names[:3]] == [[16, 21]] * 3 and not needed_keras
    for name in names[3:]:
        assert found[name].startswith("it cannot be fetched: "), found[name]


@pytest.mark.parametrize(
    "name", ["hf://", "hf://a/b/c", "hf://../x", "hf://a/..", "hf://a/b@", "hf://a b", "hf://a/b/../x.gguf"]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="must have the form 'hf://org/name'"):
        hub.local(name)
    with pytest.raises(ValueError, match="must have the form 'kaggle://owner/model/framework/variation'"):
        hub.local(name.replace("hf", "kaggle"))


def test_a_name_without_hf_is_told_so():
    with pytest.raises(ValueError, match="preset .'org/name'.: .*no such folder.*'hf://org/name'"):
        read_preset("org/name", object)


@pytest.mark.parametrize("name, package", [("hf://org/name", "huggingface_hub"), ("kaggle://a/b/keras/c", "kagglehub")])
def test_a_package_that_is_missing_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}.*pip install"):
        hub.local(name)


def test_a_folder_is_itself(tmp_path):
    assert hub.local(tmp_path) == tmp_path
