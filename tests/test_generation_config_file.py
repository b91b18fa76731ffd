import json
import math
import re
import warnings

import numpy as np
import pytest

from kerasllm.checkpoints import read_generation_config, read_start_token_id, write_generation_config
from kerasllm.generation.config import GenerationConfig


def read(folder, **config):
    """What is read of a file with these fields; a warning is an error."""
    (folder / "generation_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_generation_config(folder)


def written(folder, values, end_ids=None):
    write_generation_config(folder, values, end_ids)
    return json.loads((folder / "generation_config.json").read_text())


def test_a_missing_file_gives_nothing(tmp_path):
    assert read_generation_config(tmp_path) == ({}, None)


def test_an_empty_file_object_gives_nothing(tmp_path):
    assert read(tmp_path) == ({}, None)


def test_fields_have_their_names_in_transformers(tmp_path):
    values, end_ids = read(
        tmp_path,
        max_new_tokens=50,
        min_new_tokens=2,
        num_return_sequences=3,
        do_sample=True,
        temperature=0.7,
        top_k=40,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.1,
        no_repeat_ngram_size=3,
        bad_words_ids=[[1, 2], [3]],
        stop_strings=["END", "\n\n"],
        sequence_bias=[[[4], -1.5], [[5], 2]],
        eos_token_id=[6, 7],
    )
    assert end_ids == (6, 7)
    assert GenerationConfig(**values) == GenerationConfig(
        max_new_tokens=50,
        min_new_tokens=2,
        num_return_sequences=3,
        temperature=0.7,
        top_k=40,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.1,
        no_repeat_ngram_size=3,
        bad_words=[[1, 2], [3]],
        stop=["END", "\n\n"],
        logit_bias={4: -1.5, 5: 2},
    )


def test_beams_are_read(tmp_path):
    beams = {"max_length": 30, "num_beams": 4, "length_penalty": 0.6, "early_stopping": "never"}
    values, _ = read(tmp_path, **beams, num_return_sequences=2)
    assert values == {**beams, "num_return_sequences": 2}
    GenerationConfig(**values)


@pytest.mark.parametrize("given, end_ids", [(5, (5,)), (0, (0,)), ([5, 6], (5, 6)), ([], ()), (None, None)])
def test_end_tokens_are_one_id_or_several(tmp_path, given, end_ids):
    assert read(tmp_path, eos_token_id=given) == ({}, end_ids)


@pytest.mark.parametrize("do_sample", [{}, {"do_sample": False}, {"do_sample": None}])
def test_without_sampling_temperature_and_filters_are_left_out(tmp_path, do_sample):
    filters = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05}
    values, _ = read(tmp_path, **filters, **do_sample, repetition_penalty=1.1)
    assert values == {"repetition_penalty": 1.1}


@pytest.mark.parametrize(
    "fields, values",
    [
        ({}, {"top_k": 50}),
        ({"top_k": None, "top_p": 0.9}, {"top_k": 50, "top_p": 0.9}),
        ({"temperature": 0.7, "top_p": 1.0, "typical_p": 1.0}, {"temperature": 0.7, "top_k": 50}),
        ({"top_k": 0, "top_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 1.0}, {"temperature": 1.0}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_k": 0, "typical_p": 0.5}, {"typical_p": 0.5}),
    ],
)
def test_what_a_file_that_samples_does_not_say_is_what_transformers_takes(tmp_path, fields, values):
    assert read(tmp_path, do_sample=True, **fields) == (values, None)
    assert GenerationConfig(**values).sampling


def test_values_that_are_off_in_transformers_are_left_out(tmp_path):
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    empty = {"bad_words_ids": [], "stop_strings": None, "sequence_bias": None, "max_length": None}
    assert read(tmp_path, do_sample=True, temperature=0.5, **off, **empty) == ({"temperature": 0.5}, None)


def test_options_of_beams_are_left_out_without_beams(tmp_path):
    values, _ = read(tmp_path, num_beams=1, length_penalty=2.0, early_stopping=True)
    assert GenerationConfig(**values) == GenerationConfig()


