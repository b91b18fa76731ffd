"""Each processor against numpy, against what transformers answered, and against stored numbers."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import backend
from kerasllm.generation import processors
from kerasllm.generation.config import OPTIONS, SAMPLING, GenerationConfig
from kerasllm.generation.programs import tensors

FIXTURE = dict(np.load(Path(__file__).parent / "data/processors.npz"))
CASES = json.loads(str(FIXTURE["options"]))
V, LOW = 40, -np.inf


class Compiled:
    """A function with tensors for all values, compiled once for each of their shapes; it counts its traces."""

    def __init__(self, function):
        self.function, self.compiled, self.traces = function, {}, 0

    def __call__(self, *arguments):
        arguments = tensors(arguments)
        shapes = str(keras.tree.map_structure(lambda x: tuple(x.shape), arguments))
        if shapes not in self.compiled:
            self.compiled[shapes] = backend.compiled(self.trace, keras.Model())
        return ops.convert_to_numpy(self.compiled[shapes](*arguments))

    def trace(self, *arguments):
        self.traces += 1
        return self.function(*arguments)


constrain = Compiled(processors.constrain)
warp = Compiled(lambda logits, filters: processors.warp(logits, **filters))


def processed(logits, **filters):
    return warp(logits, {name: np.float32(value) for name, value in filters.items() if value is not None})


def in_slots(contexts, slots=None, capacity=None):
    """Contexts on the left of slot `slots`, padded with -1 on both sides: (R, capacity) int32."""
    slots = slots or max(map(len, contexts))
    capacity = capacity or slots
    rows = [[-1] * (slots - len(row)) + list(row) + [-1] * (capacity - slots) for row in contexts]
    return np.array(rows, "int32").reshape(len(contexts), capacity)


def constrained(logits, contexts=None, num_new=0, end_ids=(-1,), slots=None, capacity=None, **options):
    """`constrain` on rows whose contexts end in the slot before `slots`; the last `num_new` are the completion."""
    logits = np.asarray(logits, "float32")
    history = in_slots(contexts or [[0]] * len(logits), slots, capacity)
    slots = slots or history.shape[1]
    values = processors.constraint_tensors(GenerationConfig(**options))
    where = (np.int32(slots - 1), np.int32(slots - num_new), np.array(end_ids, "int32"))
    return constrain(logits, history, *where, values)


def allowed(logits, **arguments):
    """The sets of tokens that may be chosen, row by row."""
    return [np.flatnonzero(row > LOW).tolist() for row in constrained(logits, **arguments)]


def fixture_contexts():
    return [row[row >= 0].tolist() for row in FIXTURE["contexts"]]


def fixture_options(case):
    options = dict(CASES[case])
    if "logit_bias" in options:
        options["logit_bias"] = {int(i): bias for i, bias in options["logit_bias"].items()}
    return options


def kept(logits, **options):
    """The sets of tokens that are left, row by row."""
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in processed(np.array(logits, "float32"), **options)]


LOGITS = (3 * np.random.default_rng(0).normal(size=(6, 300))).astype("float32")
ROWS = np.random.default_rng(1).normal(size=(4, V)).astype("float32")


@pytest.mark.in_turn
@pytest.mark.parametrize("slots, capacity", [(14, 14), (16, 64)])
@pytest.mark.parametrize("case", CASES)
def test_each_processor_and_their_chain_equal_transformers(case, slots, capacity):
    options = fixture_options(case)
    filters = {name: options.pop(name) for name in SAMPLING if name in options}
    where = dict(num_new=int(FIXTURE["num_new"]), end_ids=FIXTURE["end_ids"], slots=slots, capacity=capacity)
    logits = constrained(FIXTURE["logits"], fixture_contexts(), **where, **options)
    np.testing.assert_allclose(processed(logits, **filters), FIXTURE[case], rtol=1e-5)


def test_the_fixture_bans_in_rows_of_different_lengths():
    assert sorted(set(map(len, fixture_contexts()))) == [4, 9, 10, 14]
    for case, rows in [("no_repeat_2_gram", 3), ("no_repeat_5_gram", 3), ("bad_words", 4), ("min_new_tokens", 4)]:
        assert np.isinf(FIXTURE[case]).any(axis=-1).sum() == rows
    assert (np.isfinite(FIXTURE["chain"]).sum(axis=-1) > 1).all()


def penalised(logits, completions, presence, frequency):
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, as OpenAI's API reference has it."""
    counts = np.stack([np.bincount(row, minlength=V) for row in completions])
    return logits - counts * frequency - (counts > 0) * presence


