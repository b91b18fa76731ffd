"""The loop that turns a model with three methods into tokens.

    start_decoding(inputs, prompt, capacity) -> state      reads all but the last token of each prompt
    decode_step(token_ids (R, T), state, index) -> (logits (R, T, V), state)
    grow(state, capacity) -> state                         the same state with room for more slots

Prompts are padded on the left to a power of two P. So all rows generate from slot P on, one token with each
step of the model, and a batch takes as many steps as its longest completion:

    slot        0  1  2  3 | 4  5  6 ..
    "a b c"     .  a  b  c | x  y  z        the first step feeds slot 3 (index 3) and gives slot 4
    "d"         .  .  .  d | u  v  w

The state has room for `capacity` slots. Attention costs a step as much as the slots it looks at, so these
should follow the tokens present and not the longest completion allowed; but each capacity is a compilation
more. So the capacity begins near the prompt's length and doubles whenever it is full.

Between two looks of the host the loop runs on the device, at most `CHUNK` steps.
"""

import dataclasses
import functools
import operator

import keras
import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.generation.processors import process
from kerasllm.generation.samplers import sample, uniform, wrap_seed
from kerasllm.text.batches import pad

# Attention over 64 slots is a small part of a step: a smaller capacity is not worth its compilation.
MIN_CAPACITY = 64
CHUNK = 64
# Colder than this only the largest of float32 logits is drawn; dividing by less could overflow.
MIN_TEMPERATURE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """One generated sequence.

    Attributes:
        token_ids: (L,) int32 array, the prompt and the completion with its end token.
        prompt_length: where in `token_ids` the completion begins.
        finish_reason: "stop" where an end token ended the completion, "length" where its limit did.
    """

    token_ids: np.ndarray
    prompt_length: int
    finish_reason: str

    @property
    def completion(self):
        """The generated tokens alone."""
        return self.token_ids[self.prompt_length :]


