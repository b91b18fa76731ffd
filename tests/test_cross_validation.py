"""Cross-validation: every text is judged once by a model that has not seen it; what would leak is refused."""

from collections import Counter

import numpy as np
import pytest

import kerasllm
from kerasllm.evaluation.cross_validation import cross_validate

NAMES = ["bad", "good"]
LABELS = [NAMES[i % 3 == 0] for i in range(24)]
TEXTS = [f"{label} {i}" for i, label in enumerate(LABELS)]
AUTHORS = [i // 3 for i in range(24)]


class Reader:
    """A classifier that knows the texts that it was made from, and says the commonest label of others."""

    problem_type = "single_label"
    arguments = {"labels": NAMES}

    def __init__(self, texts, labels):
        self.known, self.common = set(texts), Counter(labels).most_common(1)[0][0]

    def classify(self, texts, truncate, verbose):
        assert not self.known & set(texts)
        return [[{"label": self.common if isinstance(self.common, str) else NAMES[self.common]}] for _ in texts]


@pytest.mark.once("torch")
@pytest.mark.parametrize("stratify", [True, False])
@pytest.mark.parametrize("groups", [None, AUTHORS, [f"author {i}" for i in AUTHORS]])
def test_every_text_is_judged_once_by_a_model_that_has_not_seen_it(groups, stratify):
    pytest.importorskip("sklearn")
    found = cross_validate(Reader, TEXTS, LABELS, folds=4, groups=groups, stratify=stratify, seed=3)
    assert sorted(i for test in found.test_indices for i in test) == list(range(24))
    assert len(found.folds) == 4 and found.predictions == ["bad"] * 24
    for fold, test in zip(found.folds, found.test_indices, strict=True):
        assert fold["accuracy"] == np.mean([LABELS[i] == "bad" for i in test])
        if groups is not None:
            inside = {groups[i] for i in test}
            assert not inside & {groups[i] for i in set(range(24)) - set(test)}
        if stratify:
            assert Counter(LABELS[i] for i in test) == {"bad": 4, "good": 2}
    values = [fold["accuracy"] for fold in found.folds]
    assert found["accuracy"] == pytest.approx(np.mean(values))
    assert found.standard_deviation["accuracy"] == pytest.approx(np.std(values, ddof=1))
    again = cross_validate(Reader, TEXTS, LABELS, folds=4, groups=groups, stratify=stratify, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(found.test_indices, again.test_indices, strict=True))
    assert "macro_f1" in str(found) and "std" in str(found)


@pytest.mark.once("torch")
def test_labels_may_be_numbers_and_scores_the_users():
    pytest.importorskip("sklearn")
    numbers = [NAMES.index(label) for label in LABELS]
    assert cross_validate(Reader, TEXTS, numbers, folds=2).predictions == [0] * 24
    sizes = cross_validate(
        lambda texts, labels: len(texts),
        TEXTS,
        LABELS,
        folds=3,
        score=lambda n, texts, labels: {"part": len(texts) / n},
    )
    assert sizes.folds == [{"part": 0.5}] * 3 and sizes.predictions is None


def test_a_model_of_kerasllm_is_judged():
    pytest.importorskip("sklearn")

    def make_model(texts, labels):
        tokenizer = kerasllm.Tokenizer.train_wordpiece(texts, 60)
        sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "labels": NAMES, "tokenizer": tokenizer}
        return kerasllm.BERTClassifier(tokenizer.vocabulary_size, **sizes)

    found = cross_validate(make_model, TEXTS, LABELS, folds=2)
    assert all(0 <= fold["accuracy"] <= 1 for fold in found.folds) and set(found.predictions) <= set(NAMES)


@pytest.mark.once("torch")
@pytest.mark.parametrize(
    "given, message",
    [
        ({"texts": [*TEXTS[:-1], TEXTS[0]]}, r"^texts\[23\] .* texts\[0\]"),
        ({"texts": [*TEXTS[:-1], TEXTS[0]], "groups": AUTHORS}, r"^groups\[23\] \(7\) must be groups\[0\] \(0\)"),
        ({"groups": [0] * 20 + [1] * 4}, r"^folds \(5\) .* groups \(2\)"),
        ({"groups": [int(i > 3) * i for i in range(24)], "labels": ["bad"] * 20 + ["good"] * 4}, "^labels: 'good'"),
        ({"labels": ["bad"] * 23 + ["good"]}, "^labels: 'good' is there in 1 texts"),
        ({"labels": LABELS[1:]}, r"^labels \(23"),
        ({"labels": [0.5] * 24}, "^labels "),
        ({"labels": ["x"] * 24}, "^labels: 'x'"),
        ({"groups": AUTHORS[1:]}, r"^groups \(23"),
        ({"groups": [None] * 24}, "^groups "),
        ({"folds": 1}, r"^folds \(1\)"),
        ({"folds": 25, "stratify": False}, r"^folds \(25\) .*24"),
        ({"folds": None}, "^folds "),
        ({"stratify": "x"}, "^stratify "),
        ({"truncate": 3}, "^truncate "),
        ({"seed": -1}, "^seed "),
        ({"seed": 2**32}, "^seed "),
        ({"texts": "x"}, "^texts "),
        ({"make_model": 3}, "^make_model "),
        ({"make_model": lambda texts, labels: None}, "^make_model: "),
        ({"score": 3}, "^score "),
        ({"score": lambda *_: 0.5}, "^score: "),
        ({"score": lambda *_: {"x": float("nan")}}, "^score: "),
    ],
)
def test_what_would_leak_or_cannot_be_is_named(given, message):
    pytest.importorskip("sklearn")
    right = {"make_model": Reader, "texts": TEXTS, "labels": LABELS}
    with pytest.raises(ValueError, match=message):
        cross_validate(**{**right, **given})
