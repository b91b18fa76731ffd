"""Texts with their vectors, kept to be searched."""

from pathlib import Path

import numpy as np

from kerasllm import checkpoints, writing
from kerasllm.arguments import check_choice, check_positive, read_path, read_strings, shown
from kerasllm.text.limits import as_array, check_finite

TEXTS, TENSOR, SCALES = "texts.json", "embeddings", "scales"
CHUNK = 2**12  # vectors of 8 bits that are compared as floats at a time


class EmbeddingIndex:
    """Texts with their vectors, to be searched, saved and loaded.

    Args:
        texts: list of N strings.
        embeddings: (N, D) float array, their vectors.
        dtype: how they are kept: None as they are; "int8" as whole numbers of 8 bits with a scale for each vector, a
            quarter of the memory of float32. Each number is then off by at most 1 / 254 of the largest of its vector;
            of texts, the cosines of MiniLM by some thousandths.

    Attributes:
        embeddings: (N, D) float, or int8 of which `scales` (N, 1) float32 make the vectors.

    Example:
        >>> index = model.index(texts)  # a `BERTEmbedder`
        >>> index.save("runs/index")
        >>> model.search("food", kerasllm.EmbeddingIndex.load("runs/index"), top_k=3)
    """

    def __init__(self, texts, embeddings, dtype=None):
        texts, embeddings = read_strings("texts", texts), _read_array("embeddings", embeddings)
        check_choice("dtype", dtype, (None, "int8"))
        if embeddings.ndim != 2 or len(embeddings) != len(texts) or embeddings.dtype.kind != "f":
            raise ValueError(
                f"embeddings ({embeddings.dtype}, shape {embeddings.shape}) must be floats of shape ({len(texts)}, D)."
            )
        check_finite("embeddings", embeddings)
        self.texts, self.embeddings, self.scales = texts, embeddings, None
        if dtype == "int8":
            self.embeddings, self.scales = _in_8_bits(embeddings.astype("float32"))

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
        similarity, queries = SIMILARITIES[similarity], queries.astype("float32")
        size = len(self) if self.scales is None else CHUNK
        scores = [similarity(queries, self._vectors(slice(i, i + size))) for i in range(0, len(self), size)]
        scores = np.concatenate(scores, axis=1)  # (Q, N)
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :top_k].tolist()
        return [
            [{"index": i, "score": float(row[i]), "text": self.texts[i]} for i in places]
            for row, places in zip(scores, nearest, strict=True)
        ]

    def _vectors(self, places):
        vectors = self.embeddings[places].astype("float32")
        return vectors if self.scales is None else vectors * self.scales[places]

    def save(self, folder):
        """Write `texts.json` and `model.safetensors` into a folder, made if need be: both, or neither."""
        with writing.staged(read_path("folder", folder)) as new:
            scales = {} if self.scales is None else {SCALES: self.scales}
            checkpoints.files.write_tensors(new, {TENSOR: self.embeddings, **scales})
            checkpoints.files.write_json(new / TEXTS, self.texts)

    @classmethod
    def load(cls, folder):
        """Read what `save` has written; the vectors are memory-mapped."""
        folder = read_path("folder", folder)
        writing.settle(folder)
        tensors = checkpoints.files.read_tensors(folder)
        if set(tensors) not in ({TENSOR}, {TENSOR, SCALES}):
            raise ValueError(f"folder ({str(folder)!r}) must hold the tensor {TENSOR!r}, not {', '.join(tensors)}.")
        texts = checkpoints.files.read_json(Path(folder) / TEXTS, list)
        if SCALES not in tensors:
            return cls(texts, tensors[TENSOR])
        numbers, scales = (_read_array(name, tensors[name]) for name in (TENSOR, SCALES))
        if (
            numbers.dtype != "int8"
            or numbers.ndim != 2
            or scales.dtype != "float32"
            or scales.shape != (len(numbers), 1)
        ):
            raise ValueError(
                f"folder ({str(folder)!r}): {TENSOR!r} ({numbers.dtype}, shape {numbers.shape}) must be int8 (N, D), "
                f"{SCALES!r} ({scales.dtype}, shape {scales.shape}) float32 (N, 1)."
            )
        index = cls(texts, np.broadcast_to(scales, numbers.shape))  # which checks them
        index.embeddings, index.scales = numbers, scales
        return index


def _in_8_bits(vectors):
    """Vectors (N, D) as int8 (N, D), and scales (N, 1) float32 by which they are multiplied."""
    scales = np.abs(vectors).max(axis=1, keepdims=True) / 127
    scales = np.where(scales > 0, scales, 1).astype("float32")
    return np.clip(np.rint(vectors / scales), -127, 127).astype("int8"), scales


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
