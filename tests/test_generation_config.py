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
        {"min_new_tokens": -1},
        {"min_new_tokens": 1.0},
        {"num_return_sequences": 0},
        {"num_return_sequences": None},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": 3.1e38},
        {"temperature": math.inf},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": -0.5},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"min_p": 0},
        {"min_p": 1.01},
        {"min_p": math.nan},
        {"min_p": "0.1"},
        {"repetition_penalty": 0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": math.inf},
        {"repetition_penalty": math.nan},
        {"presence_penalty": math.inf},
        {"presence_penalty": math.nan},
        {"presence_penalty": "1"},
        {"frequency_penalty": -math.inf},
        {"frequency_penalty": [1.0]},
        {"no_repeat_ngram_size": 0},
        {"min_length": -1},
        {"forced_bos_token_id": -1},
        {"forced_eos_token_id": [2]},
        {"renormalize_logits": 1},
        {"no_repeat_ngram_size": 2.0},
        {"logit_bias": [(1, 2.0)]},
        {"logit_bias": {"1": 2.0}},
        {"logit_bias": {-1: 2.0}},
        {"logit_bias": {True: 2.0}},
        {"logit_bias": {1: "2"}},
        {"logit_bias": {1: math.inf}},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {1: None}},
        {"bad_words": "word"},
        {"bad_words": [""]},
        {"bad_words": [[]]},
        {"bad_words": [5]},
        {"bad_words": [[1, -2]]},
        {"bad_words": [[1, "a"]]},
        {"bad_words": [[1, True]]},
        {"bad_words": {"word": 1}},
        {"stop": ""},
        {"stop": ["end", ""]},
        {"stop": -1},
        {"stop": [1, 2.5]},
        {"stop": [[1, 2]]},
        {"stop": True},
        {"stop": {1}},
        {"num_beams": 0},
        {"num_beams": None},
        {"num_beams": 2.0},
        {"length_penalty": math.inf},
        {"length_penalty": None},
        {"length_penalty": "long"},
        {"early_stopping": None},
        {"early_stopping": "always"},
        {"early_stopping": 0},
        {"early_stopping": 1},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": 0.5},
        {"strip_prompt": None},
        {"strip_prompt": 1},
        {"typical_p": 1.0},
        {"eta_cutoff": 0},
        {"suppress_tokens": [-1]},
        {"begin_suppress_tokens": 3},
        {"exponential_decay_length_penalty": (1, 0)},
        {"exponential_decay_length_penalty": [1.5, 2.0]},
        {"unsupported": ["top_h"]},
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(options):
    [(name, value)] = options.items()
    with pytest.raises(ValueError) as error:
        GenerationConfig(**options)
    assert f"{name} ({value!r}) must be " in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 0},
        {"temperature": 0},
        {"temperature": 3e38, "presence_penalty": -3e38},
        {"top_p": 1},
        {"min_p": 1},
        {"repetition_penalty": 0.5},
        {"presence_penalty": -2.0, "frequency_penalty": -2},
        {"logit_bias": {0: -math.inf, 7: 3}},
        {"logit_bias": {}},
        {"bad_words": []},
        {"bad_words": None, "stop": None},
        {"num_beams": 2, "length_penalty": -1.5, "early_stopping": "never"},
        {"num_beams": 3, "early_stopping": True, "num_return_sequences": 3},
        {"num_beams": 2, "stop": [5, 6], "bad_words": ["word"], "min_new_tokens": 3},
        {"num_beams": 2, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "logit_bias": {1: 1.0}},
        {"max_new_tokens": 5, "min_new_tokens": 5},
    ],
)
def test_values_at_the_edge_are_accepted(options):
    GenerationConfig(**options)


def test_both_lengths_exclude_each_other():
    with pytest.raises(ValueError, match=r"max_length \(5\) and max_new_tokens \(6\)"):
        GenerationConfig(max_length=5, max_new_tokens=6)


@pytest.mark.parametrize("name", ["max_length", "max_new_tokens"])
def test_the_least_length_is_not_above_the_greatest(name):
    with pytest.raises(ValueError, match=rf"min_new_tokens \(6\) must be at most {name} \(5\)"):
        GenerationConfig(min_new_tokens=6, **{name: 5})


