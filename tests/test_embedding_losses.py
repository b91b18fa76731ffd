import pathlib

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.training import CoSENTLoss, CosineSimilarityLoss, InBatchNegativesLoss, MatryoshkaLoss

OF_SENTENCE_TRANSFORMERS = np.load(pathlib.Path(__file__).parent / "data" / "embedding_losses.npz")
COLUMNS = [OF_SENTENCE_TRANSFORMERS[name] for name in ("anchors", "positives", "negatives", "others")]
SCORES = OF_SENTENCE_TRANSFORMERS["scores"]
ROWS, WIDTH = COLUMNS[0].shape
CASES = {
    "pairs": (InBatchNegativesLoss(), 2),
    "warm pairs": (InBatchNegativesLoss(temperature=0.2), 2),
    "triplets": (InBatchNegativesLoss(), 3),
    "two negatives": (InBatchNegativesLoss(), 4),
    "cosine": (CosineSimilarityLoss(), 2),
    "cosent": (CoSENTLoss(), 2),
    "matryoshka of pairs": (MatryoshkaLoss(InBatchNegativesLoss(), [2, 4, 8]), 2),
    "weighted matryoshka of triplets": (MatryoshkaLoss(InBatchNegativesLoss(), [8, 3], weights=[1, 0.5]), 3),
    "matryoshka of cosine": (MatryoshkaLoss(CosineSimilarityLoss(), [8, 4]), 2),
    "matryoshka of cosent": (MatryoshkaLoss(CoSENTLoss(), [8, 4]), 2),
}


def rows_of(count, is_scored, order):
    """Vectors (count * 6, 8) and their labels in an order of rows."""
    vectors = np.concatenate(COLUMNS[:count])[order]
    groups = np.tile(np.arange(ROWS), count)
    if is_scored:
        return vectors, np.stack([groups, np.tile(SCORES, count)], axis=1)[order]
    roles = np.repeat([0, 1, 2, 2][:count], ROWS)
    return vectors, np.stack([100 - groups, roles], axis=1)[order]


def trained(loss, labels, vectors, sample_weight=None):
    """Loss and gradient by one step of `fit`, of a model whose vectors are its weights."""
    inputs = keras.Input((), dtype="int32")
    layer = keras.layers.Embedding(*vectors.shape)
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([vectors])
    model.compile(keras.optimizers.SGD(1.0), loss=loss)
    arguments = {"sample_weight": sample_weight, "batch_size": len(vectors), "verbose": 0, "shuffle": False}
    history = model.fit(np.arange(len(vectors)), labels, **arguments).history
    return history["loss"][0], vectors - model.get_weights()[0]


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_sentence_transformers_in_any_order(name):
    loss, count = CASES[name]
    order = np.random.default_rng(1).permutation(count * ROWS)
    vectors, labels = rows_of(count, loss.label_kind == "scored pairs", order)
    value, gradient = trained(loss, labels, vectors.astype("float32"))
    assert value == pytest.approx(OF_SENTENCE_TRANSFORMERS[name], rel=1e-5)
    expected = np.concatenate([OF_SENTENCE_TRANSFORMERS[f"{name}/{i}"] for i in range(count)])
    np.testing.assert_allclose(gradient, expected[order], rtol=1e-5, atol=1e-5)


def value_of(loss, *arguments):
    return float(keras.ops.convert_to_numpy(loss(*arguments)))


def test_weights_are_those_of_anchors_and_of_pairs():
    weights = np.array([2.0, 0.0, 1.0, 1.0, 0.5, 3.0])
    order = np.random.default_rng(1).permutation(2 * ROWS)
    for loss, is_scored in ((InBatchNegativesLoss(), False), (CosineSimilarityLoss(), True)):
        vectors, labels = rows_of(2, is_scored, order)
        single = np.eye(ROWS)
        shares = [value_of(loss, labels, vectors, np.tile(w, 2)[order]) for w in single]
        assert sum(shares) == pytest.approx(value_of(loss, labels, vectors), rel=1e-5)
        weighted = value_of(loss, labels, vectors, np.tile(weights, 2)[order][:, None])
        assert weighted == pytest.approx(weights @ shares, rel=1e-5)
        summed = type(loss)(reduction="sum")
        assert value_of(summed, labels, vectors) == pytest.approx(ROWS * value_of(loss, labels, vectors), rel=1e-5)
        assert loss.num_counted(labels) == ROWS == loss.count(labels)
    with pytest.raises(ValueError, match="sample_weight .* must be None"):
        CoSENTLoss()(labels, vectors, np.ones(2 * ROWS))
    with pytest.raises(ValueError, match=r"sample_weight .* must be of shape \(12,\)"):
        CosineSimilarityLoss()(labels, vectors, np.ones((2 * ROWS, 2)))


