"""How well predicted labels agree with given ones: by scikit-learn, and the calibration of their probabilities."""

import numpy as np

from kerasllm.arguments import check_positive, read_sequence, shown
from kerasllm.extras import required
from kerasllm.metrics.pairs import check_as_many


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
    check_as_many(labels=labels, predictions=predictions)
    labels, predictions = (
        _read_classes(name, values, num_classes) for name, values in (("labels", labels), ("predictions", predictions))
    )
    matrix = np.zeros((num_classes, num_classes), "int64")
    np.add.at(matrix, (labels.astype("int64"), predictions.astype("int64")), 1)
    return matrix


def classification_scores(labels, predictions, num_classes):
    """Accuracy, and precision, recall and F1 of each class and over all, by scikit-learn.

    Args: as for `confusion_matrix`.

    Returns:
        A dict: `accuracy`, a float; `precision`, `recall`, `f1` and `support`, arrays (C,): right predictions / all
        predictions of the class, right predictions / all its labels (0 where there are none), their harmonic mean,
        and the number of labels; `macro_precision`, `macro_recall` and `macro_f1`, the means of those over all C
        classes; `micro_precision`, `micro_recall` and `micro_f1`, those of all rows together, which are the accuracy
        where each row has one label; and `mcc`, the correlation coefficient of Matthews (0 where either is constant).

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
    """
    return scores_of_matrix(confusion_matrix(labels, predictions, num_classes))


def scores_of_matrix(matrix):
    """What `classification_scores` says of a confusion matrix (C, C)."""
    sklearn = required("sklearn.metrics", "classification_scores")
    classes = np.arange(len(matrix))
    labels, predictions = np.nonzero(matrix)
    cells = {"y_true": labels, "y_pred": predictions, "sample_weight": matrix[labels, predictions]}
    shared = {**cells, "labels": classes, "zero_division": 0}
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(**shared)
    micro = sklearn.precision_recall_fscore_support(**shared, average="micro")
    return {
        "accuracy": float(sklearn.accuracy_score(**cells)),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "support": matrix.sum(1),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "micro_precision": float(micro[0]),
        "micro_recall": float(micro[1]),
        "micro_f1": float(micro[2]),
        # Of one class alone scikit-learn says 0 as well, and warns.
        "mcc": float(sklearn.matthews_corrcoef(**cells)) if len({*labels, *predictions}) > 1 else 0.0,
    }


def scores_of_cells(counts, labels, predictions, num_classes):
    """Accuracy, macro scores and `mcc` of many confusion matrices: a dict of (R,).

    They are those of scikit-learn, which takes one matrix at a time, too slowly for the draws of a bootstrap.

    Args:
        counts: (R, K), of each matrix the cells that are not 0 in all.
        labels, predictions: (K,) int, which cells these are.
        num_classes: number of classes C.
    """
    is_label, is_prediction = (cells[:, None] == np.arange(num_classes) for cells in (labels, predictions))  # (K, C)
    right, predicted, support = counts @ (is_label & is_prediction), counts @ is_prediction, counts @ is_label  # (R, C)
    total = counts.sum(1)
    spread = (total**2 - (predicted**2).sum(1)) * (total**2 - (support**2).sum(1))
    return {
        "accuracy": right.sum(1) / total,
        "macro_precision": (right / np.maximum(predicted, 1)).mean(1),
        "macro_recall": (right / np.maximum(support, 1)).mean(1),
        "macro_f1": (2 * right / np.maximum(predicted + support, 1)).mean(1),
        "mcc": (total * right.sum(1) - (predicted * support).sum(1)) / np.sqrt(np.where(spread > 0, spread, np.inf)),
    }


def calibration_error(confidences, is_right, num_bins=15):
    """The expected calibration error (Guo et al. 2017, arXiv:1706.04599): how far confidence is from accuracy.

        sum_b n_b / N |accuracy_b - mean confidence_b|   over bins b of confidences, of equal width

    Args:
        confidences: (N,) floats in [0, 1], the probability of each prediction.
        is_right: (N,) bool, whether it was right.
        num_bins: the number of bins (0, 1 / b], (1 / b, 2 / b], ...; 0 is in the first.

    Returns:
        A float in 0 .. 1; 0 is calibrated.
    """
    return float(np.abs(calibration_rows(confidences, is_right, num_bins).mean(axis=0)).sum())


def calibration_rows(confidences, is_right, num_bins=15):
    """Of each prediction its confidence, less 1 where it is right, in its bin: (N, num_bins)."""
    check_positive("num_bins", num_bins)
    confidences, is_right = read_sequence("confidences", confidences), read_sequence("is_right", is_right)
    check_as_many(confidences=confidences, is_right=is_right)
    confidences = _read_array("confidences", confidences, "numbers in [0, 1]", "iuf")
    is_right = _read_array("is_right", is_right, "True or False", "b")
    bins = np.clip(np.ceil(confidences * num_bins) - 1, 0, num_bins - 1)
    return np.where(bins[:, None] == np.arange(num_bins), (confidences - is_right)[:, None], 0.0)


def _read_array(name, values, accepted, kinds):
    try:
        array = np.asarray(values)
    except ValueError:  # of different lengths
        array = np.asarray(None)
    if array.ndim != 1 or array.dtype.kind not in kinds or not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name} ({shown(values)}) must be {accepted}.")
    return array


def _read_classes(name, values, num_classes):
    array = np.asarray(values) if {np.shape(value) for value in values} in ({()}, {(1,)}) else None
    if array is None or array.dtype.kind not in "iub" or array.min() < 0 or array.max() >= num_classes:
        raise ValueError(f"{name} ({shown(values)}) must be whole numbers in 0 .. {num_classes - 1}.")
    return array.reshape(-1)
