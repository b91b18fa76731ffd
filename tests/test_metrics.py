import json
import os
import pathlib

import numpy as np
import pytest
import sacrebleu.metrics
import sklearn.metrics

from kerasllm import metrics
from kerasllm.metrics.entities import entity_counts
from kerasllm.metrics.labels import scores_of_cells
from kerasllm.metrics.texts import corpus_score

LABELS, PREDICTIONS = [0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 0, 0]


def test_labels_are_counted_by_hand():
    assert metrics.confusion_matrix(LABELS, PREDICTIONS, 4).tolist() == [
        [1, 1, 0, 0],
        [1, 2, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    scores = metrics.classification_scores(LABELS, PREDICTIONS, 4)
    assert scores["accuracy"] == 0.5
    np.testing.assert_allclose(scores["precision"], [1 / 3, 2 / 3, 0, 0])
    np.testing.assert_allclose(scores["recall"], [1 / 2, 2 / 3, 0, 0])
    np.testing.assert_allclose(scores["f1"], [0.4, 2 / 3, 0, 0])
    assert scores["support"].tolist() == [2, 3, 1, 0]
    assert scores["macro_f1"] == pytest.approx((0.4 + 2 / 3) / 4)


def test_scores_over_all_classes_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    for labels, predictions in ((LABELS, PREDICTIONS), generator.integers(0, 4, (2, 50)).tolist(), ([1, 1], [1, 1])):
        scores = metrics.classification_scores(labels, predictions, 4)
        shared = {"labels": range(4), "zero_division": 0}
        for average in ("macro", "micro"):
            expected = sklearn.metrics.precision_recall_fscore_support(labels, predictions, average=average, **shared)
            found = [scores[f"{average}_{name}"] for name in ("precision", "recall", "f1")]
            np.testing.assert_allclose(found, expected[:3])
        assert scores["mcc"] == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predictions))
        cells, counts = np.unique(np.array(labels) * 4 + predictions, return_counts=True)
        fast = scores_of_cells(counts[None].astype(float), *divmod(cells, 4), 4)
        assert {name: x[0] for name, x in fast.items()} == pytest.approx({name: scores[name] for name in fast})


def test_calibration_is_counted_by_hand():
    # (0, 0.5]: confidence 0.4 and 0.5, one right; (0.5, 1]: 0.9, right.
    error = metrics.calibration_error([0.4, 0.5, 0.9], [True, False, True], num_bins=2)
    assert error == pytest.approx(2 / 3 * abs(0.45 - 0.5) + 1 / 3 * 0.1)
    assert metrics.calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


