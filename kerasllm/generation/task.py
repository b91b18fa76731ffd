"""What is asked of generation, and what comes out of it."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from kerasllm.arguments import NAN_REASON
from kerasllm.generation.config import GenerationConfig
from kerasllm.text import batches

# Room for the model's own end tokens and some of the call's, without another compilation.
LEAST_ENDS = 4


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


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Prompts to continue, and all that decides how.

    Args:
        model: a `keras.Model` with the three methods above.
        inputs: dict of arrays with one row for each prompt, handed to `start_decoding`.
        prompts: non-empty lists of token ids, of any lengths.
        config: a `GenerationConfig` with one of its two lengths, whose words are ids and not strings.
        end_ids: a completion ends with the first of these.
        pad_id: any valid id; it fills the slots before a short prompt.
        first_index: the place of `prompts[0]` in a longer list that is generated in parts; with it the random
            numbers are those of the whole list.
        find_stop: function (prompt, completion, num_checked) -> how many tokens of the completion are left by a stop
            string that ends within them, or None; the first `num_checked` tokens hold none. Default: never.
        scores: whether log-probabilities are wanted.
        processors: functions (list of int arrays, the tokens of each row so far; logits (R, V)) -> logits (R, V),
            in numpy, called before temperature and filters at each step.
        least_rows: prompts are filled up to so many rows at least, as a smaller last batch is to those before it.

    Raises:
        ValueError: if a prompt is empty or leaves no room below `max_length`, no length is given, or `inputs`
            has another number of rows.
    """

    model: keras.Model
    inputs: dict
    prompts: list
    config: GenerationConfig
    end_ids: tuple = ()
    pad_id: int = 0
    first_index: int = 0
    find_stop: Callable | None = None
    scores: bool = False
    processors: tuple = ()
    least_rows: int = 1

    def __post_init__(self):
        for name, array in self.inputs.items():
            if len(array) != len(self.prompts):
                raise ValueError(f"inputs[{name!r}] has {len(array)} rows for {len(self.prompts)} prompts.")
        if len(self.prompts) == 0:
            raise ValueError("prompts ([]) must hold at least one prompt.")
        lengths = np.array([len(prompt) for prompt in self.prompts], dtype="int32")
        if not lengths.all():
            raise ValueError(
                f"prompts[{self.first_index + lengths.argmin()}] ([]) must hold at least one token, "
                "such as a start token."
            )
        config = self.config
        if config.max_new_tokens is None and config.max_length is None:
            raise ValueError("max_length (None) or max_new_tokens (None) must be given.")
        if config.max_length is not None and lengths.max() >= config.max_length:
            raise ValueError(
                f"max_length ({config.max_length}) must be greater than the length of each prompt; "
                f"prompts[{self.first_index + lengths.argmax()}] has {lengths.max()} tokens."
            )
        if config.max_new_tokens is None:
            limits = np.int32(config.max_length) - lengths
        else:
            limits = np.full_like(lengths, config.max_new_tokens)
        object.__setattr__(self, "limits", limits)

    @property
    def num_rows(self):
        """The rows that the prompts are filled up to: numbers of few values, since each is compiled anew."""
        return batches.bucket_rows(max(len(self.prompts), self.least_rows))

    def padded_prompts(self):
        """The inputs and the prompts as `start_decoding` takes them, and the number of their slots.

        Copies of the last row fill them up to `num_rows`.
        """
        length = batches.bucket_length(max(map(len, self.prompts)))
        token_ids, padding_mask = batches.pad(self.prompts, length, self.pad_id, side="left")
        prompt = {"token_ids": token_ids, "padding_mask": padding_mask}
        copies = np.minimum(np.arange(self.num_rows), len(self.prompts) - 1)
        return *keras.tree.map_structure(lambda x: np.asarray(x)[copies], (self.inputs, prompt)), length

    def end_tensor(self):
        """The end ids as an array, filled up to few sizes with -1, which is none."""
        ids = np.array(self.end_ids, dtype="int32")
        return batches.filled(ids, batches.bucket_length(max(len(ids), LEAST_ENDS)), -1)


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
        """Take what a chunk has brought, up to the first end."""
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
