"""BERT's masked language model."""

import dataclasses
from typing import Unpack

import keras
from keras import ops

from kerasllm.layers.adapters import Dense
from kerasllm.layers.base import Layer, build_once
from kerasllm.layers.embeddings import kernel_initializer
from kerasllm.layers.feedforward import get_activation
from kerasllm.layers.norms import make_norm
from kerasllm.models.bert import BERTArguments, BERTModel, encode, takes_encoder
from kerasllm.tasks.mask_filling import MaskFilling


@keras.saving.register_keras_serializable("kerasllm")
class BERTMaskedLM(MaskFilling, BERTModel):
    """BERT with its masked language model, computed at the masked positions only.

    Inputs:
        token_ids, segment_ids, padding_mask: as for `BERT`.
        masked_positions: (B, P) int32, where tokens are to be predicted.

    Outputs:
        Logits (B, P, V).

    Args:
        vocabulary_size, num_layers, num_heads, hidden_dim: size of the encoder.
        **arguments: as for `BERT`.

    The output layer is the transposed token embeddings.

    Example:
        >>> model = BERTMaskedLM.from_size("tiny", vocabulary_size=8000, tokenizer=tokenizer)
        >>> model.compile("adamw", loss=kerasllm.training.TokenCrossentropy())
        >>> model.fit(kerasllm.training.MaskedLMDataset(texts, tokenizer, batch_size=32))
        >>> model.fill_mask("The capital of France is [MASK].", top_k=3)
    """

    @takes_encoder()
    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        *,
        name="bert_masked_lm",
        **arguments: Unpack[BERTArguments],
    ):
        encoder, inputs, sequence = encode(vocabulary_size, num_layers, num_heads, hidden_dim, **arguments)
        inputs["masked_positions"] = keras.Input((None,), dtype="int32", name="masked_positions")
        head = MaskedLMHead(
            encoder.embeddings.token,
            arguments["activation"],
            arguments["norm_epsilon"],
            arguments["initializer_range"],
            dtype=encoder.dtype_policy,
            name="masked_lm_head",
        )
        logits = head(sequence, inputs["masked_positions"])
        super().__init__(inputs, logits)
        self.encoder, self.head = encoder, head
        self.tokenizer = arguments["tokenizer"]


@keras.saving.register_keras_serializable("kerasllm")
class MaskedLMHead(Layer):
    """Transform, norm and output layer at some positions: scores = norm(activation(W x + b)) E^T + c.

    Args:
        token_embedding: the `keras.layers.ReversibleEmbedding` E.
        activation, norm_epsilon, initializer_range: as for `BERT`.

    Call arguments:
        sequence: (B, T, D).
        masked_positions: (B, P) int.

    Returns:
        (B, P, V).
    """

    shared_argument = "token_embedding"

    def __init__(self, token_embedding, activation, norm_epsilon, initializer_range, **kwargs):
        super().__init__(**kwargs)
        self.token_embedding = token_embedding
        self.supports_masking = True
        self.dense = Dense(
            token_embedding.output_dim,
            get_activation(activation),
            kernel_initializer=kernel_initializer(initializer_range),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.norm = make_norm("layer", norm_epsilon, self.dtype_policy, "norm")

    def build(self, sequence_shape, masked_positions_shape):
        """Create transform, norm and bias."""
        build_once(self.token_embedding, None)
        self.dense.build(sequence_shape)
        self.norm.build((*sequence_shape[:-1], self.token_embedding.output_dim))
        self.bias = self.add_weight((self.token_embedding.input_dim,), initializer="zeros", name="bias")

    def call(self, sequence, masked_positions):
        """Score all symbols at the masked positions."""
        return self.token_embedding(self.transform(sequence, masked_positions), reverse=True) + self.bias

    def transform(self, sequence, masked_positions):
        """What is multiplied with the embeddings: (B, P, D)."""
        x = ops.take_along_axis(sequence, ops.expand_dims(masked_positions, -1), axis=1)
        return self.norm(self.dense(x))

    def product(self):
        """What is done with it, a `kerasllm.backend.Product`."""
        return dataclasses.replace(self.token_embedding.product(), bias=self.bias)

    def compute_mask(self, sequence, previous_mask=None):
        """None: a mask of the sequence says nothing of some of its positions."""

    def compute_output_shape(self, sequence_shape, masked_positions_shape):
        """(B, P, V)."""
        return (*masked_positions_shape, self.token_embedding.input_dim)
