"""The Transformer block: attention and feed-forward, each with a norm and a residual connection."""

import keras

from kerasllm.arguments import check_choice, check_rate
from kerasllm.layers.base import Layer, build_once, first_given, method_of_graph
from kerasllm.layers.masks import implicit_attention_mask
from kerasllm.layers.norms import make_norm
from kerasllm.stack import RESIDUALS


@keras.saving.register_keras_serializable("kerasllm")
class TransformerBlock(Layer):
    """Attention, perhaps cross-attention, and feed-forward, each with a norm and a residual connection.

        "pre":       x + sublayer(norm(x))                          "post":   norm(x + sublayer(x))
        "parallel":  x + attention(norm(x)) + feed_forward(norm'(x))    "both":   x + norm'(sublayer(norm(x)))

    Whether the block belongs to an encoder or a decoder is a matter of `use_causal_mask` or `attention_mask`.

    Args:
        attention: the self-attention, a `MultiHeadAttention`.
        feed_forward: a `FeedForward` or `GatedFeedForward`.
        cross_attention: a second `MultiHeadAttention`, over `memory`. Default: none.
        norm: "layer", "rms" or "unit_offset_rms".
        residual: how a sublayer joins the stream, as above; "both" is Gemma 2's way, "parallel" GPT-NeoX's. The older
            name of "pre" and "post" is `norm_first`, True and False.
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
        check_choice("residual", residual, RESIDUALS)
        check_rate("dropout", dropout)
        self.attention, self.feed_forward, self.cross_attention = attention, feed_forward, cross_attention
        self.norm, self.residual, self.norm_epsilon = norm, residual, norm_epsilon
        if residual == "parallel" and cross_attention:
            raise ValueError("residual ('parallel') has no place for cross_attention.")

        def make(sublayer, is_there=True):
            return make_norm(norm, norm_epsilon, self.dtype_policy, f"{sublayer}_norm") if is_there else None

        # In this order, which is that of the weights and of an optimizer's state.
        self.attention_norm = make("attention")
        self.cross_attention_norm = make("cross_attention", cross_attention)
        self.feed_forward_norm = make("feed_forward")
        has_two = residual == "both"
        self.attention_output_norm = make("attention_output", has_two)
        self.cross_attention_output_norm = make("cross_attention_output", has_two and cross_attention)
        self.feed_forward_output_norm = make("feed_forward_output", has_two)
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.supports_masking = True

    def build(self, x_shape, memory_shape=None):
        """Build the sublayers for x (B, T, D) and memory (B, S, C)."""
        build_once(self.attention, x_shape)
        if self.cross_attention:
            build_once(self.cross_attention, x_shape, memory_shape)
        build_once(self.feed_forward, x_shape)
        for sublayer in ("attention", "cross_attention", "feed_forward"):
            for norm in (getattr(self, f"{sublayer}_norm"), getattr(self, f"{sublayer}_output_norm")):
                if norm:
                    norm.build(x_shape)

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

        def feed(h):
            return self.feed_forward(h, training=training)

        if self.residual == "parallel":
            attended = self.dropout(attend(self.attention_norm(x)), training=training)
            x = x + attended + self.dropout(feed(self.feed_forward_norm(x)), training=training)
            return x if cache is None else (x, cache)
        x = self._joined(x, "attention", attend, training)
        if self.cross_attention and memory is not None:
            x = self._joined(x, "cross_attention", attend_memory, training)
        x = self._joined(x, "feed_forward", feed, training)
        return x if cache is None else (x, cache)

    def _joined(self, x, name, sublayer, training):
        norm, output_norm = getattr(self, f"{name}_norm"), getattr(self, f"{name}_output_norm")
        h = sublayer(x if self.residual == "post" else norm(x))
        h = self.dropout(output_norm(h) if output_norm else h, training=training)
        return norm(x + h) if self.residual == "post" else x + h

    @method_of_graph
    def project_memory(self, memory):
        """Keys and values of a memory (B, S, C), which decoding computes once: two (B, N, S, H)."""
        return self.cross_attention.project(memory)

    def compute_output_shape(self, x_shape, *args, **kwargs):
        """The shape of x: (B, T, D)."""
        return x_shape
