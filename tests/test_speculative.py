"""Speculative decoding: the text of greedy decoding, in fewer steps."""

import functools

import keras
import numpy as np
import pytest

from kerasllm import GPT, TransformerTranslator
from kerasllm.generation.speculative import _lookup

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NEW = 80  # the cache grows


@functools.cache
def gpt(seed=0, **options):
    keras.utils.set_random_seed(seed)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 128, "initializer_range": 0.4}
    return GPT(30, **sizes, **options)


@pytest.mark.parametrize("options", [{}, {"positions": "rotary", "num_key_value_heads": 1}])
def test_copying_from_the_prompt_gives_the_greedy_text_in_fewer_steps(options):
    model = gpt(**options)
    plain = model.generate([PROMPT], max_new_tokens=NEW)
    [found] = model.generate([PROMPT], max_new_tokens=NEW, draft="prompt", return_scores=True)
    assert [found.token_ids.tolist()] == plain
    assert found.num_steps < NEW  # a greedy text of a small model repeats itself
    [expected] = model.generate([PROMPT], max_new_tokens=NEW, return_scores=True)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)


def test_a_draft_that_agrees_saves_most_steps_and_one_that_does_not_changes_nothing():
    model = gpt()
    plain = model.generate([PROMPT], max_new_tokens=NEW)
    itself = model.generate([PROMPT], max_new_tokens=NEW, draft=model, num_draft_tokens=7, return_scores=True)[0]
    other = model.generate([PROMPT], max_new_tokens=NEW, draft=gpt(seed=5), return_scores=True)[0]
    assert itself.token_ids.tolist() == other.token_ids.tolist() == plain[0]
    assert itself.num_steps == NEW / 8  # seven guesses and the token after them
    assert itself.num_steps < other.num_steps <= NEW


def test_a_quantised_model_takes_guesses_wherever_they_stand():
    model = gpt.__wrapped__()
    model.quantize("int8")
    plain = model.generate([PROMPT], max_new_tokens=20)
    assert model.generate([PROMPT], max_new_tokens=20, draft="prompt", num_draft_tokens=3) == plain


def test_end_tokens_and_limits_hold():
    model = gpt()
    [ids] = model.generate([PROMPT], max_new_tokens=NEW)
    end = ids[len(PROMPT) + 20]
    expected = model.generate([PROMPT], max_new_tokens=NEW, stop=end)
    assert model.generate([PROMPT], max_new_tokens=NEW, stop=end, draft="prompt") == expected
    for n in (1, 2, 7):
        assert model.generate([PROMPT], max_new_tokens=n, draft=model) == [ids[: len(PROMPT) + n]]


def test_a_translator_takes_guesses_too():
    keras.utils.set_random_seed(1)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 64}
    model = TransformerTranslator(20, 20, **sizes)
    plain = model.generate([[5, 6, 7]], prompts=[[1]], max_new_tokens=40)
    for draft in ("prompt", model):
        assert model.generate([[5, 6, 7]], prompts=[[1]], max_new_tokens=40, draft=draft) == plain


def test_the_guess_is_what_followed_the_longest_match_last():
    assert _lookup([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3], 2) == [8, 1]
    assert _lookup([7, 3, 5, 2, 3, 6, 1, 7, 3], 2) == [5, 2]
    assert _lookup([1, 2, 3], 4) == []
    assert _lookup([4, 4], 3) == [4]
