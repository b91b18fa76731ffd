"""BERT: the bidirectional Transformer encoder, and its masked language model."""

import keras
import numpy as np
from keras import ops

from kerasllm.arguments import check_choice, check_positive
from kerasllm.layers.block import make_norm
from kerasllm.layers.feedforward import get_activation
from kerasllm.layers.transformer import TransformerEncoder
from kerasllm.models.base import Model, carried_tokenizer, read_texts, resolved_dtype
from kerasllm.text import batches

SIZES = {  # Devlin et al. 2019; the smaller ones Turc et al. 2019, arXiv:1908.08962
    "tiny": {"num_layers": 2, "num_heads": 2, "hidden_dim": 128},
    "mini": {"num_layers": 4, "num_heads": 4, "hidden_dim": 256},
    "small": {"num_layers": 4, "num_heads": 8, "hidden_dim": 512},
    "medium": {"num_layers": 8, "num_heads": 8, "hidden_dim": 512},
    "base": {"num_layers": 12, "num_heads": 12, "hidden_dim": 768},
    "large": {"num_layers": 24, "num_heads": 16, "hidden_dim": 1024},
}


class BERTModel(Model):
    """The base of BERT and its heads."""

    tokenizer = carried_tokenizer("tokenizer", "vocabulary_size")

    @classmethod
    def from_size(cls, size, **arguments):
        """A fresh model of one of BERT's sizes.

        Args:
            size: "tiny", "mini", "small", "medium", "base" (110 million weights) or "large".
            **arguments: of the constructor; they win over the size's own.
        """
        check_choice("size", size, SIZES)
        return cls(**{**SIZES[size], **arguments})