def test_several_sequences_of_a_greedy_choice_are_refused():
    with pytest.raises(ValueError, match=r"num_return_sequences \(2\).*temperature=0"):
        GenerationConfig(num_return_sequences=2, temperature=0)


@pytest.mark.parametrize("name, value", [("temperature", 0), ("top_k", 5), ("typical_p", 0.5)])
def test_beams_exclude_each_filter_of_sampling(name, value):
    with pytest.raises(ValueError, match=rf"num_beams \(2\) excludes sampling: leave {name} \({value}\) out"):
        GenerationConfig(num_beams=2, **{name: value})


def test_all_filters_that_beams_exclude_are_named():
    with pytest.raises(ValueError, match=r"leave temperature \(1.0\), top_p \(0.5\) out"):
        GenerationConfig(num_beams=2, temperature=1.0, top_p=0.5)


def test_no_more_sequences_than_beams_are_returned():
    with pytest.raises(ValueError, match=r"num_return_sequences \(4\) must be at most num_beams \(3\)"):
        GenerationConfig(num_beams=3, num_return_sequences=4)


def test_beams_do_not_stop_at_strings():
    with pytest.raises(ValueError, match=r"stop \(\['end'\]\) must be token ids with num_beams \(2\)"):
        GenerationConfig(num_beams=2, stop=[3, "end"])


@pytest.mark.parametrize("options", [{"length_penalty": 2.0}, {"early_stopping": True}, {"early_stopping": "never"}])
def test_what_is_for_beams_needs_beams(options):
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=rf"{name} \({value!r}\).* need beams: num_beams \(1\)"):
        GenerationConfig(**options)


