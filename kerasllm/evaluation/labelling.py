"""Judging labels: of texts, and of the words in them."""

import numpy as np

from kerasllm.arguments import check_boolean, shown
from kerasllm.evaluation.rows import Column, label, text, words
from kerasllm.metrics.entities import SCHEMES, entity_counts, entity_scores, is_of_scheme
from kerasllm.metrics.labels import (
    calibration_error,
    calibration_rows,
    confusion_matrix,
    scores_of_cells,
    scores_of_matrix,
)

OF_TEXTS = {"text": Column(text), "label": Column(label), "pair": Column(text, is_needed=False)}
OF_WORDS = {"words": Column(words), "labels": Column(words)}
OVERALL = (
    "accuracy macro_precision macro_recall macro_f1 micro_precision micro_recall micro_f1 mcc"  # of `scores_of_matrix`
).split()


def classify(run, *, label_ids=False, truncate=False, stride=None):
    """Judge a classifier of texts.

    Args:
        run: a `Run`.
        label_ids: whether the data's labels are numbers, places among the model's labels. Default: they are names.
        truncate: whether texts that are too long are cut.
        stride: tokens that two windows share, where such texts are read in windows. Default: they are errors.
    """
    check_boolean("label_ids", label_ids)
    model, names = run.model, run.model.arguments["labels"]
    if model.problem_type != "single_label":
        raise ValueError(f"model: problem_type ({model.problem_type!r}) must be 'single_label' for this task.")
    labels = np.array([_place_of(row, names, label_ids) for row in run.rows])

    def answer(rows, first):
        texts = [row.values["text"] for row in rows]
        pairs = [row.values["pair"] for row in rows] if run.has("pair") else None
        return model.classify(texts, pairs, batch_size=run.batch_size, truncate=truncate, verbose=False, stride=stride)

    best = [row[0] for row in run.outputs(answer)]
    predictions = np.array([names.index(row["label"]) for row in best])
    confidences, is_right = [row["score"] for row in best], predictions == labels
    cells, counts = np.unique(labels * len(names) + predictions, return_counts=True)
    measures, details = _judged(run, names, labels, predictions, cells, np.eye(len(cells)), counts)
    measures |= run.measured(
        {"calibration_error": calibration_error(confidences, is_right)},
        lambda sums: {"calibration_error": np.abs(sums).sum(1) / len(labels)},
        calibration_rows(confidences, is_right),
        {"calibration_error": "of the label's probability, in 15 bins"},
    )
    return measures, details, _missing(details)


def tag(run, *, scheme=None, stride=None):
    """Judge a tagger of words: whole entities by seqeval, where its labels are of a scheme; and labels of words.

    Args:
        run: a `Run`.
        scheme: of the labels: "IOB2" and others of `entity_scores`. Default: the first of IOB2, IOBES and BILOU that
            the model's labels fit; where none does, there are no entities.
        stride: tokens that two windows share, where texts that are too long are read in windows. Default: they are
            errors.
    """
    model, names = run.model, run.model.arguments["labels"]
    scheme, notes = _scheme_of(names, scheme), ()
    for row in run.rows:
        if len(row.values["labels"]) != len(row.values["words"]):
            raise ValueError(
                f"{row.place} has {len(row.values['words'])} words and {len(row.values['labels'])} labels; there must "
                "be as many."
            )
        for i, name in enumerate(row.values["labels"]):
            if name not in names:
                raise ValueError(
                    f"{row.place}, labels[{i}] ({shown(name)}) must be one of the model's: {_list(names)}."
                )

    def answer(rows, first):
        given = [row.values["words"] for row in rows]
        return model.tag_words(given, batch_size=run.batch_size, verbose=False, stride=stride)

    given, found = run.values("labels"), run.outputs(answer)
    measures, details = {}, {}
    if scheme is None:
        notes = ("The model's labels are of no scheme of entities, so there are figures of words alone.",)
    else:
        scores = entity_scores(given, found, scheme)
        details["types"] = scores.pop("types")
        details["num_entities"] = scores.pop("support")
        measures = run.measured(
            {f"entity_{name}": value for name, value in scores.items()},
            _entity_measures,
            entity_counts(given, found, scheme) if run.has_intervals else None,
            {"entity_f1": f"seqeval, strict, {scheme}"},
        )
    lengths = np.array([len(row) for row in given])
    labels, predictions = (np.array([names.index(x) for row in side for x in row]) for side in (given, found))
    cells, cell_of_word = np.unique(labels * len(names) + predictions, return_inverse=True)
    counts = np.zeros((len(given), len(cells)))
    np.add.at(counts, (np.repeat(np.arange(len(given)), lengths), cell_of_word.reshape(-1)), 1)
    of_words, more = _judged(run, names, labels, predictions, cells, counts)
    measures |= {f"word_{name}": value for name, value in of_words.items()}
    return measures, {**details, "num_words": int(lengths.sum()), **more}, (*notes, *_missing(more))


