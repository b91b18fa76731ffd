"""Changing the distribution before a token is chosen: pure functions on logits (R, V).

`constrain` says what may follow the tokens so far: penalties, bans, biases. `warp` says how much chance is wanted:
temperature and the filters of sampling. Together they are in the order of transformers; callbacks come between.

Parameters are tensors, so that changing a value never recompiles; those of any length are filled up to few, with
entries that do nothing. A token that may not be chosen gets minus infinity; at least one always may.
"""

import numpy as np
from keras import ops

from kerasllm.text.batches import bucket_length, filled

# The least room, for entries and for the tokens before a bad word's last: so most calls share a program.
LEAST_BIASES, LEAST_WORDS, LEAST_WORD_LENGTH = 16, 16, 4
CONSTRAINTS = (
    "logit_bias",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram",
    "bad_words",
    "min_new_tokens",
    "min_length",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
)


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
    p, size = parameters, logits.shape[-1]
    logits = ops.cast(logits, "float32")
    if "logit_bias" in p:
        ids, values = p["logit_bias"]
        biased = logits + sums_by_id(ids[None], values[None], size)
        logits = ops.where(ops.max(biased, axis=-1, keepdims=True) > -float("inf"), biased, logits)
    if "repetition_penalty" in p:
        stands = sums_by_id(token_ids, ops.ones_like(token_ids, dtype="float32"), size) > 0
        penalised = ops.where(logits < 0, logits * p["repetition_penalty"], logits / p["repetition_penalty"])
        logits = ops.where(stands, penalised, logits)
    if "presence_penalty" in p or "frequency_penalty" in p:
        generated = ops.arange(ops.shape(token_ids)[1], dtype="int32")[None] >= prompt_slots
        weights = ops.broadcast_to(ops.cast(generated, "float32"), ops.shape(token_ids))
        counts = sums_by_id(token_ids, weights, size)
        logits = logits - counts * p.get("frequency_penalty", 0.0)
        logits = logits - ops.cast(counts > 0, "float32") * p.get("presence_penalty", 0.0)
    if "no_repeat_ngram" in p:
        logits = _ban(logits, *_ngram_ends(token_ids, slot, *p["no_repeat_ngram"]))
    if "bad_words" in p:
        logits = _ban(logits, *_bad_word_ends(token_ids, slot, *p["bad_words"]))
    if "min_new_tokens" in p:
        too_early = slot + 1 - prompt_slots < p["min_new_tokens"]
        logits = _ban(logits, end_ids[None], ops.logical_and(end_ids >= 0, too_early)[None])
    if {"min_length", "forced_bos_token_id", "forced_eos_token_id"} & set(p):
        length = ops.sum(ops.cast(token_ids >= 0, "int32"), axis=-1, keepdims=True)  # (R, 1)
        if "min_length" in p:
            too_early = ops.logical_and(end_ids >= 0, length < p["min_length"])  # (R, E)
            logits = _ban(logits, ops.broadcast_to(end_ids[None], ops.shape(too_early)), too_early)
        if "forced_bos_token_id" in p:
            logits = _forced(logits, p["forced_bos_token_id"], length == 1)
        if "forced_eos_token_id" in p:
            token_id, max_length, max_new_tokens = p["forced_eos_token_id"]
            is_last = ops.logical_or(length + 1 == max_length, slot + 2 - prompt_slots == max_new_tokens)
            logits = _forced(logits, token_id, is_last)
    count = slot + 1 - prompt_slots
    if "exponential_decay_length_penalty" in p:
        start, factor = p["exponential_decay_length_penalty"]
        further = ops.cast(ops.maximum(count - start, 0), "float32")
        is_end = ops.any(ops.arange(size, dtype="int32")[None] == end_ids[:, None], axis=0)[None]  # (1, V)
        is_hastened = ops.logical_and(is_end, logits > -float("inf"))
        logits = ops.where(is_hastened, logits + ops.abs(logits) * (factor**further - 1), logits)
    if "suppress_tokens" in p:
        logits = _ban(logits, p["suppress_tokens"][None], (p["suppress_tokens"] >= 0)[None])
    if "begin_suppress_tokens" in p:
        begins = count == 0
        if "forced_bos_token_id" in p:  # after a prompt of one token the forced one stands first
            begins = ops.where(length - count == 1, count == 1, begins)  # (R, 1)
        ids = p["begin_suppress_tokens"][None]
        is_banned = ops.logical_and(ids >= 0, begins)  # (R or 1, C)
        logits = _ban(logits, ops.broadcast_to(ids, ops.shape(is_banned)), is_banned)
    return logits


