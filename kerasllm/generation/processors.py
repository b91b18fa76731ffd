"""Changing the distribution before a token is chosen: pure functions on logits (R, V).

`constrain` says what may follow the tokens so far: penalties, bans, biases. `warp` says how much chance is wanted:
temperature and the filters of sampling. Together they are in the order of transformers; callbacks come between.

Parameters are tensors, so that changing a value never recompiles; those of any length are filled up to few, with
entries that do nothing. A token that may not be chosen gets minus infinity; at least one always may.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import ops

from kerasllm.generation.config import OPTIONS
from kerasllm.text.batches import bucket_length, filled

# The least room, for entries and for the tokens before a bad word's last: so most calls share a program.
LEAST_BIASES, LEAST_WORDS, LEAST_WORD_LENGTH = 16, 16, 4


def constrain(logits, token_ids, slot, prompt_slots, end_ids, parameters):
    """Apply logit bias, penalties, n-gram ban, bad words, least lengths, forced, hastened and suppressed tokens.

    Args:
        logits: (R, V), or log-probabilities.
        token_ids: (R, C) int32, prompt and completion so far in the slots 0 .. `slot`; -1 is no token.
        slot: scalar int, of the last token.
        prompt_slots: scalar int, the slots of the prompts: completions begin there.
        end_ids: (E,) int32; -1 is none.
        parameters: dict with some of CONSTRAINTS, as `constraint_tensors` gives it.

    Returns:
        (R, V) float32.
    """
    here = Place(token_ids, slot, prompt_slots, end_ids, parameters)
    logits = ops.cast(logits, "float32")
    for name in sorted(parameters, key=list(CONSTRAINTS).index):
        logits = CONSTRAINTS[name].apply(logits, parameters[name], here)
    return logits


def warp(logits, **values):
    """Apply temperature and the filters of sampling, those of FILTERS in this order.

    Args:
        logits: (R, V).
        **values: scalar float32 tensors; None leaves one out.

    Returns:
        (R, V) float32.
    """
    logits = ops.cast(logits, "float32")
    for name in sorted(values, key=list(FILTERS).index):
        logits = logits if values[name] is None else FILTERS[name](logits, values[name])
    return logits


def run_processors(processors, token_ids, logits):
    """Let the caller's functions change logits, on the host.

    Args:
        processors: functions (token_ids, logits) -> logits.
        token_ids: list of R int arrays, the tokens of each row so far.
        logits: (R, V) float32 array.

    Returns:
        (R, V) float32 array.

    Raises:
        ValueError: a function returns another shape, or rules all tokens out.
    """
    for processor in processors:
        new = np.asarray(processor(token_ids, logits), "float32")
        if new.shape != logits.shape or not np.all(np.max(new, axis=-1) > -np.inf):
            raise ValueError(
                f"processors: {processor!r} returned logits of shape {new.shape}; they must be of shape "
                f"{logits.shape}, with a number above minus infinity in each row."
            )
        logits = new
    return logits


def constraint_tensors(config):
    """The parameters of `constrain` that a `GenerationConfig` asks for, as arrays; its bad words are ids."""
    asked = [name for name in CONSTRAINTS if not OPTIONS[name].is_off(getattr(config, name))]
    values = {name: CONSTRAINTS[name].arrays(getattr(config, name)) for name in asked}
    if "forced_eos_token_id" in values:
        lengths = (config.max_length or 0, config.max_new_tokens or 0)
        values["forced_eos_token_id"] = (values["forced_eos_token_id"], *map(np.int32, lengths))
    return values


def needs_history(parameters):
    """Whether these parameters of `constrain` look at the tokens so far."""
    return any(CONSTRAINTS[name].looks_back for name in parameters)


def apply_temperature(logits, temperature):
    """Divide the logits (R, V) by a positive scalar."""
    return logits / temperature


def keep_top_k(logits, k):
    """Keep the k largest logits of a row, and those equal to the k-th. From V on, k keeps all."""
    return _keep_largest(logits, ops.ones_like(logits), k)


def keep_top_p(logits, p):
    """Keep the largest logits until their probability reaches p, and those equal to the last of them.

    Holtzman et al., "The curious case of neural text degeneration", 2019.
    """
    weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    return _keep_largest(logits, weights, p * ops.sum(weights, axis=-1, keepdims=True))


def keep_min_p(logits, p):
    """Keep the tokens at least p times as probable as the most probable one.

    Nguyen et al., "Turning up the heat: min-p sampling", 2024, arXiv:2407.01082.
    """
    return ops.where(logits < ops.max(logits, axis=-1, keepdims=True) + ops.log(p), -float("inf"), logits)


def keep_typical(logits, p):
    """Keep the tokens whose surprise is nearest to the expected one until their probability reaches p.

    Meister et al., "Locally typical sampling", 2022, arXiv:2202.00666.
    """
    log_probs, probabilities = _probabilities(logits)
    nearness = -ops.abs(log_probs + _entropy(log_probs, probabilities))
    return _keep_largest(logits, probabilities, p, by=nearness)


def keep_probable(logits, least):
    """Keep the most probable token, and those whose probability is `least`, a scalar or (R, 1).

    Hewitt et al., "Truncation sampling as language model desmoothing", 2022, arXiv:2210.15191.
    """
    _, probabilities = _probabilities(logits)
    is_largest = logits >= ops.max(logits, axis=-1, keepdims=True)
    return ops.where(ops.logical_or(probabilities >= least, is_largest), logits, -float("inf"))


def keep_by_entropy(logits, cutoff):
    """Keep the tokens at least as probable as the smaller of the cutoff and sqrt(cutoff) * exp(-entropy).

    Source as for `keep_probable`.
    """
    entropy = _entropy(*_probabilities(logits))
    return keep_probable(logits, ops.minimum(cutoff, ops.sqrt(cutoff) * ops.exp(-entropy)))


def _probabilities(logits):
    log_probs = logits - ops.logsumexp(logits, axis=-1, keepdims=True)
    return log_probs, ops.exp(log_probs)


def _entropy(log_probs, probabilities):
    terms = ops.where(probabilities > 0, probabilities * ops.maximum(log_probs, -1e9), 0.0)
    return -ops.sum(terms, axis=-1, keepdims=True)


def sums_by_id(ids, values, size):
    """Add up the values of each id that is not negative: ids (R, C) int32, values (R, C) -> (R, size) float32."""
    rows = ops.broadcast_to(ops.arange(ops.shape(ids)[0], dtype="int32")[:, None], ops.shape(ids))
    places = ops.stack([ops.reshape(rows, (-1,)), ops.reshape(ops.maximum(ids, 0), (-1,))], axis=-1)
    values = ops.where(ids >= 0, values, 0.0)
    sums = ops.zeros((ops.shape(ids)[0], size), dtype="float32")
    return ops.scatter_update(sums, places, ops.reshape(values, (-1,)), reduction="add")


def _ban(logits, ids, is_banned):
    """Rule out ids (R or 1, C) int32 where `is_banned`, unless nothing were left."""
    bans = sums_by_id(ids, ops.cast(is_banned, "float32"), logits.shape[-1])
    allowed = ops.where(bans > 0, -float("inf"), logits)
    return ops.where(ops.max(allowed, axis=-1, keepdims=True) > -float("inf"), allowed, logits)


def _forced(logits, token_id, is_forced):
    """Where `is_forced` (R or 1, 1), only `token_id` may follow, with certainty."""
    is_token = ops.arange(logits.shape[-1], dtype="int32")[None] == token_id
    return ops.where(is_forced, ops.where(is_token, 0.0, -float("inf")), logits)


def _ngram_ends(token_ids, slot, size, window):
    """What would end an n-gram for the second time: the tokens (R, C) and whether each does.

    Args:
        size: scalar int32, n <= the length of `window`.
        window: (W, 0), empty; its length is all that counts.
    """
    capacity, longest = ops.shape(token_ids)[1], token_ids.shape[1] or window.shape[0]
    slots = ops.arange(capacity, dtype="int32")[None]
    matches = ops.logical_and(ops.logical_and(slots <= slot, slots >= size - 1), token_ids >= 0)
    for distance in range(1, min(window.shape[0], longest)):
        before = ops.pad(token_ids, [[0, 0], [distance, 0]], constant_values=-1)[:, :capacity]
        last = _at(token_ids, slot - distance + 1)
        same = ops.logical_and(before == last, last >= 0)
        matches = ops.logical_and(matches, ops.logical_or(same, distance >= size))
    return token_ids, matches


def _bad_word_ends(token_ids, slot, prefixes, ends):
    """The last tokens (1, W) of the bad words, and whether what stands before them does, (R, W).

    Args:
        prefixes: (W, N) int32, the words without their last tokens, from the right; -1 before them.
        ends: (W,) int32.
    """
    matches = ops.ones((ops.shape(token_ids)[0], prefixes.shape[0]), dtype="bool")
    for distance in range(prefixes.shape[1]):
        wanted = prefixes[:, prefixes.shape[1] - 1 - distance][None]  # (1, W)
        matches = ops.logical_and(matches, ops.logical_or(wanted < 0, _at(token_ids, slot - distance) == wanted))
    return ops.broadcast_to(ends[None], ops.shape(matches)), matches


def _at(token_ids, slot):
    """The tokens of a slot, (R, C) -> (R, 1); -1 before the first slot."""
    taken = ops.take(token_ids, ops.reshape(ops.maximum(slot, 0), (1,)), axis=1)
    return ops.where(slot < 0, -1, taken)


def _keep_largest(logits, weights, target, by=None):
    """Keep the largest logits until their weights sum to `target`, and those equal to the last of them.

    The last one is found without a sort, bit by bit: 32 sums over the row cost a third of sorting 50,000
    logits, on jax a tenth.

    Args:
        logits: (R, V) float32.
        weights: (R, V) float32, not negative.
        target: scalar or (R, 1) float32; where it is not reached, all logits are kept.
        by: (R, V) float32, what is large. Default: the logits.
    """
    keys = _ordered_integers(logits if by is None else by)
    bits = ops.convert_to_tensor(np.array([-(2**31)] + [2**bit for bit in range(30, -1, -1)], dtype="int32"))

    def set_bit(i, lowest):
        higher = lowest + bits[i]
        reached = ops.sum(ops.where(keys >= higher, weights, 0.0), axis=-1, keepdims=True) >= target
        return ops.where(reached, higher, lowest)

    # The smallest int32 with its highest bit set wraps round to zero.
    lowest = ops.full((ops.shape(logits)[0], 1), -(2**31), dtype="int32")
    lowest = ops.fori_loop(0, 32, set_bit, lowest)
    return ops.where(keys < lowest, -float("inf"), logits)


def _ordered_integers(x):
    """int32 in the order of the float32 `x`: their bits, which grow with the size of the number."""
    bits = ops.view(x, dtype="int32")
    return ops.where(bits < 0, -(2**31) - bits, bits)


class Place(NamedTuple):
    """Where `constrain` is: its arguments."""

    token_ids: object
    slot: object
    prompt_slots: object
    end_ids: object
    parameters: dict

    @property
    def count(self):
        """How many tokens each completion has."""
        return self.slot + 1 - self.prompt_slots

    @property
    def lengths(self):
        """How many tokens each row has, (R, 1)."""
        return ops.sum(ops.cast(self.token_ids >= 0, "int32"), axis=-1, keepdims=True)

    def completed(self, size):
        """How often each token stands in the completions, (R, V)."""
        is_new = ops.arange(ops.shape(self.token_ids)[1], dtype="int32")[None] >= self.prompt_slots
        weights = ops.broadcast_to(ops.cast(is_new, "float32"), ops.shape(self.token_ids))
        return sums_by_id(self.token_ids, weights, size)


# What the parameters of `constrain` are: arrays of an option's value.


def _ids(value):
    return filled(np.array(value, "int32"), bucket_length(len(value)), -1)


def _biases(value):
    size = bucket_length(max(len(value), LEAST_BIASES))
    ids, biases = np.array(list(value), "int32"), np.array(list(value.values()), "float32")
    return filled(ids, size, -1), filled(biases, size, 0)


def _ngram(size):
    window = np.empty((bucket_length(size), 0), "int32")  # few compilations for many sizes
    return np.int32(min(size, 2**31 - 1)), window


def _words(words):
    size = bucket_length(max(len(words), LEAST_WORDS))
    longest = bucket_length(max(*map(len, words), LEAST_WORD_LENGTH + 1) - 1)
    prefixes = [[-1] * (longest + 1 - len(word)) + list(word[:-1]) for word in words]
    ends = [word[-1] for word in words]
    return filled(np.array(prefixes, "int32"), size, -1), filled(np.array(ends, "int32"), size, -1)


def _decay(value):
    return np.int32(value[0]), np.float32(value[1])


# What `constrain` does with them: (logits, arrays, `Place`) -> logits.


def _biased(logits, arrays, here):
    ids, values = arrays
    biased = logits + sums_by_id(ids[None], values[None], logits.shape[-1])
    return ops.where(ops.max(biased, axis=-1, keepdims=True) > -float("inf"), biased, logits)


def _less_repeated(logits, penalty, here):
    stands = sums_by_id(here.token_ids, ops.ones_like(here.token_ids, dtype="float32"), logits.shape[-1]) > 0
    penalised = ops.where(logits < 0, logits * penalty, logits / penalty)
    return ops.where(stands, penalised, logits)


def _less_frequent(logits, penalty, here):
    return logits - here.completed(logits.shape[-1]) * penalty


def _less_present(logits, penalty, here):
    return logits - ops.cast(here.completed(logits.shape[-1]) > 0, "float32") * penalty


def _without_ngrams(logits, arrays, here):
    return _ban(logits, *_ngram_ends(here.token_ids, here.slot, *arrays))


def _without_words(logits, arrays, here):
    return _ban(logits, *_bad_word_ends(here.token_ids, here.slot, *arrays))


def _not_ended(logits, is_early, here):
    """Without end tokens where it is too early, a scalar or (R, 1)."""
    is_banned = ops.logical_and(here.end_ids[None] >= 0, is_early)  # (R or 1, E)
    return _ban(logits, ops.broadcast_to(here.end_ids[None], ops.shape(is_banned)), is_banned)


def _begun(logits, token_id, here):
    return _forced(logits, token_id, here.lengths == 1)


def _ended(logits, arrays, here):
    token_id, max_length, max_new_tokens = arrays
    is_last = ops.logical_or(here.lengths + 1 == max_length, here.count + 1 == max_new_tokens)
    return _forced(logits, token_id, is_last)


def _hastened(logits, arrays, here):
    start, factor = arrays
    further = ops.cast(ops.maximum(here.count - start, 0), "float32")
    token_ids = ops.arange(logits.shape[-1], dtype="int32")
    is_end = ops.any(token_ids[None] == here.end_ids[:, None], axis=0)[None]  # (1, V)
    is_hastened = ops.logical_and(is_end, logits > -float("inf"))
    return ops.where(is_hastened, logits + ops.abs(logits) * (factor**further - 1), logits)


def _suppressed(logits, ids, here):
    return _ban(logits, ids[None], (ids >= 0)[None])


def _suppressed_first(logits, ids, here):
    begins = here.count == 0
    if "forced_bos_token_id" in here.parameters:  # after a prompt of one token the forced one stands first
        begins = ops.where(here.lengths - here.count == 1, here.count == 1, begins)  # (R, 1)
    is_banned = ops.logical_and(ids[None] >= 0, begins)  # (R or 1, C)
    return _ban(logits, ops.broadcast_to(ids[None], ops.shape(is_banned)), is_banned)


class Constraint(NamedTuple):
    """What `constrain` does for an option.

    Args:
        arrays: the option's value -> the parameter.
        apply: logits, the parameter, a `Place` -> logits.
        looks_back: whether it looks at the tokens so far, and not only at their number.
    """

    arrays: Callable
    apply: Callable
    looks_back: bool = False


FILTERS = {
    "temperature": apply_temperature,
    "top_k": keep_top_k,
    "top_p": keep_top_p,
    "min_p": keep_min_p,
    "typical_p": keep_typical,
    "epsilon_cutoff": keep_probable,
    "eta_cutoff": keep_by_entropy,
}
CONSTRAINTS = {
    "logit_bias": Constraint(_biases, _biased),
    "repetition_penalty": Constraint(np.float32, _less_repeated, looks_back=True),
    "frequency_penalty": Constraint(np.float32, _less_frequent, looks_back=True),
    "presence_penalty": Constraint(np.float32, _less_present, looks_back=True),
    "no_repeat_ngram_size": Constraint(_ngram, _without_ngrams, looks_back=True),
    "bad_words": Constraint(_words, _without_words, looks_back=True),
    "min_new_tokens": Constraint(np.int32, lambda logits, least, here: _not_ended(logits, here.count < least, here)),
    "min_length": Constraint(
        np.int32, lambda logits, least, here: _not_ended(logits, here.lengths < least, here), looks_back=True
    ),
    "forced_bos_token_id": Constraint(np.int32, _begun, looks_back=True),
    "forced_eos_token_id": Constraint(np.int32, _ended, looks_back=True),
    "exponential_decay_length_penalty": Constraint(_decay, _hastened),
    "suppress_tokens": Constraint(_ids, _suppressed),
    "begin_suppress_tokens": Constraint(_ids, _suppressed_first),
}