@pytest.mark.once("torch")
def test_a_row_without_its_partner_makes_the_loss_and_gradients_nan():
    order = np.arange(2 * ROWS)
    for loss, is_scored in ((InBatchNegativesLoss(), False), (CosineSimilarityLoss(), True), (CoSENTLoss(), True)):
        vectors, labels = rows_of(2, is_scored, order)
        value, gradient = trained(loss, labels[:-1], vectors[:-1].astype("float32"))
        assert np.isnan(value) and np.isnan(gradient).any()
    vectors, labels = rows_of(3, False, np.arange(3 * ROWS))
    for row, role in ((0, 3), (12, 1)):
        wrong = labels.copy()
        wrong[row, 1] = role
        assert np.isnan(value_of(InBatchNegativesLoss(), wrong, vectors))
    assert np.isfinite(value_of(InBatchNegativesLoss(), labels[1:], vectors[1:])), (
        "a document without anchor is one more"
    )


def test_configs_make_the_same_losses():
    for loss, _ in CASES.values():
        config = keras.losses.serialize(loss)
        copy = keras.losses.deserialize(config)
        assert type(copy) is type(loss) and copy.get_config() == loss.get_config()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: InBatchNegativesLoss(temperature=0), r"temperature \(0\) must be a positive number"),
        (lambda: InBatchNegativesLoss(chunk_size=0), r"chunk_size \(0\) must be a positive whole number"),
        (lambda: InBatchNegativesLoss(reduction="none"), r"reduction \('none'\) must be one of"),
        (lambda: CoSENTLoss(scale=-1), r"scale \(-1\) must be a positive number"),
        (lambda: MatryoshkaLoss("mse", [2]), r"loss \('mse'\) must be a loss of vectors"),
        (lambda: MatryoshkaLoss(CoSENTLoss(), []), r"dims \(\[\]\) must be"),
        (lambda: MatryoshkaLoss(CoSENTLoss(), [4, 4]), r"dims \(\[4, 4\]\) must be"),
        (lambda: MatryoshkaLoss(CoSENTLoss(), [4], [1, 2]), r"weights \(\[1, 2\]\) must be"),
        (
            lambda: MatryoshkaLoss(CoSENTLoss(), [16])(*rows_of(2, True, np.arange(12))[::-1]),
            r"dims \(16\) must be at most the width .* \(8\)",
        ),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 8, "dropout": 0.0}
IDS = np.random.default_rng(0).integers(1, 20, (12, 5)).astype("int32")
TEXTS = {"token_ids": IDS, "segment_ids": np.zeros_like(IDS), "padding_mask": IDS > 0}


def test_fit_shows_the_mean_over_pairs_of_batches_of_any_size():
    model = kerasllm.BERTEmbedder(20, **SIZES)
    model.compile("sgd", InBatchNegativesLoss())
    labels = np.stack([np.arange(12) // 2, np.arange(12) % 2], axis=1)
    shown = model.evaluate(TEXTS, labels, batch_size=8, verbose=0)
    vectors = model.predict(TEXTS, verbose=0)
    parts = [value_of(InBatchNegativesLoss(), labels[rows], vectors[rows]) for rows in (slice(8), slice(8, 12))]
    assert shown == pytest.approx((4 * parts[0] + 2 * parts[1]) / 6, rel=1e-5)


@pytest.mark.parametrize(
    "loss, label, words",
    [
        (InBatchNegativesLoss(), (0, 3), r"labels\[0\].* role .*3.* must be 0, 1 or 2"),
        (InBatchNegativesLoss(), (5, 0), r"labels\[0\].* group .*0.* must have one positive, it has 0"),
        (InBatchNegativesLoss(), (0.5, 0), r"labels\[0\].*whole"),
        (CosineSimilarityLoss(), (0, 0.5), r"labels\[0\].* group .*0.* two scores"),
        (CoSENTLoss(), (7, 0), r"labels\[0\].* group .*7.* must have two rows, it has 1"),
    ],
)
def test_fit_names_labels_that_are_no_pairs(loss, label, words):
    model = kerasllm.BERTEmbedder(20, **SIZES)
    model.compile("sgd", loss)
    labels = np.stack([np.arange(12) // 2, np.arange(12) % 2], axis=1).astype("float32")
    if loss.label_kind == "scored pairs":
        labels[:, 1] = 1.0
    labels[int(label[0] == 5)] = label if label[0] != 5 else labels[1] + [5, 0]
    with pytest.raises(ValueError, match=words):
        model.fit(TEXTS, labels, verbose=0)
    with pytest.raises(ValueError, match=r"labels \(12,\) must be of shape \(12, 2\)"):
        model.fit(TEXTS, labels[:, 0], verbose=0)


def test_class_weights_are_refused():
    model = kerasllm.BERTEmbedder(20, **SIZES)
    model.compile("sgd", InBatchNegativesLoss())
    with pytest.raises(ValueError, match="class_weight"):
        model.fit(TEXTS, np.zeros((12, 2)), class_weight={0: 2.0}, verbose=0)
