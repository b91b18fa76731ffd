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

import itertools

import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.generation import beam
from kerasllm.generation.config import SAMPLING
from kerasllm.generation.processors import constrain, constraint_tensors, needs_history, run_processors, warp
from kerasllm.generation.programs import Programs, batch_tensors, copied, feed, first_capacity, grow, prefill, tensors
from kerasllm.generation.samplers import sample, uniform, wrap_seed
from kerasllm.generation.sequences import Row, drawn_seed
from kerasllm.text.batches import bucket_rows, filled

CHUNK = 64
# Steps between two looks for a stop string; and while text is streamed, beginning with one step.
STOP_CHUNK = 16
STREAM_CHUNK = 4
# Colder than this only the largest of float32 logits is drawn; dividing by less could overflow.
MIN_TEMPERATURE = 1e-6


def generate(task):
    """Continue prompts.

    A row is what it would be alone: neither the other rows nor the padding change it.

    Args:
        task: a `Task`.

    Returns:
        For each prompt a list of `config.num_return_sequences` `Generation`s.

    Raises:
        FloatingPointError: the model's logits are not numbers.
    """
    if task.config.num_beams > 1:
        return beam.search(task)
    n = task.config.num_return_sequences
    chunk = CHUNK if task.find_stop is None else STOP_CHUNK
    *_, rows = decode(task, itertools.repeat(chunk))
    rows = [row.generation(task.scores) for row in rows]
    return [rows[i : i + n] for i in range(0, len(rows), n)]


def stream(task):
    """Continue one prompt, and yield its `Row` as it grows: after one step, two more, four more, four more, ..."""
    for [row] in decode(task, itertools.chain([1, 2], itertools.repeat(STREAM_CHUNK))):
        yield row


def decode(task, chunks):
    """Yield the list of all `Row`s after each chunk, until all are finished.

    Row r is sequence r % n of prompt r // n.

    Args:
        task: a `Task` without beams.
        chunks: iterator of the most steps to take in each chunk.
    """
    config, programs = task.config, Programs.of(task.model)
    n = config.num_return_sequences
    rows = [Row(p, limit) for p, limit in zip(task.prompts, task.limits, strict=True) for _ in range(n)]
    num_rows = task.num_rows if n == 1 else bucket_rows(len(rows))
    places = filled(np.repeat(np.arange(len(task.prompts), dtype="int32"), n), num_rows, 0)  # of their prompts
    end_ids, draw, total = task.end_tensor(), _uniforms(task, num_rows), int(task.limits.max())
    limits, done = filled(np.repeat(task.limits, n), num_rows, 0), 0  # what fills up is finished from the start
    inputs, prompt, length = task.padded_prompts()
    token = prompt["token_ids"][places, -1]
    token, constraints, filters, ends, places = tensors(
        (token, constraint_tensors(config), _filters(config), end_ids, places)
    )
    inputs, prompt = batch_tensors((inputs, prompt))
    capacity = first_capacity(length, total)
    state = programs.run(
        prefill, inputs, prompt, capacity=capacity, num_copies=1, has_history=needs_history(constraints)
    )
    if n > 1:
        state = programs.run(copied, state, places)
    while any(row.finish_reason is None for row in rows):
        slot = length - 1 + done
        if slot == capacity:
            capacity *= 2
            state = programs.run(grow, state, capacity=capacity)
        finished = filled(np.array([row.finish_reason is not None for row in rows]), num_rows, True)
        remaining, finished, uniforms = tensors((limits - done, finished, draw(done)))
        where, choice = (np.int32(slot), np.int32(length), remaining, ends), (uniforms, constraints, filters)
        if task.processors:
            num_steps = 1
            ids, log_probs, state, token = _processed_step(task, programs, rows, state, token, where, choice)
        else:
            num_steps = min(next(chunks), CHUNK, capacity - slot, total - done)
            ids, log_probs, state, token = programs.run(
                advance,
                state,
                token,
                finished,
                np.int32(num_steps),
                where,
                choice,
                scores=task.scores,
            )
        ids = ops.convert_to_numpy(ids)[:num_steps]
        log_probs = ops.convert_to_numpy(log_probs)[:num_steps] if task.scores else np.zeros((num_steps, num_rows))
        for r, row in enumerate(rows):
            if row.finish_reason is None:
                row.extend(ids[:, r], log_probs[:, r], end_ids, task.find_stop)
        done += num_steps
        yield rows


