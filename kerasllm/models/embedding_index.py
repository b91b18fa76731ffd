"""Texts with their vectors, kept to be searched."""

from pathlib import Path

import numpy as np

from kerasllm import checkpoints, writing
from kerasllm.arguments import check_choice, check_positive, read_path, read_strings, shown
from kerasllm.text.limits import as_array, check_finite

TEXTS, TENSOR = "texts.json", "embeddings"


class EmbeddingIndex:
    """Texts with their vectors, to be searched, saved and loaded.

    Args:
        texts: list of N strings.
        embeddings: (N, D) float array, their vectors.

    Example:
        >>> index = model.index(texts)  # a `BERTEmbedder`
        >>> index.save("runs/index")
        >>> model.search("food", kerasllm.EmbeddingIndex.load("runs/index"), top_k=3)
    """

    def __init__(self, texts, embeddings):
        texts, embeddings = read_strings("texts", texts), _read_array("embeddings", embeddings)
        if embeddings.ndim != 2 or len(embeddings) != len(texts) or embeddings.dtype.kind != "f":
            raise ValueError(
                f"embeddings ({embeddings.dtype}, shape {embeddings.shape}) must be floats of shape ({len(texts)}, D)."
            )
        check_finite("embeddings", embeddings)
        self.texts, self.embeddings = texts, embeddings

    def __len__(self):
        return len(self.texts)

    def search(self, queries, top_k=5, similarity="cosine"):
        """The texts nearest to vectors.

        Args:
            queries: (Q, D) float array.
            top_k: the most texts for each.
            similarity: "cosine", "dot", or the negative distance, "euclidean" or "manhattan".

        Returns:
            For each query a list of dicts with `index`, the text's place; `score`, the similarity; `text`; the nearest
            first, equal ones in their order.
        """
        check_positive("top_k", top_k)
        check_choice("similarity", similarity, SIMILARITIES)
        queries = _read_array("queries", queries)
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise ValueError(f"queries (shape {queries.shape}) must be of shape (Q, {self.embeddings.shape[1]}).")
        check_finite("queries", queries)
        scores = SIMILARITIES[similarity](queries.astype("float32"), self.embeddings.astype("float32"))  # (Q, N)
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :top_k].tolist()
        return [
            [{"index": i, "score": float(row[i]), "text": self.texts[i]} for i in places]
            for row, places in zip(scores, nearest, strict=True)
        ]

    def save(self, folder):
        """Write `texts.json` and `model.safetensors` into a folder, made if need be: both, or neither."""
        with writing.staged(read_path("folder", folder)) as new:
            checkpoints.files.write_tensors(new, {TENSOR: self.embeddings})
            checkpoints.files.write_json(new / TEXTS, self.texts)

    @classmethod
    def load(cls, folder):
        """Read what `save` has written; the vectors are memory-mapped."""
        folder = read_path("folder", folder)
        writing.settle(folder)
        tensors = checkpoints.files.read_tensors(folder)
        if set(tensors) != {TENSOR}:
            raise ValueError(f"folder ({str(folder)!r}) must hold the tensor {TENSOR!r}, not {', '.join(tensors)}.")
        return cls(checkpoints.files.read_json(Path(folder) / TEXTS, list), tensors[TENSOR])


def _read_array(name, value):
    array = as_array(name, value)
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"{name} ({shown(value)}) must be an array of numbers.")
    return array


def _of_length_one(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _nearness(order):
    """The negative distance, a row of queries at a time: (Q, N)."""
    return lambda queries, vectors: -np.stack([np.linalg.norm(vectors - query, order, axis=1) for query in queries])


SIMILARITIES = {
    "cosine": lambda queries, vectors: _of_length_one(queries) @ _of_length_one(vectors).T,
    "dot": lambda queries, vectors: queries @ vectors.T,
    "euclidean": _nearness(2),
    "manhattan": _nearness(1),
}