UNSUPPORTED = [
    {"guidance_scale": 1.5},
    {"encoder_repetition_penalty": 1.2},
    {"encoder_no_repeat_ngram_size": 3},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"penalty_alpha": 0.6},
    {"top_h": 0.4, "do_sample": True},
    {"watermarking_config": {"greenlist_ratio": 0.25}},
    {"dola_layers": "high"},
    {"max_time": 5.0},
    {"token_healing": True},
    {"constraints": [[1]]},
    {"force_words_ids": [[1, 2]]},
    {"is_assistant": True},
    {"sequence_bias": [[[1, 2], 3.0]]},
    {"forced_eos_token_id": [1, 2]},
    {"num_return_sequences": 2},
    {"num_return_sequences": 3, "num_beams": 2},
    {"num_beams": 4, "do_sample": True, "temperature": 0.5},
    {"num_beams": 4, "stop_strings": ["END"]},
]


@pytest.mark.parametrize("fields", UNSUPPORTED)
def test_what_changes_the_text_and_is_not_done_is_kept_and_written_back(tmp_path, fields):
    values, _ = read(tmp_path, **fields)
    ours = {"num_beams"} | ({"do_sample"} if "top_h" in fields else set())
    assert values["unsupported"] == {name: value for name, value in fields.items() if name not in ours}
    fields = written(tmp_path, GenerationConfig(**values).given())
    assert values["unsupported"].items() <= fields.items()
    assert GenerationConfig(**read(tmp_path, **fields)[0]) == GenerationConfig(**values)


def test_a_file_may_sample_beams_and_bias_words_beside_tokens(tmp_path):
    values, _ = read(tmp_path, num_beams=4, do_sample=True, top_k=7, sequence_bias=[[[1], 2.0], [[2, 3], 4.0]])
    unsupported = {"do_sample": True, "top_k": 7, "sequence_bias": [[[2, 3], 4.0]]}
    assert values == {"num_beams": 4, "logit_bias": {1: 2.0}, "unsupported": unsupported}
    assert written(tmp_path, values)["sequence_bias"] == [[[1], 2.0], [[2, 3], 4.0]]


NEUTRAL = {"guidance_scale": 1, "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "max_time": None}
NEUTRAL |= {"num_beam_groups": 1, "diversity_penalty": 0.5, "top_h": 0.4, "token_healing": False, "is_assistant": False}
NEUTRAL |= {"min_length": 0, "typical_p": 1.0, "prompt_lookup_num_tokens": 3, "remove_invalid_values": True}


def test_what_does_nothing_in_transformers_is_no_matter(tmp_path):
    assert read(tmp_path, **NEUTRAL) == ({}, None)
    assert read(tmp_path, penalty_alpha=0.6, do_sample=True, top_k=3) == ({"top_k": 3}, None)


def test_what_suppresses_and_hastens_tokens_is_read(tmp_path):
    fields = {"suppress_tokens": [1], "begin_suppress_tokens": [2, 3], "exponential_decay_length_penalty": [5, 1.5]}
    values, _ = read(tmp_path, **fields, epsilon_cutoff=0.1, typical_p=0.2)
    assert values == fields
    values, _ = read(tmp_path, do_sample=True, typical_p=0.2, epsilon_cutoff=0.1, eta_cutoff=0.3)
    assert values == {"top_k": 50, "typical_p": 0.2, "epsilon_cutoff": 0.1, "eta_cutoff": 0.3}


def test_an_end_token_is_no_bad_word_but_may_be_suppressed(tmp_path):
    """As in transformers, whose bad words are told apart from its end tokens."""
    values, _ = read(tmp_path, bad_words_ids=[[5], [5, 6], [7]], eos_token_id=[5])
    assert values == {"bad_words": [[5, 6], [7]]}
    fields = written(tmp_path, GenerationConfig(bad_words=[[5], [7]]).given(), (5,))
    assert (fields["bad_words_ids"], fields["suppress_tokens"]) == ([[7]], [5])


def test_new_tokens_go_first_and_no_length_is_above_the_other(tmp_path):
    assert read(tmp_path, min_length=9, min_new_tokens=2)[0] == {"min_new_tokens": 2}
    assert read(tmp_path, min_length=9, min_new_tokens=0)[0] == {}
    assert read(tmp_path, min_length=9, max_length=5)[0] == {"min_length": 5, "max_length": 5}
    values, _ = read(tmp_path, min_new_tokens=9, max_new_tokens=5, min_length=7)
    assert values == {"min_new_tokens": 5, "max_new_tokens": 5} and GenerationConfig(**values)


def test_ids_outside_the_vocabulary_are_left_out_with_a_warning(tmp_path):
    fields = {"eos_token_id": 50256, "bos_token_id": -1, "pad_token_id": 101, "forced_bos_token_id": 101}
    fields |= {"forced_eos_token_id": [101], "decoder_start_token_id": 101}
    fields |= {"suppress_tokens": [1, 101], "begin_suppress_tokens": [101], "bad_words_ids": [[2, 101], [3]]}
    fields |= {"sequence_bias": [[[101], 1.0], [[4], 2.0]]}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    with pytest.warns(UserWarning) as caught:
        values, ends = read_generation_config(tmp_path, 101)
    assert ends is None and values == {"suppress_tokens": [1], "bad_words": [[3]], "logit_bias": {4: 2.0}}
    [message] = [str(warning.message) for warning in caught]
    assert all(name in message for name in fields) and "50256" in message and "101 symbols" in message
    assert read_start_token_id(tmp_path, 101) is None
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 101]}')
    with pytest.warns(UserWarning, match="eos_token_id .*101"):
        assert read_generation_config(tmp_path, 101) == ({}, (5,))


