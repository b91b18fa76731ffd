"""Losses of vectors of texts, whose labels say which rows of a batch belong together.

A row is a text. Its label is its group, any number, and what it is in it: so the order of rows is of no matter, and
whatever splits, joins or accumulates batches of whole groups may do so.
"""

import keras
import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.arguments import (
    LARGEST,
    MOST,
    SMALLEST,
    check_choice,
    check_positive,
    check_positive_number,
    is_number,
    is_whole,
    shown,
)
from kerasllm.constructors import reading
from kerasllm.text.limits import check_finite, place
from kerasllm.training.losses import MEANS, label_tensor

ANCHOR, POSITIVE, NEGATIVE = 0, 1, 2  # roles of rows
LOWEST = -1e30  # the score of what is no candidate
MOST_GROUPS = 2**24  # whole numbers that float32 tells apart


class EmbeddingLoss(keras.losses.Loss):
    """The base of losses of vectors (B, D) float with labels (B, 2).

    A loss is computed in float32, also under mixed precision. It says what its mean is divided by, so that `fit` and
    `evaluate` of kerasllm's models show the exact mean of batches of different size, and accumulate them rightly.

    Attributes:
        label_kind: "pairs", labels of a group and a role, or "scored pairs", of a group and a score.
        chunk_size: rows that kerasllm's models compute at a time, or None.
    """

    label_kind = "pairs"

    def __init__(self, chunk_size, reduction, name):
        check_choice("reduction", reduction, (*MEANS[:2], "sum"))
        super().__init__(name=name, reduction=reduction, dtype="float32")
        if chunk_size is not None:
            check_positive("chunk_size", chunk_size)
        self.chunk_size = chunk_size

    def total(self, y_true, vectors, weights):
        """The sum of the losses of a batch, a scalar; `weights` are those of the rows (B,) float32."""
        raise NotImplementedError

    def num_counted(self, y_true, sample_weight=None):
        """What a mean of this loss is divided by, a scalar float32: how many pairs there are in a batch."""
        raise NotImplementedError

    def count(self, labels, sample_weight=None):
        """`num_counted` of arrays, in numpy: a float."""
        raise NotImplementedError

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_true, vectors = self._label_tensor(y_true), ops.cast(ops.convert_to_tensor(y_pred), "float32")
        if len(vectors.shape) != 2 or len(y_true.shape) != 2 or y_true.shape[1] != 2:
            raise ValueError(
                f"y_true (shape {tuple(y_true.shape)}) must be (B, 2) and y_pred (shape {tuple(vectors.shape)}) (B, D)."
            )
        total = self.total(y_true, vectors, self._row_weights(sample_weight, vectors))
        if self.reduction == "sum":
            return total
        return total / ops.maximum(self.num_counted(y_true), 1.0) / backend.replicas()  # as Keras's losses

    def _label_tensor(self, y_true):
        if self.label_kind == "pairs":
            return label_tensor(y_true)
        return ops.cast(ops.convert_to_tensor(y_true), "float32")

    def _row_weights(self, sample_weight, vectors):
        if sample_weight is None:
            return ops.ones_like(vectors[:, 0])
        weights = ops.cast(ops.convert_to_tensor(sample_weight), "float32")
        if len(weights.shape) > 2 or len(weights.shape) == 2 and weights.shape[1] != 1:
            rows = vectors.shape[0]
            raise ValueError(f"sample_weight (shape {tuple(weights.shape)}) must be of shape ({rows},) or ({rows}, 1).")
        return ops.reshape(weights, (-1,))

    def get_config(self):
        own = {} if self.chunk_size is None else {"chunk_size": self.chunk_size}
        return {"reduction": self.reduction, "name": self.name, **own}