@pytest.mark.parametrize("presence, frequency", [(0.5, None), (None, 0.75), (1.5, 0.25), (-1.0, -0.5)])
def test_presence_and_frequency_are_counted_over_the_completion_alone(presence, frequency):
    prompts = [[3, 3, 3], [7], [1, 2, 3, 4, 5], [0, 0]]
    completions = [[3, 3, 3, 8], [0, 1, 2, 3], [0, 0, 0, 0], [39, 0, 39, 6]]
    contexts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    options = {"presence_penalty": presence, "frequency_penalty": frequency}
    result = constrained(ROWS, contexts, num_new=4, slots=12, capacity=20, **options)
    expected = penalised(ROWS, completions, presence or 0, frequency or 0)
    assert not np.allclose(result, ROWS)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_presence_and_frequency_change_nothing_before_the_first_token():
    contexts = [[3, 3], [7], [1, 2], [0]]
    options = {"presence_penalty": 1.5, "frequency_penalty": 0.5}
    np.testing.assert_array_equal(constrained(ROWS, contexts, capacity=8, **options), ROWS)


def test_all_penalties_together_keep_their_order():
    # (1 + 2) / 2 - 2 * 0.25 - 0.5 where the token stands twice; -1 * 2 - 0.25 - 0.5 where it stands once.
    options = {"repetition_penalty": 2.0, "presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": {1: 2}}
    result = constrained([[5.0, 1.0, -1.0, 4.0]], [[0, 1, 1, 2]], num_new=3, **options)
    np.testing.assert_allclose(result, [[2.5, 0.5, -2.75, 4.0]])


def test_each_row_is_constrained_on_its_own():
    options = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words": [[4, 11], [2, 1, 13], [20]]}
    contexts = fixture_contexts()
    together = constrained(ROWS, contexts, slots=16, capacity=32, **options)
    for row, context, expected in zip(ROWS, contexts, together, strict=True):
        alone = constrained(row[None], [context], slots=16, capacity=32, **options)
        np.testing.assert_array_equal(alone[0], expected)


def test_padding_is_no_token():
    # A context of one token has no 2-gram, and the padding before it is not the last token of the vocabulary.
    assert allowed(np.zeros((1, 4)), contexts=[[2]], slots=8, capacity=16, no_repeat_ngram_size=2) == [[0, 1, 2, 3]]
    result = constrained(np.ones((1, 4)), [[2]], slots=8, capacity=16, repetition_penalty=2.0)
    np.testing.assert_array_equal(result, [[1, 1, 0.5, 1]])
    assert allowed(np.zeros((1, 4)), contexts=[[2]], slots=8, bad_words=[[3, 2, 0], [2, 1]]) == [[0, 2, 3]]


def test_nothing_stands_before_the_first_slot():
    assert allowed(np.zeros((1, 4)), contexts=[[3]], bad_words=[[3, 3, 1], [3, 2]]) == [[0, 1, 3]]
    assert allowed(np.zeros((1, 4)), contexts=[[3]], no_repeat_ngram_size=3) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("size", [15, 16, 17, 40])
def test_an_n_gram_as_long_as_the_slots_or_longer_bans_nothing(size):
    row = [1, 2] * 8
    assert allowed(np.zeros((1, 4)), contexts=[row], no_repeat_ngram_size=size) == (
        [[0, 2, 3]] if size == 15 else [[0, 1, 2, 3]]
    )


@pytest.mark.parametrize(
    "options",
    [
        {"bad_words": [[i] for i in range(V)]},
        {"bad_words": [[0, i] for i in range(V)]},
        {"min_new_tokens": 9, "end_ids": range(V)},
        {"no_repeat_ngram_size": 1, "contexts": [list(range(V))] * 4},
        {"no_repeat_ngram_size": 2, "contexts": [[j for i in range(V) for j in (0, i)] + [0]] * 4},
    ],
)
def test_a_ban_of_all_tokens_bans_none(options):
    np.testing.assert_array_equal(constrained(ROWS, **options), ROWS)


