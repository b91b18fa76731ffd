"""What is asked of generation."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from kerasllm.generation.config import GenerationConfig
from kerasllm.generation.sequences import completion_limits
from kerasllm.text import batches

# Room for the model's own end tokens and some of the call's, without another compilation.
LEAST_ENDS = 4


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Prompts to continue, and all that decides how.

    Args:
        model: a `keras.Model` with the three methods that stand at the head of `kerasllm.generation.generator`.
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
        object.__setattr__(self, "limits", completion_limits(self.prompts, config, self.first_index))

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
