"""How well found entities agree with given ones, by seqeval."""

import numpy as np

from kerasllm.arguments import check_choice, read_sequence, read_strings, shown
from kerasllm.extras import required
from kerasllm.metrics.pairs import check_as_many

SCHEMES = {
    "IOB1": "IOB",
    "IOE1": "IOE",
    "IOB2": "IOB",
    "IOE2": "IOE",
    "IOBES": "IOBES",
    "BILOU": "BILOU",
}
"""The schemes of seqeval, each with the letters that its labels begin with."""


def entity_scores(labels, predictions, scheme="IOB2"):
    """Precision, recall and F1 of whole entities, by seqeval in its strict mode (Nakayama 2018).

    An entity counts where its first and last word and its type are right. What does not begin as the scheme says, such
    as an "I-PER" after "O" in IOB2, is none.

    Args:
        labels, predictions: for each of N texts the labels of its words, "O" or a letter, "-" and a type, as "B-PER".
        scheme: "IOB2", "IOB1", "IOE1", "IOE2", "IOBES" or "BILOU".

    Returns:
        A dict: `precision`, `recall` and `f1` of all entities; `macro_precision`, `macro_recall` and `macro_f1`, the
        means over the types; `support`, the number of given entities; `types`, for each type a dict of its
        `precision`, `recall`, `f1` and `support`. What cannot be divided is 0.

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
        ValueError: a label is none of the scheme.

    Example:
        >>> entity_scores([["B-PER", "I-PER", "O"]], [["B-PER", "O", "O"]])["f1"]
        0.0
    """
    labels, predictions = _read_texts(labels, predictions, scheme)
    seqeval = required("seqeval.metrics", "entity_scores")
    if not any(
        label != "O" for row in (*labels, *predictions) for label in row
    ):  # seqeval divides by the number of types
        return _scores({}) | {f"macro_{name}": 0.0 for name in ("precision", "recall", "f1")} | {"types": {}}
    report = seqeval.classification_report(
        labels, predictions, mode="strict", scheme=_scheme(scheme), output_dict=True, zero_division=0
    )
    types = {name: _scores(report[name]) for name in report if not name.endswith(" avg")}
    macro = {f"macro_{name}": value for name, value in _scores(report["macro avg"]).items() if name != "support"}
    return {**_scores(report["micro avg"]), **macro, "types": types}


def entity_counts(labels, predictions, scheme="IOB2"):
    """For each text the numbers of entities found rightly, found, and given, (N, 3); arguments as for `entity_scores`.

    Sums of them give precision, recall and F1 of any of the texts.
    """
    labels, predictions = _read_texts(labels, predictions, scheme)
    schemes = required("seqeval.scheme", "entity_scores")
    given, found = (schemes.Entities(rows, _scheme(scheme)).entities for rows in (labels, predictions))
    pairs = [(set(a), set(b)) for a, b in zip(given, found, strict=True)]
    return np.array([(len(a & b), len(b), len(a)) for a, b in pairs], "int64")


def _read_texts(labels, predictions, scheme):
    check_choice("scheme", scheme, SCHEMES)
    labels, predictions = read_sequence("labels", labels), read_sequence("predictions", predictions)
    check_as_many(labels=labels, predictions=predictions)
    for i, pair in enumerate(zip(labels, predictions, strict=True)):
        pair = [read_strings(f"{n}[{i}]", x, 0) for n, x in zip(("labels", "predictions"), pair, strict=True)]
        check_as_many(**{f"labels[{i}]": pair[0], f"predictions[{i}]": pair[1]})
        for name, row in zip(("labels", "predictions"), pair, strict=True):
            for label in row:
                if label != "O" and not is_of_scheme(label, scheme):
                    raise ValueError(
                        f'{name}[{i}] holds {shown(label)}, which is no label of {scheme}: "O", or one of '
                        f'{", ".join(SCHEMES[scheme].replace("O", "", 1))}, "-" and a type.'
                    )
        labels[i], predictions[i] = pair
    return labels, predictions


def is_of_scheme(label, scheme):
    """Whether a label is a letter of the scheme, "-" and a type."""
    return label[:1] in SCHEMES[scheme].replace("O", "", 1) and label[1:2] == "-" and len(label) > 2


def _scheme(name):
    return getattr(required("seqeval.scheme", "entity_scores"), name)


def _scores(row):
    scores = {name: float(row.get(key, 0)) for name, key in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score"))}
    return {**scores, "support": int(row.get("support", 0))}
