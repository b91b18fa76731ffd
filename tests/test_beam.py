"""Beam search against transformers, against plain Python, against exhaustive search."""

import functools
import itertools
import json
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.generation.config import GenerationConfig
from kerasllm.generation.generator import generate
from kerasllm.generation.task import Task

DATA = pathlib.Path(__file__).parent / "data"
V = 6


class SecondOrder(keras.Model):
    """The next token depends on the last two and the length: logits = (1 + slope length) table[last but one, last].

    0 stands before the first. Without the length, hypotheses that differ in the order of their tokens would tie.
    """

    def __init__(self, size=V, slope=0.05):
        super().__init__()
        self.slope = slope
        self.table = self.add_weight(shape=(size, size, size), name="table")

    def start_decoding(self, inputs, prompt, capacity):
        ids = prompt["token_ids"]
        before = ids[:, -2:-1] if ids.shape[1] > 1 else ops.zeros_like(ids)
        is_real = prompt["padding_mask"][:, -2:-1] if ids.shape[1] > 1 else ops.zeros_like(ids, dtype="bool")
        length = ops.sum(ops.cast(prompt["padding_mask"], "float32"), axis=-1, keepdims=True)
        return {"before": ops.where(is_real, before, 0), "length": length}

    def decode_step(self, token_ids, state, index):
        size = self.table.shape[0]
        rows = ops.reshape(ops.convert_to_tensor(self.table), (size * size, size))
        logits = ops.take(rows, state["before"] * size + token_ids, axis=0) * (
            1 + self.slope * state["length"][:, :, None]
        )
        return logits, {"before": token_ids, "length": state["length"] + 1}

    def grow(self, state, capacity):
        return state

    def log_probs(self, token_ids):
        before = token_ids[-2] if len(token_ids) > 1 else 0
        return log_softmax(ops.convert_to_numpy(self.table)[before, token_ids[-1]] * (1 + self.slope * len(token_ids)))


def log_softmax(logits):
    logits = logits.astype("float64")
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def reference(log_probs, prompt, limit, ends, num_beams, length_penalty=1.0, early_stopping=False):
    """The same search with lists: [(score, completion)], the best first."""
    running, finished = [(0.0, ())], []
    for length in range(1, limit + 1):
        candidates = [
            (total + log_prob, (*tokens, token))
            for total, tokens in running
            for token, log_prob in enumerate(log_probs([*prompt, *tokens]))
        ]
        candidates = sorted(candidates, reverse=True)[: (1 + max(len(ends), 1)) * num_beams]
        finishes = [tokens[-1] in ends or length == limit for _, tokens in candidates]
        if not (early_stopping is True and len(finished) == num_beams):
            best = zip(candidates[:num_beams], finishes, strict=False)
            finished += [(total / length**length_penalty, tokens) for (total, tokens), finish in best if finish]
            finished = sorted(finished, reverse=True)[:num_beams]
        running = [c for c, finish in zip(candidates, finishes, strict=True) if not finish][:num_beams]
        if not running:
            break
        hypothetical = limit if early_stopping == "never" and length_penalty > 0 else length
        can_improve = len(finished) < num_beams or running[0][0] / hypothetical**length_penalty > finished[-1][0]
        if not can_improve or (early_stopping is True and len(finished) == num_beams):
            break
    return finished


def search(model, prompts, end_ids=(), **options):
    config = GenerationConfig(**options)
    return generate(Task(model=model, inputs={}, prompts=prompts, config=config, end_ids=end_ids, scores=True))


def check_equal(found, expected):
    assert [tuple(g.completion.tolist()) for g in found] == [tokens for _, tokens in expected]
    np.testing.assert_allclose([g.score for g in found], [score for score, _ in expected], rtol=1e-4, atol=1e-5)


def test_hundreds_of_random_models_equal_plain_python():
    model, rng = SecondOrder(), np.random.default_rng(0)
    prompts = [[1], [2, 3], [4, 0, 5], [3, 3, 1, 2]]
    cases = itertools.product((False, True, "never"), (0.0, 0.7, 1.0, -0.5))
    for early_stopping, length_penalty in cases:
        for _ in range(9):
            model.table.assign(2 * rng.normal(size=(V, V, V)))
            options = {"num_beams": 3, "length_penalty": length_penalty, "early_stopping": early_stopping}
            found = search(model, prompts, (5, 0), max_new_tokens=7, num_return_sequences=3, **options)
            for prompt, row in zip(prompts, found, strict=True):
                check_equal(row, reference(model.log_probs, prompt, 7, (5, 0), **options))


@pytest.mark.parametrize("ends", [(), (2,)])
def test_a_beam_as_wide_as_the_tree_equals_exhaustive_search(ends):
    model = SecondOrder(size=3)
    model.table.assign(np.random.default_rng(1).normal(size=(3, 3, 3)))
    options = {"num_beams": 27, "length_penalty": 1.0, "early_stopping": "never"}
    best = search(model, [[1]], ends, max_new_tokens=3, **options)[0][0]

    def hypotheses(tokens=()):
        if len(tokens) == 3 or (tokens and tokens[-1] in ends):
            yield tokens
        else:
            yield from itertools.chain(*(hypotheses((*tokens, token)) for token in range(3)))

    def score(tokens):
        rows = [model.log_probs([1, *tokens[:i]])[token] for i, token in enumerate(tokens)]
        return sum(rows) / len(tokens)

    expected = max(hypotheses(), key=score)
    assert tuple(best.completion.tolist()) == expected
    assert best.score == pytest.approx(score(expected), rel=1e-5)


