"""Learning from preferences: of two answers to one prompt the better is to become likelier than the worse."""

import dataclasses

import keras
import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_choice, check_positive, check_positive_number, check_rate
from kerasllm.constructors import reading
from kerasllm.text.limits import check_finite, check_indices, place
from kerasllm.training.losses import MEANS, output_layer

CHOSEN, REJECTED = 0, 1
COLUMNS = 3  # of labels before the tokens: pair, which of its answers, the reference's log-probability
IGNORED = -1
MOST = 2**24  # whole numbers that float32 tells apart


@keras.saving.register_keras_serializable("kerasllm")
class DPOLoss(keras.losses.Loss):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290).

    Of a pair of answers y to a prompt x:

        loss = -log sigmoid(beta (r(chosen) - r(rejected))),    r(y) = log p(y | x) - log p_reference(y | x)

    where p is the model's and p_reference that of the model before it was trained; the mean is that over the pairs of
    the batch. With `label_smoothing` s it is (1 - s) times that and s times the loss of the pair turned round (cDPO,
    Mitchell 2023). It is TRL's "sigmoid" loss.

    The label of a row (an answer after its prompt) is float32: [pair, 0 chosen or 1 rejected, log p_reference, and for
    each input token the next one where it belongs to the answer, else -1], as `PreferenceDataset` gives it. The order
    of rows is of no matter; a pair without either answer gives nan.

    Args:
        beta: how much the model may go away from the reference: the smaller, the farther.
        label_smoothing: s, the share of pairs that are taken to be the wrong way round, in [0, 1).
        chunk_size: as for `TokenCrossentropy`: no logits are kept, so many tokens are computed at a time; the output
            layer is multiplied twice, for what a row's tokens weigh depends on both rows. Default: all logits at once.
        reduction: "sum_over_batch_size", the mean above, or "sum".
        name: name of the loss.

    Call arguments:
        y_true: labels (B, 3 + T) float32.
        y_pred: logits (B, T, V).
        sample_weight: (B,) or (B, 1), if given: that of a chosen row is the weight of its pair.

    Example:
        >>> dataset = PreferenceDataset(pairs, model.tokenizer, reference=model)
        >>> add_lora(model, rank=16, alpha=32)
        >>> model.compile(AdamW(5e-6), DPOLoss(chunk_size=256), metrics=[PreferenceAccuracy()])
        >>> model.fit(dataset)
    """

    label_kind = "preferences"
    ignore_class = IGNORED
    reads_hidden_states = True

    @reading
    def __init__(self, beta=0.1, label_smoothing=0.0, chunk_size=None, reduction="sum_over_batch_size", name="dpo"):
        check_choice("reduction", reduction, (*MEANS[:2], "sum"))
        super().__init__(name=name, reduction=reduction, dtype="float32")
        check_positive_number("beta", beta)
        check_rate("label_smoothing", label_smoothing)
        if chunk_size is not None:
            check_positive("chunk_size", chunk_size)
        self.beta, self.label_smoothing, self.chunk_size = beta, label_smoothing, chunk_size

    def __call__(self, y_true, y_pred, sample_weight=None):
        pair, which, reference, labels = parted_labels(y_true)
        y_pred, head = ops.convert_to_tensor(y_pred), output_layer()
        weight = ops.ones_like(pair)
        if sample_weight is not None:
            weight = ops.reshape(ops.cast(ops.convert_to_tensor(sample_weight), "float32"), (-1,))
        scale = 1.0
        if self.reduction != "sum":
            scale = 1.0 / ops.maximum(self.num_counted(y_true), 1.0) / backend.replicas()  # as Keras's losses
        if head is None:
            log_probs = _of_rows(_crossentropies(labels, y_pred), labels)
            return scale * self._value(log_probs - reference, pair, which, weight)[0]
        flat, counted = ops.reshape(y_pred, (-1, y_pred.shape[-1])), ops.cast(labels != IGNORED, "float32")

        def walk(x, product, weights, training):
            ids, weights = ops.reshape(labels, (-1,)), ops.reshape(weights, (-1,))
            return backend.linear_crossentropy(x, product, ids, weights, IGNORED, 0.0, self.chunk_size, training)

        _, head.crossentropy, _ = walk(ops.stop_gradient(flat), _without_gradient(head.product), counted, False)
        log_probs = _of_rows(ops.reshape(head.crossentropy, ops.shape(labels)), labels)
        value, slope = self._value(ops.stop_gradient(log_probs) - reference, pair, which, weight)
        if not head.training:
            return scale * value
        # Of the loss by each row's log-probability, minus the sum of its tokens' cross-entropies.
        total, *_ = walk(flat, head.product, -ops.stop_gradient(slope)[:, None] * counted, True)
        return scale * (ops.stop_gradient(value) + total - ops.stop_gradient(total))

    def _value(self, rewards, pair, which, weight):
        """The sum of the losses of pairs, and its slope by the reward of each row (B,)."""
        margins, matches = margins_of(rewards, pair, which)
        smoothing, is_chosen = self.label_smoothing, which == CHOSEN
        losses = -(1 - smoothing) * ops.log_sigmoid(self.beta * margins)
        losses = losses - smoothing * ops.log_sigmoid(-self.beta * margins)
        value = ops.sum(ops.where(is_chosen, weight * losses, 0.0))
        slopes = -(1 - smoothing) * ops.sigmoid(-self.beta * margins) + smoothing * ops.sigmoid(self.beta * margins)
        slopes = ops.where(is_chosen, self.beta * weight * slopes, 0.0)
        return value, slopes - ops.sum(matches * slopes[:, None], axis=0)

    def num_counted(self, y_true, sample_weight=None):
        """What a mean of this loss is divided by, a scalar float32: how many pairs there are in a batch."""
        return ops.sum(ops.cast(ops.convert_to_tensor(y_true)[:, 1] == CHOSEN, "float32"))

    def count(self, labels, sample_weight=None):
        """`num_counted` of arrays, in numpy: a float."""
        return float((np.asarray(labels)[:, 1] == CHOSEN).sum())

    def get_config(self):
        own = {"beta": self.beta, "label_smoothing": self.label_smoothing, "chunk_size": self.chunk_size}
        return {"reduction": self.reduction, "name": self.name, **own}


@keras.saving.register_keras_serializable("kerasllm")
class PreferenceAccuracy(keras.metrics.Metric):
    """Share of the pairs whose chosen answer has become likelier, by the reference, than the rejected one.

    Labels and logits are those of `DPOLoss`.

    Args:
        name: name of the metric.
    """

    without_logits = "crossentropy"
    ignore_class = IGNORED

    @reading
    def __init__(self, name="preference_accuracy", dtype=None):
        super().__init__(name=name, dtype="float32")
        self._direction = "up"  # for callbacks with mode="auto"
        self.total = self.add_variable((), "zeros", dtype="float32", name="total")
        self.count = self.add_variable((), "zeros", dtype="float32", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        pair, which, reference, labels = parted_labels(y_true)
        if output_layer() is None:
            losses = _crossentropies(labels, ops.stop_gradient(ops.convert_to_tensor(y_pred)))
        else:
            losses = ops.reshape(output_layer().crossentropy, ops.shape(labels))
        margins, _ = margins_of(_of_rows(losses, labels) - reference, pair, which)
        is_chosen = which == CHOSEN
        self.total.assign_add(ops.sum(ops.cast(is_chosen & (margins > 0), "float32")))
        self.count.assign_add(ops.sum(ops.cast(is_chosen, "float32")))

    def result(self):
        return ops.divide_no_nan(self.total, self.count)


def margins_of(rewards, pair, which):
    """For each chosen row its reward minus that of the rejected one of its pair, and the matches (B, B) float32."""
    is_chosen, is_rejected = (which == CHOSEN)[:, None], (which == REJECTED)[None]
    matches = ops.cast((pair[:, None] == pair[None]) & is_chosen & is_rejected, "float32")
    # Halves of pairs are none: their rows, of either kind, spoil the result.
    whole = ops.where(which == CHOSEN, ops.sum(matches, axis=1), ops.sum(matches, axis=0)) == 1
    spoilt = ops.where(ops.all(whole), 0.0, float("nan"))
    return rewards - ops.sum(matches * rewards[None], axis=1) + spoilt, matches


def parted_labels(y_true):
    """Labels (B, 3 + T) as pair, which of its answers, the reference's log-probability, (B,) each, and ids (B, T)."""
    y_true = ops.cast(ops.convert_to_tensor(y_true), "float32")
    return y_true[:, 0], y_true[:, 1], y_true[:, 2], ops.cast(y_true[:, COLUMNS:], "int32")