@pytest.mark.parametrize(
    "options",
    [
        {"bad_words": [[i] for i in range(V) if i != 13]},
        {"min_new_tokens": 9, "end_ids": [i for i in range(V) if i != 13]},
        {"logit_bias": {i: LOW for i in range(V) if i != 13}, "bad_words": [[13]], "min_new_tokens": 1},
        {"bad_words": [[i] for i in range(V) if i != 13], "min_new_tokens": 9, "end_ids": [13]},
        {"no_repeat_ngram_size": 1, "contexts": [[i for i in range(V) if i != 13]] * 4, "bad_words": [[13]]},
    ],
)
def test_the_last_token_that_may_be_chosen_stays(options):
    result = constrained(ROWS, **options)
    assert [np.flatnonzero(row > LOW).tolist() for row in result] == [[13]] * 4
    np.testing.assert_array_equal(result[:, 13], ROWS[:, 13])


def test_a_logit_bias_of_minus_infinity_rules_a_token_out():
    assert allowed(np.zeros((1, 4)), logit_bias={2: LOW, 0: -1}) == [[0, 1, 3]]


def test_no_end_token_is_no_token():
    assert allowed(np.zeros((1, 4)), min_new_tokens=9, end_ids=[-1]) == [[0, 1, 2, 3]]


def test_end_tokens_are_banned_until_the_least_length_is_reached():
    banned = [
        allowed(np.zeros((1, 4)), contexts=[[1] * 8], num_new=n, end_ids=[2, 0], min_new_tokens=2) for n in range(4)
    ]
    assert banned == [[[1, 3]], [[1, 3]], [[0, 1, 2, 3]], [[0, 1, 2, 3]]]


def test_end_tokens_are_banned_until_prompt_and_completion_have_the_least_length():
    assert allowed(np.zeros((2, 4)), contexts=[[1] * 3, [1] * 4], num_new=1, end_ids=[2, 0], min_length=4) == [
        [1, 3],
        [0, 1, 2, 3],
    ]


def test_the_first_token_after_a_start_token_is_forced():
    assert allowed(np.zeros((2, 4)), contexts=[[1], [1, 1]], num_new=0, forced_bos_token_id=2) == [[2], [0, 1, 2, 3]]


def test_a_completion_does_not_begin_with_what_is_suppressed_there():
    options = {"contexts": [[1, 2, 3], [4]], "begin_suppress_tokens": [7, 8]}
    rest = [i for i in range(V) if i not in (7, 8)]
    assert allowed(ROWS[:2], **options) == [rest, rest]
    assert allowed(ROWS[:2], num_new=1, **options) == [list(range(V))] * 2
    # After a start token alone the forced one comes first, as in transformers.
    assert allowed(ROWS[:2], forced_bos_token_id=9, **options) == [rest, [9]]
    options["contexts"] = [[1, 2, 9], [4, 9]]
    assert allowed(ROWS[:2], num_new=1, forced_bos_token_id=9, **options) == [list(range(V)), rest]


@pytest.mark.parametrize("limit", [{"max_length": 3}, {"max_new_tokens": 2}])
def test_the_last_token_is_forced(limit):
    found = allowed(np.zeros((2, 4)), contexts=[[1, 1], [1]], num_new=1, forced_eos_token_id=2, **limit)
    assert found == [[2], [2] if "max_new_tokens" in limit else [0, 1, 2, 3]]


def test_each_option_that_changes_logits_is_done():
    # What says how long, how many, where to stop and what to search for is the loops'.
    loops = {"max_length", "max_new_tokens", "num_return_sequences", "stop", "num_beams", "length_penalty"}
    loops |= {"early_stopping", "renormalize_logits", "seed", "strip_prompt", "unsupported"}
    assert set(processors.FILTERS) == set(SAMPLING)
    assert set(processors.CONSTRAINTS) == set(OPTIONS) - set(SAMPLING) - loops


def test_a_plain_config_constrains_nothing():
    assert processors.constraint_tensors(GenerationConfig(temperature=0.5, top_k=3, seed=1)) == {}
    result = constrained(ROWS.astype("float16"))
    np.testing.assert_array_equal(result, ROWS.astype("float16").astype("float32"))
    assert result.dtype == "float32"


def test_each_constraint_is_known_by_its_name():
    config = GenerationConfig(
        logit_bias={1: 2.0},
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        no_repeat_ngram_size=2,
        bad_words=[[1]],
        min_length=2,
        forced_bos_token_id=0,
        forced_eos_token_id=0,
        exponential_decay_length_penalty=(1, 1.5),
        suppress_tokens=[1],
        begin_suppress_tokens=[2],
    )
    later = processors.constraint_tensors(GenerationConfig(min_new_tokens=1))
    assert set(later | processors.constraint_tensors(config)) == set(processors.CONSTRAINTS)


