"""The embeddings at the foot of a Transformer."""

import dataclasses

import keras
from keras import ops

from kerasllm.arguments import check_boolean, check_positive, check_positive_number, check_rate
from kerasllm.layers.adapters import Dense, Embedding, ReversibleEmbedding
from kerasllm.layers.base import Layer, build_once
from kerasllm.layers.norms import make_norm
from kerasllm.layers.positions import LearnedPositions, SinusoidalPositions, check_length
from kerasllm.stack import SINUSOIDAL


@keras.saving.register_keras_serializable("kerasllm")
class TransformerEmbeddings(Layer):
    """Token, position and segment embeddings, summed; perhaps a norm; dropout; perhaps a projection.

    Args:
        vocabulary_size: number of symbols V.
        hidden_dim: width D.
        max_sequence_length: the longest sequence, and the size of the learned table of positions; None for no limit.
        positions: "learned", "sinusoidal", "split_sinusoidal" or None, as for `TransformerStack`.
        num_segments: number of segment embeddings; 0 for none.
        scale: whether token embeddings are multiplied by sqrt(D).
        norm: "layer", "rms" or None.
        token_embedding: the token embeddings of another stack, to be shared. Default: its own.
        norm_epsilon, dropout, initializer_range: as for `TransformerStack`.
        embedding_dim: width E of the tables; where it is not D, a dense layer widens the sum (ELECTRA). Default: D.

    Call arguments:
        token_ids: (B, T) int.
        positions: (T,) or (B, T) int. Default: 0 .. T - 1.
        segment_ids: (B, T) int. Default: all 0.

    Returns:
        (B, T, D).

    Raises:
        ValueError: T is known and exceeds `max_sequence_length`. Ids are not looked at: of one that is none a backend
            makes an error, NaN or the row of another.
    """

    def __init__(
        self,
        vocabulary_size,
        hidden_dim,
        max_sequence_length=512,
        positions="learned",
        num_segments=0,
        scale=False,
        norm=None,
        norm_epsilon=1e-5,
        dropout=0.0,
        initializer_range=None,
        token_embedding=None,
        embedding_dim=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive("vocabulary_size", vocabulary_size)
        check_rate("dropout", dropout)
        check_boolean("scale", scale)
        if num_segments != 0 or isinstance(num_segments, bool):
            check_positive("num_segments", num_segments)
        if initializer_range is not None:
            check_positive_number("initializer_range", initializer_range)
        policy = {"dtype": self.dtype_policy}
        embedding_dim = hidden_dim if embedding_dim is None else embedding_dim
        check_positive("embedding_dim", embedding_dim)
        self.hidden_dim, self.embedding_dim, self.scale = hidden_dim, embedding_dim, scale
        self.max_sequence_length = max_sequence_length
        initializer = normal_initializer(hidden_dim**-0.5 if initializer_range is None else initializer_range)

        self.token = token_embedding or ReversibleEmbedding(
            vocabulary_size,
            embedding_dim,
            embeddings_initializer=keras.initializers.get(initializer),
            reverse_dtype=self.compute_dtype,  # which Keras leaves where a layer of mixed precision stands in another
            name="token",
            **policy,
        )
        self.token.supports_masking = True  # or it warns that a mask of the ids ends here
        self.position = None
        if positions == "learned":
            check_positive("max_sequence_length", max_sequence_length)
            self.position = LearnedPositions(max_sequence_length, initializer, name="position", **policy)
        elif positions in SINUSOIDAL:
            self.position = SinusoidalPositions(interleaved=SINUSOIDAL[positions], name="position", **policy)
        self.segment = None
        if num_segments:
            self.segment = Embedding(
                num_segments,
                embedding_dim,
                embeddings_initializer=keras.initializers.get(initializer),
                name="segment",
                **policy,
            )
        self.norm = make_norm(norm, norm_epsilon, self.dtype_policy, "norm") if norm else None
        self.dropout = keras.layers.Dropout(dropout, name="dropout", **policy)
        self.projection = None
        if embedding_dim != hidden_dim:
            self.projection = Dense(
                hidden_dim,
                kernel_initializer=keras.initializers.get(initializer),
                name="projection",
                **policy,
            )
        self.supports_masking = True

    def build(self, token_ids_shape):
        """Create the tables."""
        x_shape = (*token_ids_shape, self.embedding_dim)
        build_once(self.token, token_ids_shape)
        if self.position:
            self.position.build(x_shape)
        if self.segment:
            self.segment.build(token_ids_shape)
        if self.norm:
            self.norm.build(x_shape)
        if self.projection:
            self.projection.build(x_shape)

    def call(self, token_ids, positions=None, segment_ids=None, training=None):
        """Embed."""
        check_length(token_ids, self.max_sequence_length)
        x = self.token(token_ids)
        if self.scale:
            x = x * self.hidden_dim**0.5
        if self.position:
            x = self.position(x, positions)
        if self.segment:
            x = x + self.segment(ops.zeros_like(token_ids) if segment_ids is None else segment_ids)
        if self.norm:
            x = self.norm(x)
        x = self.dropout(x, training=training)
        return self.projection(x) if self.projection else x

    def compute_mask(self, token_ids, previous_mask=None):
        """Keras's mask of the token ids (B, T): what they carry, or where they are not 0, or None."""
        if previous_mask is None and getattr(self.token, "mask_zero", False):
            return ops.not_equal(token_ids, 0)
        return previous_mask

    def compute_output_shape(self, token_ids_shape, *args, **kwargs):
        """(B, T, D)."""
        return (*token_ids_shape, self.hidden_dim)


@keras.saving.register_keras_serializable("kerasllm")
class TiedHead(Layer):
    """Logits by the transposed embeddings E: scale x E^T + b.

    Args:
        embedding: the `keras.layers.ReversibleEmbedding` E.
        use_bias: whether there is the bias b.
        scale: a number; T5 takes D**-0.5.

    Call arguments:
        hidden: x, (B, T, D).

    Returns:
        (B, T, V).
    """

    shared_argument = "embedding"

    def __init__(self, embedding, use_bias=True, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        check_boolean("use_bias", use_bias)
        check_positive_number("scale", scale)
        self.embedding, self.use_bias, self.scale = embedding, use_bias, float(scale)
        self.supports_masking = True

    def build(self, hidden_shape):
        """Create the bias."""
        build_once(self.embedding, None)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight((self.embedding.input_dim,), initializer="zeros", name="bias")

    def call(self, hidden):
        """Score all symbols."""
        logits = self.embedding(hidden if self.scale == 1 else hidden * self.scale, reverse=True)
        return logits if self.bias is None else logits + self.bias

    def product(self):
        """What the layer computes, a `kerasllm.backend.Product`."""
        return dataclasses.replace(self.embedding.product(), bias=self.bias, scale=self.scale)

    def compute_output_shape(self, hidden_shape):
        """(B, T, V)."""
        return (*hidden_shape[:-1], self.embedding.input_dim)


def kernel_initializer(initializer_range):
    """The initializer of a stack's kernels: normal with this deviation, or for None Glorot-uniform."""
    return "glorot_uniform" if initializer_range is None else normal_initializer(initializer_range)


def normal_initializer(stddev):
    """The config of a normal initializer: a plain dict, so that layers write it into their own config."""
    # As `keras.initializers.serialize` writes it, which imports TensorFlow wherever it is installed.
    config = {"mean": 0.0, "stddev": float(stddev), "seed": None}
    return {"module": "keras.initializers", "class_name": "RandomNormal", "config": config, "registered_name": None}