def test_a_finished_hypothesis_is_not_extended():
    """KerasHub 0.32 follows the endless beam at -1.76, though ending at once has a log-probability of -0.51."""
    end, a = 0, 1
    model = SecondOrder(size=3, slope=0.0)
    table = np.full((3, 3, 3), 1e-9)
    table[:, 2] = [0.6, 0.39, 0.01]  # after the prompt
    table[:, a] = [0.3, 0.65, 0.05]
    table[:, end] = [0.01, 0.98, 0.01]  # what a search that goes on after the end would follow
    model.table.assign(np.log(table))
    found = search(model, [[2]], (end,), max_new_tokens=6, num_beams=2, num_return_sequences=2, length_penalty=0.0)[0]
    assert [g.completion.tolist() for g in found] == [[end], [a, end]]
    np.testing.assert_allclose([g.score for g in found], np.log([0.6, 0.39 * 0.3]), rtol=1e-5)
    assert [g.finish_reason for g in found] == ["stop", "stop"]


def test_a_row_is_as_alone_however_long_the_others_take():
    model = SecondOrder()
    model.table.assign(2 * np.random.default_rng(3).normal(size=(V, V, V)))
    prompts, options = (
        [[1], [2, 4], [3], [4, 4, 4, 1, 2]],
        {"max_new_tokens": 30, "num_beams": 4, "length_penalty": 0.0},
    )
    together = search(model, prompts, (5,), num_return_sequences=4, **options)
    assert len({len(row[0].completion) for row in together}) > 1
    for prompt, row in zip(prompts, together, strict=True):
        alone = search(model, [prompt], (5,), num_return_sequences=4, **options)[0]
        check_equal(row, [(g.score, tuple(g.completion.tolist())) for g in alone])


def test_limits_hold_for_each_row():
    model = SecondOrder()
    model.table.assign(np.random.default_rng(4).normal(size=(V, V, V)))
    prompts = [[1], [2, 3, 4], [1, 2, 3, 4, 5]]
    for prompt, row in zip(prompts, search(model, prompts, max_length=6, num_beams=2), strict=True):
        check_equal(row, reference(model.log_probs, prompt, 6 - len(prompt), (), 2)[:1])
        assert row[0].finish_reason == "length"


def test_token_log_probabilities_add_up_to_the_score():
    model = SecondOrder()
    model.table.assign(np.random.default_rng(5).normal(size=(V, V, V)))
    for g in search(model, [[1, 2]], (3,), max_new_tokens=8, num_beams=3, num_return_sequences=3, length_penalty=0.5)[
        0
    ]:
        assert g.log_probs.sum() / len(g.completion) ** 0.5 == pytest.approx(g.score, rel=1e-5)


def test_fewer_sequences_than_beams_come_back_where_there_are_no_more():
    model = SecondOrder(size=2)
    found = search(model, [[1]], max_new_tokens=1, num_beams=4, num_return_sequences=4)[0]
    assert sorted(g.completion.tolist() for g in found) == [[0], [1]]


def test_logits_that_are_no_numbers_are_reported():
    model = SecondOrder()
    model.table.assign(np.full((V, V, V), np.nan))
    with pytest.raises(FloatingPointError, match=r"NaN after prompts\[0\]"):
        search(model, [[1]], max_new_tokens=3, num_beams=2)


def test_gpt2_finds_what_transformers_finds():
    answers = np.load(DATA / "beams.npz")
    prompts, cases = json.loads(str(answers["prompts"])), json.loads(str(answers["cases"]))
    model = kerasllm.GPT.from_preset(DATA / "gpt2")
    for number, case in enumerate(cases):
        # Each way to stop early is compiled anew: with one set of ends it proves as much as with both.
        if (case["early_stopping"] == "never") == (case["end"] == [0]):
            continue
        options = {name: value for name, value in case.items() if name != "end"}
        model.end_token_ids = case["end"]
        found = model.generate(
            prompts, max_new_tokens=12, num_return_sequences=case["num_beams"], return_scores=True, **options
        )
        for row, sequences, scores in zip(
            found, answers[f"sequences_{number}"], answers[f"scores_{number}"], strict=True
        ):
            check_equal(row, [(s, tuple(ids[ids >= 0].tolist())) for s, ids in zip(scores, sequences, strict=True)])


def tiny_translator(name):
    keras.utils.set_random_seed(3)
    if name == "transformer":
        model = kerasllm.TransformerTranslator(
            11, 9, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=32, tie_embeddings=False
        )
    else:
        model = kerasllm.LSTMTranslator(11, 9, hidden_dim=8)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.7 * keras.random.normal(variable.shape))
    return model


@pytest.mark.in_turn
@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_translators_equal_plain_python_over_the_full_pass(name):
    model = tiny_translator(name)
    sources, options = [[4, 5, 6], [7, 1, 2, 3, 9]], {"num_beams": 3, "length_penalty": 0.8}
    model.end_token_ids = (2,)
    found = model.generate(sources, [[1], [1]], max_new_tokens=5, num_return_sequences=3, return_scores=True, **options)
    for source, row in zip(sources, found, strict=True):

        @functools.cache
        def log_probs(tokens, source=source):
            target = [*tokens, *[0] * (6 - len(tokens))]  # one shape; what follows changes nothing
            inputs = {"source_token_ids": [source], "target_token_ids": [target]}
            inputs = {k: np.array(v, "int32") for k, v in inputs.items()}
            inputs |= {k.replace("token_ids", "padding_mask"): np.ones_like(v, "bool") for k, v in inputs.items()}
            return log_softmax(model.predict_on_batch(inputs)[0, len(tokens) - 1])

        check_equal(row, reference(lambda t, f=log_probs: f(tuple(t)), [1], 5, (2,), **options))
