"""Attention of recurrent decoders over encoder states."""

import keras
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_choice, check_positive
from kerasllm.layers.adapters import Dense
from kerasllm.layers.attention import softmax
from kerasllm.layers.base import Layer, first_given, method_of_graph
from kerasllm.layers.masks import check_padding_mask


class Alignment(Layer):
    """The base of both attentions: softmax over the scores, then the mean of the memory under it.

        context_t = sum_s softmax_s(score(query_t, key_s)) memory_s

    An attention offers `project(memory)`, the keys, and `score(query, keys)`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, query, memory, padding_mask=None, keys=None, return_attention_scores=False, memory_mask=None):
        """Attend; the arguments are in the docstring of the subclass."""
        padding_mask = first_given(padding_mask, memory_mask)
        if padding_mask is not None:
            check_padding_mask("padding_mask", padding_mask, memory)
        scores = self.score(query, self.project(memory) if keys is None else keys)  # (B, T, S)
        if padding_mask is not None:
            looked_at = ops.expand_dims(ops.cast(padding_mask, "bool"), 1)
            scores = ops.where(looked_at, scores, ops.cast(backend.masked_score(), scores.dtype))
        weights = softmax(scores)
        context = ops.matmul(weights, memory)  # (B, T, M)
        return (context, weights) if return_attention_scores else context


@keras.saving.register_keras_serializable("kerasllm")
class AdditiveAttention(Alignment):
    """Attention of Bahdanau et al. 2015 (arXiv:1409.0473) over the states of an encoder.

        score(query, memory) = v . tanh(W query + U memory)

    Args:
        units: width of the tanh.

    Call arguments:
        query: (B, T, D), states of the decoder.
        memory: (B, S, M), states of the encoder.
        padding_mask: boolean or 0/1 (B, S), True where the memory is real. A row without any sees all alike.
        keys: `project(memory)`, to compute it once for many steps of decoding.
        return_attention_scores: whether to return the weights as well.
        memory_mask: Keras's mask of the memory (B, S), which Keras passes by itself, in place of `padding_mask`.

    Returns:
        The context (B, T, M), and with `return_attention_scores` the weights (B, T, S).
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        check_positive("units", units)
        self.query = Dense(units, use_bias=False, dtype=self.dtype_policy, name="query")
        self.key = Dense(units, use_bias=False, dtype=self.dtype_policy, name="key")
        self.energy = Dense(1, use_bias=False, dtype=self.dtype_policy, name="energy")

    def build(self, query_shape, memory_shape):
        """Create W, U and v for a query (B, T, D) and a memory (B, S, M)."""
        self.query.build(query_shape)
        self.key.build(memory_shape)
        self.energy.build((None, None, None, self.key.units))

    @method_of_graph
    def project(self, memory):
        """The keys U memory: (B, S, M) -> (B, S, units)."""
        return self.key(memory)

    @method_of_graph
    def score(self, query, keys):
        """Score each query against each key: (B, T, S)."""
        sums = ops.expand_dims(self.query(query), 2) + ops.expand_dims(keys, 1)  # (B, T, S, units)
        return ops.squeeze(self.energy(ops.tanh(sums)), -1)


@keras.saving.register_keras_serializable("kerasllm")
class DotAttention(Alignment):
    """Attention of Luong et al. 2015 (arXiv:1508.04025) over the states of an encoder.

        "dot":      score(query, memory) = query . memory
        "general":  score(query, memory) = query . W memory

    Args:
        score: "dot", for a query and a memory of one width, or "general".

    Call arguments:
        query: (B, T, D), states of the decoder.
        memory: (B, S, M), states of the encoder.
        padding_mask: boolean or 0/1 (B, S), True where the memory is real. A row without any sees all alike.
        keys: `project(memory)`, to compute it once for many steps of decoding.
        return_attention_scores: whether to return the weights as well.
        memory_mask: Keras's mask of the memory (B, S), which Keras passes by itself, in place of `padding_mask`.

    Returns:
        The context (B, T, M), and with `return_attention_scores` the weights (B, T, S).
    """

    def __init__(self, score="dot", **kwargs):
        super().__init__(**kwargs)
        check_choice("score", score, ("dot", "general"))
        self.general = score == "general"

    def build(self, query_shape, memory_shape):
        """Create W of "general" for a query (B, T, D) and a memory (B, S, M)."""
        if self.general:
            self.key = Dense(query_shape[-1], use_bias=False, dtype=self.dtype_policy, name="key")
            self.key.build(memory_shape)
        elif query_shape[-1] != memory_shape[-1]:
            raise ValueError(
                f"query and memory of widths {query_shape[-1]} and {memory_shape[-1]} need score='general'; "
                "score='dot' takes equal widths."
            )

    @method_of_graph
    def project(self, memory):
        """The keys: W memory (B, S, D) of "general", else the memory itself."""
        return self.key(memory) if self.general else memory

    @method_of_graph
    def score(self, query, keys):
        """Score each query against each key: (B, T, S)."""
        return ops.matmul(query, ops.transpose(keys, (0, 2, 1)))
