"""The generation loop on small models whose every number numpy can recompute."""

import collections
import functools
import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm.generation import samplers
from kerasllm.generation.config import GenerationConfig
from kerasllm.generation.generator import generate, stream
from kerasllm.generation.programs import Programs
from kerasllm.generation.task import Task

COMPILES = keras.backend.backend() != "torch"
V, D = 13, 8
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 1, 0, 2]]
SOURCES = np.random.default_rng(4).normal(size=(len(PROMPTS), D)).astype("float32")
TABLE = 2 * np.sin(np.arange(V * V) ** 2).reshape(V, V)
# Of PROMPTS[:2] by the table, two sequences each, temperature 0.8, seed 2024.
GOLDEN = [
    [[1, 2, 3, 6, 8, 2, 10, 12, 0, 1, 8, 2, 7], [1, 2, 3, 5, 6, 3, 5, 11, 2, 10, 11, 9, 4]],
    [[4, 9, 4, 0, 11, 9, 7, 4, 1, 0, 1], [4, 6, 5, 8, 2, 10, 3, 10, 3, 6, 1]],
]


class Fake(keras.Model):
    """Counts how often its methods are traced (torch: run)."""

    def __init__(self, **weights):
        super().__init__()
        self.prefills = self.steps = 0
        for name, value in weights.items():
            setattr(self, name, self.add_weight(shape=value.shape, name=name))
            getattr(self, name).assign(value)

    def numpy(self, name):
        return ops.convert_to_numpy(getattr(self, name))


class Markov(Fake):
    """The next token depends on the last alone: logits = table[token]."""

    def __init__(self, table):
        super().__init__(table=np.asarray(table, "float32"))

    def start_decoding(self, inputs, prompt, capacity):
        self.prefills += 1
        return {"read": ops.sum(ops.cast(prompt["padding_mask"], "int32"), axis=-1, keepdims=True) - 1}

    def decode_step(self, token_ids, state, index):
        self.steps += 1
        return ops.take(self.table, token_ids, axis=0), {"read": state["read"] + 1}

    def grow(self, state, capacity):
        return state

    def logits(self, token_ids):
        return self.numpy("table")[token_ids[-1]]


class Counting(Markov):
    """The next token is the number of steps taken."""

    def __init__(self):
        super().__init__(np.eye(V))

    def start_decoding(self, inputs, prompt, capacity):
        return {"steps": prompt["token_ids"][:, :1] * 0}

    def decode_step(self, token_ids, state, index):
        steps = state["steps"] + 1
        return ops.take(self.table, steps, axis=0), {"steps": steps}


class Recurrent(Fake):
    """h = tanh(embedding[token] + h @ recurrent), begun from an input; logits = h @ head."""

    def __init__(self):
        draw = np.random.default_rng(1).normal
        super().__init__(
            embedding=draw(size=(V, D)),
            recurrent=draw(size=(D, D)),
            head=draw(size=(D, V)),
            bias=draw(size=V),
        )

    def start_decoding(self, inputs, prompt, capacity):
        self.prefills += 1
        h = inputs["source"]
        for slot in range(prompt["token_ids"].shape[1] - 1):
            h = ops.where(prompt["padding_mask"][:, slot, None], self.cell(prompt["token_ids"][:, slot], h), h)
        return [h]

    def cell(self, token, h):
        return ops.tanh(ops.take(self.embedding, token, axis=0) + ops.matmul(h, self.recurrent))

    def decode_step(self, token_ids, state, index):
        self.steps += 1
        h = self.cell(token_ids[:, 0], state[0])
        return (ops.matmul(h, self.head) + self.bias)[:, None], [h]

    def grow(self, state, capacity):
        return state

    def logits(self, token_ids, source):
        h = source
        for token in token_ids:
            h = np.tanh(self.numpy("embedding")[token] + h @ self.numpy("recurrent"))
        return h @ self.numpy("head") + self.numpy("bias")