def generate(model, inputs, prompts, config, end_ids=(), pad_id=0, first_index=0):
    """Continue prompts of token ids.

    A row is what it would be alone: neither the other rows nor the padding change it.

    Args:
        model: a `keras.Model` with the three methods above.
        inputs: dict of arrays with one row for each prompt, handed to `start_decoding`.
        prompts: non-empty lists of token ids, of any lengths.
        config: a `GenerationConfig` with one of its two lengths.
        end_ids: a completion ends with the first of these.
        pad_id: any valid id; it fills the slots before a short prompt.
        first_index: the place of `prompts[0]` in a longer list that is generated in parts; with it the random
            numbers are those of the whole list.

    Returns:
        For each prompt a list of `config.num_return_sequences` `Generation`s.

    Raises:
        ValueError: if a prompt is empty or leaves no room below `max_length`, no length is given, or `inputs`
            has another number of rows.
    """
    _check_rows(inputs, len(prompts))
    end_ids, n = list(end_ids), config.num_return_sequences
    limits = np.repeat(_completion_limits(prompts, config, first_index), n)
    length = _next_power_of_two(max(map(len, prompts)))
    token_ids, padding_mask = pad(prompts, length, pad_id, side="left")
    prompt = {"token_ids": token_ids, "padding_mask": padding_mask}
    draw = _uniforms(config, first_index + np.arange(len(prompts)))
    ids = np.concatenate(list(_chunks(model, inputs, prompt, limits, config, end_ids, draw)), axis=1)
    rows = [_generation(prompts[i // n], ids[i], limits[i], end_ids) for i in range(len(ids))]
    return [rows[i : i + n] for i in range(0, len(rows), n)]


def _chunks(model, inputs, prompt, limits, config, end_ids, draw):
    """Yield the ids (R, at most CHUNK) of all rows, chunk after chunk, until every row is finished.

    Row r is sequence r % n of prompt r // n. What follows its end token or its limit means nothing.
    """
    programs, n = _programs(model), config.num_return_sequences
    parameters = _sampling_parameters(config)
    token = np.repeat(prompt["token_ids"][:, -1], n)
    finished, done = np.zeros(len(limits), dtype="bool"), 0
    inputs, prompt, token, finished, end_ids = keras.tree.map_structure(
        ops.convert_to_tensor,
        (inputs, prompt, token, finished, np.array(end_ids or [-1], dtype="int32")),
    )
    length, total = prompt["token_ids"].shape[1], int(limits.max())
    capacity = max(MIN_CAPACITY, min(2 * length, _next_power_of_two(length + total - 1)))
    state = programs.run(_prefill, inputs, prompt, capacity=capacity, num_copies=n)
    while done < total and not ops.convert_to_numpy(finished).all():
        slot = length - 1 + done
        if slot == capacity:
            capacity *= 2
            state = programs.run(_grow, state, capacity=capacity)
        num_steps = min(CHUNK, capacity - slot, total - done)
        remaining, uniforms = ops.convert_to_tensor(limits - done), ops.convert_to_tensor(draw(done))
        where = (np.int32(slot), np.int32(num_steps), remaining, end_ids)
        ids, state, token, finished = programs.run(_advance, (state, token, finished), where, (uniforms, parameters))
        yield ops.convert_to_numpy(ids)[:num_steps].T
        done += num_steps


def _prefill(model, inputs, prompt, capacity, num_copies):
    """Read each prompt once, and copy the state for each of its sequences."""
    state = model.start_decoding(inputs, prompt, capacity)
    if num_copies == 1:
        return state
    return keras.tree.map_structure(lambda x: ops.repeat(x, num_copies, axis=0), state)


def _grow(model, state, capacity):
    return model.grow(state, capacity)


def _advance(model, rows, where, choice):
    """Take a number of steps, fewer when all rows finish.

    Args:
        model: has `decode_step`.
        rows: the model's state; the tokens (R,) int32 to feed; finished (R,) boolean.
        where: the slot to begin in; the number of steps, at most CHUNK; how many tokens remain to each row
            (R,) int32; the end ids (E,) int32.
        choice: the uniforms (CHUNK, R) float32; the arguments of `process`, empty for greedy decoding.

    Returns:
        The ids (CHUNK, R), and what `rows` has become.
    """
    index, num_steps, remaining, end_ids = where
    uniforms, parameters = choice

    def keep_going(step, ids, state, token, finished):
        return ops.logical_and(step < num_steps, ops.logical_not(ops.all(finished)))

    def advance(step, ids, state, token, finished):
        logits, state = model.decode_step(token[:, None], state, index + step)
        token = _choose(logits[:, -1], uniforms[step], parameters)
        ended = ops.any(token[:, None] == end_ids[None], axis=-1)
        finished = ops.logical_or(finished, ops.logical_or(ended, remaining <= step + 1))
        return step + 1, ops.slice_update(ids, (step, 0), token[None]), state, token, finished

    carry = (0, ops.zeros(uniforms.shape, dtype="int32"), *rows)
    if not isinstance(num_steps, np.integer):
        return ops.while_loop(keep_going, advance, carry)[1:]
    # Nothing is compiled, and the slot is a number: the model may slice its cache with it.
    index, num_steps = int(index), int(num_steps)
    while keep_going(*carry):
        carry = advance(*carry)
    return carry[1:]


def _choose(logits, uniforms, parameters):
    """The next tokens, (R, V) -> (R,) int32."""
    if not parameters:
        return backend.argmax(logits)
    return sample(process(logits, **parameters), uniforms)


def _sampling_parameters(config):
    """The arguments of `process`."""
    if not config.sampling:
        return {}
    temperature = 1.0 if config.temperature is None else max(config.temperature, MIN_TEMPERATURE)
    values = {"temperature": temperature, "top_k": config.top_k, "top_p": config.top_p}
    return {name: ops.convert_to_tensor(value, dtype="float32") for name, value in values.items() if value is not None}


def _uniforms(config, prompt_indices):
    """The function from the tokens generated so far to the uniforms (CHUNK, R) of the next steps."""
    seed, n = config.seed, config.num_return_sequences
    if seed is None:
        seed = int(np.random.randint(2**32, dtype="uint32")) if config.sampling else 0
    prompt_index = np.repeat(prompt_indices, n).astype("int32")
    sequence_index = np.tile(np.arange(n, dtype="int32"), len(prompt_indices))

    def draw(done):
        count = np.arange(done, done + CHUNK, dtype="int32")[:, None]
        return uniform(np.int32(wrap_seed(seed)), prompt_index, sequence_index, count, xp=np)

    return draw


def _generation(prompt, ids, limit, end_ids):
    """Cut a row's ids after its limit and after its first end token."""
    ids = ids[:limit]
    ends = np.flatnonzero(np.isin(ids, end_ids))
    completion = ids[: ends[0] + 1] if len(ends) else ids
    token_ids = np.concatenate([np.asarray(prompt, dtype="int32"), completion])
    return Generation(token_ids, len(prompt), "stop" if len(ends) else "length")


def _completion_limits(prompts, config, first_index):
    """The most tokens that may follow each prompt, (B,) int32."""
    if len(prompts) == 0:
        raise ValueError("prompts ([]) must hold at least one prompt.")
    lengths = np.array([len(prompt) for prompt in prompts], dtype="int32")
    if not lengths.all():
        raise ValueError(
            f"prompts[{first_index + lengths.argmin()}] ([]) must hold at least one token, such as a start token."
        )
    if config.max_new_tokens is not None:
        return np.full_like(lengths, config.max_new_tokens)
    if config.max_length is None:
        raise ValueError("max_length (None) or max_new_tokens (None) must be given.")
    if lengths.max() >= config.max_length:
        raise ValueError(
            f"max_length ({config.max_length}) must be greater than the length of each prompt; "
            f"prompts[{first_index + lengths.argmax()}] has {lengths.max()} tokens."
        )
    return np.int32(config.max_length) - lengths


def _check_rows(inputs, num_prompts):
    for name, array in inputs.items():
        if len(array) != num_prompts:
            raise ValueError(f"inputs[{name!r}] has {len(array)} rows for {num_prompts} prompts.")


def _next_power_of_two(number):
    return 1 << (int(number) - 1).bit_length()


class _Programs:
    """The compiled functions of one model."""

    def __init__(self, model):
        self.model = model
        self.variables = list(model.variables)
        self.functions = {}

    def are_for(self, variables):
        return len(variables) == len(self.variables) and all(map(operator.is_, variables, self.variables))

    def run(self, function, *arguments, **static):
        """Call `function(model, *arguments, **static)`, compiled once for its shapes and static arguments.

        Each is a function of its own: `tf.function` would trace the second shape with unknown sizes.
        """
        shapes = tuple(tuple(np.shape(leaf)) for leaf in keras.tree.flatten(arguments))
        key = (function, shapes, tuple(static.items()))
        if key not in self.functions:
            self.functions[key] = backend.compiled(functools.partial(function, self.model, **static), self.model)
        return self.functions[key](*arguments)


def _programs(model):
    """The model's programs, kept on it so that they live as long as it does.

    They read the values of its variables at each call, and are made anew when it has other variables, as
    after `quantize` or `enable_lora`.
    """
    programs = getattr(model, "_generation_programs", None)
    if programs is None or not programs.are_for(model.variables):
        # A plain object, because Keras and TensorFlow track, and so save, lists, dicts and layers.
        programs = model._generation_programs = _Programs(model)
    return programs
