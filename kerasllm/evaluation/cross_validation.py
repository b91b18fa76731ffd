"""Cross-validation: how good a way of making a classifier is, by texts that it was not made from."""

import dataclasses
from collections import Counter

import numpy as np

from kerasllm.arguments import (
    check_boolean,
    check_function,
    check_positive,
    check_seed,
    is_number,
    is_whole,
    read_sequence,
    read_strings,
    shown,
)
from kerasllm.extras import required
from kerasllm.metrics.labels import confusion_matrix, scores_of_matrix

SCORES = ("accuracy", "macro_precision", "macro_recall", "macro_f1", "mcc")
LARGEST_SEED = 2**32  # of scikit-learn


@dataclasses.dataclass(frozen=True)
class CrossValidation:
    """What `kerasllm.cross_validate` has found. `print` shows a table.

    Attributes:
        folds: for each fold a dict of scores, name -> float.
        test_indices: for each fold the places of the texts that it was judged by, (M,) int.
        predictions: of each text the label that the model said which was not trained on it; None where `score` is the
            user's.
    """

    folds: list
    test_indices: list
    predictions: list | None = None

    @property
    def mean(self):
        """The mean of each score over the folds, a dict."""
        return {name: float(np.mean([fold[name] for fold in self.folds])) for name in self.folds[0]}

    @property
    def standard_deviation(self):
        """That of each score from fold to fold, a dict: sqrt(sum of (score - mean)^2 / (folds - 1)).

        The models of two folds share most of their texts, so it says less than as many independent trials would (Bengio
        and Grandvalet 2004).
        """
        return {name: float(np.std([fold[name] for fold in self.folds], ddof=1)) for name in self.folds[0]}

    def __getitem__(self, name):
        """The mean of a score."""
        return self.mean[name]

    def __str__(self):
        mean, deviation = self.mean, self.standard_deviation
        width = max(map(len, mean))
        heads = [f"fold {i}" for i in range(len(self.folds))]
        lines = [" " * width + "".join(f"{head:>10}" for head in (*heads, "mean", "std"))]
        for name in mean:
            values = [*(fold[name] for fold in self.folds), mean[name], deviation[name]]
            lines.append(f"{name:<{width}}" + "".join(f"{value:10.4f}" for value in values))
        return "\n".join(lines)


def cross_validate(
    make_model, texts, labels, *, folds=5, groups=None, stratify=True, seed=0, truncate=False, score=None
):
    """Judge a way of making a classifier by k-fold cross-validation, with scikit-learn's splitters.

    Each text is judged once, by a model that has not seen it. What is learned from texts, a tokenizer or what augments
    them, belongs into `make_model`, which is given those of training alone.

    Args:
        make_model: function (texts, labels) -> a model that it has trained on those, new for each fold, with `classify`
            as a `BERTClassifier` has it; with a `score` of the user's, anything. It sets seeds where runs are to be
            equal.
        texts: list of strings.
        labels: for each its label, a name or a number, which is a place among the model's labels.
        folds: their number, 2 or more.
        groups: for each text what it belongs to (an author, a document, a patient), a string or a whole number. Texts
            of a group are in one fold, so that none is judged by a model that knows its neighbours.
        stratify: whether labels are as frequent in each fold as over all. Then there are as many texts of each label as
            folds, or, with groups, as many groups.
        seed: of the folds, a whole number below 2**32.
        truncate: whether texts that are longer than the model are cut where it is judged; otherwise they are errors.
        score: function (model, texts, labels) -> dict name -> number, in place of accuracy, macro precision, recall and
            F1, and MCC of `kerasllm.metrics.classification_scores`.

    Returns:
        A `CrossValidation`.

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
        ValueError: there are too few texts, groups or labels for so many folds; the same text is there twice, without
            `groups` or in two of them, so that a model would be judged by what it was trained on.

    Example:
        >>> def make_model(texts, labels):
        ...     model = BERTClassifier.from_preset("bert-base-uncased", fresh_head=True, labels=["bad", "good"])
        ...     model.compile(AdamW(2e-5), TokenCrossentropy())
        ...     model.fit(ClassificationDataset(texts, labels, model.tokenizer), epochs=2)
        ...     return model
        >>> print(kerasllm.cross_validate(make_model, texts, labels, groups=authors))
    """
    check_function("make_model", make_model)
    texts, labels = read_strings("texts", texts), _read_keys("labels", labels)
    check_positive("folds", folds)
    check_boolean("stratify", stratify)
    check_boolean("truncate", truncate)
    check_seed("seed", seed)
    if seed >= LARGEST_SEED:
        raise ValueError(f"seed ({seed}) must be below 2**32.")
    if score is not None:
        check_function("score", score)
    groups = None if groups is None else _read_keys("groups", groups)
    for name, values in {"labels": labels, "groups": groups}.items():
        if values is not None and len(values) != len(texts):
            raise ValueError(f"{name} ({len(values)} of them) must be as many as texts ({len(texts)}).")
    _check_apart(texts, groups)
    _check_enough(labels, groups, folds, stratify)
    splits = _splits(labels, groups, folds, stratify, seed)
    found, predictions = [], [None] * len(texts)
    for train, test in splits:
        model = make_model([texts[i] for i in train], [labels[i] for i in train])
        its_texts, its_labels = [texts[i] for i in test], [labels[i] for i in test]
        if score is None:
            said, scores = _judged(model, its_texts, its_labels, truncate)
            for i, label in zip(test, said, strict=True):
                predictions[i] = label
        else:
            scores = _read_scores(score(model, its_texts, its_labels), found)
        found.append(scores)
    return CrossValidation(found, [test for _, test in splits], predictions if score is None else None)


