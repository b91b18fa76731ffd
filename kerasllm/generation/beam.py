"""Beam search: the most probable sequences instead of the most probable next token.

Each prompt has K running hypotheses and its K best finished ones. In each step all continuations of the running ones
compete, by log-probability:

    ranks 1 .. K            those that end here are finished: they compete with the finished ones so far, by
                            log-probability / length ** length_penalty, and are never changed again
    the best K that go on   are the running ones of the next step

So many ranks are looked at that K of them always go on. A prompt is done when `early_stopping` says so or its limit is
reached, where whatever still runs is finished; from then on nothing of it changes, however long the others take.

The rules are those of Hugging Face transformers 5, the loop runs on the device.
"""

import numpy as np
from keras import ops, tree

from kerasllm import backend
from kerasllm.arguments import NAN_REASON
from kerasllm.generation.processors import constrain, constraint_tensors, needs_history, run_processors
from kerasllm.generation.programs import Programs, batch_tensors, copied, feed, first_capacity, grow, prefill, tensors
from kerasllm.generation.sequences import Generation
from kerasllm.text.batches import filled

# The log-probability of what is no hypothesis: below that of any, and finite, so that sums and quotients stay numbers.
NONE = -1e9


def search(task):
    """Find the best continuations of prompts.

    Args:
        task: a `Task` with beams.

    Returns:
        For each prompt the `config.num_return_sequences` best `Generation`s, the best first; fewer, where there are not
        so many sequences.

    Raises:
        FloatingPointError: the model's logits are not numbers.
    """
    config, programs = task.config, Programs.of(task.model)
    num_beams, end_ids, total = config.num_beams, task.end_tensor(), int(task.limits.max())
    inputs, prompt, length = task.padded_prompts()
    capacity, places = first_capacity(length, total), np.repeat(np.arange(task.num_rows, dtype="int32"), num_beams)
    limits = filled(task.limits, task.num_rows, 0)  # what fills up is done from the start
    constraints, limits, ends, penalty, token, places = tensors(
        (
            constraint_tensors(config),
            limits,
            end_ids,
            np.float32(config.length_penalty),
            prompt["token_ids"][places, -1],
            places,
        )
    )
    inputs, prompt = batch_tensors((inputs, prompt))
    state = programs.run(
        prefill, inputs, prompt, capacity=capacity, num_copies=1, has_history=needs_history(constraints)
    )
    state = programs.run(copied, state, places)
    beams = programs.run(first_beams, limits, num_beams=num_beams, size=capacity)
    static, done = {name: getattr(config, name) for name in ("early_stopping", "renormalize_logits")}, 0
    while done < total and ops.convert_to_numpy(beams["is_open"]).any():
        slot = length - 1 + done
        if slot == capacity:
            capacity *= 2
            state = programs.run(grow, state, capacity=capacity)
            beams = programs.run(_grow_beams, beams, size=capacity)
        where = (np.int32(slot), np.int32(length), limits, ends, penalty)
        if task.processors:
            num_steps = 1
            logits, constrained, state = programs.run(_log_probs, state, token, where, constraints)
            tokens, constrained = _tokens(task, beams), np.array(ops.convert_to_numpy(constrained))
            constrained[: len(tokens)] = run_processors(task.processors, tokens, constrained[: len(tokens)])
            constrained = ops.convert_to_tensor(constrained)
            state, token, beams = programs.run(_step, state, logits, constrained, beams, where, **static)
        else:
            num_steps = min(capacity - slot, total - done)
            state, token, beams = programs.run(
                advance, state, token, beams, np.int32(num_steps), where, constraints, **static
            )
        done += num_steps
    return _results(task, tree.map_structure(ops.convert_to_numpy, beams), end_ids)


