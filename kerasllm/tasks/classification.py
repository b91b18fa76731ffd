"""Saying which labels texts have, and in which order they answer a query."""

import numpy as np

from kerasllm.arguments import (
    check_boolean,
    check_from_zero,
    check_positive,
    check_text,
    read_sequence,
    read_texts,
    shown,
)
from kerasllm.tasks.predicting import answer_each, encode_texts, predict, sigmoid, softmax
from kerasllm.tasks.windows import each_text, in_windows


class Classification:
    """A model that scores the labels of a text."""

    @property
    def problem_type(self):
        """What the logits mean: "single_label", "multi_label" or "regression"."""
        return self.arguments["problem_type"] or (
            "single_label" if len(self.arguments["labels"]) > 1 else "multi_label"
        )

    def classify(self, texts, pairs=None, top_k=1, batch_size=32, truncate=False, verbose=True, stride=None):
        """Say which labels texts have.

        Args:
            texts: a string, a list or an iterable of strings.
            pairs: the second texts, where the model judges pairs: a string for a string, a list for a list.
            top_k: number of labels for each text; None for all.
            batch_size: the most texts that are computed at a time.
            truncate: whether texts longer than the model are cut; otherwise they are errors.
            verbose: whether a long list has a progress bar.
            stride: tokens that two windows share, where a text that does not fit is read in windows; its logits are
                the mean of theirs. For texts without pairs. Default: longer texts are errors.

        Returns:
            For a text a list of dicts with `label` and `score`, best first: the score is a probability, or the
            predicted number where `problem_type` is "regression". For a list a list of those, for an iterable an
            iterator.

        Raises:
            ValueError: there is no tokenizer; a text is empty, or longer than the model's `max_sequence_length`; a
                window has no room for `stride` + 1 tokens; `stride` goes with `pairs` or `truncate`.
        """
        self.required_tokenizer()
        labels = self.arguments["labels"]
        check_positive("batch_size", batch_size)
        check_boolean("truncate", truncate)
        if top_k is not None:
            check_positive("top_k", top_k)
            if top_k > len(labels):
                raise ValueError(f"top_k ({top_k}) must be at most the number of labels ({len(labels)}).")
        pairs = _checked_pairs(texts, pairs)
        if stride is not None:
            check_from_zero("stride", stride)
            if pairs is not None or truncate:
                raise ValueError(f"stride ({stride}) must be None where there are pairs, or with truncate=True.")

        def answer(texts, verbose):
            if stride is not None:
                windows = in_windows(self, texts, stride)
                outputs = predict(self, [e for its in windows for e in its.encodings], batch_size, verbose)
                return [self._ranked(np.mean(rows, axis=0), top_k) for rows in each_text(windows, outputs)]
            hint = "; truncate=True cuts it"
            encodings = encode_texts(self, texts, pairs, truncate=truncate, hint=hint)
            return [self._ranked(logits, top_k) for logits in predict(self, encodings, batch_size, verbose)]

        return answer_each("texts", texts, answer, verbose)

    def rank(self, query, texts, top_k=None, batch_size=32, truncate=False, verbose=True):
        """Order texts by how well they go with a query, as a model of one label judges each pair (a cross-encoder).

        Args:
            query: a string.
            texts: a list of strings, such as those that `BERTEmbedder.search` has found.
            top_k: the most texts to return; None for all.
            batch_size, truncate, verbose: as for `classify`.

        Returns:
            A list of dicts with `index`, the text's place; `score`, as for `classify`; `text`; the best first, equal
            ones in their order.

        Raises:
            ValueError: the model has several labels or no tokenizer; a text is empty, or too long with the query.

        Example:
            >>> reranker = BERTClassifier.from_preset("path/to/ms-marco-MiniLM-L6-v2")
            >>> reranker.rank("who eats?", ["He eats.", "It rains."], top_k=1)
            [{'index': 0, 'score': 4.1, 'text': 'He eats.'}]
        """
        self.required_tokenizer()
        if len(self.arguments["labels"]) != 1:
            raise ValueError(f"labels ({len(self.arguments['labels'])} of them) must be one: its score ranks texts.")
        check_text("query", query)
        read_texts("query", query)
        texts, _ = read_texts("texts", read_sequence("texts", texts))
        check_positive("batch_size", batch_size)
        check_boolean("truncate", truncate)
        if top_k is not None:
            check_positive("top_k", top_k)
        hint = " with the query; truncate=True cuts them"
        encodings = encode_texts(self, [query] * len(texts), texts, truncate=truncate, hint=hint)
        scores = self._scores(np.stack(predict(self, encodings, batch_size, verbose))[:, 0])
        best = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [{"index": i, "score": float(scores[i]), "text": texts[i]} for i in best]

    def _scores(self, logits):
        return {"single_label": softmax, "multi_label": sigmoid, "regression": np.float64}[self.problem_type](logits)

    def _ranked(self, logits, top_k):
        scores = self._scores(logits)
        best = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [{"label": self.arguments["labels"][i], "score": float(scores[i])} for i in best]


def _checked_pairs(texts, pairs):
    if pairs is None:
        return None
    if isinstance(texts, str) and isinstance(pairs, str):
        return [pairs]
    both = isinstance(texts, list | tuple) and isinstance(pairs, list | tuple)
    if not both or len(texts) != len(pairs):
        raise ValueError(
            f"pairs ({shown(pairs)}) must be a string for a string, a list of as many for a list of texts."
        )
    return list(pairs)
