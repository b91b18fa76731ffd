"""Where a token stands: learned and sinusoidal embeddings, rotations, relative biases."""

import math

import keras
import numpy as np
from keras import ops

from kerasllm.arguments import check_boolean, check_fraction, check_positive, check_positive_number
from kerasllm.layers.base import Layer
from kerasllm.layers.rotary_scaling import read_rope_scaling


@keras.saving.register_keras_serializable("kerasllm")
class LearnedPositions(Layer):
    """Add a learned vector for each position (Gehring et al. 2017, arXiv:1705.03122; BERT, GPT-2).

    Args:
        max_sequence_length: number of positions.
        embeddings_initializer: initializer of the (max_sequence_length, D) table.

    Call arguments:
        x: (B, T, D).
        positions: (T,) or (B, T) int. Default: 0 .. T - 1.

    Returns:
        (B, T, D).

    Raises:
        ValueError: T is known and exceeds `max_sequence_length`.
    """

    def __init__(self, max_sequence_length, embeddings_initializer="uniform", **kwargs):
        super().__init__(**kwargs)
        check_positive("max_sequence_length", max_sequence_length)
        self.max_sequence_length = max_sequence_length
        self.embeddings_initializer = embeddings_initializer
        self.supports_masking = True

    def build(self, x_shape):
        """Create the table for x (B, T, D)."""
        self.embeddings = self.add_weight(
            (self.max_sequence_length, x_shape[-1]),
            initializer=keras.initializers.get(self.embeddings_initializer),
            name="embeddings",
        )

    def call(self, x, positions=None):
        """Add the rows of the table."""
        check_length(x, self.max_sequence_length)
        if positions is None:
            positions = ops.arange(ops.shape(x)[1], dtype="int32")
        return x + ops.cast(ops.take(self.embeddings, positions, axis=0), x.dtype)

    def compute_output_shape(self, x_shape, positions_shape=None):
        """The shape of x: (B, T, D)."""
        return x_shape


def check_length(x, limit):
    """Raise `ValueError` where the length of x (B, T, ...) is known and exceeds `limit`, unless that is None."""
    if limit is not None and isinstance(x.shape[1], int) and x.shape[1] > limit:  # jax has symbols for open lengths
        raise ValueError(f"sequence length ({x.shape[1]}) must be at most max_sequence_length ({limit}).")