def _judged(run, names, labels, predictions, cells, rows, counts=None):
    """`Measure`s and details of labels.

    Args:
        run: a `Run`.
        names: of the labels.
        labels, predictions: (N,) int.
        cells: (K,) int, which of the confusion matrix's are not 0, label times number of labels + prediction.
        rows: (R, K), how often each row, or each kind of row, has each of these cells.
        counts: (R,), how many rows are of each kind. Default: one.
    """
    matrix = confusion_matrix(labels, predictions, len(names))
    scores = scores_of_matrix(matrix)

    def measure(sums):
        found = scores_of_cells(sums, *divmod(cells, len(names)), len(names))
        return found | {name: found["accuracy"] for name in OVERALL if name.startswith("micro_")}

    per_label = {
        name: {
            **{key: float(scores[key][i]) for key in ("precision", "recall", "f1")},
            "support": int(scores["support"][i]),
        }
        for i, name in enumerate(names)
    }
    measures = run.measured({name: scores[name] for name in OVERALL}, measure, rows, counts=counts)
    return measures, {"labels": per_label, "confusion_matrix": matrix.tolist()}


def _missing(details):
    """A note on labels that lower the macro scores by not being there."""
    matrix = np.array(details["confusion_matrix"])
    names = [name for i, name in enumerate(details["labels"]) if not matrix[i].any() and not matrix[:, i].any()]
    return (f"Neither given nor predicted, and 0 in the macro scores: {_list(names)}.",) if names else ()


def _entity_measures(sums):
    right, found, given = sums.T
    precision, recall = right / np.maximum(found, 1), right / np.maximum(given, 1)
    f1 = 2 * right / np.maximum(found + given, 1)
    return {"entity_precision": precision, "entity_recall": recall, "entity_f1": f1}


def _scheme_of(names, scheme):
    tags = [name for name in names if name != "O"]
    if scheme is not None:
        if scheme in SCHEMES:
            wrong = [name for name in tags if not is_of_scheme(name, scheme)]
            if wrong:
                raise ValueError(f"scheme ({scheme!r}) is not that of the model's label {shown(wrong[0])}.")
        return scheme
    fitting = (name for name in ("IOB2", "IOBES", "BILOU") if all(is_of_scheme(tag, name) for tag in tags))
    return next(fitting, None) if tags else None


def _place_of(row, names, label_ids):
    """The place of a row's label among the model's."""
    given = row.values["label"]
    if label_ids:
        number = int(given) if isinstance(given, str) and given.isdecimal() else given
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise ValueError(f"{row.place}: label ({shown(given)}) must be a number in 0 .. {len(names) - 1}.")
        return number
    if given not in names:
        hint = "; label_ids=True reads numbers" if isinstance(given, int) or given.isdecimal() else ""
        raise ValueError(f"{row.place}: label ({shown(given)}) must be one of the model's: {_list(names)}{hint}.")
    return names.index(given)


def _list(names, most=20):
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