def _splits(labels, groups, folds, stratify, seed):
    """The places of texts for training and test of each fold: a list of pairs of (M,) int."""
    selection = required("sklearn.model_selection", "cross_validate")
    name = ("Stratified" if stratify else "") + ("Group" if groups else "") + "KFold"
    splitter = getattr(selection, name)(n_splits=folds, shuffle=True, random_state=int(seed))
    codes = [None if x is None else np.unique([str(v) for v in x], return_inverse=True)[1] for x in (labels, groups)]
    splits = list(splitter.split(np.zeros(len(labels)), *codes))
    for i, (_, test) in enumerate(splits):
        if not len(test):
            raise ValueError(f"groups: fold {i} of {folds} has no text, for groups are of too unequal sizes.")
    return splits


def _check_apart(texts, groups):
    """Raise `ValueError` where a text could be in training and test at once."""
    places = {}
    for i, text in enumerate(texts):
        first = places.setdefault(text, i)
        if first != i and groups is None:
            raise ValueError(
                f"texts[{i}] ({shown(text)}) is texts[{first}] once more: a model would be judged by what it was "
                "trained on. Leave it out, or give equal texts one of groups."
            )
        if first != i and groups[first] != groups[i]:
            raise ValueError(
                f"groups[{i}] ({shown(groups[i])}) must be groups[{first}] ({shown(groups[first])}), for their texts "
                f"are the same ({shown(text)}): a model would be judged by what it was trained on."
            )


def _check_enough(labels, groups, folds, stratify):
    units = "texts" if groups is None else "groups"
    count = len(labels) if groups is None else len(set(groups))
    if not 2 <= folds <= count:
        raise ValueError(f"folds ({folds}) must be from 2 to the number of {units} ({count}).")
    if not stratify:
        return
    # A group counts for a label once, however many of its texts have it.
    pairs = list(enumerate(labels)) if groups is None else set(zip(groups, labels, strict=True))
    for label, number in Counter(label for _, label in pairs).items():
        if number < folds:
            raise ValueError(
                f"labels: {shown(label)} is there in {number} {units}, fewer than folds ({folds}); stratify=False does "
                "without."
            )


def _judged(model, texts, labels, truncate):
    """The labels that a model says, as the given ones are names or numbers, and its scores."""
    if not hasattr(model, "classify") or getattr(model, "problem_type", None) != "single_label":
        raise ValueError(
            f"make_model: its result ({shown(model)}) must be a classifier with one label for a text, or score be "
            "given."
        )
    names = list(model.arguments["labels"])
    by_name = isinstance(labels[0], str)
    accepted = names if by_name else range(len(names))
    for label in labels:
        if label not in accepted:
            raise ValueError(f"labels: {shown(label)} must be one of the model's, {shown(names, 200)}, or its number.")
    places = [names.index(row[0]["label"]) for row in model.classify(texts, truncate=truncate, verbose=False)]
    given = [names.index(label) for label in labels] if by_name else labels
    scores = scores_of_matrix(confusion_matrix(given, places, len(names)))
    return [names[i] if by_name else i for i in places], {name: float(scores[name]) for name in SCORES}


def _read_scores(scores, before):
    """What the user's `score` gives, with the same names in each fold."""
    if not isinstance(scores, dict) or not scores or not all(is_number(value) for value in scores.values()):
        raise ValueError(f"score: its result ({shown(scores)}) must be a dict of names and finite numbers.")
    if before and scores.keys() != before[0].keys():
        raise ValueError(f"score: its result ({shown(scores)}) must have the names of the fold before.")
    return {str(name): float(value) for name, value in scores.items()}


def _read_keys(name, values):
    """The list of strings, or of whole numbers."""
    values = read_sequence(name, values)
    if not all(isinstance(v, str) for v in values) and not all(is_whole(v) for v in values):
        raise ValueError(f"{name} ({shown(values)}) must be all strings or all whole numbers.")
    return [v if isinstance(v, str) else int(v) for v in values]