def check_labels(name, labels, shape, num_classes, examples):
    """Raise `ValueError` where labels, of `DPOLoss`, of logits of a `shape` (B, T), are none.

    Args:
        name: of the labels.
        labels: array.
        shape: (B, T).
        num_classes: V.
        examples: (B,) ints that errors name in place of the rows, or None.
    """
    if labels.shape != (shape[0], COLUMNS + shape[1]):
        raise ValueError(f"{name} {labels.shape} must be of shape {(shape[0], COLUMNS + shape[1])}, as DPOLoss says.")
    check_finite(name, labels, examples)
    check_indices(name, labels[:, COLUMNS:], num_classes, f"there are {num_classes} classes", examples, (IGNORED,))
    pairs, which = labels[:, 0], labels[:, 1]
    for row in np.flatnonzero(~np.isin(which, (CHOSEN, REJECTED)) | (np.abs(pairs) > MOST))[:1]:
        raise ValueError(f"{name}{place(examples, row)} must be of a pair and of its answer 0, chosen, or 1, rejected.")
    for pair in np.unique(pairs):
        if sorted(which[pairs == pair]) != [CHOSEN, REJECTED]:
            row = int(np.flatnonzero(pairs == pair)[0])
            raise ValueError(f"{name}{place(examples, row)}: its pair has not one chosen and one rejected answer here.")


def _without_gradient(product):
    bias = None if product.bias is None else ops.stop_gradient(ops.convert_to_tensor(product.bias))
    return dataclasses.replace(product, kernel=ops.stop_gradient(ops.convert_to_tensor(product.kernel)), bias=bias)


def _crossentropies(labels, logits):
    flat = ops.reshape(logits, (-1, logits.shape[-1]))
    losses = backend.token_crossentropy(ops.reshape(labels, (-1,)), flat, IGNORED, 0.0)
    return ops.reshape(losses, ops.shape(labels))


def _of_rows(crossentropies, labels):
    """The log-probability of each row's answer: (B, T) -> (B,)."""
    return -ops.sum(ops.where(labels != IGNORED, crossentropies, 0.0), axis=1)