def test_a_target_begins_with_the_start_token_or_else_the_one_of_texts(tmp_path):
    for fields, start in [
        ({"decoder_start_token_id": 3, "bos_token_id": 1}, 3),
        ({"decoder_start_token_id": [3, 3]}, 3),
        ({"bos_token_id": 1}, 1),
        ({}, None),
    ]:
        (tmp_path / "generation_config.json").write_text(json.dumps(fields))
        assert read_start_token_id(tmp_path) == start


def test_an_older_folder_has_it_all_in_its_config(tmp_path):
    config = {"vocab_size": 9, "num_beams": 4, "guidance_scale": 2.0, "suppress_tokens": [4], "top_q": 3}
    config |= {"bos_token_id": 0, "force_bos_token_to_be_generated": True, "task_specific_params": {"x": {"top_k": 1}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    values, _ = read_generation_config(tmp_path, 9)
    assert values == {
        "num_beams": 4,
        "suppress_tokens": [4],
        "forced_bos_token_id": 0,
        "unsupported": {"guidance_scale": 2.0},
    }


def test_the_number_of_new_tokens_goes_before_the_length(tmp_path):
    values, _ = read(tmp_path, max_length=4096, max_new_tokens=20)
    assert values == {"max_new_tokens": 20}


def test_one_stop_string_needs_no_list(tmp_path):
    values, _ = read(tmp_path, stop_strings="END")
    assert GenerationConfig(**values).stop == ("END",)


def test_unknown_fields_are_named_in_a_warning(tmp_path):
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"forced_decoder_ids": [], "top_q": 1, "max_length": 9})
    )
    with pytest.warns(UserWarning) as caught:
        assert read_generation_config(tmp_path) == ({"max_length": 9}, None)
    [message] = [str(warning.message) for warning in caught]
    assert "generation_config.json: forced_decoder_ids, top_q" in message and "max_length" not in message