@keras.saving.register_keras_serializable("kerasllm")
class InBatchNegativesLoss(EmbeddingLoss):
    """Each anchor is to find its positive among the documents of a batch (van den Oord et al. 2018, arXiv:1807.03748).

        loss_i = -log(exp(cos(a_i, p_i) / t) / sum over all d of exp(cos(a_i, d) / t))

    where d are the positives and negatives of all groups; the mean is that over the anchors of the batch. It is
    sentence-transformers' MultipleNegativesRankingLoss with `scale` 1 / t. Two texts of a batch that mean the same are
    taken for each other's negatives: `PairDataset` keeps equal ones apart.

    The label of a row is `[group, role]`: the role 0 is an anchor, such as a query; 1 its positive, of which a group
    with an anchor has one; 2 a negative, of which it may have any number. Documents of groups without an anchor are
    negatives of all. Other roles, and an anchor without its one positive, give nan: batches hold whole groups, as those
    of `PairDataset` do; arrays that `fit` cuts into batches may not.

    Args:
        temperature: t. The smaller, the more the nearest negatives count.
        chunk_size: rows that the training and evaluation of kerasllm's models compute at a time, for large batches in
            little memory (Gao et al. 2021, arXiv:2101.06983): of a chunk its vectors are kept, and what else the
            gradient needs is computed once more, with the same dropout. Loss and gradients are the same, in about a
            third more time. The scores take 4 B^2 bytes, a few times. Default: all rows at once.
        reduction: "sum_over_batch_size", the mean above, or "sum".
        name: name of the loss.

    Call arguments:
        y_true: labels (B, 2) int.
        y_pred: vectors (B, D) of any length.
        sample_weight: (B,) or (B, 1), if given: that of an anchor's row is the weight of its loss.

    Example:
        >>> model = BERTEmbedder.from_preset("path/to/all-MiniLM-L6-v2")
        >>> model.compile(AdamW(2e-5), InBatchNegativesLoss())
        >>> model.fit(PairDataset([("a question", "its answer"), ...], model, batch_size=64))
    """

    @reading
    def __init__(self, temperature=0.05, chunk_size=None, reduction="sum_over_batch_size", name="in_batch_negatives"):
        super().__init__(chunk_size, reduction, name)
        check_positive_number("temperature", temperature)
        self.temperature = temperature

    def total(self, y_true, vectors, weights):
        groups, roles = y_true[:, 0], y_true[:, 1]
        scores = cosines(vectors) / self.temperature  # (B, B)
        scores = ops.where(ops.equal(roles, ANCHOR)[None], LOWEST, scores)
        is_own = ops.equal(groups[:, None], groups[None]) & ops.equal(roles, POSITIVE)[None]
        losses = ops.logsumexp(scores, axis=1) - ops.sum(ops.where(is_own, scores, 0.0), axis=1)  # (B,)
        is_anchor, num_own = ops.equal(roles, ANCHOR), ops.sum(ops.cast(is_own, "int32"), axis=1)
        is_wrong = is_anchor & ops.not_equal(num_own, 1)
        is_wrong = is_wrong | ~(is_anchor | ops.equal(roles, POSITIVE) | ops.equal(roles, NEGATIVE))
        return nan_if(is_wrong, ops.sum(ops.where(is_anchor, weights * losses, 0.0)))

    def num_counted(self, y_true, sample_weight=None):
        return ops.sum(ops.cast(ops.equal(self._label_tensor(y_true)[:, 1], ANCHOR), "float32"))

    def count(self, labels, sample_weight=None):
        return float((np.asarray(labels)[:, 1] == ANCHOR).sum())

    def get_config(self):
        return {"temperature": self.temperature, **super().get_config()}


class ScoredPairsLoss(EmbeddingLoss):
    """The base of losses of pairs with scores: the label of a row is `[group, score]`, a group is two rows.

    Rows that are not two in their group, and groups of two scores, give nan.
    """

    label_kind = "scored pairs"

    def num_counted(self, y_true, sample_weight=None):
        return ops.cast(ops.shape(y_true)[0], "float32") / 2

    def count(self, labels, sample_weight=None):
        return len(labels) / 2


@keras.saving.register_keras_serializable("kerasllm")
class CosineSimilarityLoss(ScoredPairsLoss):
    """The cosine of two texts is to be their score (Reimers & Gurevych 2019, arXiv:1908.10084).

        loss = (cos(u, v) - score)^2

    The mean is that over the pairs of the batch, as in sentence-transformers' CosineSimilarityLoss. The label of a row
    is `[group, score]`: the two texts of a pair have one group and one score; `ScoredPairDataset` makes them.

    Args:
        chunk_size, reduction, name: as for `InBatchNegativesLoss`.

    Call arguments:
        y_true: labels (B, 2) float.
        y_pred: vectors (B, D) of any length.
        sample_weight: (B,) or (B, 1), if given; the mean of a pair's two is its weight.
    """

    @reading
    def __init__(self, chunk_size=None, reduction="sum_over_batch_size", name="cosine_similarity_loss"):
        super().__init__(chunk_size, reduction, name)

    def total(self, y_true, vectors, weights):
        cosine, scores, _, is_wrong = pairs_of(y_true, vectors)
        return nan_if(is_wrong, ops.sum(weights * ops.square(cosine - scores)) / 2)  # each pair is there twice