def test_entities_count_where_they_are_whole():
    labels = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "I-LOC"], ["O"]]
    predictions = [["B-PER", "I-PER", "O", "B-PER"], ["O", "I-LOC"], ["B-LOC"]]
    scores = metrics.entity_scores(labels, predictions)
    # Found: PER 0-2, PER 3-4, LOC of the last; the lone I-LOC is none. Given: PER 0-2, LOC 3-4, LOC 0-2.
    assert [scores[name] for name in ("precision", "recall", "f1", "support")] == pytest.approx(
        [1 / 3, 1 / 3, 1 / 3, 3]
    )
    assert scores["types"]["PER"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert scores["macro_f1"] == pytest.approx(1 / 3)
    assert entity_counts(labels, predictions).tolist() == [[1, 2, 2], [0, 0, 1], [0, 1, 0]]
    whole = metrics.entity_scores([["S-PER", "B-LOC", "E-LOC"]], [["S-PER", "B-LOC", "E-LOC"]], "IOBES")
    assert whole["f1"] == 1 and metrics.entity_scores([["O"]], [["O"]])["f1"] == 0


def test_an_interval_holds_the_middle_of_the_draws():
    rows = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = metrics.bootstrap_interval(lambda sums: sums[:, 0] / 400, rows)
    assert low < rows.mean() < high and high - low == pytest.approx(2 * 1.96 * 2.0 / 20, rel=0.15)
    assert metrics.bootstrap_interval(lambda sums: sums[:, 0] / 400, rows) == (low, high)
    assert metrics.bootstrap_interval(lambda sums: sums[:, 0] / 400, rows, seed=1) != (low, high)
    # Kinds of rows and how many there are of each give what the rows give.
    share = np.repeat([0.0, 1.0], [30, 70])
    alike = metrics.bootstrap_interval(lambda sums: sums[:, 0] / 100, [0.0, 1.0], 20_000, counts=[30, 70])
    np.testing.assert_allclose(
        alike, metrics.bootstrap_interval(lambda sums: sums[:, 0] / 100, share, 20_000), atol=0.011
    )
    both = metrics.bootstrap_interval(lambda sums: {"x": sums[:, 0], "y": sums[:, 1]}, np.ones((5, 2)), resamples=3)
    assert both == {"x": (5.0, 5.0), "y": (5.0, 5.0)}


def test_repetition_is_counted_by_hand():
    texts = ["a b a b", "a b c", ""]
    assert metrics.distinct_ngrams(texts, 1) == pytest.approx(3 / 7)
    assert metrics.distinct_ngrams(texts, 2) == pytest.approx(3 / 5)  # ab ba ab; ab bc
    assert metrics.repeated_ngrams(texts, 2) == pytest.approx([1 / 3, 0, 0])
    assert metrics.distinct_ngrams(texts, 9) == 0


def test_answers_count_as_in_squad():
    answers = ["The  Eiffel tower!", "in Paris", "", "blue"]
    references = ["Eiffel Tower", ["Lyon", "Paris"], "", "red"]
    scores = metrics.answer_scores(answers, references)
    assert scores["exact_match"] == 0.5
    assert scores["f1"] == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)


@pytest.mark.once("torch")
def test_texts_are_scored_by_the_libraries():
    texts = ["the cat sat on the mat", "a dog barked loudly at night"]
    assert metrics.bleu(texts, texts)[0] == pytest.approx(100)
    assert "tok:13a" in metrics.bleu(texts, texts)[1]
    assert "case:lc" in metrics.bleu(texts, texts, lowercase=True)[1]
    apart = (["a b c . d e"], ["a b c. d e"])
    assert metrics.bleu(*apart, tokenize="none")[0] < metrics.bleu(*apart, tokenize="intl")[0]
    assert metrics.chrf(texts, texts)[0] == pytest.approx(100) and "nc:6" in metrics.chrf(texts, texts)[1]
    assert metrics.rouge(texts, texts) == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert metrics.rouge(["cats"], ["cat"])["rouge1"] == 1 and metrics.rouge(["cats"], ["cat"], False)["rouge1"] == 0


@pytest.mark.once("torch")
def test_intervals_of_corpora_are_those_of_sacrebleu(monkeypatch):
    texts = ["the cat sat on the mat", "a dog barked loudly", "it rains in the night"]
    references = ["the cat sat on a mat", "a dog barked at night", "it rains at night"]
    monkeypatch.setenv("SACREBLEU_SEED", "3")
    expected = sacrebleu.metrics.CHRF().corpus_score(texts, [references], n_bootstrap=50)
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    found = corpus_score("CHRF", texts, references, 50, 3)
    assert found.score == metrics.chrf(texts, references)[0] == expected.score
    assert found.interval == (expected._mean - expected._ci, expected._mean + expected._ci)
    assert "bs:50|seed:3" in found.signature and os.environ["SACREBLEU_SEED"] == "7"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.confusion_matrix([0, 1], [0], 2), "labels .2 of them. and predictions .1. must be as many"),
        (lambda: metrics.confusion_matrix([0, 2], [0, 1], 2), "labels .* must be whole numbers in 0 .. 1"),
        (lambda: metrics.answer_scores([], []), "at least one"),
        (lambda: metrics.calibration_error([0.5, 1.5], [True, False]), "confidences .* must be numbers in .0, 1."),
        (lambda: metrics.calibration_error([0.5], [3]), "is_right .* must be True or False"),
        (
            lambda: metrics.entity_scores([["B-PER"]], [["PER"]]),
            "predictions.0. holds 'PER', which is no label of IOB2",
        ),
        (lambda: metrics.entity_scores([["O", "O"]], [["O"]]), "labels.0. .2 of them. and predictions.0. .1."),
        (lambda: metrics.entity_scores([["O"]], [["O"]], "IOB"), "scheme .'IOB'. must be one of"),
        (lambda: metrics.bootstrap_interval(len, [[1.0], [float("nan")]]), "must be finite numbers .N, K."),
        (lambda: metrics.bootstrap_interval(len, [1.0, 2.0], counts=[1]), "counts .* must be 2 whole numbers"),
        (lambda: metrics.bleu(["a"], []), "hypotheses .1 of them. and references .0."),
        (lambda: metrics.bleu(["a"], ["a"], tokenize="moses"), "tokenize .'moses'."),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


