"""How probable given tokens are, by the chain rule."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.generation.programs import Programs, batch_tensors


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """How probable a sequence of tokens is under a model.

    Attributes:
        token_ids: (L,) int32 array.
        log_probs: (L - 1,) float32 array, log p(token_ids[i + 1] | token_ids[.. i]) in nats.
    """

    token_ids: np.ndarray
    log_probs: np.ndarray

    @property
    def log_probability(self):
        """The log-probability of all tokens after the first, in nats."""
        return float(np.sum(self.log_probs, dtype="float64"))

    @property
    def perplexity(self):
        """The inverse of the geometric mean of their probabilities; 1 is certain."""
        return math.exp(-self.log_probability / len(self.log_probs))


def score(model, inputs, token_ids, padding_mask, num_rows):
    """Score rows of tokens by one full pass.

    Args:
        model: a `keras.Model` whose logits (B, T, V) at t belong to token t + 1.
        inputs: dict of arrays, its inputs.
        token_ids: (B, T) int array, what the logits belong to.
        padding_mask: (B, T) bool array, True = real; each row has two tokens at least, padding on the right.
        num_rows: the rows that the model is shown, copies of the last behind the others.

    Returns:
        A list of `Score`s.
    """
    copies = np.minimum(np.arange(num_rows), len(token_ids) - 1)
    arguments = keras.tree.map_structure(lambda x: np.asarray(x)[copies], (inputs, token_ids))
    log_probs = ops.convert_to_numpy(Programs.of(model).run(token_log_probs, *batch_tensors(arguments)))[
        : len(token_ids)
    ]
    lengths = np.sum(padding_mask, axis=1)
    return [
        Score(row[:length].astype("int32"), values[: length - 1])
        for row, values, length in zip(token_ids, log_probs, lengths, strict=True)
    ]


def token_log_probs(model, inputs, token_ids):
    """Log-probabilities (B, T - 1) of tokens (B, T) after those before them."""
    logits = model(inputs, training=False)[:, :-1]
    labels = ops.reshape(token_ids[:, 1:], (-1,))
    losses = backend.token_crossentropy(labels, ops.reshape(logits, (-1, logits.shape[-1])))
    return ops.reshape(-losses, (-1, ops.shape(token_ids)[1] - 1))
