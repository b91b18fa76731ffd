"""The loss of every model here: the cross-entropy of tokens, of which some do not count."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_positive, check_rate, check_whole, is_number, is_whole, shown
from kerasllm.constructors import reading
from kerasllm.text import batches
from kerasllm.text.limits import as_array

MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


@keras.saving.register_keras_serializable("kerasllm")
class TokenCrossentropy(keras.losses.Loss):
    """Cross-entropy of integer labels and logits, averaged over the tokens that count in the whole batch.

        loss = sum(class_weight * sample_weight * crossentropy) / number of labels other than ignore_class

    It is computed in float32, also under mixed precision. A batch in which no token counts gives 0. A label
    that is neither `ignore_class` nor a class gives nan. Labels alone say what counts: a mask that Keras
    hands on by itself (`mask_zero=True`) is not looked at.

    What `fit` and `evaluate` of kerasllm's models show is the mean over all tokens that count, whatever the batches. A
    plain `keras.Model` shows the mean of the batches' losses, each weighted by its number of rows, which is another
    where batches differ in how many tokens count.

    With `chunk_size` the training and evaluation of kerasllm's models never make the logits (B, T, V): hidden states
    go into the loss with the output layer's matrix, a chunk of tokens at a time, tokens that do not count left out.
    Loss, gradients, `Perplexity` and `TokenAccuracy` are the same, other metrics of logits are an error. The model goes
    on giving logits in calls, `predict`, `generate` and files; and of logits, as those of a plain `keras.Model`, this
    loss computes what it does without `chunk_size`.

    Args:
        ignore_class: label of the positions that do not count (padding, unmasked words); `None` if all count.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al., 2016), in [0, 1).
        reduction: "sum_over_batch_size" is the mean above; "mean_with_sample_weight" divides by the sum of
            the weights of the tokens that count; "sum"; `None` gives the loss of each token (B, T).
        name: name of the loss.
        chunk_size: the tokens of a chunk, for instance 256: memory for `chunk_size` * V logits is enough. Default: all
            logits at once.
        class_weight: dict label -> weight of the tokens that have it, 0 or more. Default: 1 each.

    Call arguments:
        y_true: labels (B, T) int.
        y_pred: logits (B, T, V).
        sample_weight: (B,), (B, 1) or (B, T), if given.

    Example:
        >>> model.compile(AdamW(3e-4), TokenCrossentropy(chunk_size=256), metrics=[Perplexity()])
    """

    reads_hidden_states = True
    """Whether kerasllm's models may hand it hidden states and an `OutputLayer` in place of logits."""

    @reading
    def __init__(
        self,
        ignore_class=-1,
        label_smoothing=0.0,
        reduction="sum_over_batch_size",
        name="token_crossentropy",
        chunk_size=None,
        class_weight=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype="float32")
        check_rate("label_smoothing", label_smoothing)
        if ignore_class is not None:
            check_whole("ignore_class", ignore_class)
        if chunk_size is not None:
            check_positive("chunk_size", chunk_size)
            if self.reduction in (None, "none"):
                raise ValueError("chunk_size takes a reduction to one number: reduction (None) must be another.")
        self.ignore_class = ignore_class
        self.label_smoothing = label_smoothing
        self.chunk_size = chunk_size
        self.class_weight = _read_class_weight(class_weight)

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = label_tensor(y_true), ops.convert_to_tensor(y_pred)
        head = _output_layer.get()
        counted = counted_tokens(y_true, self.ignore_class)
        weight = counted if sample_weight is None else counted * token_weights(sample_weight, y_true)
        if self.class_weight:
            weight = weight * self._class_weights(y_true, y_pred.shape[-1] if head is None else head.num_classes)
        if head is not None:
            return self._of_hidden_states(y_true, y_pred, weight, head)
        if self.reduction in ("sum_over_batch_size", "mean"):
            # Keras will divide by the number of positions; divide by that of the tokens that count.
            weight = weight * (ops.cast(ops.size(counted), "float32") / ops.maximum(ops.sum(counted), 1.0))
        # Reshaping leaves behind a mask that Keras has hung on the logits and would weight with once more.
        flat_logits = ops.reshape(y_pred, (-1, y_pred.shape[-1]))
        loss = super().__call__(ops.reshape(y_true, (-1,)), flat_logits, ops.reshape(weight, (-1,)))
        return ops.reshape(loss, ops.shape(y_true)) if self.reduction in (None, "none") else loss

    def call(self, y_true, y_pred):
        return backend.token_crossentropy(y_true, y_pred, self.ignore_class, self.label_smoothing)

    def num_counted(self, y_true, sample_weight=None):
        """What a mean of this loss is divided by, a scalar float32: how many tokens count in a batch, or their weight.

        Args:
            y_true, sample_weight: as for a call.
        """
        y_true = label_tensor(y_true)
        counted = counted_tokens(y_true, self.ignore_class)
        if self.reduction != "mean_with_sample_weight":
            return ops.sum(counted)
        weight = counted if sample_weight is None else counted * token_weights(sample_weight, y_true)
        return ops.sum(weight * self._class_weights(y_true, None) if self.class_weight else weight)

    def count(self, labels, sample_weight=None):
        """`num_counted` of arrays, in numpy: a float."""
        counted = np.ones(np.shape(labels)) if self.ignore_class is None else np.asarray(labels) != self.ignore_class
        if self.reduction != "mean_with_sample_weight":
            return float(counted.sum())
        for label, weight in self.class_weight.items():
            counted = np.where(labels == label, weight * counted, counted)
        if sample_weight is not None:
            weight = np.asarray(sample_weight)
            counted = counted * (weight[:, None] if weight.ndim < counted.ndim else weight)
        return float(counted.sum())

    def _of_hidden_states(self, y_true, hidden, weight, head):
        """The loss of hidden states (B, T, D), whose logits an `OutputLayer` would compute."""
        total, head.crossentropy, head.is_largest = backend.linear_crossentropy(
            ops.reshape(hidden, (-1, hidden.shape[-1])),
            head.product,
            ops.reshape(y_true, (-1,)),
            ops.reshape(weight, (-1,)),
            self.ignore_class,
            self.label_smoothing,
            self.chunk_size,
            head.training,
            head.asks_for_largest,
        )
        if self.reduction == "sum":
            return total
        counted = weight if self.reduction == "mean_with_sample_weight" else counted_tokens(y_true, self.ignore_class)
        return ops.divide_no_nan(total, ops.sum(counted)) / backend.replicas()  # as Keras's losses

    def _class_weights(self, labels, num_classes):
        """The weight of each token by its class: (B, T) float32."""
        if num_classes is not None and max(self.class_weight) >= num_classes:
            raise ValueError(f"class_weight has label {max(self.class_weight)}; there are {num_classes} classes.")
        table = np.ones(max(self.class_weight) + 2, "float32")  # the last one is that of all larger labels
        table[list(self.class_weight)] = list(self.class_weight.values())
        return ops.take(table, ops.clip(ops.cast(labels, "int32"), 0, len(table) - 1))

    def get_config(self):
        own = {"ignore_class": self.ignore_class, "label_smoothing": self.label_smoothing}
        if self.chunk_size is not None:
            own["chunk_size"] = self.chunk_size
        if self.class_weight:
            own["class_weight"] = {str(label): weight for label, weight in self.class_weight.items()}  # as in JSON
        return {**super().get_config(), **own}


