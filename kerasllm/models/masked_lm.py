"""BERT's masked language model."""

import keras
import numpy as np
from keras import ops

from kerasllm.arguments import check_positive
from kerasllm.layers.block import make_norm
from kerasllm.layers.feedforward import get_activation
from kerasllm.models.bert import BERTModel, encode
from kerasllm.models.predicting import answer_each, encode_texts, predict, softmax


@keras.saving.register_keras_serializable("kerasllm")
class BERTMaskedLM(BERTModel):
    """BERT with its masked language model, computed at the masked positions only.

    Inputs:
        token_ids, segment_ids, padding_mask: as for `BERT`.
        masked_positions: (B, P) int32, where tokens are to be predicted.

    Outputs:
        Logits (B, P, V).

    Args: those of `BERT` without `pooler`. The output layer is the transposed token embeddings.

    Example:
        >>> model = BERTMaskedLM.from_size("tiny", vocabulary_size=8000, tokenizer=tokenizer)
        >>> model.compile("adamw", loss=kerasllm.training.TokenCrossentropy())
        >>> model.fit(kerasllm.training.MaskedLMDataset(texts, tokenizer, batch_size=32))
        >>> model.fill_mask("The capital of France is [MASK].", top_k=3)
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim=None,
        max_sequence_length=512,
        num_segments=2,
        dropout=0.1,
        activation="gelu",
        norm_epsilon=1e-12,
        initializer_range=0.02,
        embedding_dim=None,
        family="bert",
        dtype=None,
        tokenizer=None,
        name="bert_masked_lm",
    ):
        arguments, encoder, inputs, sequence = encode(locals())
        inputs["masked_positions"] = keras.Input((None,), dtype="int32", name="masked_positions")
        head = MaskedLMHead(
            encoder.embeddings.token,
            activation,
            norm_epsilon,
            initializer_range,
            dtype=encoder.dtype_policy,
            name="masked_lm_head",
        )
        logits = head(sequence, inputs["masked_positions"])
        super().__init__(inputs, logits, arguments, name)
        self.encoder, self.head = encoder, head
        self.tokenizer = tokenizer

    def fill_mask(self, texts, top_k=5, batch_size=32, verbose=True):
        """Propose tokens for the masks in texts, each mask on its own.

        Args:
            texts: a string, a list or an iterable of strings, each with the tokenizer's mask token once or more.
            top_k: number of proposals for each mask.
            batch_size: the most texts that are computed at a time.
            verbose: whether a long list has a progress bar.

        Returns:
            For a text with one mask a list of `top_k` dicts, best first: `score`, the probability; `token`, the id;
            `token_str`; `sequence`, the text with the mask filled. For a text with several masks a list of such
            lists. For a list of texts a list of those, for an iterable an iterator.

        Raises:
            ValueError: there is no tokenizer or it has no mask token; a text is empty, has no mask, or is longer than
                the model's `max_sequence_length`; `top_k` is not in 1 .. V.
        """
        tokenizer = self.required_tokenizer()
        if tokenizer.mask_id is None:
            raise ValueError("tokenizer must have a mask token for fill_mask.")
        check_positive("top_k", top_k)
        check_positive("batch_size", batch_size)
        if top_k > self.arguments["vocabulary_size"]:
            raise ValueError(f"top_k ({top_k}) must be at most vocabulary_size ({self.arguments['vocabulary_size']}).")

        def answer(texts, verbose):
            encodings = encode_texts(self, texts)
            positions = [[p for p, token in enumerate(e.ids) if token == tokenizer.mask_id] for e in encodings]
            for i, masks in enumerate(positions):
                if not masks:
                    mask = tokenizer.id_to_token(tokenizer.mask_id)
                    raise ValueError(f"texts[{i}] ({texts[i]!r}) must hold {mask!r}.")
            logits = predict(self, encodings, batch_size, verbose, {"masked_positions": positions})
            return [
                self._filled(e.ids, masks, softmax(scores[: len(masks)]), top_k)
                for e, masks, scores in zip(encodings, positions, logits, strict=True)
            ]

        return answer_each("texts", texts, answer, verbose)

    def _filled(self, row, positions, probabilities, top_k):
        proposals = [self._proposals(row, p, s, top_k) for p, s in zip(positions, probabilities, strict=True)]
        return proposals if len(positions) > 1 else proposals[0]

    def _proposals(self, row, position, probabilities, top_k):
        tokenizer = self.tokenizer
        hidden = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
        proposals = []
        for token in np.argsort(-probabilities, kind="stable")[:top_k].tolist():
            filled = [token if p == position else t for p, t in enumerate(row) if t not in hidden]
            proposals.append(
                {
                    "score": float(probabilities[token]),
                    "token": token,
                    "token_str": tokenizer.decode([token], skip_special_tokens=False),
                    "sequence": tokenizer.decode(filled, skip_special_tokens=False),
                }
            )
        return proposals


class MaskedLMHead(keras.layers.Layer):
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

    def __init__(self, token_embedding, activation, norm_epsilon, initializer_range, **kwargs):
        super().__init__(**kwargs)
        self.token_embedding = token_embedding
        self.dense = keras.layers.Dense(
            token_embedding.output_dim,
            get_activation(activation),
            kernel_initializer=keras.initializers.RandomNormal(stddev=initializer_range),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.norm = make_norm("layer", norm_epsilon, self.dtype_policy, "norm")

    def build(self, sequence_shape, masked_positions_shape):
        """Create transform, norm and bias."""
        self.dense.build(sequence_shape)
        self.norm.build((*sequence_shape[:-1], self.token_embedding.output_dim))
        self.bias = self.add_weight((self.token_embedding.input_dim,), initializer="zeros", name="bias")

    def call(self, sequence, masked_positions):
        """Score all symbols at the masked positions."""
        x = ops.take_along_axis(sequence, ops.expand_dims(masked_positions, -1), axis=1)  # (B, P, D)
        return self.token_embedding(self.norm(self.dense(x)), reverse=True) + self.bias

    def compute_output_shape(self, sequence_shape, masked_positions_shape):
        """(B, P, V)."""
        return (*masked_positions_shape, self.token_embedding.input_dim)
