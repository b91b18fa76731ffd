import numpy as np
import pytest

from kerasllm import metrics

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


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.confusion_matrix([0, 1], [0], 2), "labels .2 of them. and predictions .1. must be as many"),
        (lambda: metrics.confusion_matrix([0, 2], [0, 1], 2), "labels .* must be whole numbers in 0 .. 1"),
        (lambda: metrics.answer_scores([], []), "at least one"),
        (lambda: metrics.bleu(["a"], []), "hypotheses .1 of them. and references .0."),
        (lambda: metrics.bleu(["a"], ["a"], tokenize="moses"), "tokenize .'moses'."),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
