"""Making vectors of texts."""

import numpy as np

from kerasllm.arguments import check_positive
from kerasllm.tasks.predicting import answer_each, encode_texts, predict


class Embedding:
    """A model that makes a vector of a text."""

    def embed(self, texts, batch_size=32, truncate=False, verbose=True):
        """The vectors of texts.

        Args:
            texts: a string, a list or an iterable of strings.
            batch_size: the most texts that are computed at a time.
            truncate: whether texts longer than the model are cut. A model with `truncate_at` cuts there in any case.
            verbose: whether a long list has a progress bar.

        Returns:
            float32 arrays: (D,) for a string, (N, D) for a list, an iterator of (D,) for an iterable.

        Raises:
            ValueError: there is no tokenizer; a text is empty, or longer than the model's `max_sequence_length`.
        """
        self.required_tokenizer()
        check_positive("batch_size", batch_size)
        limit = self.arguments["truncate_at"]

        def answer(texts, verbose):
            hint = "; truncate=True cuts it"
            encodings = encode_texts(self, texts, limit=limit, truncate=truncate or limit is not None, hint=hint)
            return np.stack(predict(self, encodings, batch_size, verbose))

        return answer_each("texts", texts, answer, verbose)
