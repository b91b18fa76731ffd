"""BERT for vectors of texts, whose cosine says how near the texts are in meaning."""

import keras
import numpy as np
from keras import ops

from kerasllm import checkpoints
from kerasllm.arguments import check_choice, check_positive
from kerasllm.models.bert import BERTModel, encode
from kerasllm.models.embedding_index import EmbeddingIndex
from kerasllm.tasks.embedding import Embedding

POOLINGS = ("mean", "cls", "max")


@keras.saving.register_keras_serializable("kerasllm")
class BERTEmbedder(Embedding, BERTModel):
    """BERT that makes one vector of a text (Reimers & Gurevych 2019, arXiv:1908.10084).

    A folder of sentence-transformers opens as it is, and `save_to_preset` writes one: pooling, normalisation and the
    length to cut at stand in its `modules.json`, `1_Pooling/config.json` and `sentence_bert_config.json`.

    Inputs:
        token_ids, segment_ids, padding_mask: as for `BERT`.

    Outputs:
        (B, D) float32.

    Args: those of `BERT` without `pooler`, and
        pooling: how the tokens' vectors become one: their "mean", their "max", or that of the first, "cls".
        normalize: whether vectors have length 1.
        truncate_at: texts of more tokens are cut to so many. Default: texts longer than the model are errors.

    Example:
        >>> model = BERTEmbedder.from_preset("path/to/all-MiniLM-L6-v2")
        >>> model.embed(["A man is eating.", "Someone has a meal."]).shape
        (2, 384)
        >>> model.search("food", ["He eats.", "It rains."], top_k=1)
        [{'index': 0, 'score': 0.47, 'text': 'He eats.'}]
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
        pooling="mean",
        normalize=True,
        truncate_at=None,
        family="bert",
        dtype=None,
        tokenizer=None,
        name="bert_embedder",
    ):
        arguments, encoder, inputs, sequence = encode(locals())
        check_choice("pooling", pooling, POOLINGS)
        if truncate_at is not None:
            check_positive("truncate_at", truncate_at)
            if truncate_at > max_sequence_length:
                raise ValueError(
                    f"truncate_at ({truncate_at}) must be at most max_sequence_length ({max_sequence_length})."
                )
        vectors = pool(ops.cast(sequence, "float32"), inputs["padding_mask"], pooling)
        if normalize:
            # Not ops.norm, which hands jax its axis as a list, and jax refuses.
            length = ops.sqrt(ops.sum(vectors * vectors, axis=-1, keepdims=True))
            vectors = vectors / ops.maximum(length, 1e-12)
        own = {"pooling": pooling, "normalize": normalize, "truncate_at": truncate_at}
        super().__init__(inputs, vectors, {**arguments, **own}, name)
        self.encoder = encoder
        self.tokenizer = tokenizer

    @classmethod
    def read_arguments(cls, folder):
        """What the files of sentence-transformers in a folder say."""
        return checkpoints.read_modules(folder)

    def save_assets(self, folder):
        """Write the tokenizer and the files of sentence-transformers; Keras calls this for a `.keras` file."""
        super().save_assets(folder)
        own = {name: self.arguments[name] for name in ("pooling", "normalize", "truncate_at")}
        checkpoints.write_modules(folder, dimension=self.arguments["hidden_dim"], **own)

    def index(self, texts, batch_size=32, truncate=False, verbose=True):
        """An `EmbeddingIndex` of a list of texts, to search many times; arguments as for `embed`."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        return EmbeddingIndex(texts, self.embed(texts, batch_size, truncate, verbose))

    def search(self, query, corpus, top_k=5, batch_size=32, truncate=False, verbose=True):
        """Find the texts of a corpus that are nearest to a query.

        Args:
            query: a string or a list of strings.
            corpus: a list of strings, or an `EmbeddingIndex` that this model has made.
            top_k: the most texts for each query.
            batch_size, truncate, verbose: as for `embed`.

        Returns:
            For a query a list of dicts with `index`, the place in the corpus; `score`, the cosine; `text`; the nearest
            first. For a list a list of those.
        """
        check_positive("top_k", top_k)
        if not isinstance(corpus, EmbeddingIndex):
            corpus = self.index(corpus, batch_size, truncate, verbose)
        results = corpus.search(np.atleast_2d(self.embed(query, batch_size, truncate, verbose)), top_k)
        return results[0] if isinstance(query, str) else results


def pool(sequence, padding_mask, pooling):
    """One vector of each sequence (B, T, D) with its padding (B, T): (B, D)."""
    if pooling == "cls":
        return sequence[:, 0]
    real = ops.expand_dims(ops.cast(padding_mask, sequence.dtype), -1)  # (B, T, 1)
    if pooling == "max":
        return ops.max(sequence - 3e4 * (1 - real), axis=1)
    return ops.sum(sequence * real, axis=1) / ops.maximum(ops.sum(real, axis=1), 1)