def test_fields_that_are_no_matter_of_ours_are_no_reason_to_warn(tmp_path):
    values, _ = read(
        tmp_path,
        transformers_version="5.23.0",
        _from_model_config=True,
        bos_token_id=0,
        pad_token_id=1,
        decoder_start_token_id=2,
        use_cache=True,
        output_scores=True,
        return_dict_in_generate=True,
        cache_implementation="static",
        typical_p=None,
        renormalize_logits=False,
    )
    assert values == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"temperature": NaN}', '{"top_k": 5'])
def test_a_malformed_file_is_named(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"generation_config.json"):
        read_generation_config(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_length": "long"},
        {"max_new_tokens": 0},
        {"min_length": -1},
        {"do_sample": "yes"},
        {"do_sample": True, "temperature": -1},
        {"temperature": "hot"},
        {"do_sample": True, "top_k": -1},
        {"do_sample": True, "top_p": 0},
        {"repetition_penalty": 0.0},
        {"bad_words_ids": [[1, 2.5]]},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": 7},
        {"num_beams": 2.5},
        {"num_beams": 2**20},
        {"num_return_sequences": 10**30},
        {"num_return_sequences": 1e30},
        {"num_return_sequences": 2**30},
        {"max_length": 2**30},
        {"presence_penalty": 1e300},
        {"num_beams": True},
        {"early_stopping": "sometimes"},
        {"stop_strings": 5.5},
        {"stop_strings": [""]},
        {"eos_token_id": "2"},
        {"eos_token_id": [True]},
        {"pad_token_id": [1]},
        {"decoder_start_token_id": 1.0},
        {"forced_bos_token_id": [1]},
        {"suppress_tokens": 1},
        {"exponential_decay_length_penalty": [5]},
        *({"sequence_bias": bias} for bias in ({"5": 1.0}, [[[1]]], [[5, -1.0]], [[[], 1.0]], [5], 5, "bias")),
    ],
)
def test_a_value_that_a_field_cannot_have_is_named(tmp_path, fields):
    name, value = list(fields.items())[-1]
    with pytest.raises(ValueError, match=re.escape(f"generation_config.json: {name} ({value!r}) must be ")):
        read(tmp_path, **fields)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_length": 30, "min_new_tokens": 3},
        {"max_new_tokens": 30},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "num_return_sequences": 2},
        {"temperature": 1.0, "seed": 3, "strip_prompt": True},
        {"temperature": 1.0, "seed": 2**32 - 1},
        {"repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 0.25},
        {"no_repeat_ngram_size": 2, "bad_words": [[1], [2, 3]]},
        {"logit_bias": {1: -2.5, 0: 3.0}},
        {"stop": ["END", "ß"]},
        {"suppress_tokens": [3, 0], "begin_suppress_tokens": [2], "exponential_decay_length_penalty": (4, 1.5)},
        {"typical_p": 0.5, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02},
        {"unsupported": {"guidance_scale": 1.5}, "top_k": 3},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 2, "early_stopping": "never", "no_repeat_ngram_size": 4},
    ],
)
@pytest.mark.parametrize("end_ids", [None, (0,), (5, 6)])
def test_what_is_written_is_read_again(tmp_path, options, end_ids):
    config = GenerationConfig(**options)
    fields = written(tmp_path, config.given(), end_ids)
    values, read_ends = read(tmp_path, **fields)
    assert GenerationConfig(**values) == config and read_ends == end_ids


def test_fields_are_written_as_transformers_reads_them(tmp_path):
    config = GenerationConfig(
        max_new_tokens=9, top_k=5, bad_words=[[1, 2]], stop=["END", 7], logit_bias={3: 1}, repetition_penalty=1.5
    )
    assert written(tmp_path, config.given(), (5,)) == {
        "max_new_tokens": 9,
        "do_sample": True,
        "top_k": 5,
        "bad_words_ids": [[1, 2]],
        "stop_strings": ["END"],
        "eos_token_id": [5, 7],
        "sequence_bias": [[[3], 1.0]],
        "repetition_penalty": 1.5,
    }


@pytest.mark.parametrize(
    "options, do_sample",
    [
        ({}, False),
        ({"seed": 1}, False),
        ({"temperature": 0}, False),
        ({"temperature": 0, "top_k": 5}, False),
        ({"num_beams": 2, "num_return_sequences": 2}, False),
        ({"min_p": 0.1}, True),
        ({"top_p": 1.0}, True),
        ({"num_return_sequences": 2}, True),
    ],
)
def test_sampling_is_written_and_read_again(tmp_path, options, do_sample):
    fields = written(tmp_path, GenerationConfig(**options).given())
    assert fields["do_sample"] is do_sample
    values, _ = read(tmp_path, **fields)
    assert GenerationConfig(**values).sampling is do_sample


def test_stop_ids_become_end_ids(tmp_path):
    fields = written(tmp_path, GenerationConfig(stop=[7, "END", 8]).given(), (5,))
    assert read(tmp_path, **fields) == ({"stop": ["END"]}, (5, 7, 8))


def test_a_bias_of_minus_infinity_becomes_a_bad_word(tmp_path):
    config = GenerationConfig(logit_bias={3: -math.inf, 4: 1.0}, bad_words=[[1, 2]])
    values, _ = read(tmp_path, **written(tmp_path, config.given()))
    assert GenerationConfig(**values) == GenerationConfig(logit_bias={4: 1.0}, bad_words=[[1, 2], [3]])


def test_numpy_numbers_are_written(tmp_path):
    config = GenerationConfig(
        max_length=np.int64(5),
        temperature=np.float32(0.5),
        logit_bias={np.int64(3): np.float32(-1)},
        bad_words=[[np.int32(4)]],
        stop=np.int64(7),
    )
    values, end_ids = read(tmp_path, **written(tmp_path, config.given(), (np.int32(5),)))
    assert end_ids == (5, 7)
    assert GenerationConfig(**values) == GenerationConfig(
        max_length=5, temperature=0.5, logit_bias={3: -1}, bad_words=[[4]]
    )