class Attention(Fake):
    """One causal attention over token and position embeddings, with a cache of keys and values."""

    NUM_POSITIONS = 100

    def __init__(self):
        draw = np.random.default_rng(2).normal
        super().__init__(
            token=draw(size=(V, D)),
            position=draw(size=(self.NUM_POSITIONS, D)),
            projection=draw(size=(D, 3 * D)) / 2,
            head=draw(size=(D, V)),
        )
        self.capacities = []

    def start_decoding(self, inputs, prompt, capacity):
        self.prefills += 1
        batch, length = prompt["token_ids"].shape
        padding = length - ops.sum(ops.cast(prompt["padding_mask"], "int32"), axis=-1, keepdims=True)
        state = {
            "keys": ops.zeros((batch, length, D)),
            "values": ops.zeros((batch, length, D)),
            "padding": padding,
        }
        if length > 1:
            _, state = self.walk(prompt["token_ids"][:, :-1], state, 0)
        return self.grow(state, capacity)

    def decode_step(self, token_ids, state, index):
        self.steps += 1
        self.capacities.append(state["keys"].shape[1])
        return self.walk(token_ids, state, index)

    def walk(self, token_ids, state, index):
        slots = index + ops.arange(token_ids.shape[1], dtype="int32")[None]  # (1, T)
        positions = ops.clip(slots - state["padding"], 0, self.NUM_POSITIONS - 1)
        x = ops.take(self.token, token_ids, axis=0) + ops.take(self.position, positions, axis=0)
        q, k, v = ops.split(ops.matmul(x, self.projection), 3, axis=-1)
        keys = ops.slice_update(state["keys"], (0, index, 0), k)
        values = ops.slice_update(state["values"], (0, index, 0), v)
        key_slots = ops.arange(keys.shape[1], dtype="int32")[None, None]  # (1, 1, S)
        may_look = ops.logical_and(key_slots <= slots[:, :, None], key_slots >= state["padding"][:, :, None])
        scores = ops.where(may_look, ops.matmul(q, ops.transpose(keys, (0, 2, 1))), -1e9)
        x = x + ops.matmul(ops.softmax(scores), values)
        return ops.matmul(x, self.head), {"keys": keys, "values": values, "padding": state["padding"]}

    def grow(self, state, capacity):
        def pad(x):
            return ops.pad(x, [[0, 0], [0, capacity - x.shape[1]], [0, 0]])

        return {"keys": pad(state["keys"]), "values": pad(state["values"]), "padding": state["padding"]}

    def logits(self, token_ids):
        x = self.numpy("token")[token_ids] + self.numpy("position")[: len(token_ids)]
        q, k, v = np.split(x @ self.numpy("projection"), 3, axis=-1)
        scores = np.exp(q[-1] @ k.T - (q[-1] @ k.T).max())
        return (x[-1] + scores / scores.sum() @ v) @ self.numpy("head")


# Shared by the tests that change nothing in them: what is compiled for one test serves the next.
attention_model = functools.cache(Attention)
recurrent_model = functools.cache(Recurrent)
markov = functools.cache(lambda: Markov(TABLE))
flat = functools.cache(lambda: Markov(np.zeros((V, V))))


def probabilities(logits):
    weights = np.exp(logits.astype("float64") - logits.max())
    return weights / weights.sum()


def reference(logits, prompt, num_tokens, choose=lambda logits, count: int(np.argmax(logits))):
    """The same in plain Python: one full pass over the tokens so far for each new one."""
    token_ids = list(prompt)
    for count in range(num_tokens):
        token_ids.append(choose(logits(token_ids), count))
    return token_ids


def drawn(seed, prompt_index=0, sequence_index=0, temperature=1.0):
    """The choice of a sampling reference, by inverting the cumulative distribution in float64."""

    def choose(logits, count):
        numbers = (np.int32(number) for number in (seed, prompt_index, sequence_index, count))
        uniform = samplers.uniform(*numbers, xp=np)
        return int(np.searchsorted(np.cumsum(probabilities(logits / temperature)), uniform))

    return choose