@keras.saving.register_keras_serializable("kerasllm")
class CoSENTLoss(ScoredPairsLoss):
    """Pairs are to be in the order of their scores (Huang et al. 2024, doi:10.1109/TASLP.2024.3402087).

        loss = log(1 + sum over pairs i, j with score_i < score_j of exp(scale (cos_i - cos_j)))

    It is one number for a batch, which is not the mean of anything in it. `fit` and `evaluate` show the mean over
    batches, each as often as it has pairs. Labels are those of `CosineSimilarityLoss`; only the order of scores counts.

    Args:
        scale: how much the nearest differences count.
        chunk_size, name: as for `InBatchNegativesLoss`.

    Call arguments:
        y_true: labels (B, 2) float.
        y_pred: vectors (B, D) of any length.
        sample_weight: None; another is an error.
    """

    @reading
    def __init__(self, scale=20.0, chunk_size=None, reduction="sum_over_batch_size", name="cosent"):
        super().__init__(chunk_size, reduction, name)
        check_positive_number("scale", scale)
        self.scale = scale

    def __call__(self, y_true, y_pred, sample_weight=None):
        if sample_weight is not None:
            raise ValueError(f"sample_weight ({shown(sample_weight)}) must be None: CoSENTLoss has no loss of a row.")
        return super().__call__(y_true, y_pred)

    def total(self, y_true, vectors, weights):
        cosine, scores, is_first, is_wrong = pairs_of(y_true, vectors)
        is_less = ops.less(scores[:, None], scores[None]) & is_first[:, None] & is_first[None]
        differences = ops.where(is_less, self.scale * (cosine[:, None] - cosine[None]), LOWEST)
        differences = ops.concatenate([ops.zeros((1,)), ops.reshape(differences, (-1,))])  # exp(0) is the 1
        loss = nan_if(is_wrong, ops.logsumexp(differences))
        # Keras's means divide by the number of pairs.
        return loss if self.reduction == "sum" else loss * self.num_counted(y_true)

    def get_config(self):
        return {"scale": self.scale, **super().get_config()}


@keras.saving.register_keras_serializable("kerasllm")
class MatryoshkaLoss(EmbeddingLoss):
    """Vectors are to be good when they are cut, too (Kusupati et al. 2022, arXiv:2205.13147).

        loss = sum over widths d of weight_d * loss(the first d numbers of each vector, of length 1)

    Args:
        loss: another loss of this file, which says what labels are.
        dims: the widths d; the whole width of the vectors is one of them, or it is not trained.
        weights: a number for each. Default: 1.
        name: name of the loss.

    Call arguments:
        y_true, y_pred, sample_weight: as for `loss`.

    Example:
        >>> model.compile(AdamW(2e-5), MatryoshkaLoss(InBatchNegativesLoss(), dims=[384, 128, 32]))
    """

    @reading
    def __init__(self, loss, dims, weights=None, name="matryoshka"):
        loss = keras.losses.deserialize(loss) if isinstance(loss, dict) and "class_name" in loss else loss
        if not isinstance(loss, EmbeddingLoss) or isinstance(loss, MatryoshkaLoss):
            raise ValueError(f"loss ({shown(loss)}) must be a loss of vectors, such as InBatchNegativesLoss().")
        dims, given = _listed(dims), _listed(dims if weights is None else weights)
        if not dims or not all(is_whole(d) and 0 < d < MOST for d in dims) or len(set(dims)) < len(dims):
            raise ValueError(f"dims ({shown(dims)}) must be a list of different positive whole numbers.")
        if len(given) != len(dims) or not all(is_number(w) and SMALLEST < w <= LARGEST for w in given):
            raise ValueError(f"weights ({shown(weights)}) must be a positive number for each of dims ({shown(dims)}).")
        super().__init__(loss.chunk_size, loss.reduction, name)
        self.loss, self.dims = loss, [int(d) for d in dims]
        self.weights = None if weights is None else [float(w) for w in given]

    @property
    def label_kind(self):
        """That of the other loss."""
        return self.loss.label_kind

    def __call__(self, y_true, y_pred, sample_weight=None):
        vectors = ops.cast(ops.convert_to_tensor(y_pred), "float32")
        if vectors.shape[-1] < max(self.dims):
            raise ValueError(f"dims ({max(self.dims)}) must be at most the width of the vectors ({vectors.shape[-1]}).")
        losses = [self.loss(y_true, of_length_one(vectors[:, :d]), sample_weight) for d in self.dims]
        return sum(w * loss for w, loss in zip(self.weights or [1.0] * len(losses), losses, strict=True))

    def num_counted(self, y_true, sample_weight=None):
        return self.loss.num_counted(y_true, sample_weight)

    def count(self, labels, sample_weight=None):
        return self.loss.count(labels, sample_weight)

    def get_config(self):
        weights = {} if self.weights is None else {"weights": self.weights}
        return {"loss": keras.losses.serialize(self.loss), "dims": self.dims, **weights, "name": self.name}


