"""The loss of every model here: the cross-entropy of tokens, of which some do not count."""

import keras
import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_rate, check_whole
from kerasllm.constructors import reading
from kerasllm.text import batches
from kerasllm.text.limits import as_array


@keras.saving.register_keras_serializable("kerasllm")
class TokenCrossentropy(keras.losses.Loss):
    """Cross-entropy of integer labels and logits, averaged over the tokens that count in the whole batch.

        loss = sum(sample_weight * crossentropy) / number of labels other than ignore_class

    It is computed in float32, also under mixed precision. A batch in which no token counts gives 0. A label
    that is neither `ignore_class` nor a class gives nan. Labels alone say what counts: a mask that Keras
    hands on by itself (`mask_zero=True`) is not looked at.

    `fit` and `evaluate` show the mean of the batches' losses, each weighted by its number of rows: that is
    not the mean over all tokens where batches differ in how many they count. `Perplexity` is exact.

    Args:
        ignore_class: label of the positions that do not count (padding, unmasked words); `None` if all count.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al., 2016), in [0, 1).
        reduction: "sum_over_batch_size" is the mean above; "mean_with_sample_weight" divides by the sum of
            the weights of the tokens that count; "sum"; `None` gives the loss of each token (B, T).
        name: name of the loss.

    Call arguments:
        y_true: labels (B, T) int.
        y_pred: logits (B, T, V).
        sample_weight: (B,), (B, 1) or (B, T), if given.
    """

    @reading
    def __init__(
        self,
        ignore_class=-1,
        label_smoothing=0.0,
        reduction="sum_over_batch_size",
        name="token_crossentropy",
    ):
        super().__init__(name=name, reduction=reduction, dtype="float32")
        check_rate("label_smoothing", label_smoothing)
        if ignore_class is not None:
            check_whole("ignore_class", ignore_class)
        self.ignore_class = ignore_class
        self.label_smoothing = label_smoothing

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = label_tensor(y_true), ops.convert_to_tensor(y_pred)
        counted = counted_tokens(y_true, self.ignore_class)
        weight = counted if sample_weight is None else counted * token_weights(sample_weight, y_true)
        if self.reduction in ("sum_over_batch_size", "mean"):
            # Keras will divide by the number of positions; divide by that of the tokens that count.
            weight = weight * (ops.cast(ops.size(counted), "float32") / ops.maximum(ops.sum(counted), 1.0))
        # Reshaping leaves behind a mask that Keras has hung on the logits and would weight with once more.
        flat_logits = ops.reshape(y_pred, (-1, y_pred.shape[-1]))
        loss = super().__call__(ops.reshape(y_true, (-1,)), flat_logits, ops.reshape(weight, (-1,)))
        return ops.reshape(loss, ops.shape(y_true)) if self.reduction in (None, "none") else loss

    def call(self, y_true, y_pred):
        return backend.token_crossentropy(y_true, y_pred, self.ignore_class, self.label_smoothing)

    def get_config(self):
        own = {"ignore_class": self.ignore_class, "label_smoothing": self.label_smoothing}
        return {**super().get_config(), **own}


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