@pytest.mark.parametrize(
    "options, sampling",
    [
        ({}, False),
        ({"seed": 1}, False),
        ({"temperature": 0}, False),
        ({"temperature": 0.0, "top_k": 5, "top_p": 0.5}, False),
        ({"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "logit_bias": {1: 1.0}}, False),
        ({"num_beams": 3}, False),
        ({"num_beams": 3, "num_return_sequences": 2}, False),
        ({"temperature": 1.0}, True),
        ({"top_k": 5}, True),
        ({"top_p": 1.0}, True),
        ({"min_p": 0.1}, True),
        ({"num_return_sequences": 2}, True),
    ],
)
def test_filters_and_several_sequences_mean_sampling(options, sampling):
    assert GenerationConfig(**options).sampling is sampling


def test_numpy_numbers_are_accepted():
    config = GenerationConfig(
        max_length=np.int64(5),
        temperature=np.float32(0.5),
        seed=np.uint32(2**32 - 1),
        logit_bias={np.int64(3): np.float32(-1)},
        bad_words=[np.arange(2).tolist(), (np.int32(4),)],
        stop=np.int64(7),
    )
    assert config.max_length == 5
    assert config.logit_bias == {3: -1} and config.bad_words == ((0, 1), (4,)) and config.stop == (7,)


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationConfig().seed = 1


@pytest.mark.parametrize(
    "given, kept",
    [
        (None, ()),
        ([], ()),
        (5, (5,)),
        (0, (0,)),
        ("end", ("end",)),
        ([5, "end"], (5, "end")),
        (("end", 0), ("end", 0)),
    ],
)
def test_stop_becomes_a_tuple(given, kept):
    assert GenerationConfig(stop=given).stop == kept


@pytest.mark.parametrize(
    "given, kept",
    [
        (None, ()),
        ([], ()),
        (["bad"], ("bad",)),
        ([[1, 2], "bad", (3,)], ((1, 2), "bad", (3,))),
    ],
)
def test_bad_words_become_tuples(given, kept):
    assert GenerationConfig(bad_words=given).bad_words == kept


def test_lists_changed_afterwards_change_no_config():
    stop, words = [5], [[1, 2]]
    config = GenerationConfig(stop=stop, bad_words=words)
    stop.append(6)
    words[0].append(3)
    assert config == GenerationConfig(stop=[5], bad_words=[[1, 2]])


def test_given_are_the_values_that_are_not_the_usual_ones():
    assert GenerationConfig().given() == {}
    assert GenerationConfig(num_beams=1, stop=[], seed=0, temperature=0).given() == {"seed": 0, "temperature": 0}
    assert GenerationConfig(stop="end", bad_words=[[1]]).given() == {"stop": ("end",), "bad_words": ((1,),)}


def test_merged_replaces_what_is_given_and_keeps_the_rest():
    config = GenerationConfig(max_length=5, temperature=0.5)
    assert GenerationConfig.merged(config, temperature=None, seed=3) == GenerationConfig(max_length=5, seed=3)
    assert GenerationConfig.merged(config) == config
    assert GenerationConfig.merged(None, top_k=3) == GenerationConfig(top_k=3)
    assert GenerationConfig.merged() == GenerationConfig()


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
    with pytest.raises(ValueError, match=r"defaults \({'top_k': 3}\) must be a GenerationConfig"):
        GenerationConfig.merged(defaults={"top_k": 3})


BEAM_SAMPLING = {"do_sample": True, "top_k": 7}


@pytest.mark.parametrize(
    "defaults, config, overrides, merged",
    [
        # Each beats the one before; what none says stays.
        ({"top_k": 5, "seed": 1}, {}, {}, {"top_k": 5, "seed": 1}),
        ({"top_k": 5, "seed": 1}, {"top_k": 7}, {}, {"top_k": 7, "seed": 1}),
        ({"top_k": 5, "seed": 1}, {"top_k": 7, "min_p": 0.1}, {"top_k": 9}, {"top_k": 9, "seed": 1, "min_p": 0.1}),
        ({"stop": "end"}, {"stop": 5}, {}, {"stop": 5}),
        ({"logit_bias": {1: 1.0}}, {"logit_bias": {2: 1.0}}, {}, {"logit_bias": {2: 1.0}}),
        # Overrides beat both even where they are the usual values, a config does not.
        ({"top_k": 5}, {"top_k": None}, {}, {"top_k": 5}),
        ({"top_k": 5, "top_p": 0.5}, {}, {"top_k": None}, {"top_p": 0.5}),
        ({"top_k": 5}, {"top_k": 7}, {"top_k": None}, {}),
        ({"stop": "end", "bad_words": [[1]]}, {}, {"stop": (), "bad_words": None}, {}),
        ({"strip_prompt": True}, {}, {"strip_prompt": False}, {}),
        ({"repetition_penalty": 1.2}, {"seed": 2}, {"repetition_penalty": None}, {"seed": 2}),
        # One length replaces the other.
        ({"max_length": 9}, {"max_new_tokens": 3}, {}, {"max_new_tokens": 3}),
        ({"max_new_tokens": 9}, {"max_length": 3}, {}, {"max_length": 3}),
        ({"max_length": 9}, {}, {"max_new_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_length": 9}, {"max_length": 8}, {"max_new_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_length": 9}, {"max_new_tokens": 8}, {"max_length": 3}, {"max_length": 3}),
        ({"max_length": 9}, {}, {"max_length": None}, {}),
        ({"max_length": 9}, {}, {"max_new_tokens": None}, {"max_length": 9}),
        ({"max_length": 9}, {}, {"max_length": None, "max_new_tokens": 3}, {"max_new_tokens": 3}),
        # Sampling replaces the beams of the defaults.
        ({"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}, {"top_k": 5}, {}, {"top_k": 5}),
        ({"num_beams": 4, "early_stopping": "never", "seed": 1}, {}, {"temperature": 0}, {"temperature": 0, "seed": 1}),
        ({"num_beams": 4}, {}, {"temperature": None}, {"num_beams": 4}),
        ({"num_beams": 4, "length_penalty": 2.0}, {"seed": 1}, {}, {"num_beams": 4, "length_penalty": 2.0, "seed": 1}),
        # Beams replace the sampling of the defaults.
        ({"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1}, {"num_beams": 3}, {}, {"num_beams": 3}),
        ({"temperature": 0.7, "seed": 1}, {}, {"num_beams": 3}, {"num_beams": 3, "seed": 1}),
        ({"temperature": 0.7}, {}, {"num_beams": 1}, {"temperature": 0.7}),
        # Beams replace beams; without them nothing is left of their options.
        ({"num_beams": 4, "length_penalty": 2.0}, {}, {"num_beams": 2}, {"num_beams": 2, "length_penalty": 2.0}),
        ({"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}, {}, {"num_beams": 1}, {}),
        ({"num_beams": 4, "length_penalty": 2.0}, {}, {"length_penalty": 3.0}, {"num_beams": 4, "length_penalty": 3.0}),
        ({"num_beams": 4, "length_penalty": 2.0}, {}, {"length_penalty": 1.0}, {"num_beams": 4}),
        ({"min_length": 4}, {}, {"min_new_tokens": 2}, {"min_new_tokens": 2}),
        ({"min_new_tokens": 4}, {"min_length": 2}, {}, {"min_length": 2}),
        # What is said is no more unsupported.
        ({"unsupported": {"top_h": 0.1}}, {"seed": 1}, {}, {"seed": 1, "unsupported": {"top_h": 0.1}}),
        ({"unsupported": {"top_h": 0.1}, "seed": 1}, {}, {"unsupported": None}, {"seed": 1}),
        ({"num_beams": 2, "unsupported": BEAM_SAMPLING}, {"temperature": 0.5}, {}, {"temperature": 0.5}),
        ({"num_beams": 2, "unsupported": BEAM_SAMPLING}, {}, {"num_beams": 3}, {"num_beams": 3}),
        ({"num_beams": 2, "unsupported": BEAM_SAMPLING}, {}, {"num_beams": 1}, {"unsupported": BEAM_SAMPLING}),
        ({"num_beams": 2, "unsupported": {"stop_strings": ["x"]}}, {}, {"stop": 3}, {"num_beams": 2, "stop": 3}),
        ({"unsupported": {"num_return_sequences": 2}}, {}, {"num_return_sequences": 1}, {}),
    ],
)
def test_overrides_beat_the_config_and_the_config_beats_the_defaults(defaults, config, overrides, merged):
    defaults, config, merged = GenerationConfig(**defaults), GenerationConfig(**config), GenerationConfig(**merged)
    assert GenerationConfig.merged(config, defaults=defaults, **overrides) == merged


@pytest.mark.parametrize(
    "defaults, config, overrides, message",
    [
        ({}, {"temperature": 0.5}, {"num_beams": 2}, r"num_beams \(2\) excludes sampling: leave temperature \(0.5\)"),
        ({}, {"num_beams": 2}, {"top_k": 2}, r"num_beams \(2\) excludes sampling: leave top_k \(2\)"),
        ({"num_beams": 4}, {}, {"num_beams": 1, "length_penalty": 2.0}, "need beams"),
        ({"num_beams": 4}, {}, {"num_return_sequences": 5}, "must be at most num_beams"),
        ({"stop": "end"}, {}, {"num_beams": 2}, "must be token ids"),
        ({}, {}, {"num_beams": "2"}, r"num_beams \('2'\) must be an integer"),
        ({}, {}, {"num_beams": None}, r"num_beams \(None\) must be an integer"),
    ],
)
def test_merged_refuses_what_contradicts_itself(defaults, config, overrides, message):
    defaults, config = GenerationConfig(**defaults), GenerationConfig(**config)
    with pytest.raises(ValueError, match=message):
        GenerationConfig.merged(config, defaults=defaults, **overrides)


def test_merged_changes_none_of_its_configs():
    defaults, config = GenerationConfig(max_length=9, num_beams=2), GenerationConfig(seed=1)
    GenerationConfig.merged(config, defaults=defaults, max_new_tokens=3, top_k=1)
    assert defaults == GenerationConfig(max_length=9, num_beams=2) and config == GenerationConfig(seed=1)


def test_the_least_length_must_not_exceed_the_largest():
    with pytest.raises(ValueError, match=r"min_length \(5\) must be at most max_length \(4\)"):
        GenerationConfig(min_length=5, max_length=4)
    with pytest.raises(ValueError, match=r"min_length \(3\) and min_new_tokens \(2\) exclude each other"):
        GenerationConfig(min_length=3, min_new_tokens=2)