def ids(generations):
    return [[generation.token_ids.tolist() for generation in rows] for rows in generations]


def first_ids(generations):
    return [rows[0].token_ids.tolist() for rows in generations]


def task(
    model, prompts, inputs=None, end_ids=(), first_index=0, find_stop=None, scores=False, processors=(), **options
):
    return Task(
        model=model,
        inputs=inputs or {},
        prompts=prompts,
        config=GenerationConfig(**options),
        end_ids=end_ids,
        first_index=first_index,
        find_stop=find_stop,
        scores=scores,
        processors=processors,
    )


def run(*arguments, **options):
    return generate(task(*arguments, **options))


def test_greedy_equals_a_plain_python_loop():
    model = attention_model()
    assert first_ids(run(model, PROMPTS, max_new_tokens=20)) == [reference(model.logits, p, 20) for p in PROMPTS]


def test_greedy_with_inputs_and_a_recurrent_state_equals_a_plain_python_loop():
    model = recurrent_model()
    expected = [reference(lambda t, s=s: model.logits(t, s), p, 20) for p, s in zip(PROMPTS, SOURCES, strict=True)]
    assert first_ids(run(model, PROMPTS, {"source": SOURCES}, max_new_tokens=20)) == expected


def test_growing_past_several_capacities_equals_a_plain_python_loop():
    model = Attention()
    assert first_ids(run(model, PROMPTS[:1], max_new_tokens=90)) == [reference(model.logits, PROMPTS[0], 90)]
    assert set(model.capacities) == {64, 128}


def test_a_long_prompt_starts_with_a_capacity_that_holds_it():
    model = Attention()
    prompt = (np.arange(70) % V).tolist()
    assert first_ids(run(model, [prompt], max_new_tokens=25)) == [reference(model.logits, prompt, 25)]
    assert set(model.capacities) == {256}


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 5, "num_return_sequences": 2}])
def test_each_row_of_a_ragged_batch_is_as_alone(options):
    attention, recurrent = attention_model(), recurrent_model()
    batch = ids(run(attention, PROMPTS, max_new_tokens=12, **options))
    batch_of_inputs = ids(run(recurrent, PROMPTS, {"source": SOURCES}, max_new_tokens=12, **options))
    for i in (1, 2):
        alone = {"max_new_tokens": 12, "first_index": i, **options}
        assert ids(run(attention, PROMPTS[i : i + 1], **alone)) == [batch[i]]
        source = {"source": SOURCES[i : i + 1]}
        assert ids(run(recurrent, PROMPTS[i : i + 1], source, **alone)) == [batch_of_inputs[i]]


def test_a_ragged_batch_takes_as_many_steps_as_its_longest_completion():
    rows = run(Counting(), [[1] * 30, [2]], max_new_tokens=7)
    assert [row[0].completion.tolist() for row in rows] == [[1, 2, 3, 4, 5, 6, 7]] * 2


def test_sampling_equals_the_reference_and_the_stored_ids():
    options = {"temperature": 0.8, "num_return_sequences": 2, "seed": 2024}
    generations = ids(run(markov(), PROMPTS[:2], max_new_tokens=70, **options))
    for i, prompt in enumerate(PROMPTS[:2]):
        for j in range(2):
            assert generations[i][j] == reference(markov().logits, prompt, 70, drawn(2024, i, j, 0.8))
            assert generations[i][j][: len(prompt) + 10] == GOLDEN[i][j]


@pytest.mark.once("torch")
def test_sampled_frequencies_match_the_probabilities():
    model = markov()
    rows = run(model, [[3]], max_new_tokens=1, num_return_sequences=100_000, seed=0)[0]
    counts = np.bincount([row.completion[0] for row in rows], minlength=V)
    expected = 100_000 * probabilities(TABLE[3])
    # The 99.9 % quantile of chi-square with V - 1 = 12 degrees of freedom is 32.9.
    assert ((counts - expected) ** 2 / expected).sum() < 32.9


