"""BERT for vectors of texts, whose cosine says how near the texts are in meaning."""

from collections.abc import Mapping
from typing import Unpack

import keras
import numpy as np
from keras import ops

from kerasllm import checkpoints
from kerasllm.arguments import (
    check_boolean,
    check_choice,
    check_positive,
    read_sequence,
    read_strings,
    read_texts,
    shown,
)
from kerasllm.layers.adapters import Dense
from kerasllm.models.bert import BERTArguments, BERTModel, encode, takes_encoder
from kerasllm.models.embedding_index import SIMILARITIES, EmbeddingIndex
from kerasllm.tasks.embedding import ARGUMENTS as EMBEDDING_ARGUMENTS
from kerasllm.tasks.embedding import Embedding
from kerasllm.text.prompts import DOCUMENT, QUERY, first_prompt

POOLINGS = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = ("tanh", "linear", "relu", "gelu", "silu", "sigmoid")


@keras.saving.register_keras_serializable("kerasllm")
class BERTEmbedder(Embedding, BERTModel):
    """BERT that makes one vector of a text (Reimers & Gurevych 2019, arXiv:1908.10084).

    A folder of sentence-transformers opens as it is, and `save_to_preset` writes one: what follows the encoder, the
    length to cut at and the prompts stand in its `modules.json`, the folders that it names,
    `sentence_bert_config.json` and `config_sentence_transformers.json`.

    Inputs:
        token_ids, segment_ids, padding_mask: as for `BERT`.
        pooling_mask: (B, T) int32, 1 where a token takes part in the vector; where `include_prompt` is False.

    Outputs:
        (B, D) float32.

    Args:
        vocabulary_size, num_layers, num_heads, hidden_dim: size of the encoder.
        **arguments: as for `BERT`.
        pooling: how the tokens' vectors become one: their "mean", their "max", that of the first, "cls", or of the
            last, "lasttoken"; their sum by the root of their number, "mean_sqrt_len_tokens"; their mean with weights
            1, 2, 3, ..., "weightedmean"; or a list of these, whose vectors are joined.
        include_prompt: whether a prompt's tokens take part in it.
        dense: dense layers that follow, a list of dicts with `units`, `activation` ("tanh", "linear", "relu", "gelu",
            "silu" or "sigmoid") and `use_bias`.
        normalize: whether vectors have length 1.
        truncate_at: texts of more tokens are cut to so many. Default: texts longer than the model are errors.
        prompts: dict name -> string that `embed(texts, prompt_name=...)` sets before each text.
        default_prompt_name: the name of the prompt that `embed` takes when it is told none.
        similarity: by what `search` ranks: "cosine", "dot", or the negative distance, "euclidean" or "manhattan".

    Example:
        >>> model = BERTEmbedder.from_preset("path/to/all-MiniLM-L6-v2")
        >>> model.embed(["A man is eating.", "Someone has a meal."]).shape
        (2, 384)
        >>> model.search("food", ["He eats.", "It rains."], top_k=1)
        [{'index': 0, 'score': 0.47, 'text': 'He eats.'}]
    """

    @takes_encoder("pooling normalize truncate_at include_prompt dense prompts default_prompt_name similarity")
    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        *,
        pooling="mean",
        normalize=True,
        truncate_at=None,
        include_prompt=True,
        dense=(),
        prompts=None,
        default_prompt_name=None,
        similarity="cosine",
        name="bert_embedder",
        **arguments: Unpack[BERTArguments],
    ):
        encoder, inputs, sequence = encode(vocabulary_size, num_layers, num_heads, hidden_dim, **arguments)
        pooling = pooling if isinstance(pooling, str) else read_strings("pooling", pooling, 0)
        for mode in [pooling] if isinstance(pooling, str) else pooling or [None]:
            check_choice("pooling", mode, POOLINGS)
        check_choice("similarity", similarity, SIMILARITIES)
        check_boolean("normalize", normalize)
        check_boolean("include_prompt", include_prompt)
        prompts = _read_prompts(prompts, default_prompt_name)
        if truncate_at is not None:
            check_positive("truncate_at", truncate_at)
            if truncate_at > (arguments["max_sequence_length"] or truncate_at):
                raise ValueError(
                    f"truncate_at ({truncate_at}) must be at most max_sequence_length "
                    f"({arguments['max_sequence_length']})."
                )
        mask = inputs["padding_mask"]
        if not include_prompt:
            mask = inputs["pooling_mask"] = keras.Input((None,), dtype="int32", name="pooling_mask")
        vectors = pool(ops.cast(sequence, "float32"), mask, pooling, include_prompt)
        dense = [_read_dense(layer) for layer in read_sequence("dense", dense)]
        for i, layer in enumerate(dense):
            vectors = Dense(**layer, dtype="float32", name=f"dense_{i}")(vectors)
        if normalize:
            # Not ops.norm, which hands jax its axis as a list, and jax refuses.
            squares = ops.sum(vectors * vectors, axis=-1, keepdims=True)
            vectors = vectors / ops.sqrt(ops.maximum(squares, 1e-24))  # a root of 0 would have no gradient
        super().__init__(inputs, vectors, pooling=pooling, dense=dense, prompts=prompts)
        self.encoder = encoder
        self.tokenizer = arguments["tokenizer"]

    @property
    def has_one_label(self):
        """A text has no class."""
        return False

    def load_defaults(self, folder):
        """Read whether a folder's texts are in small letters."""
        super().load_defaults(folder)
        if self.tokenizer and checkpoints.reads_lowercase(folder):
            self.tokenizer = self.tokenizer.lowercased()

    def save_assets(self, folder):
        """Write the tokenizer and the files of sentence-transformers; Keras calls this for a `.keras` file."""
        super().save_assets(folder)
        checkpoints.write_modules(
            folder, {name: self.arguments[name] for name in EMBEDDING_ARGUMENTS}, dimension=self.arguments["hidden_dim"]
        )

    def index(self, texts, batch_size=32, truncate=False, verbose=True, prompt=None, prompt_name=None, dtype=None):
        """An `EmbeddingIndex` of a list of texts, to search many times; arguments as for `embed`.

        `dtype` is that of the index, of which "int8" takes a quarter of the memory. Without `prompt` and `prompt_name`
        the prompt is that named "document", "passage" or "corpus", if there is one.
        """
        texts = read_strings("texts", texts)
        if prompt is None and prompt_name is None:
            prompt = first_prompt(self.arguments, DOCUMENT)
        check_choice("dtype", dtype, (None, "int8"))
        return EmbeddingIndex(texts, self.embed(texts, batch_size, truncate, verbose, prompt, prompt_name), dtype)

    def search(
        self, query, corpus, top_k=5, batch_size=32, truncate=False, verbose=True, prompt=None, prompt_name=None
    ):
        """Find the texts of a corpus that are nearest to a query.

        Args:
            query: a string or a list of strings.
            corpus: a list of strings, or an `EmbeddingIndex` that this model has made.
            top_k: the most texts for each query.
            batch_size, truncate, verbose: as for `embed`.
            prompt, prompt_name: as for `embed`, of the query. Default: the prompt named "query", if there is one. A
                corpus that is a list has the prompt that `index` gives it.

        Returns:
            For a query a list of dicts with `index`, the place in the corpus; `score`, the model's `similarity`;
            `text`; the nearest first. For a list a list of those.
        """
        check_positive("top_k", top_k)
        read_texts("query", query)
        if not isinstance(corpus, EmbeddingIndex):
            corpus = self.index(read_strings("corpus: texts", corpus), batch_size, truncate, verbose)
        if prompt is None and prompt_name is None:
            prompt = first_prompt(self.arguments, QUERY)
        vectors = np.atleast_2d(self.embed(query, batch_size, truncate, verbose, prompt, prompt_name))
        results = corpus.search(vectors, top_k, self.arguments["similarity"])
        return results[0] if isinstance(query, str) else results


