"""Speculative decoding: guess some tokens cheaply, and let the model check them all in one step.

    tokens so far   the cat sat on the
    guess           cat sat in a                     by a draft model, or copied from an earlier place in the text
    one step        the cat sat in a    feeds the last token and the guess, and gives what the model itself
                    cat sat on  .  .    would have written after each: two tokens of the guess are right, and
                                        the third comes with the step

The text is that of greedy decoding; the model runs less often, and reading its weights is what a step costs at batch
size 1. Leviathan et al. 2022, arXiv:2211.17192; copying: Saxena 2023, "Prompt lookup decoding".

The wrong part of a guess stays in the cache until the next step writes over it, so the model must be one whose state
is a cache.
"""

import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.generation.programs import Programs, first_capacity, grow, prefill, tensors
from kerasllm.generation.sequences import Row

# The tokens before a guess that must stand in the text already, the longest first.
MATCHES = (3, 2, 1)


def generate(task, draft, num_draft_tokens):
    """Continue one prompt greedily.

    Args:
        task: a `Task` with one prompt.
        draft: a model of the same vocabulary and inputs, or "prompt": guesses are copied from the text so far.
        num_draft_tokens: the tokens of a guess.

    Returns:
        A `Generation` with `num_steps`.
    """
    decoder = _Decoder(task.model, task)
    guess = _lookup if draft == "prompt" else _Draft(draft, task, num_draft_tokens)
    [prompt], [limit] = task.prompts, task.limits
    row, num_steps = Row(prompt, limit), 0
    while row.finish_reason is None:
        tokens = [*prompt, *row.ids]
        guessed = guess(tokens, num_draft_tokens)[:num_draft_tokens]
        fed = [tokens[-1], *guessed]
        # One shape for all guesses, another for none.
        padded = fed + [0] * (num_draft_tokens + 1 - len(fed) if guessed else 0)
        logits = decoder.feed(padded, len(tokens) - 1)
        written, log_probs = (ops.convert_to_numpy(x)[0, : len(fed)] for x in logits)
        num_right = next((i for i, token in enumerate(guessed) if token != written[i]), len(guessed))
        row.extend(written[: num_right + 1], log_probs[: num_right + 1], task.end_tensor(), task.find_stop)
        num_steps += 1
    return row.generation(task.scores, num_steps)


class _Decoder:
    """A model that is fed tokens of one sequence from any place on."""

    def __init__(self, model, task):
        self.programs = Programs.of(model)
        inputs, prompt, length = task.padded_prompts()
        self.padding = length - len(task.prompts[0])
        self.capacity = first_capacity(length, int(task.limits[0]))
        self.state = self.programs.run(
            prefill, *tensors((inputs, prompt)), capacity=self.capacity, num_copies=1, has_history=False
        )

    def feed(self, token_ids, place):
        """Feed T tokens from a place in the sequence on: what the model writes after each, log p (1, T)."""
        slot = place + self.padding
        self.make_room(slot + len(token_ids))
        token_ids = ops.convert_to_tensor(np.array([token_ids], "int32"))
        *written, self.state = self.programs.run(_check, self.state, token_ids, np.int32(slot))
        return written

    def make_room(self, num_slots):
        while self.capacity < num_slots:
            self.capacity *= 2
            self.state = self.programs.run(grow, self.state, capacity=self.capacity)


class _Draft(_Decoder):
    """Guesses by a smaller model, whose cache follows the text."""

    def __init__(self, model, task, num_tokens):
        super().__init__(model, task)
        self.fed = list(task.prompts[0][:-1])

    def __call__(self, tokens, num_tokens):
        same = next((i for i, (a, b) in enumerate(zip(self.fed, tokens, strict=False)) if a != b), len(self.fed))
        same = min(same, len(tokens) - 1)
        unread = tokens[same:]
        slot = same + self.padding
        self.make_room(slot + len(unread) + num_tokens)
        # At most the last token of a guess that was all right and the one after it: one shape.
        padded = ops.convert_to_tensor(np.array(unread + [0] * (2 - len(unread)), "int32"))
        where = (np.int32(slot), np.int32(len(unread)))
        ids, self.state = self.programs.run(_guess, self.state, padded, where, num_tokens=num_tokens)
        ids = ops.convert_to_numpy(ids)[len(unread) - 1 :][:num_tokens].tolist()
        self.fed = tokens + ids[:-1]
        return ids


def _check(model, state, token_ids, slot):
    state, history = state
    logits, state = model.decode_step(token_ids, state, slot)
    logits = ops.cast(logits, "float32")
    written = backend.argmax(logits)
    log_probs = ops.max(logits, axis=-1) - ops.logsumexp(logits, axis=-1)
    return ops.where(ops.any(~(logits < np.inf), axis=-1), -1, written), log_probs, (state, history)


def _guess(model, state, unread, where, num_tokens):
    """Feed the unread tokens one by one, then what the model writes itself: the ids after each, and the new state."""
    ids = ops.zeros((unread.shape[0] + num_tokens,), dtype="int32")

    def keep_going(carry, constants):
        return carry[0] < constants[1][1] + num_tokens - 1

    def advance(carry, constants):
        step, ids, state = carry
        unread, (slot, num_unread) = constants
        given = ops.take(unread, ops.minimum(step, unread.shape[0] - 1))
        token = ops.where(step < num_unread, given, ops.take(ids, ops.maximum(step - 1, 0)))
        logits, cache = model.decode_step(ops.reshape(token, (1, 1)), state[0], slot + step)
        ids = ops.slice_update(ids, (step,), backend.argmax(logits[:, -1]))
        return step + 1, ids, (cache, state[1])

    return backend.while_loop(keep_going, advance, (0, ids, state), (unread, where))[1:]


def _lookup(tokens, num_tokens):
    """What followed the last time that the last tokens stood in the text; [] if they never did."""
    for size in MATCHES:
        pattern = tokens[-size:]
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == pattern:
                return tokens[start + size : start + size + num_tokens]
    return []