def warp(
    logits, temperature=None, top_k=None, top_p=None, min_p=None, typical_p=None, epsilon_cutoff=None, eta_cutoff=None
):
    """Apply temperature, then top-k, top-p, min-p, the typical, the epsilon and the eta filter.

    Args:
        logits: (R, V).
        temperature, ...: scalar float32 tensors; None leaves one out.

    Returns:
        (R, V) float32.
    """
    logits = ops.cast(logits, "float32")
    if temperature is not None:
        logits = apply_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    if min_p is not None:
        logits = keep_min_p(logits, min_p)
    if typical_p is not None:
        logits = keep_typical(logits, typical_p)
    if epsilon_cutoff is not None:
        logits = keep_probable(logits, epsilon_cutoff)
    if eta_cutoff is not None:
        entropy = _entropy(*_probabilities(logits))
        logits = keep_probable(logits, ops.minimum(eta_cutoff, ops.sqrt(eta_cutoff) * ops.exp(-entropy)))
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
    names = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    values = {name: np.float32(getattr(config, name)) for name in names if getattr(config, name) is not None}
    if config.logit_bias:
        ids, biases = zip(*config.logit_bias.items(), strict=True)
        size = bucket_length(max(len(ids), LEAST_BIASES))
        values["logit_bias"] = (filled(np.array(ids, "int32"), size, -1), filled(np.array(biases, "float32"), size, 0))
    if config.no_repeat_ngram_size:
        size = config.no_repeat_ngram_size
        window = np.empty((bucket_length(size), 0), "int32")  # few compilations for many sizes
        values["no_repeat_ngram"] = (np.int32(min(size, 2**31 - 1)), window)
    if config.bad_words:
        size = bucket_length(max(len(config.bad_words), LEAST_WORDS))
        longest = bucket_length(max(*map(len, config.bad_words), LEAST_WORD_LENGTH + 1) - 1)
        prefixes = [[-1] * (longest + 1 - len(word)) + list(word[:-1]) for word in config.bad_words]
        ends = [word[-1] for word in config.bad_words]
        values["bad_words"] = (filled(np.array(prefixes, "int32"), size, -1), filled(np.array(ends, "int32"), size, -1))
    if config.min_new_tokens:
        values["min_new_tokens"] = np.int32(config.min_new_tokens)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if getattr(config, name):
            ids = getattr(config, name)
            padding = (1 << (len(ids) - 1).bit_length()) - len(ids)  # few compilations for many numbers
            values[name] = np.array([*ids, *[-1] * padding], "int32")
    if config.exponential_decay_length_penalty:
        start, factor = config.exponential_decay_length_penalty
        values["exponential_decay_length_penalty"] = (np.int32(start), np.float32(factor))
    if config.min_length:
        values["min_length"] = np.int32(config.min_length)
    if config.forced_bos_token_id is not None:
        values["forced_bos_token_id"] = np.int32(config.forced_bos_token_id)
    if config.forced_eos_token_id is not None:
        lengths = (config.max_length or 0, config.max_new_tokens or 0)
        values["forced_eos_token_id"] = tuple(map(np.int32, (config.forced_eos_token_id, *lengths)))
    return values


def needs_history(parameters):
    """Whether these parameters of `constrain` look at the tokens so far."""
    return not set(parameters) <= {
        "logit_bias",
        "min_new_tokens",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
    }


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