@pytest.mark.parametrize("name", processors.CONSTRAINTS)
def test_what_counts_tokens_only_needs_no_history(name):
    blind = ("logit_bias", "min_new_tokens", "suppress_tokens", "begin_suppress_tokens")
    assert processors.needs_history({name: 0}) is (name not in (*blind, "exponential_decay_length_penalty"))
    assert not processors.needs_history({})


def test_changed_values_are_not_compiled_again():
    if keras.backend.backend() == "torch":
        pytest.skip("torch compiles nothing")
    counting = Compiled(lambda *arguments: processors.warp(processors.constrain(*arguments[:-1]), **arguments[-1]))

    def run(slots, num_new, end_ids, filters, **options):
        values = processors.constraint_tensors(GenerationConfig(**options))
        filters = {name: np.float32(value) for name, value in zip(SAMPLING, filters, strict=False)}
        where = (np.int32(slots - 1), np.int32(slots - num_new), np.array(end_ids, "int32"))
        return counting(ROWS, in_slots(fixture_contexts(), slots, 32), *where, values, filters)

    first = run(
        16,
        3,
        [5, 6],
        (0.7, 5, 0.9, 0.1),
        logit_bias={1: 2.0},
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        no_repeat_ngram_size=3,
        bad_words=[[1, 2, 3], [4]],
        min_length=4,
        max_length=20,
        forced_bos_token_id=3,
        forced_eos_token_id=4,
    )
    second = run(
        20,
        2,
        [1, 2],
        (1.3, 50, 0.5, 0.01),
        logit_bias={7: -1.0},
        repetition_penalty=0.9,
        presence_penalty=0.7,
        frequency_penalty=-0.1,
        no_repeat_ngram_size=4,
        bad_words=[[1, 2], [9, 4, 5]],
        min_length=7,
        max_length=30,
        forced_bos_token_id=1,
        forced_eos_token_id=2,
    )
    assert counting.traces == 1
    assert not np.array_equal(first, second)


TOKENS = [np.array([1, 2]), np.array([3])]


def test_processors_of_the_caller_run_one_after_the_other():
    seen = []

    def first(token_ids, logits):
        seen.append([row.tolist() for row in token_ids])
        return logits + 1

    def second(token_ids, logits):
        return (logits * 2).astype("float64").tolist()

    result = processors.run_processors([first, second], TOKENS, np.ones((2, 3), "float32"))
    np.testing.assert_array_equal(result, np.full((2, 3), 4, "float32"))
    assert result.dtype == "float32" and seen == [[[1, 2], [3]]]
    np.testing.assert_array_equal(processors.run_processors([], TOKENS, ROWS), ROWS)


@pytest.mark.parametrize(
    "answer, shape",
    [
        (np.zeros((2, 4)), r"\(2, 4\)"),
        (np.zeros((1, 3)), r"\(1, 3\)"),
        (np.zeros(3), r"\(3,\)"),
        (None, r"\(\)"),
        ([[0, 0, 0], [LOW, LOW, LOW]], r"\(2, 3\)"),
        ([[0, 0, 0], [0, 0, np.nan]], r"\(2, 3\)"),
    ],
)
def test_what_a_processor_of_the_caller_must_return_is_said(answer, shape):
    def mine(token_ids, logits):
        return answer

    with pytest.raises(ValueError, match=rf"processors: .*mine.* shape {shape}; they must be of shape \(2, 3\)"):
        processors.run_processors([mine], TOKENS, np.ones((2, 3), "float32"))


def test_a_processor_of_the_caller_may_leave_one_token():
    result = processors.run_processors([lambda _, logits: [[LOW, 0], [1, LOW]]], TOKENS, np.ones((2, 2), "float32"))
    np.testing.assert_array_equal(result, [[LOW, 0], [1, LOW]])