def first_beams(model, limits, num_beams, size):
    """One hypothesis for each prompt, and K - 1 that are none; nothing is finished.

    Returns:
        A dict of tensors: of the running hypotheses `scores` (B, K), `sequences` and `log_probs` (B, K, size), what
        they have added to the prompt, -1 and 0 behind it; the same of the finished ones by the names `finished_...`,
        with the scores divided by the length; `is_open` (B,), whether the search goes on; `is_nan` (B,).
    """
    shape = (ops.shape(limits)[0], num_beams)
    scores = ops.full(shape, NONE)
    empty = {"sequences": ops.full((*shape, size), -1, dtype="int32"), "log_probs": ops.zeros((*shape, size))}
    return {
        "scores": ops.where(ops.arange(num_beams)[None] == 0, ops.zeros_like(scores), scores),
        **empty,
        "finished_scores": scores,
        **{f"finished_{name}": value for name, value in empty.items()},
        "is_open": limits > 0,
        "is_nan": limits < 0,
    }


def _grow_beams(model, beams, size):
    def pad(x, value):
        return ops.pad(x, [[0, 0], [0, 0], [0, size - x.shape[2]]], constant_values=value)

    fills = {"sequences": -1, "finished_sequences": -1, "log_probs": 0.0, "finished_log_probs": 0.0}
    return {**beams, **{name: pad(beams[name], value) for name, value in fills.items()}}


def advance(model, state, token, beams, num_steps, where, constraints, early_stopping, renormalize_logits):
    """Take a number of steps, fewer when no prompt is open any more.

    Args:
        model: has `decode_step`.
        state: what `prefill` returns, for R = B K rows.
        token: (R,) int32, to feed.
        beams: as `first_beams` returns.
        num_steps: the most steps.
        where: the slot to begin in; the prompts' slots; how many tokens each completion may have (B,) int32; the end
            ids (E,) int32; the length penalty.
        constraints: parameters of `constrain`.
        early_stopping: False, True or "never".
        renormalize_logits: whether the constrained probabilities are made to sum to one.

    Returns:
        state, token and beams after the steps.
    """

    def keep_going(carry, constants):
        return ops.logical_and(carry[0] < constants[0], ops.any(carry[-1]["is_open"]))

    def step(carry, constants):
        done, state, token, beams = carry
        _, (slot, *others), constraints = constants
        here = (slot + done, *others)
        logits, constrained, state = _log_probs(model, state, token, here, constraints)
        return done + 1, *_step(model, state, logits, constrained, beams, here, early_stopping, renormalize_logits)

    return backend.while_loop(keep_going, step, (0, state, token, beams), (num_steps, where, constraints))[1:]


def _log_probs(model, state, token, where, constraints):
    """Feed tokens (R,): the model's log-probabilities (R, V), what the constraints make of them, the new state."""
    slot, prompt_slots, _, end_ids, _ = where
    logits, state = feed(model, state, token, slot)
    log_probs = logits - ops.logsumexp(logits, axis=-1, keepdims=True)
    return log_probs, constrain(log_probs, state[1], slot, prompt_slots, end_ids, constraints), state