@keras.saving.register_keras_serializable("kerasllm")
class BERT(BERTModel):
    """The BERT encoder (Devlin et al. 2019, arXiv:1810.04805).

    Inputs:
        token_ids: (B, T) int32.
        segment_ids: (B, T) int32, 0 for the first text, 1 for the second.
        padding_mask: (B, T) bool or int, True = real.

    Outputs:
        A dict: `sequence_output` (B, T, D), and with a pooler `pooled_output` (B, D), a tanh layer over the first
        token.

    Args:
        vocabulary_size: number of symbols V.
        num_layers, num_heads, hidden_dim: size of the stack; see `BERT.from_size` for the published ones.
        intermediate_dim: width of the feed-forward. Default: 4 `hidden_dim`.
        max_sequence_length: the longest sequence.
        num_segments: number of segments.
        dropout: rate in training.
        activation: of the feed-forward.
        norm_epsilon: added to the variance.
        initializer_range: standard deviation of the initial weights.
        pooler: whether there is a pooler.
        dtype: dtype policy.
        tokenizer: a `kerasllm.Tokenizer` of `vocabulary_size` symbols, for strings.
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
        pooler=True,
        dtype=None,
        tokenizer=None,
        name="bert",
    ):
        arguments = {
            "vocabulary_size": vocabulary_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "max_sequence_length": max_sequence_length,
            "num_segments": num_segments,
            "dropout": dropout,
            "activation": activation,
            "norm_epsilon": norm_epsilon,
            "initializer_range": initializer_range,
            "dtype": resolved_dtype(dtype),
        }
        encoder, inputs, sequence = encode(arguments)
        outputs = {"sequence_output": sequence}
        if pooler:
            pooling = keras.layers.Dense(
                hidden_dim,
                "tanh",
                kernel_initializer=keras.initializers.RandomNormal(stddev=initializer_range),
                dtype=encoder.dtype_policy,
                name="pooler",
            )
            outputs["pooled_output"] = pooling(sequence[:, 0])
        super().__init__(inputs, outputs, {**arguments, "pooler": pooler}, name)
        self.encoder = encoder
        self.tokenizer = tokenizer


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
        dtype=None,
        tokenizer=None,
        name="bert_masked_lm",
    ):
        arguments = {
            "vocabulary_size": vocabulary_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "max_sequence_length": max_sequence_length,
            "num_segments": num_segments,
            "dropout": dropout,
            "activation": activation,
            "norm_epsilon": norm_epsilon,
            "initializer_range": initializer_range,
            "dtype": resolved_dtype(dtype),
        }
        encoder, inputs, sequence = encode(arguments)
        masked_positions = keras.Input((None,), dtype="int32", name="masked_positions")
        head = MaskedLMHead(
            encoder.embeddings.token,
            activation,
            norm_epsilon,
            initializer_range,
            dtype=encoder.dtype_policy,
            name="masked_lm_head",
        )
        logits = head(sequence, masked_positions)
        super().__init__({**inputs, "masked_positions": masked_positions}, logits, arguments, name)
        self.encoder, self.head = encoder, head
        self.tokenizer = tokenizer

    def fill_mask(self, texts, top_k=5):
        """Propose tokens for the masks in texts, each mask on its own.

        Args:
            texts: a string or a list of strings, each with the tokenizer's mask token once or more.
            top_k: number of proposals for each mask.

        Returns:
            For a text with one mask a list of `top_k` dicts, best first: `score`, the probability; `token`, the id;
            `token_str`; `sequence`, the text with the mask filled. For a text with several masks a list of such
            lists. For a list of texts a list of those.

        Raises:
            ValueError: there is no tokenizer or it has no mask token; a text is empty, has no mask, or is longer than
                the model's `max_sequence_length`; `top_k` is not in 1 .. V.
        """
        tokenizer = self.required_tokenizer()
        if tokenizer.mask_id is None:
            raise ValueError("tokenizer must have a mask token for fill_mask.")
        check_positive("top_k", top_k)
        if top_k > self.arguments["vocabulary_size"]:
            raise ValueError(f"top_k ({top_k}) must be at most vocabulary_size ({self.arguments['vocabulary_size']}).")
        texts, unlist = read_texts("texts", texts)
        rows = tokenizer.encode_batch(texts)
        positions = []
        for i, row in enumerate(rows):
            positions.append([p for p, token in enumerate(row) if token == tokenizer.mask_id])
            if not positions[i]:
                raise ValueError(f"texts[{i}] ({texts[i]!r}) must hold {tokenizer.id_to_token(tokenizer.mask_id)!r}.")
            if len(row) > self.arguments["max_sequence_length"]:
                raise ValueError(
                    f"texts[{i}] has {len(row)} tokens, max_sequence_length is {self.arguments['max_sequence_length']}."
                )
        token_ids, padding_mask = batches.pad(
            rows, batches.bucket_length(max(map(len, rows)), self.arguments["max_sequence_length"])
        )
        masked_positions, _ = batches.pad(positions, batches.bucket_length(max(map(len, positions))))
        logits = self.predict_on_batch(
            {
                "token_ids": token_ids,
                "segment_ids": np.zeros_like(token_ids),
                "padding_mask": padding_mask,
                "masked_positions": masked_positions,
            }
        )
        results = []
        for row, masks, scores in zip(rows, positions, np.asarray(logits, "float64"), strict=True):
            proposals = [self._proposals(row, p, s, top_k) for p, s in zip(masks, scores, strict=False)]
            results.append(proposals if len(masks) > 1 else proposals[0])
        return unlist(results)

    def _proposals(self, row, position, logits, top_k):
        tokenizer = self.tokenizer
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
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
        self.norm.build(sequence_shape)
        self.bias = self.add_weight((self.token_embedding.input_dim,), initializer="zeros", name="bias")

    def call(self, sequence, masked_positions):
        """Score all symbols at the masked positions."""
        x = ops.take_along_axis(sequence, ops.expand_dims(masked_positions, -1), axis=1)  # (B, P, D)
        return self.token_embedding(self.norm(self.dense(x)), reverse=True) + self.bias

    def compute_output_shape(self, sequence_shape, masked_positions_shape):
        """(B, P, V)."""
        return (*masked_positions_shape, self.token_embedding.input_dim)


def encode(arguments):
    """The encoder of BERT's `arguments`, its symbolic inputs, and its output (B, T, D)."""
    encoder = TransformerEncoder(**arguments, norm_first=False, norm_embeddings=True, name="encoder")
    inputs = {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
        "segment_ids": keras.Input((None,), dtype="int32", name="segment_ids"),
        "padding_mask": keras.Input((None,), dtype="bool", name="padding_mask"),
    }
    return encoder, inputs, encoder(**inputs)