def test_sequences_of_one_prompt_differ_and_equal_prompts_draw_apart():
    rows = ids(run(flat(), [[1], [1]], max_new_tokens=12, num_return_sequences=3, seed=0))
    assert len({tuple(row) for prompt in rows for row in prompt}) == 6


def test_a_seed_repeats_and_without_one_numpys_global_state_decides():
    model = flat()

    def sampled(seed=None):
        return ids(run(model, [[1]], max_new_tokens=12, temperature=1.0, seed=seed))

    assert sampled(seed=4) == sampled(seed=4) != sampled(seed=5)
    assert sampled() != sampled()
    keras.utils.set_random_seed(7)
    first = sampled()
    keras.utils.set_random_seed(7)
    assert sampled() == first


def test_the_largest_seed_is_accepted():
    model = flat()
    assert ids(run(model, [[1]], max_new_tokens=3, temperature=1.0, seed=2**32 - 1))


def test_seed_alone_and_temperature_zero_are_greedy():
    model = markov()
    greedy = ids(run(model, PROMPTS, max_new_tokens=8))
    assert ids(run(model, PROMPTS, max_new_tokens=8, seed=1)) == greedy
    assert ids(run(model, PROMPTS, max_new_tokens=8, temperature=0, top_p=0.9)) == greedy
    assert ids(run(model, PROMPTS, max_new_tokens=8, temperature=1e-40)) == greedy
    assert ids(run(model, PROMPTS, max_new_tokens=8, top_k=1)) == greedy


def test_filters_are_applied():
    model = markov()
    probability = probabilities(TABLE[3])
    order = np.argsort(-probability)
    cumulative = np.cumsum(probability[order])
    for options, kept in [
        ({"top_k": 4}, 4),
        ({"top_p": 0.5}, (cumulative < 0.5).sum() + 1),
        ({"top_k": 5, "top_p": 1.0}, 5),
    ]:
        rows = run(model, [[3]], max_new_tokens=1, num_return_sequences=1000, seed=0, **options)[0]
        assert {int(row.completion[0]) for row in rows} == set(order[:kept].tolist())


def test_an_end_token_ends_a_row_and_stays_in_it():
    steps = np.full((V, V), -5.0)
    steps[np.arange(V), (np.arange(V) + 1) % V] = 5.0
    model = Markov(steps)
    rows = run(model, [[1], [6], [9, 9, 2]], end_ids=(5, 8), max_new_tokens=6)
    assert first_ids(rows) == [[1, 2, 3, 4, 5], [6, 7, 8], [9, 9, 2, 3, 4, 5]]
    assert [row[0].finish_reason for row in rows] == ["stop", "stop", "stop"]
    assert rows[2][0].completion.tolist() == [3, 4, 5]
    assert rows[2][0].prompt_length == 3
    cut = run(model, [[1]], end_ids=(5,), max_new_tokens=3)[0][0]
    assert (cut.token_ids.tolist(), cut.finish_reason) == ([1, 2, 3, 4], "length")


def test_an_end_token_inside_the_prompt_does_not_end_a_row():
    rows = run(markov(), [[5, 5, 1]], end_ids=(5,), max_new_tokens=1)
    assert len(rows[0][0].completion) == 1


def test_no_step_is_taken_after_all_rows_have_ended_or_reached_their_limit(monkeypatch):
    """The number of steps is in the state of `Counting`, where each chunk leaves it."""
    states, run_program = [], Programs.run

    def spy(self, function, *arguments, **static):
        results = run_program(self, function, *arguments, **static)
        if function.__name__ == "advance":
            states.append(int(ops.max(results[2][0]["steps"])))
        return results

    monkeypatch.setattr(Programs, "run", spy)
    run(Counting(), [[4], [6] * 3], end_ids=(5,), max_length=100)
    assert states == [5]
    states.clear()
    run(Counting(), [[4], [6] * 3], max_length=11)
    assert states == [10]


