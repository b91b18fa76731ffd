"""Metrics of tokens for `compile(metrics=[...])`, exact over batches that differ in how many tokens count."""

import keras
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_whole
from kerasllm.constructors import reading
from kerasllm.training.losses import counted_tokens, label_tensor, output_layer, token_weights


class TokenMean(keras.metrics.Metric):
    """Mean of a value over the tokens that count, of all batches since the last reset; kept in float32.

    A base class: `values` says what is averaged. Labels are (B, T) int, logits (B, T, V), weights (given to
    `weighted_metrics`) as for `TokenCrossentropy`.
    """

    without_logits = None
    """What it averages where no logits are made, an attribute of `kerasllm.training.losses.OutputLayer`, if it can."""

    @reading
    def __init__(self, ignore_class=-1, name=None, dtype=None):
        # Sums of bfloat16 stop growing at 256, so `dtype` ("float32" from get_config) changes nothing.
        super().__init__(name=name, dtype="float32")
        if ignore_class is not None:
            check_whole("ignore_class", ignore_class)
        self.ignore_class = ignore_class
        self.total = self.add_variable((), "zeros", dtype="float32", name="total")
        self.count = self.add_variable((), "zeros", dtype="float32", name="count")

    def values(self, labels, logits):
        """The value of each token: labels (M,) int, logits (M, V) -> (M,) float32."""
        raise NotImplementedError

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = label_tensor(y_true), ops.stop_gradient(ops.convert_to_tensor(y_pred))
        if len(y_true.shape) == 2 == len(y_pred.shape) - 1 and None not in (y_true.shape[1], y_pred.shape[1]):
            if y_true.shape[1] != y_pred.shape[1]:
                raise ValueError(
                    f"{self.name}: y_true {tuple(y_true.shape)} must be labels of the tokens of y_pred "
                    f"{tuple(y_pred.shape)}."
                )
        weight = counted_tokens(y_true, self.ignore_class)
        if sample_weight is not None:
            weight = weight * token_weights(sample_weight, y_true)
        if output_layer() is not None:
            values = getattr(output_layer(), self.without_logits)
        else:
            # Flat like the loss's, so that XLA computes the cross-entropy of both once.
            values = self.values(ops.reshape(y_true, (-1,)), ops.reshape(y_pred, (-1, y_pred.shape[-1])))
        self.total.assign_add(ops.sum(values * ops.reshape(weight, (-1,))))
        self.count.assign_add(ops.sum(weight))

    def result(self):
        return ops.divide_no_nan(self.total, self.count)

    def get_config(self):
        return {**super().get_config(), "ignore_class": self.ignore_class}


@keras.saving.register_keras_serializable("kerasllm")
class Perplexity(TokenMean):
    """exp(mean cross-entropy) of the tokens that count: among how many equally likely ones the model wavers.

    Label smoothing plays no part. It costs the forward pass of the loss a second time, which XLA saves, and so does
    `TokenCrossentropy(chunk_size=...)`.

    Args:
        ignore_class: label of the positions that do not count; `None` if all count.
        name: name of the metric.
    """

    without_logits = "crossentropy"

    @reading
    def __init__(self, ignore_class=-1, name="perplexity", dtype=None):
        super().__init__(ignore_class, name, dtype)
        self._direction = "down"  # for callbacks with mode="auto"

    def values(self, labels, logits):
        return backend.token_crossentropy(labels, logits, self.ignore_class)

    def result(self):
        return ops.exp(super().result())


@keras.saving.register_keras_serializable("kerasllm")
class TokenAccuracy(TokenMean):
    """Share of the tokens that count whose label has the largest logit (of equals, the first); nan of what is no class.

    Args:
        ignore_class: label of the positions that do not count; `None` if all count.
        name: name of the metric.
    """

    without_logits = "is_largest"

    @reading
    def __init__(self, ignore_class=-1, name="accuracy", dtype=None):
        super().__init__(ignore_class, name, dtype)
        self._direction = "up"

    def values(self, labels, logits):
        is_known = backend.is_class(labels, logits.shape[-1]) | (counted_tokens(labels, self.ignore_class) == 0)
        return ops.where(is_known, ops.cast(backend.is_argmax(labels, logits), "float32"), float("nan"))
