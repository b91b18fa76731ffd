"""Scaled dot-product attention with many heads, and the masks it takes."""

import keras
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_boolean, check_positive, check_positive_number, check_rate
from kerasllm.layers.adapters import Dense
from kerasllm.layers.base import Layer, first_given, method_of_graph, new_initializer
from kerasllm.layers.collecting import collect, is_collecting
from kerasllm.layers.masks import causal_mask, check_attention_mask, check_index, implicit_attention_mask
from kerasllm.layers.masks import padding_attention_mask as padding_attention_mask  # where users find it
from kerasllm.layers.norms import make_norm
from kerasllm.layers.positions import rotate


@keras.saving.register_keras_serializable("kerasllm")
class MultiHeadAttention(Layer):
    """Multi-head attention: self or cross, grouped heads, rotary and biased, with a cache that goes in and comes out.

        head_n = softmax(scale q_n k_n^T + bias + mask) v_n,   output = concat(head_1 .. head_N) W_output

    Args:
        num_heads: number of query heads N.
        head_dim: width H of a head. Default: width of the query input / `num_heads`, which must divide it.
        num_key_value_heads: number of key and value heads; a divisor of `num_heads`. 1 is multi-query attention,
            between 1 and `num_heads` grouped-query attention. Default: `num_heads`.
        use_bias: whether the output projection has a bias, and unless `use_qkv_bias` says otherwise the others.
        use_qkv_bias: whether the projections to queries, keys and values have a bias. Default: `use_bias`.
        query_key_norm: whether an RMS norm over H follows the projections to queries and keys (Qwen3).
        norm_epsilon: added to that norm's variance.
        scale: factor of the scores. Default: 1 / sqrt(H); T5 takes 1.
        softcap: scores s become softcap tanh(s / softcap), before bias and mask (Gemma 2). Default: they do not.
        dropout: rate at which attention weights are dropped in training.
        kernel_initializer: initializer of the four kernels.

    Call arguments:
        query: (B, T, D).
        context: (B, S, C), where keys and values come from. Default: `query` (self-attention).
        attention_mask: boolean, broadcast to (B, 1, T, S); True means "may look".
        attention_bias: float, broadcast to (B, N, T, S), added to the scaled scores.
        rotary: pair (cos, sin) of `RotaryPositions.tables`, rotates queries and keys.
        use_causal_mask: whether position t sees positions 0 .. t only.
        cache: pair (keys, values), each (B, key/value heads, S, H): keys and values of `query` are written into it
            from slot `index` on, and attention looks at the whole of it.
        index: the slot of the first query, a scalar, or (B,), a slot for each row; 0 to S - T.
        return_attention_scores: whether to return the attention weights (B, N, T, S) as well.
        mask, query_mask, context_mask: Keras's masks (B, T), (B, S) of padding, which Keras passes by itself. Keys that
            they call padding are not looked at, unless `attention_mask` says what is.

    Returns:
        (B, T, D); with `cache` a pair of that and the new cache; with `return_attention_scores` a pair of that and
        the weights.

    Sources: Vaswani et al. 2017, arXiv:1706.03762; grouped heads: Ainslie et al. 2023, arXiv:2305.13245.

    Example:
        >>> attention = MultiHeadAttention(num_heads=8)
        >>> y = attention(x, use_causal_mask=True)  # x, y: (B, T, D)
    """

    def __init__(
        self,
        num_heads,
        head_dim=None,
        num_key_value_heads=None,
        use_bias=True,
        dropout=0.0,
        kernel_initializer="glorot_uniform",
        use_qkv_bias=None,
        query_key_norm=False,
        norm_epsilon=1e-6,
        scale=None,
        softcap=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive("num_heads", num_heads)
        if head_dim is not None:
            check_positive("head_dim", head_dim)
        num_key_value_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        check_positive("num_key_value_heads", num_key_value_heads)
        if num_heads % num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads ({num_key_value_heads}) must be a divisor of num_heads ({num_heads})."
            )
        for name, value in {"scale": scale, "softcap": softcap}.items():
            if value is not None:
                check_positive_number(name, value)
        check_rate("dropout", dropout)
        check_boolean("use_bias", use_bias)
        check_boolean("query_key_norm", query_key_norm)
        if use_qkv_bias is not None:
            check_boolean("use_qkv_bias", use_qkv_bias)
        self.num_heads, self.head_dim = num_heads, head_dim
        # jax takes whole numbers for int32, which may not hold them.
        self.scale, self.softcap = (None if value is None else float(value) for value in (scale, softcap))
        self.num_key_value_heads = num_key_value_heads
        self.use_bias = use_bias
        self.use_qkv_bias = use_bias if use_qkv_bias is None else use_qkv_bias
        self.query_norm = self.key_norm = None
        if query_key_norm:
            self.query_norm = make_norm("rms", norm_epsilon, self.dtype_policy, "query_norm")
            self.key_norm = make_norm("rms", norm_epsilon, self.dtype_policy, "key_norm")
        self.kernel_initializer = kernel_initializer
        self.supports_masking = True
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, query_shape, context_shape=None):
        """Create the projections for a query (B, T, D) and a context (B, S, C)."""
        hidden_dim = query_shape[-1]
        if self.head_dim is None:
            if hidden_dim % self.num_heads:
                raise ValueError(f"hidden_dim ({hidden_dim}) must be divisible by num_heads ({self.num_heads}).")
            self.head_dim = hidden_dim // self.num_heads
        query_dim, key_dim = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        context_shape = query_shape if context_shape is None else context_shape
        mixed_shape = (*query_shape[:-1], query_dim)
        with backend.in_parts(self.num_heads):
            self.query = self._projection("query", query_dim, query_shape, self.use_qkv_bias)
        with backend.in_parts(self.num_key_value_heads):
            self.key = self._projection("key", key_dim, context_shape, self.use_qkv_bias)
            self.value = self._projection("value", key_dim, context_shape, self.use_qkv_bias)
        with backend.in_parts(self.num_heads):
            self.output_projection = self._projection("output", hidden_dim, mixed_shape, self.use_bias)
        for norm in filter(None, (self.query_norm, self.key_norm)):
            norm.build((None, None, None, self.head_dim))

    def _projection(self, name, units, input_shape, use_bias):
        layer = Dense(
            units,
            use_bias=use_bias,
            kernel_initializer=new_initializer(self.kernel_initializer),
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build(input_shape)
        return layer

    def call(
        self,
        query,
        context=None,
        attention_mask=None,
        attention_bias=None,
        rotary=None,
        use_causal_mask=False,
        cache=None,
        index=0,
        return_attention_scores=False,
        mask=None,
        query_mask=None,
        context_mask=None,
        training=None,
    ):
        """Attend; the arguments are in the class docstring."""
        if attention_mask is None:
            padding_mask = first_given(mask, query_mask) if context is None else context_mask
            attention_mask = implicit_attention_mask(padding_mask, cache, index)
        keys_values = self.project(query if context is None else context, rotary)
        if cache is not None:
            check_index(index, query)
            keys_values = append(cache, keys_values, index)
        if attention_mask is not None:
            check_attention_mask(attention_mask, query, self.num_heads, keys_values[0])
        if use_causal_mask:
            causal = causal_mask(ops.shape(query)[1], ops.shape(keys_values[0])[2], index)
            attention_mask = causal if attention_mask is None else ops.logical_and(attention_mask, causal)
        output, scores = self.attend(
            query, keys_values, attention_mask, attention_bias, rotary, return_attention_scores, training
        )
        results = (
            output,
            *([] if cache is None else [keys_values]),
            *([scores] if return_attention_scores else []),
        )
        return results if len(results) > 1 else output

    @method_of_graph
    def project(self, context, rotary=None):
        """Keys and values of a context (B, S, C): two (B, key/value heads, S, H)."""
        keys = self._split(self.key(context), self.num_key_value_heads)
        values = self._split(self.value(context), self.num_key_value_heads)
        keys = self.key_norm(keys) if self.key_norm else keys
        return (keys if rotary is None else rotate(keys, *rotary)), values

    @method_of_graph
    def attend(
        self,
        query,
        keys_values,
        attention_mask=None,
        attention_bias=None,
        rotary=None,
        return_attention_scores=False,
        training=None,
    ):
        """Attend from a query (B, T, D) to projected keys and values: (B, T, D) and the weights or None."""
        q = self._split(self.query(query), self.num_heads)  # (B, N, T, H)
        q = self.query_norm(q) if self.query_norm else q
        if rotary is not None:
            q = rotate(q, *rotary)
        k, v = keys_values
        weights = mixed = None
        is_wanted = return_attention_scores or is_collecting()
        if not is_wanted and not (training and self.dropout.rate > 0) and self.softcap is None:
            grouped = self.num_key_value_heads != self.num_heads
            mixed = backend.attention(q, k, v, attention_mask, attention_bias, self.scale, grouped)
        if mixed is None:
            weights = attention_weights(q, k, attention_mask, attention_bias, self.scale, self.softcap)
            collect(self, "attentions", weights)
            mixed = mix(self.dropout(weights, training=training), v)
        mixed = ops.transpose(mixed, (0, 2, 1, 3))  # (B, T, N, H)
        output = self.output_projection(ops.reshape(mixed, (-1, ops.shape(query)[1], self.num_heads * self.head_dim)))
        return output, weights

    def _split(self, x, num_heads):
        x = ops.reshape(x, (-1, ops.shape(x)[1], num_heads, self.head_dim))
        return ops.transpose(x, (0, 2, 1, 3))  # (B, N, T, H)

    def compute_output_shape(self, query_shape, *args, **kwargs):
        """The query's shape: (B, T, D)."""
        return query_shape


@keras.saving.register_keras_serializable("kerasllm")
class SoftCap(Layer):
    """y = c tanh(x / c): nearly x where that is small, never beyond c (Gemma 2).

    Args:
        limit: c, a positive number.

    Call arguments:
        x: (..., V).

    Returns:
        (..., V).
    """

    def __init__(self, limit, **kwargs):
        super().__init__(**kwargs)
        check_positive_number("limit", limit)
        self.limit = limit
        self.supports_masking = True

    def call(self, x):
        """Cap x."""
        return capped(x, self.limit)

    def compute_output_shape(self, x_shape):
        """The shape of x."""
        return x_shape


def attention_weights(q, k, attention_mask=None, attention_bias=None, scale=None, softcap=None):
    """softmax(scale q k^T + bias) over the keys that the mask allows, in float32.

    Args:
        q: (B, N, T, H).
        k: (B, G, S, H), G a divisor of N: each key head serves N / G query heads.
        attention_mask: boolean, broadcasts to (B, 1, T, S). A query that may look nowhere looks everywhere alike.
        attention_bias: float, broadcasts to (B, N, T, S).
        scale: factor of the scores. Default: 1 / sqrt(H).
        softcap: as for `MultiHeadAttention`.

    Returns:
        (B, N, T, S) in q's dtype.
    """
    num_heads, scale = q.shape[1], q.shape[3] ** -0.5 if scale is None else scale
    scores = ops.matmul(_grouped(q * scale, k.shape[1]), ops.transpose(k, (0, 1, 3, 2)))
    scores = _ungrouped(scores, num_heads, ops.shape(q)[2])  # (B, N, T, S)
    if softcap is not None:
        scores = capped(scores, softcap)
    if attention_bias is not None:
        scores = scores + ops.cast(attention_bias, scores.dtype)
    if attention_mask is not None:
        scores = ops.where(attention_mask, scores, ops.cast(backend.masked_score(), scores.dtype))
    return ops.cast(softmax(ops.cast(scores, "float32")), q.dtype)


def capped(x, softcap):
    """Softcap tanh(x / softcap): nearly x where that is small, never beyond softcap (Gemma 2)."""
    return ops.tanh(x / float(softcap)) * float(softcap)


def softmax(scores):
    """The softmax over the last axis, without Keras's warning where there is one key, whose weight is 1."""
    return scores * 0.0 + 1.0 if scores.shape[-1] == 1 else ops.softmax(scores, axis=-1)


def mix(weights, v):
    """Weights (B, N, T, S) times values (B, G, S, H), G a divisor of N: (B, N, T, H)."""
    num_heads = weights.shape[1]
    return _ungrouped(ops.matmul(_grouped(weights, v.shape[1]), v), num_heads, ops.shape(weights)[2])


def _grouped(x, num_groups):
    """(B, N, T, X) -> (B, G, N/G * T, X): the query heads that share a key head become longer sequences."""
    if x.shape[1] == num_groups:
        return x
    return ops.reshape(x, (-1, num_groups, x.shape[1] // num_groups * ops.shape(x)[2], ops.shape(x)[3]))


def _ungrouped(x, num_heads, length):
    if x.shape[1] == num_heads:
        return x
    return ops.reshape(x, (-1, num_heads, length, ops.shape(x)[3]))


def append(cache, update, index):
    """Write keys and values (B, N, T, H) into the slots index .. index + T - 1 of a cache (B, N, S, H).

    `index` is a scalar, or (B,), a slot for each row, as for `backend.write_slots`.
    """
    return tuple(backend.write_slots(c, u, index) for c, u in zip(cache, update, strict=True))