def of_length_one(vectors):
    """Vectors (B, D) divided by their lengths."""
    squares = ops.sum(vectors * vectors, axis=-1, keepdims=True)
    return vectors / ops.sqrt(ops.maximum(squares, 1e-24))  # a root of 0 would have no gradient


def cosines(vectors):
    """The cosine of each vector (B, D) with each: (B, B)."""
    vectors = of_length_one(vectors)
    return ops.matmul(vectors, ops.transpose(vectors))


def pairs_of(y_true, vectors):
    """The pairs of rows with labels `[group, score]`.

    Returns:
        For each row (B,) the cosine with its partner, their score, whether it is the first of the two, and whether
        it is wrong.
    """
    groups, scores = y_true[:, 0], y_true[:, 1]
    places = ops.arange(ops.shape(y_true)[0])
    is_partner = ops.equal(groups[:, None], groups[None]) & ops.not_equal(places[:, None], places[None])
    is_partner = ops.cast(is_partner, "int32")  # (B, B)
    partner = ops.cast(ops.argmax(is_partner, axis=1), "int32")
    is_wrong = ops.not_equal(ops.sum(is_partner, axis=1), 1) | ops.not_equal(scores, ops.take(scores, partner, axis=0))
    vectors = of_length_one(vectors)
    cosine = ops.sum(vectors * ops.take(vectors, partner, axis=0), axis=1)
    return cosine, scores, ops.less(ops.cast(places, "int32"), partner), is_wrong


def nan_if(is_wrong, loss):
    """A loss, which is nan where any row is wrong, and its gradients with it."""
    return loss * ops.where(ops.any(is_wrong), float("nan"), 1.0)


def check_pairs(name, labels, examples=None):
    """Raise `ValueError` unless labels (B, 2) are groups and roles in which each anchor has its one positive."""
    check_finite(name, labels, examples)
    for row, _ in np.argwhere(labels != np.floor(labels))[:1]:
        raise ValueError(f"{name}{place(examples, row)} ({labels[row].tolist()}) must be a group and a role, whole.")
    groups, roles = labels.T
    for row in np.flatnonzero((roles < ANCHOR) | (roles > NEGATIVE))[:1]:
        raise ValueError(
            f"{name}{place(examples, row)}: the role ({roles[row]:g}) must be 0, 1 or 2, of an anchor, its positive or "
            "a negative."
        )
    found, counts = np.unique(groups[roles == POSITIVE], return_counts=True)
    counts = dict(zip(found.tolist(), counts.tolist(), strict=True))
    for row in np.flatnonzero(roles == ANCHOR):
        if (count := counts.get(groups[row].item(), 0)) != 1:
            raise ValueError(
                f"{name}{place(examples, row)}: the anchor of group {groups[row]:g} must have one positive, it has "
                f"{count}."
            )


def check_scored_pairs(name, labels, examples=None):
    """Raise `ValueError` unless labels (B, 2) are groups of two rows with one score."""
    check_finite(name, labels, examples)
    groups, scores = labels.T
    for row in np.flatnonzero(np.abs(groups) > MOST_GROUPS)[:1]:
        raise ValueError(f"{name}{place(examples, row)}: the group ({groups[row]:g}) must be at most {MOST_GROUPS}.")
    _, firsts, inverse, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    for row in np.flatnonzero(counts[inverse] != 2)[:1]:
        raise ValueError(
            f"{name}{place(examples, row)}: the group {groups[row]:g} must have two rows, it has "
            f"{counts[inverse[row]]}."
        )
    for row in np.flatnonzero(scores != scores[firsts][inverse])[:1]:
        first = firsts[inverse[row]]
        raise ValueError(
            f"{name}{place(examples, first)}: the group {groups[row]:g} has two scores, {scores[first]:g} and "
            f"{scores[row]:g}."
        )


CHECKS = {"pairs": check_pairs, "scored pairs": check_scored_pairs}


def _listed(values):
    return list(values) if isinstance(values, list | tuple) else []
