"""Figures of merit on host: of labels, of answers, of texts."""

import re
import string
from collections import Counter

import numpy as np

from kerasllm.arguments import check_boolean, check_choice, check_positive, read_sequence, read_strings, shown
from kerasllm.extras import required


def confusion_matrix(labels, predictions, num_classes):
    """Count what was taken for what.

    Args:
        labels, predictions: (N,) int in 0 .. `num_classes` - 1.
        num_classes: number of classes C.

    Returns:
        (C, C) int; row: the label, column: the prediction.

    Example:
        >>> confusion_matrix([0, 1, 1], [0, 0, 1], 2).tolist()
        [[1, 0], [1, 1]]
    """
    check_positive("num_classes", num_classes)
    labels, predictions = read_sequence("labels", labels), read_sequence("predictions", predictions)
    _check_as_many(labels=labels, predictions=predictions)
    labels, predictions = (
        _read_classes(name, values, num_classes) for name, values in (("labels", labels), ("predictions", predictions))
    )
    matrix = np.zeros((num_classes, num_classes), "int64")
    np.add.at(matrix, (labels.astype("int64"), predictions.astype("int64")), 1)
    return matrix


def classification_scores(labels, predictions, num_classes):
    """Accuracy, and precision, recall and F1 of each class.

    Args: as for `confusion_matrix`.

    Returns:
        A dict: `accuracy`, a float; `precision`, `recall`, `f1` and `support`, arrays (C,): right predictions / all
        predictions of the class, right predictions / all its labels (0 where there are none), their harmonic mean,
        and the number of labels; and `macro_f1`, the mean of the `f1`.
    """
    matrix = confusion_matrix(labels, predictions, num_classes)
    right, predicted, support = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(predicted + support, 1)
    return {
        "accuracy": float(right.sum() / matrix.sum()),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "support": support,
        "macro_f1": float(f1.mean()),
    }


def answer_scores(answers, references):
    """How well answers agree with references, as SQuAD counts it (Rajpurkar et al. 2016, arXiv:1606.05250).

    Case, punctuation, articles and spaces do not count.

    Args:
        answers: list of N strings.
        references: for each a string, or a list of strings, of which the best counts.

    Returns:
        A dict: `exact_match`, the share of answers equal to a reference; `f1`, the mean F1 of their words.
    """
    answers, references = read_strings("answers", answers, 0), read_sequence("references", references)
    _check_as_many(answers=answers, references=references)
    rows = [read_strings(f"references[{i}]", [r] if isinstance(r, str) else r) for i, r in enumerate(references)]
    exact = [any(_words(a) == _words(r) for r in row) for a, row in zip(answers, rows, strict=True)]
    f1 = [max(_word_f1(_words(a), _words(r)) for r in row) for a, row in zip(answers, rows, strict=True)]
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}


def bleu(hypotheses, references, tokenize=None, lowercase=False):
    """BLEU of a corpus by sacrebleu, with one reference for each text (Papineni et al. 2002; Post 2018).

    Args:
        hypotheses, references: lists of N strings.
        tokenize: sacrebleu's name of how words are told apart: "none" for texts whose tokens stand apart already, "zh",
            "ja-mecab", "char", and so on. Default: "13a", that of WMT.
        lowercase: whether cases are alike.

    Returns:
        A float in 0 .. 100, and the string that says how it was computed.

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
        ValueError: sacrebleu has no such `tokenize`.
    """
    check_boolean("lowercase", lowercase)
    names = required("sacrebleu", "bleu").BLEU.TOKENIZERS
    if tokenize is not None:
        check_choice("tokenize", tokenize, names)
    return _by_sacrebleu("BLEU", hypotheses, references, tokenize=tokenize, lowercase=lowercase)


def chrf(hypotheses, references):
    """Corpus chrF, an F-score of pieces of words, by sacrebleu, with one reference for each text (Popović 2015).

    Args:
        hypotheses, references: lists of N strings.

    Returns:
        A float in 0 .. 100, and the string that says how it was computed.

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
    """
    return _by_sacrebleu("CHRF", hypotheses, references)


def rouge(hypotheses, references, use_stemmer=True):
    """Mean ROUGE F-measures by rouge-score (Lin 2004).

    Args:
        hypotheses, references: lists of N strings.
        use_stemmer: whether words are compared by their Porter stems.

    Returns:
        A dict: `rouge1`, `rouge2`, `rougeL`, each a float in 0 .. 1.

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
    """
    hypotheses, references = _read_pairs(hypotheses, references)
    check_boolean("use_stemmer", use_stemmer)
    rouge_scorer = required("rouge_score.rouge_scorer", "rouge")
    names = ("rouge1", "rouge2", "rougeL")
    scorer = rouge_scorer.RougeScorer(names, use_stemmer=use_stemmer)
    scores = [scorer.score(r, h) for h, r in zip(hypotheses, references, strict=True)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in names}


def _read_classes(name, values, num_classes):
    array = np.asarray(values) if {np.shape(value) for value in values} in ({()}, {(1,)}) else None
    if array is None or array.dtype.kind not in "iub" or array.min() < 0 or array.max() >= num_classes:
        raise ValueError(f"{name} ({shown(values)}) must be whole numbers in 0 .. {num_classes - 1}.")
    return array.reshape(-1)


def _by_sacrebleu(kind, hypotheses, references, **options):
    hypotheses, references = _read_pairs(hypotheses, references)
    metric = getattr(required("sacrebleu", kind.lower()), kind)(**options)
    return metric.corpus_score(hypotheses, [references]).score, str(metric.get_signature())


def _read_pairs(hypotheses, references):
    hypotheses, references = (
        read_strings(name, texts, 0) for name, texts in (("hypotheses", hypotheses), ("references", references))
    )
    _check_as_many(hypotheses=hypotheses, references=references)
    return hypotheses, references


def _check_as_many(**lists):
    (first, a), (second, b) = lists.items()
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"{first} ({len(a)} of them) and {second} ({len(b)}) must be as many, at least one.")


def _words(text):
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _word_f1(answer, reference):
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))
