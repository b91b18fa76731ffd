"""Preferences: the loss beside TRL's, with logits and without, and a model that learns which answer is better."""

import pathlib

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.text import Tokenizer
from kerasllm.training import DPOLoss, Perplexity, PreferenceAccuracy, PreferenceDataset

FILE = np.load(pathlib.Path(__file__).parent / "data" / "preferences.npz")
PAIRS = [
    {"prompt": "the cat ", "chosen": "sat on the mat", "rejected": "ran"},
    {"prompt": "a dog ", "chosen": "ran to the cat", "rejected": "sat on a mat on a mat"},
    {"prompt": "the mat ", "chosen": "sat", "rejected": "ran to the dog"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_bpe(["the cat sat on the mat", "a dog ran to the cat"] * 3, 300, bos="<s>", eos="</s>")


def labels_of_file():
    ids, mask = FILE["token_ids"], FILE["completion_mask"]
    labels = np.where(mask[:, 1:], ids[:, 1:], -1)
    pairs = np.tile(np.arange(3), 2), np.repeat([0, 1], 3), FILE["reference"]
    return np.concatenate([np.stack(pairs, 1), labels], 1).astype("float32")


def trained_logits(loss, labels, logits, **weights):
    """The loss, and the gradient by logits: of a model that looks them up."""
    inputs = keras.Input((1,), dtype="int32")
    table = keras.layers.Embedding(len(logits), int(np.prod(logits.shape[1:])), weights=logits.reshape(len(logits), -1))
    x = keras.layers.Reshape(logits.shape[1:])(table(inputs))
    model = keras.Model(inputs, x)
    model.compile(keras.optimizers.SGD(1.0), loss)
    rows = np.arange(len(logits))[:, None]
    value = model.train_on_batch(rows, labels, **weights)
    return float(value), logits - ops.convert_to_numpy(table.embeddings).reshape(logits.shape)


def test_loss_and_gradient_are_those_of_trl():
    labels, logits = labels_of_file(), FILE["logits"][:, :-1]
    loss, gradient = trained_logits(DPOLoss(beta=float(FILE["beta"])), labels, logits)
    assert loss == pytest.approx(float(FILE["loss"]), rel=1e-5)
    np.testing.assert_allclose(gradient, FILE["gradient"][:, :-1], atol=1e-5)
    order = np.array([4, 0, 5, 2, 1, 3])
    loss, gradient = trained_logits(DPOLoss(beta=float(FILE["beta"])), labels[order], logits[order])
    assert loss == pytest.approx(float(FILE["loss"]), rel=1e-5)
    np.testing.assert_allclose(gradient, FILE["gradient"][order, :-1], atol=1e-5)


def test_smoothing_is_a_share_of_the_pair_turned_round():
    labels, logits = labels_of_file(), FILE["logits"][:, :-1]
    turned = labels.copy()
    turned[:, 1] = 1 - turned[:, 1]
    straight, back = (float(DPOLoss(0.3)(y, logits)) for y in (labels, turned))
    assert float(DPOLoss(0.3, label_smoothing=0.2)(labels, logits)) == pytest.approx(0.8 * straight + 0.2 * back)


def test_weights_are_those_of_pairs():
    labels, logits = labels_of_file(), FILE["logits"][:, :-1]
    alone = [float(DPOLoss(0.3)(labels[[i, i + 3]], logits[[i, i + 3]])) for i in range(3)]
    weighted = DPOLoss(0.3)(labels, logits, np.array([1.0, 0.0, 3.0, 9.0, 9.0, 9.0]))
    assert float(weighted) == pytest.approx((alone[0] + 3 * alone[2]) / 3, rel=1e-5)


def test_half_a_pair_is_no_number():
    labels, logits = labels_of_file(), FILE["logits"][:, :-1]
    for rows in ([0, 1, 3], [0, 3, 4], [0, 3, 3]):
        assert np.isnan(float(DPOLoss()(labels[rows], logits[rows])))


def model_of(tokenizer, **arguments):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 64, "dropout": 0.0}
    return kerasllm.GPT(
        tokenizer.vocabulary_size, **{**sizes, "initializer_range": 0.3, "tokenizer": tokenizer, **arguments}
    )


def test_the_reference_is_what_the_model_says_before(tokenizer):
    model = model_of(tokenizer)
    dataset = PreferenceDataset(PAIRS, tokenizer, model, batch_size=2, shuffle=False)
    for (chosen, rejected), values in zip(dataset.pairs, dataset.reference, strict=True):
        for row, value in zip((chosen, rejected), values, strict=True):
            inputs = {"token_ids": row.ids[None, :-1], "padding_mask": np.ones((1, len(row.ids) - 1), bool)}
            log_probs = ops.convert_to_numpy(ops.log_softmax(model(inputs)))[0]
            steps = np.flatnonzero(row.learnt[1:])
            assert value == pytest.approx(log_probs[steps, row.ids[1:][steps]].sum(), abs=1e-4)
    # At the beginning no answer is preferred.
    model.compile("sgd", DPOLoss(), metrics=[PreferenceAccuracy()])
    loss, accuracy = model.evaluate(dataset, verbose=0)
    assert loss == pytest.approx(np.log(2), abs=1e-4) and accuracy < 1


@pytest.mark.once("tensorflow", "torch")
def test_without_logits_it_is_the_same(tokenizer):
    results = []
    for chunk_size in (None, 5):
        keras.utils.set_random_seed(3)
        model = model_of(tokenizer)
        chance = np.random.default_rng(0)
        dataset = PreferenceDataset(PAIRS, tokenizer, chance.normal(-20, 1, (3, 2)), batch_size=2, shuffle=False)
        model.compile(keras.optimizers.SGD(0.1), DPOLoss(0.5, 0.1, chunk_size), metrics=[PreferenceAccuracy()])
        before = model.evaluate(dataset, verbose=0)
        model.fit(dataset, epochs=2, verbose=0)
        results.append((before, [ops.convert_to_numpy(v.value) for v in model.trainable_variables]))
    np.testing.assert_allclose(*(before for before, _ in results), rtol=1e-4)
    for a, b in zip(*(weights for _, weights in results), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_model_comes_to_prefer_what_is_chosen(tokenizer):
    model = model_of(tokenizer)
    dataset = PreferenceDataset(PAIRS, tokenizer, model, batch_size=3)
    kerasllm.add_lora(model, 4, 16)
    model.compile(keras.optimizers.Adam(0.02), DPOLoss(chunk_size=16), metrics=[PreferenceAccuracy()])
    history = model.fit(dataset, epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.6 and history["preference_accuracy"][-1] == 1


@pytest.mark.once("torch")
def test_chats_that_differ_at_their_end_are_pairs(tokenizer):
    tokenizer.config["chat_template"] = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    start = [{"role": "user", "content": "the cat"}]
    better, worse = ([*start, {"role": "assistant", "content": text}] for text in ("sat", "ran"))
    model = model_of(tokenizer)
    whole = PreferenceDataset([{"chosen": better, "rejected": worse}], tokenizer, model)
    parted = PreferenceDataset([{"prompt": start, "chosen": better[1:], "rejected": worse[1:]}], tokenizer, model)
    for a, b in zip(whole.pairs[0], parted.pairs[0], strict=True):
        assert np.array_equal(a.ids, b.ids) and np.array_equal(a.learnt, b.learnt)


@pytest.mark.once("jax")
@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, r"pairs\[0\] .* has no rejected answer"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, r"pairs\[0\] .* its answers are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, r"pairs\[0\], rejected: completion"),
        ("a", "must be a dict|there is no file"),
    ],
)
def test_bad_pairs_are_named(pair, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        PreferenceDataset([pair], tokenizer, np.zeros((1, 2)))


def test_bad_labels_are_named_before_a_step(tokenizer):
    model = model_of(tokenizer)
    with pytest.raises(ValueError, match="reference"):
        PreferenceDataset(PAIRS, tokenizer, np.zeros((2, 2)))
    dataset = PreferenceDataset(PAIRS, tokenizer, np.zeros((3, 2)), shuffle=False)
    inputs, labels = dataset.arrays()
    model.compile("sgd", DPOLoss(chunk_size=8))
    rows = [0, 1, 2]
    half = {name: value[rows] for name, value in inputs.items()}
    with pytest.raises(ValueError, match="its pair has not one chosen and one rejected"):
        model.fit(half, labels[rows], verbose=0)
    with pytest.raises(ValueError, match="labels .* must be of shape"):
        model.fit(inputs, labels[:, 1:], verbose=0)
    model.compile("sgd", DPOLoss(chunk_size=8), metrics=[Perplexity()])
    with pytest.raises(ValueError, match="perplexity: y_true .* must be labels of the tokens"):
        model.fit(inputs, labels, verbose=0)