@keras.saving.register_keras_serializable("kerasllm")
class SinusoidalPositions(Layer):
    """Add sines and cosines of the position (Vaswani et al. 2017, arXiv:1706.03762).

        p[2i] = sin(position / max_wavelength^(2i/D)),   p[2i + 1] = cos(position / max_wavelength^(2i/D))

    Args:
        max_wavelength: the longest wavelength / 2 pi.
        interleaved: whether sines and cosines take turns, as above. Else all sines stand before all cosines (Marian).

    Call arguments:
        x: (B, T, D).
        positions: (T,) or (B, T) int. Default: 0 .. T - 1.

    Returns:
        (B, T, D).
    """

    def __init__(self, max_wavelength=10000.0, interleaved=True, **kwargs):
        super().__init__(**kwargs)
        check_positive_number("max_wavelength", max_wavelength)
        check_boolean("interleaved", interleaved)
        self.max_wavelength, self.interleaved = max_wavelength, interleaved
        self.supports_masking = True

    def call(self, x, positions=None):
        """Add the waves."""
        if positions is None:
            positions = ops.arange(ops.shape(x)[1], dtype="int32")
        column = np.arange(x.shape[-1])
        if not self.interleaved:
            column = np.concatenate([column[0::2], column[1::2]])
        frequency = self.max_wavelength ** -((column // 2 * 2) / x.shape[-1])  # (D,)
        phase = np.where(column % 2, math.pi / 2, 0.0)  # cos(a) = sin(a + pi/2)
        angles = ops.multiply(ops.expand_dims(ops.cast(positions, "float32"), -1), frequency.astype("float32"))
        return x + ops.cast(ops.sin(ops.add(angles, phase.astype("float32"))), x.dtype)

    def compute_output_shape(self, x_shape, positions_shape=None):
        """The shape of x: (B, T, D)."""
        return x_shape


@keras.saving.register_keras_serializable("kerasllm")
class RotaryPositions(Layer):
    """Rotate pairs of a head's channels by angles that grow with the position (Su et al. 2021, arXiv:2104.09864).

    Of R rotated channels i pairs with i + R/2, as in GPT-NeoX and Llama checkpoints. The dot product of a rotated
    query and key depends on the distance of their positions only.

    Args:
        base: the longest wavelength / 2 pi.
        scaling: None, or how the angles are stretched beyond the lengths that a model first saw: a dict of `rope_type`
            and what that reads, named and computed as in transformers.
            "linear": `factor`.
            "dynamic": `factor`, `max_position_embeddings`.
            "llama3": `factor`, `low_freq_factor`, `high_freq_factor`, `original_max_position_embeddings`.
            "yarn": `original_max_position_embeddings`, and `factor` or `max_position_embeddings`; perhaps
            `attention_factor`, `beta_fast`, `beta_slow`, `mscale`, `mscale_all_dim`, `truncate`.
            "longrope": `short_factor` and `long_factor`, lists of R/2 numbers, `original_max_position_embeddings`, and
            `attention_factor`, `factor` or `max_position_embeddings`.
        fraction: the part of a head's channels that is rotated, the first of them: R = int(fraction H), and one more
            where that is odd.

    The angles of "dynamic" and "longrope" follow the length of a token's sequence where that exceeds
    `max_position_embeddings`, or `original_max_position_embeddings`. In a whole sequence it is the number of its
    tokens, as in transformers. While a text grows it is the length so far, and keys in the cache stay as they are, as
    in `generate` of transformers; all tokens of a prompt have the length of the prompt. So cached steps are not what a
    pass over the whole text is, once "dynamic" goes beyond its length, or "longrope" comes past its own, where Phi-3
    in transformers reads the text anew. Each row has its own length; in transformers all have that of the longest.

    Call arguments:
        x: (B, N, T, H), H even.
        positions: (T,) or (B, T) int. Default: 0 .. T - 1.
        lengths: (B, 1) or (B, T) int, the length of the sequence that a token belongs to, for "dynamic" and "longrope".
            Default: for all tokens of a row its largest position + 1.

    Returns:
        (B, N, T, H).
    """

    def __init__(self, base=10000.0, scaling=None, fraction=1.0, **kwargs):
        super().__init__(**kwargs)
        check_positive_number("base", base)
        check_fraction("fraction", fraction)
        kind, parameters = (None, {}) if scaling is None else read_rope_scaling(scaling)
        object.__setattr__(self, "_kind", (kind, parameters))  # hidden from Keras's tracking
        self.base, self.scaling, self.fraction = base, scaling, fraction
        # The length from which on the angles follow that of the sequence, or None.
        self.follows_beyond = parameters.get(kind.follows_beyond) if kind else None
        self.supports_masking = True

    def call(self, x, positions=None, lengths=None):
        """Rotate x."""
        if positions is None:
            positions = ops.arange(ops.shape(x)[2], dtype="int32")
        return rotate(x, *self.tables(positions, x.shape[-1], lengths))

    def tables(self, positions, head_dim, lengths=None):
        """Cosines and sines that `rotate` takes, scaled as attention is: two (1 or B, 1, T, R/2) float32.

        Args:
            positions, lengths: as for a call.
            head_dim: H.
        """
        if lengths is None and self.follows_beyond is not None:
            lengths = ops.max(positions, axis=-1, keepdims=True) + 1
        rotary_dim = self.rotary_dim_of(head_dim)
        frequency, factor = self._frequencies(rotary_dim, lengths)
        angles = ops.multiply(ops.expand_dims(ops.cast(positions, "float32"), -1), frequency)
        angles = ops.reshape(angles, (-1, 1, ops.shape(positions)[-1], (rotary_dim + 1) // 2))
        cos, sin = ops.cos(angles), ops.sin(angles)
        return (cos, sin) if factor == 1 else (cos * factor, sin * factor)

    def rotary_dim_of(self, head_dim):
        """The number of channels that are rotated, R, in heads of H = `head_dim`."""
        rotary_dim = int(head_dim * self.fraction)
        if rotary_dim < 1:
            raise ValueError(f"fraction ({self.fraction}) must leave a channel of heads of {head_dim} to rotate.")
        if rotary_dim == head_dim and head_dim % 2:
            raise ValueError(f"head_dim ({head_dim}) must be even for rotary positions.")
        return rotary_dim

    def _frequencies(self, rotary_dim, lengths):
        """In radians a token, float32: (R/2,), or (..., 1 or T, R/2) of kinds that follow the length; and a factor."""
        frequency, factor = self.base ** -(np.arange(0, rotary_dim, 2) / rotary_dim), 1.0
        kind, parameters = self._kind
        if kind is not None:
            parameters = {**parameters, "rope_theta": self.base, "rotary_dim": rotary_dim}
            frequency, factor = kind.frequencies(frequency, parameters, lengths)
        return (frequency.astype("float32") if self.follows_beyond is None else frequency), factor

    def compute_output_shape(self, x_shape, positions_shape=None, lengths_shape=None):
        """The shape of x: (B, N, T, H)."""
        return x_shape


def rotate(x, cos, sin):
    """Rotate the pairs (x[i], x[i + R/2]) of the first R channels of x (B, N, T, H) by `RotaryPositions.tables`."""
    cos, sin = ops.cast(cos, x.dtype), ops.cast(sin, x.dtype)
    half = cos.shape[-1]  # R/2
    if 2 * half == x.shape[-1]:
        (a, b), rest = ops.split(x, 2, axis=-1), ()
    else:
        a, b, *rest = ops.split(x, (half, 2 * half), axis=-1)
    return ops.concatenate([a * cos - b * sin, b * cos + a * sin, *rest], axis=-1)


@keras.saving.register_keras_serializable("kerasllm")
class RelativePositionBias(Layer):
    """A learned bias for each head and each bucket of key position - query position (T5: Raffel et al. 2020).

    Half the buckets hold one distance each; the rest widen logarithmically up to `max_distance`.
    Source: arXiv:1910.10683 and its released code.

    Args:
        num_heads: number of heads N.
        num_buckets: number of buckets of distances.
        max_distance: distance from which on all share the last bucket.
        bidirectional: whether keys may stand after the query; then half the buckets are theirs.

    Call arguments:
        query_positions: (T,) int, or (B, T), those of each row.
        key_positions: (S,) int.

    Returns:
        (1 or B, N, T, S), an `attention_bias`.
    """

    def __init__(self, num_heads, num_buckets=32, max_distance=128, bidirectional=True, **kwargs):
        super().__init__(**kwargs)
        check_positive("num_heads", num_heads)
        check_positive("num_buckets", num_buckets)
        check_positive("max_distance", max_distance)
        check_boolean("bidirectional", bidirectional)
        self.num_heads, self.num_buckets = num_heads, num_buckets
        self.max_distance, self.bidirectional = max_distance, bidirectional
        exact = num_buckets // (4 if bidirectional else 2)
        if exact < 1:
            raise ValueError(f"num_buckets ({num_buckets}) must be at least {4 if bidirectional else 2}.")
        if max_distance <= exact:
            raise ValueError(f"max_distance ({max_distance}) must be greater than {exact}, for {num_buckets} buckets.")

    def build(self, query_positions_shape, key_positions_shape=None):
        """Create the (num_buckets, N) table."""
        self.embeddings = self.add_weight((self.num_buckets, self.num_heads), initializer="uniform", name="embeddings")

    def call(self, query_positions, key_positions):
        """Look the biases up."""
        is_by_row = len(np.shape(query_positions)) == 2
        keys = ops.reshape(key_positions, (1, -1))
        queries = ops.expand_dims(query_positions, -1) if is_by_row else ops.reshape(query_positions, (-1, 1))
        distance = keys - queries  # (T, S) or (B, T, S)
        bias = ops.take(ops.cast(self.embeddings, self.compute_dtype), self._bucket(distance), axis=0)
        if is_by_row:
            return ops.transpose(bias, (0, 3, 1, 2))
        return ops.expand_dims(ops.transpose(bias, (2, 0, 1)), 0)

    def _bucket(self, distance):
        buckets = self.num_buckets
        offset = 0
        if self.bidirectional:
            buckets //= 2
            offset = ops.cast(distance > 0, "int32") * buckets
            distance = ops.abs(distance)
        else:
            distance = ops.maximum(-distance, 0)
        exact = buckets // 2
        ratio = ops.log(ops.cast(ops.maximum(distance, 1), "float32") / exact) / math.log(self.max_distance / exact)
        far = ops.minimum(exact + ops.cast(ratio * (buckets - exact), "int32"), buckets - 1)
        return offset + ops.where(distance < exact, ops.cast(distance, "int32"), far)

    def compute_output_shape(self, query_shape, key_shape):
        """(1 or B, N, T, S)."""
        return (query_shape[0] if len(query_shape) == 2 else 1, self.num_heads, query_shape[-1], key_shape[-1])


@keras.saving.register_keras_serializable("kerasllm")
class ALiBi(Layer):
    """A fixed penalty that grows linearly with the distance, steeper or flatter by head (Press et al. 2021).

        bias[n, t, s] = -slope_n |t - s|,   slope_n = 2^(-8 n / N),  n = 1 .. N

    For N not a power of two the slopes are those of the next smaller power, then every other one of the next larger,
    as in the authors' code. Source: arXiv:2108.12409.

    Args:
        num_heads: number of heads N.

    Call arguments:
        query_positions: (T,) int, or (B, T), those of each row.
        key_positions: (S,) int.

    Returns:
        (1 or B, N, T, S) float, an `attention_bias`.
    """

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        check_positive("num_heads", num_heads)
        self.num_heads = num_heads

    def call(self, query_positions, key_positions):
        """Compute the penalties."""
        is_by_row = len(np.shape(query_positions)) == 2
        keys = ops.reshape(key_positions, (1, 1, -1))
        queries = ops.expand_dims(query_positions, (1, -1)) if is_by_row else ops.reshape(query_positions, (1, -1, 1))
        distance = ops.abs(keys - queries)  # (1, T, S) or (B, 1, T, S)
        slopes = ops.reshape(ops.cast(_slopes(self.num_heads), self.compute_dtype), (-1, 1, 1))
        bias = -slopes * ops.cast(distance, self.compute_dtype)
        return bias if is_by_row else ops.expand_dims(bias, 0)

    def compute_output_shape(self, query_shape, key_shape):
        """(1 or B, N, T, S)."""
        return (query_shape[0] if len(query_shape) == 2 else 1, self.num_heads, query_shape[-1], key_shape[-1])


def _slopes(num_heads):
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * n / power) for n in range(1, power + 1)]
    between = [2.0 ** (-8 * n / (2 * power)) for n in range(1, 2 * power, 2)]
    return np.array(slopes + between[: num_heads - power], "float32")
