"""Orders and rankings: whether scores have the order of references, and whether what is relevant is found first."""

from collections.abc import Hashable, Mapping

import numpy as np

from kerasllm.arguments import check_positive, is_number, read_sequence, shown
from kerasllm.metrics.pairs import check_as_many


def spearman(scores, references):
    """How well scores have the order of references: Spearman's rank correlation, equal values having their mean rank.

    Args:
        scores, references: (N,) numbers, two at least.

    Returns:
        A float in -1 .. 1; nan where all scores or all references are equal.

    Example:
        >>> spearman([0.1, 0.4, 0.9], [1, 2, 3])
        1.0
    """
    scores, references = read_sequence("scores", scores), read_sequence("references", references)
    check_as_many(scores=scores, references=references)
    if len(scores) < 2:
        raise ValueError(f"scores ({shown(scores)}) must be two at least.")
    a, b = (_mean_ranks(_read_numbers(name, x)) for name, x in (("scores", scores), ("references", references)))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale else float("nan")


def retrieval_scores(ranked, relevant, at=(1, 5, 10)):
    """How well rankings find what is relevant: recall, reciprocal rank and nDCG of the first k, as means over queries.

        recall@k = relevant ones among the first k / all relevant ones
        mrr@k    = 1 / the place of the first relevant one, counted from 1; 0 where it is beyond k
        ndcg@k   = sum of gain / log2(1 + place) over the first k / that of the best ranking

    (Järvelin & Kekäläinen 2002, doi:10.1145/582415.582418.)

    Args:
        ranked: for each query a list of different ids, the best first, as many as the largest k at least.
        relevant: for each query a list or a set of the relevant ids, one at least; or a dict id -> gain, positive.
        at: the numbers k.

    Returns:
        A dict: `recall@k`, `mrr@k`, `ndcg@k`, floats in 0 .. 1.

    Example:
        >>> retrieval_scores([["b", "a"], ["c", "a"]], [["a"], ["c"]], at=[1, 2])["recall@1"]
        0.5
    """
    ranked, relevant, at = (read_sequence(*x) for x in (("ranked", ranked), ("relevant", relevant), ("at", at)))
    check_as_many(ranked=ranked, relevant=relevant)
    if not at:
        raise ValueError("at ([]) must hold numbers of places.")
    for k in at:
        check_positive("at", k)
    found = [_gains(i, *row, max(at)) for i, row in enumerate(zip(ranked, relevant, strict=True))]
    scores = {}
    for k in at:
        scores[f"recall@{k}"] = float(np.mean([(got[:k] > 0).sum() / len(best) for got, best in found]))
        firsts = [np.flatnonzero(got[:k])[:1] for got, _ in found]
        scores[f"mrr@{k}"] = float(np.mean([1 / (1 + first[0]) if len(first) else 0.0 for first in firsts]))
        scores[f"ndcg@{k}"] = float(np.mean([_discounted(got[:k]) / _discounted(best[:k]) for got, best in found]))
    return scores


def _gains(query, ids, gains, most):
    """The gains of what was ranked (k,), and those of what is relevant, the largest first."""
    ids = read_sequence(f"ranked[{query}]", ids)
    if not all(isinstance(i, Hashable) for i in ids):
        raise ValueError(f"ranked[{query}] ({shown(ids)}) must be ids, such as numbers or strings.")
    if len(set(ids)) < len(ids) or len(ids) < most:
        raise ValueError(
            f"ranked[{query}] ({shown(ids)}) must be different ids, as many as at ({most}), not {len(ids)}."
        )
    if not isinstance(gains, Mapping):
        is_set = isinstance(gains, set | frozenset)
        gains = dict.fromkeys(gains if is_set else read_sequence(f"relevant[{query}]", gains), 1)
    if not gains or not all(is_number(gain) and gain > 0 for gain in gains.values()):
        raise ValueError(f"relevant[{query}] ({shown(gains)}) must be ids, one at least, or a dict of ids and gains.")
    return np.array([gains.get(i, 0) for i in ids], "float64"), np.array(
        sorted(gains.values(), reverse=True), "float64"
    )


def _discounted(gains):
    return (gains / np.log2(2 + np.arange(len(gains)))).sum()


def _mean_ranks(values):
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _read_numbers(name, values):
    for i, value in enumerate(values):
        if not is_number(value):
            raise ValueError(f"{name}[{i}] ({shown(value)}) must be a finite number.")
    return np.array(values, "float64")