def test_max_length_counts_the_prompt_of_each_row():
    rows = run(markov(), PROMPTS, max_length=9)
    assert [len(row[0].token_ids) for row in rows] == [9, 9, 9, 9]
    assert first_ids(rows)[2] == first_ids(run(markov(), PROMPTS, max_new_tokens=2))[2]


def test_changed_sampling_parameters_do_not_compile_again():
    if not COMPILES:
        pytest.skip("torch compiles nothing")
    model = Attention()
    first = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2}
    other = {"temperature": 1.3, "top_k": 11, "top_p": 0.2, "min_p": 0.3, "repetition_penalty": 0.9}
    run(model, PROMPTS, max_new_tokens=10, no_repeat_ngram_size=3, bad_words=[[1, 2]], seed=1, **first)
    traces = model.prefills, model.steps
    run(model, PROMPTS, max_new_tokens=12, no_repeat_ngram_size=4, bad_words=[[7, 3]], seed=2, **other)
    prompts = [[1, 2], [3, 4, 5, 6, 7, 8], [9], [10]]
    run(model, prompts, max_length=40, no_repeat_ngram_size=4, bad_words=[[7, 3]], **first)
    assert (model.prefills, model.steps) == traces


def test_one_prefill_is_compiled_for_a_prompt_bucket_and_one_decode_for_a_capacity():
    if not COMPILES:
        pytest.skip("torch compiles nothing")
    model = Attention()
    run(model, [[1, 2, 3]], max_new_tokens=3)
    once = model.steps
    run(model, [[1, 2, 3, 4]], max_new_tokens=30)
    assert (model.prefills, model.steps) == (1, once)
    run(model, [[1, 2, 3, 4, 5]], max_new_tokens=30)
    assert (model.prefills, model.steps) == (2, once)
    run(model, [[1, 2, 3, 4, 5]], max_new_tokens=80)
    assert (model.prefills, model.steps) == (2, 2 * once)


def programs(model):
    """How many programs a model has, by the names of their functions."""
    return collections.Counter(function.__name__ for function, *_ in Programs.of(model).functions)


def test_1_to_12_rows_are_5_programs_and_the_same_text():
    model, prompts = Markov(TABLE), [[i % V, 1, 2 + i % 3] for i in range(12)]
    options = {"max_new_tokens": 6, "temperature": 1.2, "seed": 3, "end_ids": [7]}
    together = first_ids(run(model, prompts, **options))
    assert len(set(map(tuple, together))) == 12
    for count in range(1, 12):
        assert first_ids(run(model, prompts[:count], **options)) == together[:count]
    assert programs(model) == {"prefill": 5, "advance": 5}
    assert not COMPILES or model.prefills == 5


def test_numbers_of_biases_words_and_stops_share_programs():
    model, plain = Markov(TABLE), reference(markov().logits, [4], 8)
    for count in range(1, 10):
        ids = [i for i in range(V) if i not in plain][:count]  # fewer than 9, so some come again
        words = [[i % V] * (1 + i % 3) + ids[:1] for i in range(count)]
        options = {
            "logit_bias": {V - 1 - i: 0.0 for i in range(count)},
            "bad_words": words,
            "end_ids": (ids * 9)[:count],
        }
        assert first_ids(run(model, [[4]], max_new_tokens=8, **options)) == [plain]
    assert programs(model) == {"prefill": 1, "advance": 3}  # of 4, 8 and 16 end ids


def test_numbers_of_sequences_and_of_prompts_in_a_beam_search_share_programs():
    model = Markov(TABLE)
    for option, names in (("num_return_sequences", {"advance"}), ("num_beams", {"advance", "first_beams"})):
        before, results = programs(model), []
        for size in (3, 4):
            rows, n = (PROMPTS[:1], size) if option == "num_return_sequences" else (PROMPTS[:1] * size, 2)
            rows = run(model, rows, max_new_tokens=5, seed=1, **{option: n})
            results.append([[g.token_ids.tolist() for g in row] for row in rows])
        assert programs(model) - before == dict.fromkeys({*names, "prefill", "copied"}, 1)
        fewer, more = results
        assert fewer == ([more[0][:3]] if option == "num_return_sequences" else more[:3])