OF_OTHERS = json.loads((pathlib.Path(__file__).parent / "data" / "retrieval.json").read_text())


def test_rankings_are_measured_as_sentence_transformers_and_scikit_learn_do():
    ranked, relevant, at = (OF_OTHERS[name] for name in ("ranked", "relevant", "at"))
    assert metrics.retrieval_scores(ranked, relevant, at) == pytest.approx(OF_OTHERS["expected"], rel=1e-12)
    assert metrics.retrieval_scores(ranked, list(map(set, relevant)), at)["mrr@3"] == OF_OTHERS["expected"]["mrr@3"]
    graded = [{int(i): gain for i, gain in row.items()} for row in OF_OTHERS["graded"]]
    found = metrics.retrieval_scores(ranked, graded, at)
    for name, value in OF_OTHERS["expected_graded"].items():
        assert found[name] == pytest.approx(value, rel=1e-12)
        assert found[name.replace("ndcg", "recall")] == OF_OTHERS["expected"][name.replace("ndcg", "recall")]


def test_orders_are_compared_as_scipy_does():
    found = metrics.spearman(OF_OTHERS["scores"], np.array(OF_OTHERS["references"]))
    assert found == pytest.approx(OF_OTHERS["spearman"], rel=1e-12)
    assert metrics.spearman([1, 2, 3], [0.1, 0.2, 5]) == 1.0 and metrics.spearman([1, 2, 3], [3, 2, 1]) == -1.0
    assert np.isnan(metrics.spearman([1, 1, 1], [3, 2, 1]))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: metrics.spearman([1, 2], [1]), "scores .2 of them. and references .1. must be as many"),
        (lambda: metrics.spearman([1, "x"], [1, 2]), r"scores\[1\] \('x'\) must be a finite number"),
        (lambda: metrics.spearman([1], [2]), r"scores \(\[1\]\) must be two at least"),
        (lambda: metrics.retrieval_scores([[1, 2]], [[1]], at=[3]), r"ranked\[0\] \(\[1, 2\]\) must be different ids"),
        (lambda: metrics.retrieval_scores([[1, 1]], [[1]], at=[2]), r"ranked\[0\] \(\[1, 1\]\) must be different ids"),
        (lambda: metrics.retrieval_scores([[1, 2]], [[]], at=[1]), r"relevant\[0\] \({}\) must be ids, one at least"),
        (lambda: metrics.retrieval_scores([[1, 2]], [{1: -1}], at=[1]), r"relevant\[0\] .* dict of ids and gains"),
        (lambda: metrics.retrieval_scores([[1, 2]], ["ab"], at=[1]), r"relevant\[0\] \('ab'\) must be a sequence"),
        (lambda: metrics.retrieval_scores([[1]], [[1]], at=[0]), r"at \(0\) must be a positive"),
        (lambda: metrics.retrieval_scores([[1]], [[1], [2]]), "ranked .1 of them. and relevant .2."),
        (lambda: metrics.retrieval_scores([[[1]]], [[1]], at=[1]), r"ranked\[0\] .* must be"),
    ],
)
def test_bad_scores_and_rankings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