@pytest.mark.in_turn
@pytest.mark.parametrize("temperature", [0.1, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 300, 1000])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("min_p", [None, 0.05, 1.0])
def test_warping_equals_transformers(temperature, top_k, top_p, min_p):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    expected = torch.tensor(LOGITS)
    chain = [transformers.TemperatureLogitsWarper(temperature)]
    chain += [] if top_k is None else [transformers.TopKLogitsWarper(top_k)]
    chain += [] if top_p is None else [transformers.TopPLogitsWarper(top_p)]
    chain += [] if min_p is None else [transformers.MinPLogitsWarper(min_p)]
    for processor in chain:
        expected = processor(None, expected)
    result = processed(LOGITS, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    np.testing.assert_allclose(result, expected.numpy(), rtol=1e-6)


def test_warping_equals_the_stored_numbers():
    logits = np.array([[0.5, -1.0, 2.0, 1.9, -3.0, 0.0, 1.0, 2.5]], "float32")
    low = -np.inf
    expected = [[low, low, 4.0, 3.8, low, low, low, 5.0]]
    np.testing.assert_allclose(processed(logits, temperature=0.5, top_k=5, top_p=0.85), expected, rtol=1e-6)


def test_top_p_is_taken_of_what_top_k_leaves():
    logits = np.log([[0.4, 0.3, 0.2, 0.1]])
    assert kept(logits, top_p=0.69) == [[0, 1]]
    assert kept(logits, top_k=2, top_p=0.69) == [[0, 1]]
    assert kept(logits, top_k=2, top_p=0.55) == [[0]]


@pytest.mark.parametrize("k", [1, 2, 3, 299, 300, 301, 10**9])
def test_top_k_keeps_k_tokens(k):
    result = processed(LOGITS, top_k=k)
    assert (np.isfinite(result).sum(axis=-1) == min(k, 300)).all()
    largest = np.sort(LOGITS, axis=-1)[:, ::-1][:, : min(k, 300)]
    np.testing.assert_array_equal(np.sort(result, axis=-1)[:, ::-1][:, : min(k, 300)], largest)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.95])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    for row, left in zip(LOGITS.astype("float64"), kept(LOGITS, top_p=p), strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        assert probabilities[left].sum() >= p
        assert probabilities[left].sum() - probabilities[left].min() < p
        assert probabilities[left].min() > np.delete(probabilities, left).max()


@pytest.mark.parametrize("p", [1e-9, 0.01, 0.3, 1.0])
def test_min_p_keeps_what_is_p_times_as_probable_as_the_best(p):
    for row, left in zip(LOGITS.astype("float64"), kept(LOGITS, min_p=p), strict=True):
        assert left == np.flatnonzero(np.exp(row - row.max()) >= p).tolist()


def test_min_p_is_taken_after_temperature():
    logits = np.log([[0.5, 0.3, 0.2]])
    assert kept(logits, min_p=0.5) == [[0, 1]]
    assert kept(logits, min_p=0.5, temperature=0.5) == [[0]]
    assert kept(logits, min_p=0.5, temperature=2.0) == [[0, 1, 2]]


def test_tokens_equal_to_the_last_one_are_kept():
    assert kept([[2.0, 1.0, 3.0, 1.0, 0.0, 1.0]], top_k=3) == [[0, 1, 2, 3, 5]]
    assert kept([[0.0, 0.0, 0.0, 0.0]], top_k=1) == [[0, 1, 2, 3]]
    assert kept([[0.0, 0.0, 0.0, 0.0]], top_p=0.3) == [[0, 1, 2, 3]]
    assert kept([[0.0, -0.0, -1.0]], top_k=1) == [[0, 1]]


def test_neighbouring_floats_are_told_apart():
    for value in (1e-30, 1.0, -1.0, 1e30, -1e-30):
        pair = np.array([[value, np.nextafter(np.float32(value), np.float32(np.inf))]], "float32")
        assert kept(pair, top_k=1) == [[1]]


def test_every_filter_leaves_the_most_probable_token():
    spread = [[-1e30, -1e4, 1e4, 0.0], [0.0, 1e-8, 2e-8, 1e-7]]
    cold = {"top_k": 1, "top_p": 1e-7, "temperature": 1e-6}
    for options in (
        {"top_k": 1},
        {"top_p": 1e-7},
        {"min_p": 1.0},
        cold,
        {"epsilon_cutoff": 0.99},
        {"eta_cutoff": 0.99},
    ):
        for row, left in zip(spread, kept(spread, **options), strict=True):
            assert int(np.argmax(row)) in left


def test_rows_are_filtered_each_on_its_own():
    together = processed(LOGITS, top_k=20, top_p=0.8)
    for row, expected in zip(LOGITS, together, strict=True):
        np.testing.assert_array_equal(processed(row[None], top_k=20, top_p=0.8)[0], expected)


def test_half_precision_logits_become_float32():
    assert processed(ops.cast(LOGITS, "bfloat16"), top_p=0.5).dtype == "float32"


def test_without_filters_logits_stay_as_they_are():
    np.testing.assert_array_equal(processed(LOGITS), LOGITS)