def test_changed_weights_are_seen():
    model = Markov(TABLE)
    run(model, PROMPTS, max_new_tokens=8)
    model.table.assign(-TABLE)
    assert first_ids(run(model, PROMPTS, max_new_tokens=8)) == [reference(model.logits, p, 8) for p in PROMPTS]


def test_replaced_variables_are_seen():
    model = Markov(TABLE)
    run(model, PROMPTS, max_new_tokens=8)
    model.table = keras.Variable(-TABLE)
    assert first_ids(run(model, PROMPTS, max_new_tokens=8)) == [reference(model.logits, p, 8) for p in PROMPTS]


def test_generating_keeps_no_model_alive():
    model = weakref.ref(Markov(TABLE))
    run(model(), PROMPTS, max_new_tokens=2)
    gc.collect()
    assert model() is None


def test_log_probabilities_are_those_of_the_model_before_filters():
    model = attention_model()
    options = {"max_new_tokens": 70, "temperature": 0.7, "top_k": 5, "repetition_penalty": 1.2, "seed": 3}
    for row in run(model, PROMPTS, scores=True, **options):
        g = row[0]
        before = [g.token_ids[: g.prompt_length + i].tolist() for i in range(len(g.completion))]
        expected = [np.log(probabilities(model.logits(b))[t]) for b, t in zip(before, g.completion, strict=True)]
        np.testing.assert_allclose(g.log_probs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "top_p": 0.8, "seed": 6}])
def test_penalties_and_bans_equal_a_plain_python_loop(options):
    """Over 70 tokens, so that the history grows with the cache."""
    model = attention_model()
    found = run(
        model,
        PROMPTS,
        max_new_tokens=70,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.05,
        no_repeat_ngram_size=3,
        bad_words=[[5], [1, 2]],
        logit_bias={4: 0.5},
        min_new_tokens=68,
        end_ids=(0,),
        **options,
    )
    for i, prompt in enumerate(PROMPTS):

        def constrained(tokens, prompt=prompt):
            logits, completion = model.logits(tokens).astype("float64"), tokens[len(prompt) :]
            logits[4] += 0.5
            for token in set(tokens):
                logits[token] *= 1.1 if logits[token] < 0 else 1 / 1.1
            for token in set(completion):
                logits[token] -= 0.2 + 0.05 * completion.count(token)
            for ban in (ngram_ends(tokens, 3), bad_word_ends(tokens), [0] if len(completion) < 68 else []):
                allowed = logits.copy()
                allowed[ban] = -np.inf
                logits = allowed if np.isfinite(allowed).any() else logits
            return logits

        def choose(logits, count, i=i):
            if not options:
                return int(np.argmax(logits))
            logits = logits / 0.9
            order = np.argsort(-logits)
            kept = np.cumsum(probabilities(logits)[order]) - probabilities(logits)[order] < 0.8
            logits[order[~kept]] = -np.inf
            return drawn(6, i)(logits, count)

        expected = reference(constrained, prompt, 70, choose)
        ends = [place for place in range(len(prompt), len(expected)) if expected[place] == 0]
        assert found[i][0].token_ids.tolist() == expected[: ends[0] + 1 if ends else None]


def ngram_ends(tokens, size):
    tail = tokens[len(tokens) - size + 1 :]
    starts = range(len(tokens) - size + 1)
    return [tokens[i + size - 1] for i in starts if len(tokens) >= size and tokens[i : i + size - 1] == tail]


def bad_word_ends(tokens):
    return [5, 2] if tokens[-1] == 1 else [5]


