import dataclasses
import math

import numpy as np
import pytest

from kerasllm.generation.config import GenerationConfig


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 0},
        {"max_length": -1},
        {"max_length": 2.0},
        {"max_length": "9"},
        {"max_length": True},
        {"max_new_tokens": 0},
        {"max_new_tokens": -3},
        {"num_return_sequences": 0},
        {"num_return_sequences": None},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "hot"},
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": -0.5},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": 0.5},
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(options):
    [(name, value)] = options.items()
    with pytest.raises(ValueError) as error:
        GenerationConfig(**options)
    assert f"{name} ({value!r}) must be " in str(error.value)


def test_both_lengths_exclude_each_other():
    with pytest.raises(ValueError, match=r"max_length \(5\) and max_new_tokens \(6\)"):
        GenerationConfig(max_length=5, max_new_tokens=6)


def test_several_sequences_of_a_greedy_choice_are_refused():
    with pytest.raises(ValueError, match=r"num_return_sequences \(2\).*temperature=0"):
        GenerationConfig(num_return_sequences=2, temperature=0)


@pytest.mark.parametrize(
    "options, sampling",
    [
        ({}, False),
        ({"seed": 1}, False),
        ({"temperature": 0}, False),
        ({"temperature": 0.0, "top_k": 5, "top_p": 0.5}, False),
        ({"temperature": 1.0}, True),
        ({"top_k": 5}, True),
        ({"top_p": 1.0}, True),
        ({"num_return_sequences": 2}, True),
    ],
)
def test_filters_and_several_sequences_mean_sampling(options, sampling):
    assert GenerationConfig(**options).sampling is sampling


def test_numpy_numbers_are_accepted():
    config = GenerationConfig(max_length=np.int64(5), temperature=np.float32(0.5), seed=np.uint32(2**32 - 1))
    assert config.max_length == 5


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationConfig().seed = 1


def test_merged_replaces_what_is_given_and_keeps_the_rest():
    config = GenerationConfig(max_length=5, temperature=0.5)
    assert GenerationConfig.merged(config, temperature=None, seed=3) == GenerationConfig(max_length=5, seed=3)
    assert GenerationConfig.merged(config) == config
    assert GenerationConfig.merged(None, top_k=3) == GenerationConfig(top_k=3)


def test_merged_replaces_one_length_by_the_other():
    config = GenerationConfig(max_length=5)
    assert GenerationConfig.merged(config, max_new_tokens=3) == GenerationConfig(max_new_tokens=3)
    assert GenerationConfig.merged(GenerationConfig(max_new_tokens=3), max_length=5) == config
    assert GenerationConfig.merged(config, max_new_tokens=None) == config
    with pytest.raises(ValueError, match="exclude each other"):
        GenerationConfig.merged(config, max_length=5, max_new_tokens=3)


def test_merged_names_unknown_and_accepted_arguments():
    with pytest.raises(ValueError, match=r"temprature, topk\. Accepted: max_length, .*seed"):
        GenerationConfig.merged(None, topk=3, temprature=1.0, seed=1)


def test_merged_refuses_what_is_no_config():
    with pytest.raises(ValueError, match=r"config \({'top_k': 3}\) must be a GenerationConfig"):
        GenerationConfig.merged({"top_k": 3})