@dataclasses.dataclass
class OutputLayer:
    """What a loss and metrics need to know of an output layer that was left out, and what the loss tells the metrics.

    Args:
        product: a `kerasllm.backend.Product`.
        training: whether there is a gradient.
        asks_for_largest: whether `is_largest` is asked for.
        crossentropy, is_largest: of the tokens (M,), set by the loss: their cross-entropy, and 1.0 where their label
            has the largest logit.
    """

    product: object
    training: bool
    asks_for_largest: bool
    crossentropy: object = None
    is_largest: object = None

    @property
    def num_classes(self):
        return self.product.kernel.shape[0 if self.product.is_transposed else 1]

    @contextlib.contextmanager
    def left_out(self):
        """Inside it, the loss and metrics of tokens take hidden states in place of logits."""
        token = _output_layer.set(self)
        try:
            yield
        finally:
            _output_layer.reset(token)


_output_layer = contextvars.ContextVar("output_layer", default=None)


def output_layer():
    """The `OutputLayer` that was left out of what losses and metrics are given now, or None."""
    return _output_layer.get()


def label_tensor(labels):
    """Labels as a tensor; those in numpy or lists must be whole numbers of 32 bits, which backends make of others."""
    if not isinstance(labels, np.ndarray | list | tuple):
        return ops.convert_to_tensor(labels)
    labels = as_array("labels", labels)
    if labels.dtype.kind == "f" and (np.floor(labels) == labels).all():
        labels = labels.astype("int64")
    return ops.convert_to_tensor(batches.as_int32(labels, "labels"))


def counted_tokens(labels, ignore_class):
    """1.0 where a token counts: (B, T) -> (B, T) float32."""
    if ignore_class is None:
        return ops.ones_like(labels, dtype="float32")
    return ops.cast(ops.not_equal(labels, ignore_class), "float32")


def token_weights(sample_weight, labels):
    """Weights of rows, (B,) or (B, 1), or of tokens, (B, T), as weights of tokens: (B, T) float32."""
    weights = ops.cast(sample_weight, "float32")
    if len(weights.shape) < len(labels.shape):
        weights = ops.expand_dims(weights, -1)
    return ops.broadcast_to(weights, ops.shape(labels))


def _read_class_weight(class_weight):
    """The dict label -> weight; a config's has strings for labels."""
    if class_weight is None or class_weight == {}:
        return {}
    if isinstance(class_weight, Mapping):
        entries = {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in class_weight.items()}
        if all(is_whole(k) and k >= 0 and is_number(v) and v >= 0 for k, v in entries.items()):
            return {int(label): float(weight) for label, weight in entries.items()}
    raise ValueError(f"class_weight ({shown(class_weight)}) must be a dict of labels and weights, 0 or more.")
