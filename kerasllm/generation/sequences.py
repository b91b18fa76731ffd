"""One sequence: how long it may become, `Row` while it grows, `Generation` when it is finished. Without Keras."""

import dataclasses

import numpy as np

from kerasllm.arguments import NAN_REASON


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """One generated sequence.

    Attributes:
        token_ids: (L,) int32 array, the prompt and the completion with its end token.
        prompt_length: where in `token_ids` the completion begins.
        finish_reason: "stop" where an end token or a stop string ended the completion, "length" where its limit did.
        log_probs: float32 array, the log-probability of each token of the completion under the model, before
            temperature, filters and penalties; None where they were not asked for.
        score: what beam search orders by, log-probability / length ** length_penalty; None without beams.
        num_steps: how often the model was run; None unless decoding was speculative.
        text: the text, without what ended it; None without a tokenizer.
    """

    token_ids: np.ndarray
    prompt_length: int
    finish_reason: str
    log_probs: np.ndarray | None = None
    score: float | None = None
    num_steps: int | None = None
    text: str | None = None

    @property
    def completion(self):
        """The generated tokens alone."""
        return self.token_ids[self.prompt_length :]


class Row:
    """One sequence while it is generated.

    Attributes:
        prompt: the tokens it began with.
        ids, log_probs: what has been generated.
        finish_reason: None while it runs.
    """

    def __init__(self, prompt, limit):
        self.prompt, self.limit = prompt, limit
        self.ids, self.log_probs = [], []
        self.finish_reason = None

    def extend(self, ids, log_probs, end_ids, find_stop):
        """Take what a chunk has brought, up to the first end.

        Args:
            ids, log_probs: (C,) arrays; an id below 0 stands for logits that are NaN.
            end_ids: list or array of those that end a completion.
            find_stop: as for `Task`.

        Raises:
            FloatingPointError: an id is below 0 before the first end.
        """
        checked = len(self.ids)
        ids = ids[: self.limit - checked]
        ends = np.flatnonzero(np.isin(ids, end_ids) | (ids < 0))
        ids = ids[: ends[0] + 1] if len(ends) else ids
        if len(ids) and ids[-1] < 0:
            raise FloatingPointError(
                f"The model's logits are NaN after {len(self.prompt) + checked + len(ids) - 1} tokens: {NAN_REASON}."
            )
        self.ids += ids.tolist()
        self.log_probs += log_probs[: len(ids)].tolist()
        if len(ends):
            self.finish_reason = "stop"
        elif len(self.ids) == self.limit:
            self.finish_reason = "length"
        length = find_stop and find_stop(self.prompt, self.ids, checked)
        if length:
            del self.ids[length:], self.log_probs[length:]
            self.finish_reason = "stop"

    def generation(self, scores, num_steps=None):
        """What has become of it, with or without its log-probabilities."""
        token_ids = np.concatenate([self.prompt, self.ids]).astype("int32")
        log_probs = np.array(self.log_probs, "float32") if scores else None
        return Generation(token_ids, len(self.prompt), self.finish_reason, log_probs, num_steps=num_steps)


def completion_limits(prompts, config, first_index=0):
    """How many tokens each completion may have.

    Args:
        prompts: B non-empty lists of ids.
        config: a `GenerationConfig` with one of its two lengths.
        first_index: the place of `prompts[0]`, for errors.

    Returns:
        (B,) int32 array.

    Raises:
        ValueError: a prompt leaves no room below `max_length`.
    """
    lengths = np.array([len(prompt) for prompt in prompts], "int32")
    if config.max_new_tokens is not None:
        return np.full_like(lengths, config.max_new_tokens)
    if lengths.max() >= config.max_length:
        raise ValueError(
            f"max_length ({config.max_length}) must be greater than the length of each prompt; "
            f"prompts[{first_index + lengths.argmax()}] has {lengths.max()} tokens."
        )
    return np.int32(config.max_length) - lengths


def drawn_seed(config):
    """The seed of a call: the config's, else one of numpy's global generator; 0 where nothing is drawn."""
    if config.seed is not None:
        return config.seed
    return int(np.random.randint(2**32, dtype="uint32")) if config.sampling else 0