def _step(model, state, log_probs, constrained, beams, where, early_stopping, renormalize_logits):
    """Choose the continuations: the new state, the tokens (R,) to feed, the new beams."""
    slot, prompt_slots, limits, end_ids, penalty = where
    batch, num_beams = ops.shape(beams["scores"])  # the batch may be of any size
    size = log_probs.shape[-1]
    count = slot + 1 - prompt_slots  # tokens of each hypothesis before this step
    num_ranks = min((1 + end_ids.shape[0]) * num_beams, num_beams * size)

    if renormalize_logits:
        constrained = constrained - ops.logsumexp(constrained, axis=-1, keepdims=True)
    is_nan = ops.any(ops.isnan(ops.reshape(log_probs, (batch, -1))), axis=-1)
    totals = ops.reshape(constrained, (batch, num_beams, size)) + beams["scores"][:, :, None]
    scores, places = ops.top_k(ops.reshape(totals, (batch, num_beams * size)), num_ranks)  # (B, ranks)
    scores, places = ops.maximum(scores, 2 * NONE), ops.cast(places, "int32")
    parents, tokens = places // size, places % size
    hypotheses = {
        "sequences": _with_entry(_pick(beams["sequences"], parents), tokens, count),
        "log_probs": _with_entry(
            _pick(beams["log_probs"], parents),
            ops.take_along_axis(ops.reshape(log_probs, (batch, num_beams * size)), places, axis=1),
            count,
        ),
    }
    at_limit = (count + 1 >= limits)[:, None]
    ends = ops.logical_or(ops.any(tokens[:, :, None] == end_ids, axis=-1), at_limit)

    # The running hypotheses of the next step.
    running_scores, ranks = ops.top_k(ops.where(ends, 2 * NONE, scores), num_beams)
    running = {name: _pick(value, ranks) for name, value in hypotheses.items()}
    rows = ops.take_along_axis(parents, ranks, axis=1) + ops.arange(batch, dtype="int32")[:, None] * num_beams
    state = tree.map_structure(lambda x: ops.take(x, ops.reshape(rows, (-1,)), axis=0), state)
    token = ops.reshape(ops.take_along_axis(tokens, ranks, axis=1), (-1,))

    # The finished ones.
    is_open, is_full = beams["is_open"], ops.all(beams["finished_scores"] > NONE, axis=-1)
    may_finish = ops.logical_and(is_open, ops.logical_not(is_full)) if early_stopping is True else is_open
    among_best = ops.arange(num_ranks)[None] < num_beams
    finishes = ops.logical_and(ops.logical_and(ends, among_best), may_finish[:, None])
    finishes = ops.logical_and(finishes, scores > NONE / 2)
    length = ops.cast(count + 1, "float32")
    new_scores = ops.where(finishes, scores / length**penalty, NONE)
    finished_scores, ranks = ops.top_k(ops.concatenate([beams["finished_scores"], new_scores], axis=1), num_beams)
    finished = {
        f"finished_{name}": _pick(ops.concatenate([beams[f"finished_{name}"], value], axis=1), ranks)
        for name, value in hypotheses.items()
    }

    # Whether the best running one could still replace the worst finished one.
    if early_stopping == "never":
        length = ops.where(penalty > 0, ops.cast(limits, "float32"), length)
    could_be_better = running_scores[:, 0] / length**penalty > ops.min(finished_scores, axis=-1)
    is_open = ops.logical_and(is_open, ops.logical_and(could_be_better, ops.logical_not(at_limit[:, 0])))
    is_open = ops.logical_and(is_open, ops.logical_not(is_nan))
    if early_stopping is True:
        is_open = ops.logical_and(is_open, ops.any(finished_scores <= NONE, axis=-1))
    new = {"scores": running_scores, **running, "finished_scores": finished_scores, **finished, "is_open": is_open}
    # A prompt that was done stays as it is.
    return state, token, {**new, "is_nan": ops.logical_or(beams["is_nan"], ops.logical_and(beams["is_open"], is_nan))}


def _pick(x, indices):
    """Hypotheses by their indices: x (B, K, C), indices (B, M) -> (B, M, C)."""
    indices = ops.broadcast_to(indices[:, :, None], (*ops.shape(indices), ops.shape(x)[2]))
    return ops.take_along_axis(x, indices, axis=1)


def _with_entry(x, values, place):
    """Put values (B, M) into column `place` of x (B, M, C)."""
    return ops.slice_update(x, (0, 0, place), ops.cast(values, x.dtype)[:, :, None])


def _tokens(task, beams):
    """The tokens of each row so far, a list of int arrays."""
    sequences = ops.convert_to_numpy(beams["sequences"])
    return [
        np.concatenate([prompt, sequence[sequence >= 0]]).astype("int32")
        for prompt, rows in zip(task.prompts, sequences, strict=False)
        for sequence in rows
    ]


def _results(task, beams, end_ids):
    if beams["is_nan"].any():
        prompt = task.first_index + int(beams["is_nan"].argmax())
        raise FloatingPointError(f"The model's logits are NaN after prompts[{prompt}]: {NAN_REASON}.")
    results = []
    for i, prompt in enumerate(task.prompts):
        row = []
        for rank in range(task.config.num_return_sequences):
            sequence, score = beams["finished_sequences"][i, rank], float(beams["finished_scores"][i, rank])
            if score <= NONE:
                break
            completion = sequence[sequence >= 0]
            log_probs = beams["finished_log_probs"][i, rank, : len(completion)] if task.scores else None
            reason = "stop" if completion[-1] in end_ids else "length"
            token_ids = np.concatenate([prompt, completion]).astype("int32")
            row.append(Generation(token_ids, len(prompt), reason, log_probs, score))
        results.append(row)
    return results
