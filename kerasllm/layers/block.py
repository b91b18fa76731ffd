"""The Transformer block: attention and feed-forward, each with a norm and a residual connection."""

import keras

from kerasllm.arguments import check_choice, check_positive_number, check_rate
from kerasllm.layers.base import Layer, build_once, first_given, method_of_graph
from kerasllm.layers.masks import implicit_attention_mask
from kerasllm.stack import NORMS, RESIDUALS


@keras.saving.register_keras_serializable("kerasllm")
class TransformerBlock(Layer):
    """Attention, perhaps cross-attention, and feed-forward, each with a norm and a residual connection.

        "pre":   x + sublayer(norm(x))          "post":   norm(x + sublayer(x))

    Whether the block belongs to an encoder or a decoder is a matter of `use_causal_mask` or `attention_mask`.

    Args:
        attention: the self-attention, a `MultiHeadAttention`.
        feed_forward: a `FeedForward` or `GatedFeedForward`.
        cross_attention: a second `MultiHeadAttention`, over `memory`. Default: none.
        norm: "layer" or "rms".
        residual: how a sublayer joins the stream, "pre" or "post". (`norm_first`, True or False, is its older name.)
        norm_epsilon: added to the variance.
        dropout: rate at which a sublayer's output is dropped in training.

    Call arguments:
        x: (B, T, D).
        attention_mask, attention_bias, rotary, use_causal_mask, cache, index: as for `MultiHeadAttention`.
        memory: (B, S, D), or its keys and values from `project_memory`. Without it there is no cross-attention.
        cross_attention_mask: boolean, broadcasts to (B, 1, T, S).
        mask, x_mask, memory_mask: Keras's masks of padding, which Keras passes by itself; they count where
            `attention_mask` and `cross_attention_mask` are not given.

    Returns:
        (B, T, D); with `cache` a pair of that and the new cache.

    Example:
        >>> block = TransformerBlock(MultiHeadAttention(8), FeedForward(2048))
        >>> y = block(x, use_causal_mask=True)  # x, y: (B, T, D)
    """

    def __init__(
        self,
        attention,
        feed_forward,
        cross_attention=None,
        norm="layer",
        residual="pre",
        norm_epsilon=1e-5,
        dropout=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice("norm", norm, NORMS)
        check_choice("residual", residual, RESIDUALS)
        check_rate("dropout", dropout)
        self.attention, self.feed_forward, self.cross_attention = attention, feed_forward, cross_attention
        self.norm, self.residual, self.norm_epsilon = norm, residual, norm_epsilon
        self.attention_norm = make_norm(norm, norm_epsilon, self.dtype_policy, "attention_norm")
        self.cross_attention_norm = (
            make_norm(norm, norm_epsilon, self.dtype_policy, "cross_attention_norm") if cross_attention else None
        )
        self.feed_forward_norm = make_norm(norm, norm_epsilon, self.dtype_policy, "feed_forward_norm")
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.supports_masking = True

    def build(self, x_shape, memory_shape=None):
        """Build the sublayers for x (B, T, D) and memory (B, S, C)."""
        build_once(self.attention, x_shape)
        self.attention_norm.build(x_shape)
        if self.cross_attention:
            build_once(self.cross_attention, x_shape, memory_shape)
            self.cross_attention_norm.build(x_shape)
        build_once(self.feed_forward, x_shape)
        self.feed_forward_norm.build(x_shape)

    def call(
        self,
        x,
        attention_mask=None,
        attention_bias=None,
        rotary=None,
        cache=None,
        index=0,
        memory=None,
        cross_attention_mask=None,
        use_causal_mask=False,
        mask=None,
        x_mask=None,
        memory_mask=None,
        training=None,
    ):
        """Run the sublayers; the arguments are in the class docstring."""
        if attention_mask is None:
            attention_mask = implicit_attention_mask(first_given(mask, x_mask), cache, index)
        is_projected = isinstance(memory, tuple | list)
        if cross_attention_mask is None and not is_projected:
            cross_attention_mask = implicit_attention_mask(memory_mask)

        def attend(h):
            nonlocal cache
            h = self.attention(
                h,
                attention_mask=attention_mask,
                attention_bias=attention_bias,
                rotary=rotary,
                use_causal_mask=use_causal_mask,
                cache=cache,
                index=index,
                training=training,
            )
            if cache is not None:
                h, cache = h
            return h

        def attend_memory(h):
            keys_values = memory if is_projected else self.project_memory(memory)
            return self.cross_attention.attend(h, keys_values, cross_attention_mask, training=training)[0]

        x = self._residual(x, self.attention_norm, attend, training)
        if self.cross_attention and memory is not None:
            x = self._residual(x, self.cross_attention_norm, attend_memory, training)
        x = self._residual(x, self.feed_forward_norm, lambda h: self.feed_forward(h, training=training), training)
        return x if cache is None else (x, cache)

    def _residual(self, x, norm, sublayer, training):
        if self.residual == "pre":
            return x + self.dropout(sublayer(norm(x)), training=training)
        return norm(x + self.dropout(sublayer(x), training=training))

    @method_of_graph
    def project_memory(self, memory):
        """Keys and values of a memory (B, S, C), which decoding computes once: two (B, N, S, H)."""
        return self.cross_attention.project(memory)

    def compute_output_shape(self, x_shape, *args, **kwargs):
        """The shape of x: (B, T, D)."""
        return x_shape


def make_norm(kind, epsilon, dtype, name):
    """A `keras.layers.LayerNormalization` ("layer") or `RMSNormalization` ("rms") over the last axis."""
    check_positive_number("norm_epsilon", epsilon)
    layer = {"layer": keras.layers.LayerNormalization, "rms": keras.layers.RMSNormalization}[kind]
    norm = layer(epsilon=epsilon, dtype=dtype, name=name)
    norm.supports_masking = True  # which Keras forgets of RMSNormalization
    return norm