def test_processors_change_the_logits_step_by_step():
    model, seen = attention_model(), []

    def rotate(token_ids, logits):
        seen.append([row.tolist() for row in token_ids])
        return np.roll(logits, 1, axis=-1)

    rows = first_ids(run(model, PROMPTS, processors=(rotate, rotate), max_new_tokens=5))
    expected = [reference(lambda t: np.roll(model.logits(t), 2), p, 5) for p in PROMPTS]
    assert rows == expected
    assert seen[0] == PROMPTS and seen[-1] == [row[:-1] for row in expected]


def test_a_processor_that_does_nothing_changes_nothing():
    model, options = attention_model(), {"temperature": 1.2, "top_k": 6, "seed": 8, "num_return_sequences": 2}
    plain = ids(run(model, PROMPTS, max_new_tokens=9, **options))
    assert ids(run(model, PROMPTS, processors=(lambda tokens, x: x,), max_new_tokens=9, **options)) == plain


@pytest.mark.parametrize("wrong", [np.zeros(3), np.full((4, V), -np.inf), np.full((4, V), np.nan)])
def test_a_wrong_processor_is_named(wrong):
    with pytest.raises(ValueError, match=r"processors: .*shape"):
        run(markov(), PROMPTS, processors=(lambda tokens, logits: wrong,), max_new_tokens=2)


def test_a_stop_found_by_the_host_ends_its_row_alone():
    model, calls = Counting(), []

    def find_stop(prompt, completion, num_checked):
        calls.append((prompt, len(completion), num_checked))
        return 3 if prompt == [2] and 3 in completion else None

    rows = run(model, [[1] * 30, [2]], find_stop=find_stop, max_new_tokens=12)
    assert [row[0].completion.tolist() for row in rows] == [list(range(1, 13)), [1, 2, 3]]
    assert [row[0].finish_reason for row in rows] == ["length", "stop"]


def test_logits_that_are_no_numbers_are_reported():
    table = TABLE.copy()
    table[int(np.argmax(TABLE[4]))] = np.nan
    for options in ({}, {"temperature": 1.0, "seed": 1, "top_k": 1}):
        with pytest.raises(FloatingPointError, match="NaN after 2 tokens"):
            run(Markov(table), [[4], [4]], max_new_tokens=5, **options)


def test_a_stream_grows_to_what_generate_returns():
    model = attention_model()
    options = {"max_new_tokens": 75, "temperature": 1.1, "seed": 2}
    lengths, last = [], None
    for row in stream(task(model, PROMPTS[:1], **options)):
        lengths.append(len(row.ids))
        last = list(row.ids)
    assert lengths[:4] == [1, 3, 7, 11] and lengths[-1] == 75
    assert last == run(model, PROMPTS[:1], **options)[0][0].completion.tolist()


def test_a_stream_compiles_nothing_beyond_what_generate_does():
    if not COMPILES:
        pytest.skip("torch compiles nothing")
    model = Attention()
    run(model, PROMPTS[:1], max_new_tokens=20)
    traces = model.prefills, model.steps
    list(stream(task(model, PROMPTS[:1], max_new_tokens=20)))
    assert (model.prefills, model.steps) == traces


@pytest.mark.parametrize(
    "prompts, options, message",
    [
        ([], {"max_new_tokens": 1}, r"prompts \(\[\]\)"),
        ([[1], []], {"max_new_tokens": 1}, r"prompts\[1\]"),
        ([[1]], {}, r"max_length \(None\) or max_new_tokens \(None\)"),
        ([[1], [1, 2, 3]], {"max_length": 3}, r"max_length \(3\).*prompts\[1\] has 3"),
    ],
)
def test_bad_input_is_named(prompts, options, message):
    with pytest.raises(ValueError, match=message):
        run(markov(), prompts, **options)


def test_inputs_of_another_batch_size_are_named():
    with pytest.raises(ValueError, match=r"inputs\['source'\] has 4 rows"):
        run(recurrent_model(), [[1]], {"source": SOURCES}, max_new_tokens=1)
