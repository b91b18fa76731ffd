"""Making vectors of texts."""

import numpy as np

from kerasllm.arguments import check_boolean, check_from_zero, check_positive
from kerasllm.tasks.predicting import answer_each, encode_texts, predict
from kerasllm.tasks.windows import each_text, in_windows
from kerasllm.text.prompts import find_prompt, num_prompt_tokens

# Of the model: how vectors are made, where texts are cut, what is set before them.
ARGUMENTS = (
    "pooling",
    "include_prompt",
    "dense",
    "normalize",
    "truncate_at",
    "prompts",
    "default_prompt_name",
    "similarity",
)


class Embedding:
    """A model that makes a vector of a text."""

    def embed(self, texts, batch_size=32, truncate=False, verbose=True, prompt=None, prompt_name=None, stride=None):
        """The vectors of texts.

        Args:
            texts: a string, a list or an iterable of strings.
            batch_size: the most texts that are computed at a time.
            truncate: whether texts longer than the model are cut. A model with `truncate_at` cuts there in any case.
            verbose: whether a long list has a progress bar.
            prompt: a string that is set before each text.
            prompt_name: in its place the name of one of the model's `prompts`. Default: its `default_prompt_name`.
            stride: tokens that two windows share, where a text that does not fit, into `truncate_at` tokens where the
                model has it, is read in windows, each with the prompt; its vector is the mean of theirs, weighted by
                their tokens of the text, and of length 1 where the model's are. Default: longer texts are errors, or
                cut.

        Returns:
            float32 arrays: (D,) for a string, (N, D) for a list, an iterator of (D,) for an iterable.

        Raises:
            ValueError: there is no tokenizer, or no prompt of this name; a text is empty, or longer than the model's
                `max_sequence_length`; a window has no room for `stride` + 1 tokens; `stride` goes with `truncate`.
        """
        tokenizer = self.required_tokenizer()
        check_positive("batch_size", batch_size)
        check_boolean("truncate", truncate)
        limit, prompt = self.arguments["truncate_at"], find_prompt(self.arguments, prompt, prompt_name)
        start = num_prompt_tokens(tokenizer, prompt)
        if stride is not None:
            check_from_zero("stride", stride)
            if truncate:
                raise ValueError(f"stride ({stride}) must be None with truncate=True.")

        def answer(texts, verbose):
            hint, texts = "; truncate=True cuts it", [prompt + text for text in texts]
            if stride is None:
                encodings = encode_texts(self, texts, limit=limit, truncate=truncate or limit is not None, hint=hint)
            else:
                windows = in_windows(self, texts, stride, limit=limit, prompt=prompt)
                encodings = [e for its in windows for e in its.encodings]
            extra = {}
            if "pooling_mask" in self.input:
                extra["pooling_mask"] = [[int(i >= start) for i in range(len(e))] for e in encodings]
            vectors = predict(self, encodings, batch_size, verbose, extra)
            if stride is not None:
                rows = zip(windows, each_text(windows, vectors), strict=True)
                vectors = [_mean(its, of_text, self.arguments["normalize"]) for its, of_text in rows]
            return np.stack(vectors)

        return answer_each("texts", texts, answer, verbose)


def _mean(windows, vectors, normalize):
    """The vector (D,) of a text from those of its windows."""
    if len(vectors) == 1:
        return vectors[0]
    if normalize is None:
        raise ValueError("stride: the file does not say whether vectors have length 1; export the model again.")
    mean = np.average(vectors, axis=0, weights=windows.lengths)
    return (mean / np.maximum(np.linalg.norm(mean), 1e-12) if normalize else mean).astype("float32")