def advance(model, state, token, finished, num_steps, where, choice, scores):
    """Take a number of steps, fewer when all rows finish.

    Args:
        model: has `decode_step`.
        state: what `prefill` returns.
        token: (R,) int32, to feed.
        finished: (R,) boolean.
        num_steps: the most steps, at most as many as there are uniforms.
        where: the slot to begin in; the prompts' slots; how many tokens remain to each row (R,) int32; the end ids
            (E,) int32.
        choice: the uniforms (C, R) float32; the parameters of `constrain`; those of `warp`, () for greedy decoding,
            or the function of `chooser`.
        scores: whether log-probabilities are wanted.

    Returns:
        Ids and log-probabilities (C, R) (or ()), the new state, the token to feed next.
    """
    ids = ops.zeros(ops.shape(choice[0]), dtype="int32")
    log_probs = ops.zeros(ops.shape(ids), dtype="float32") if scores else ()
    carry = (0, ids, log_probs, state, token, finished)

    def keep_going(carry, constants):
        return ops.logical_and(carry[0] < constants[0], ops.logical_not(ops.all(carry[-1])))

    def step(carry, constants):
        done, ids, log_probs, state, token, finished = carry
        _, (slot, prompt_slots, remaining, end_ids), (uniforms, constraints, filters) = constants
        here = (slot + done, prompt_slots, remaining, end_ids)
        logits, constrained, state = _logits(model, state, token, here, constraints)
        token, log_prob = _choose(model, logits, constrained, ops.take(uniforms, done, axis=0), filters, scores)
        ended = ops.logical_or(token < 0, ops.any(token[:, None] == end_ids[None], axis=-1))
        finished = ops.logical_or(finished, ops.logical_or(ended, remaining <= done + 1))
        ids = ops.slice_update(ids, (done, 0), token[None])
        log_probs = ops.slice_update(log_probs, (done, 0), log_prob[None]) if scores else ()
        return done + 1, ids, log_probs, state, token, finished

    return backend.while_loop(keep_going, step, carry, (num_steps, where, choice))[1:5]


def _processed_step(task, programs, rows, state, token, where, choice):
    """`advance` by one step, with the caller's processors between the model and the choice."""
    uniforms, constraints, filters = choice
    logits, constrained, state = programs.run(_logits, state, token, where, constraints)
    tokens = [np.concatenate([row.prompt, row.ids]).astype("int32") for row in rows]
    constrained = np.array(ops.convert_to_numpy(constrained))
    constrained[: len(rows)] = run_processors(task.processors, tokens, constrained[: len(rows)])
    token, log_probs = programs.run(
        _choose, logits, ops.convert_to_tensor(constrained), uniforms[0], filters, scores=task.scores
    )
    return token[None], log_probs[None] if task.scores else (), state, token


def _logits(model, state, token, where, constraints):
    """Feed tokens (R,): the model's logits (R, V), what the constraints make of them, the new state."""
    slot, prompt_slots, _, end_ids = where
    logits, state = feed(model, state, token, slot)
    return logits, constrain(logits, state[1], slot, prompt_slots, end_ids, constraints), state


def _choose(model, logits, constrained, uniforms, filters, scores):
    """The next tokens (R,) int32, -1 where logits are NaN, and their log-probabilities (R,) or ()."""
    if callable(filters):
        token = filters(constrained, uniforms)
    elif filters:
        token = sample(warp(constrained, **filters), uniforms)
    else:
        token = backend.argmax(constrained)
    log_probs = ()
    if scores:
        log_probs = ops.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - ops.logsumexp(logits, axis=-1)
    return ops.where(ops.any(~(logits < np.inf), axis=-1), -1, token), log_probs


def chooser(temperature, top_k, top_p, **filters):
    """A function (logits (R, V), uniforms (R,)) -> tokens (R,) whose options are tensors, for a graph.

    Args:
        temperature: scalar float32; 0 takes the most probable token.
        top_k: scalar int32; 0 keeps all.
        top_p: scalar float32; 1 keeps all.
        **filters: further ones of `warp`, None or a number.
    """

    def choose(logits, uniforms):
        def draw():
            kept = warp(logits, temperature=ops.maximum(temperature, MIN_TEMPERATURE))
            kept = ops.cond(top_k > 0, lambda: warp(kept, top_k=ops.cast(top_k, "float32")), lambda: kept)
            kept = ops.cond(top_p < 1, lambda: warp(kept, top_p=top_p), lambda: kept)
            return sample(warp(kept, **filters), uniforms)

        return ops.cond(temperature > 0, draw, lambda: backend.argmax(logits))

    return choose


def _filters(config):
    """The arguments of `warp`, () for greedy decoding."""
    if not config.sampling:
        return ()
    values = {name: getattr(config, name) for name in SAMPLING}
    values["temperature"] = 1.0 if config.temperature is None else max(config.temperature, MIN_TEMPERATURE)
    return {name: np.float32(value) for name, value in values.items() if value is not None}


def _uniforms(task, num_rows):
    """The function from the tokens generated so far to the uniforms (CHUNK, R) of the next steps."""
    seed, n = drawn_seed(task.config), task.config.num_return_sequences
    prompt_index, sequence_index = (x.astype("int32") for x in np.divmod(np.arange(num_rows), n))
    prompt_index += task.first_index

    def draw(done):
        count = np.arange(done, done + CHUNK, dtype="int32")[:, None]
        return uniform(np.int32(wrap_seed(seed)), prompt_index, sequence_index, count, xp=np)

    return draw