def pool(sequence, mask, pooling, include_prompt=True):
    """One vector of each sequence (B, T, D), of tokens whose `mask` (B, T) is 1: (B, D), or (B, n D) for n modes."""
    if not isinstance(pooling, str):
        return ops.concatenate([pool(sequence, mask, mode, include_prompt) for mode in pooling], axis=-1)
    if pooling == "cls" and include_prompt:
        return sequence[:, 0]
    real = ops.expand_dims(ops.cast(mask, sequence.dtype), -1)  # (B, T, 1)
    if pooling == "max":
        return ops.max(sequence - 3e4 * (1 - real), axis=1)
    if pooling in ("mean", "mean_sqrt_len_tokens"):
        count = ops.maximum(ops.sum(real, axis=1), 1)
        return ops.sum(sequence * real, axis=1) / (count if pooling == "mean" else ops.sqrt(count))
    places = ops.cumsum(ops.ones_like(real), axis=1) * real  # 1, 2, 3, ... where a token takes part, else 0
    if pooling == "weightedmean":
        return ops.sum(sequence * places, axis=1) / ops.maximum(ops.sum(places, axis=1), 1)
    if pooling == "cls":  # the first token after the prompt
        places = ops.where(real > 0, -places, ops.min(-places, axis=1, keepdims=True))
    chosen = ops.equal(places, ops.max(places, axis=1, keepdims=True))
    return ops.sum(sequence * ops.cast(chosen, sequence.dtype) * real, axis=1)


def _read_prompts(prompts, default):
    """Prompts as a dict, checked."""
    prompts = {} if prompts is None else prompts
    prompts = dict(prompts) if isinstance(prompts, Mapping) else {None: prompts}
    if not all(isinstance(text, str) for pair in prompts.items() for text in pair):
        raise ValueError(f"prompts ({shown(prompts)}) must be a dict of names and strings.")
    if default is not None and default not in list(prompts):
        raise ValueError(
            f"default_prompt_name ({shown(default)}) must be one of prompts: {', '.join(map(repr, prompts))}."
        )
    return prompts


def _read_dense(layer):
    """What a dense layer has, as a checked dict."""
    if not isinstance(layer, dict) or set(layer) - {"units", "activation", "use_bias"}:
        raise ValueError(f"dense ({shown(layer)}) must be dicts with units, activation and use_bias.")
    layer = {"activation": "tanh", "use_bias": True, **layer}
    check_positive("dense: units", layer.get("units"))
    check_choice("dense: activation", layer["activation"], ACTIVATIONS)
    check_boolean("dense: use_bias", layer["use_bias"])
    return layer
