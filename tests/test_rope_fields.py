"""What configs say of rotary positions, of any age and kind, against what transformers makes of it."""

import math

import keras
import numpy as np
import pytest

from kerasllm import GPT
from kerasllm.checkpoints.llama import LLAMA
from kerasllm.layers.rotary_scaling import KINDS
from kerasllm.stack import ROPE_PARAMETERS

LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA_3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.0, 4.0]}
LENGTH = {"max_position_embeddings": 2048}
LONG = {"original_max_position_embeddings": 40}


@pytest.mark.parametrize(
    "fields, base, scaling",
    [
        ({}, 10000.0, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": LINEAR}, 5e5, LINEAR),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 10000.0, LINEAR),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        ({"rope_parameters": {"rope_theta": 5e5, **LINEAR}}, 5e5, LINEAR),
        # Of two that differ rope_scaling counts, and nothing of rope_parameters.
        ({"rope_parameters": {"rope_theta": 5e5, **LLAMA_3, **LONG}, "rope_scaling": LINEAR}, 1e4, LINEAR),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": LINEAR, "rope_theta": 9.0}, 9.0, LINEAR),
        ({"rope_scaling": {"rope_theta": 7.0, **LINEAR}, "rope_theta": 9.0}, 7.0, LINEAR),
        ({"rope_scaling": {}, "rope_parameters": LINEAR, "rope_theta": 9.0}, 9.0, LINEAR),
        ({"rope_scaling": {"type": "llama3", **LINEAR}}, 1e4, LINEAR),
        # What a type does not read says nothing.
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, 1e4, None),
        ({"rope_scaling": {"factor": 2.0}, "rope_theta": 9.0}, 9.0, None),
        ({"rope_scaling": {**LINEAR, **LONG, "attention_factor": 0.5, "partial_rotary_factor": 1.0}}, 1e4, LINEAR),
        ({"rope_scaling": LINEAR, **LONG, "partial_rotary_factor": 1.0}, 1e4, LINEAR),
        ({"rope_scaling": {**LLAMA_3, "beta_fast": 3}, "max_position_embeddings": 40}, 1e4, LLAMA_3 | LONG),
        ({"rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 9}, **LONG}, 1e4, LLAMA_3 | LONG),
        ({"rope_scaling": LLAMA_3}, 1e4, LLAMA_3 | {"original_max_position_embeddings": 2048}),
        ({"rope_scaling": {**YARN, "mscale": None, "low_freq_factor": 2}, **LONG}, 1e4, YARN | LONG | {"mscale": None}),
        (
            {"rope_scaling": {**YARN, **LONG, "truncate": False, "mscale": 0}},
            1e4,
            YARN | LONG | {"truncate": False, "mscale": 0},
        ),
    ],
)
def test_rotary_positions_are_read_as_transformers_of_any_age_writes_them(fields, base, scaling):
    arguments = LLAMA.read_config({"hidden_size": 16, "num_attention_heads": 4, **fields}, "GPT", [])
    assert (arguments["rope_base"], arguments["rope_scaling"]) == (base, scaling)
    config = LLAMA.write_config("GPT", arguments)
    assert (config["rope_theta"], config["rope_scaling"]) == (base, scaling)


def test_a_new_kind_of_scaling_is_a_row_of_the_table(monkeypatch):
    """Names that stand beside the others are filled in, and what a kind may do without is not asked for."""
    length, first = "max_position_embeddings", "original_max_position_embeddings"
    monkeypatch.setitem(ROPE_PARAMETERS, "new", (("factor", length), (first, "beta_fast")))
    given = {"rope_type": "new", "factor": 2.0}
    read = LLAMA.read_config({"rope_scaling": given, length: 40}, "GPT", [])
    assert read["rope_scaling"] == given | {length: 40, first: 40}
    config = LLAMA.write_config("GPT", read)
    assert (config["rope_scaling"], config[length]) == (given | {first: 40}, 40)
    assert LLAMA.write_config("GPT", read | {"rope_scaling": read["rope_scaling"] | {length: 41}}) is None
    read = LLAMA.read_config({"rope_parameters": given | {"beta_fast": 3, "beta_slow": 1}}, "GPT", [])
    assert read["rope_scaling"] == given | {length: 2048, first: 2048, "beta_fast": 3}
    read = LLAMA.read_config({"rope_scaling": given | {"beta_fast": None, first: [9.0, 8]}}, "GPT", [])
    assert read["rope_scaling"] == given | {length: 2048, first: [9.0, 8], "beta_fast": None}
    with pytest.raises(ValueError, match="rope_scaling .{'rope_type': 'new', .*must be null or"):
        LLAMA.read_config({"rope_scaling": {"rope_type": "new"}}, "GPT", [])


@pytest.mark.parametrize(
    "given, read",
    [
        ({"rope_type": "dynamic", "factor": 2.0}, LENGTH),
        # By how much lengths grow, a factor says, or else the lengths.
        (YARN | LONG, {}),
        ({"rope_type": "yarn"} | LONG, LENGTH),
        (LONGROPE | LONG | {"factor": 4.0}, {}),
        (LONGROPE | LONG, LENGTH),
    ],
)
def test_lengths_that_stand_beside_the_parameters_are_read_with_them(given, read):
    arguments = LLAMA.read_config({"rope_scaling": given}, "GPT", [])
    assert arguments["rope_scaling"] == given | read
    config = LLAMA.write_config("GPT", arguments)
    assert (config["rope_scaling"], config["max_position_embeddings"]) == (given, 2048)
    assert LLAMA.read_config(config, "GPT", [])["rope_scaling"] == arguments["rope_scaling"]


@pytest.mark.once("torch")
@pytest.mark.parametrize(
    "parameters",
    [
        LINEAR,
        {"rope_type": "dynamic", "factor": 2.0},
        LLAMA_3 | {"original_max_position_embeddings": 8},
        YARN | {"original_max_position_embeddings": 8},
        YARN | {"original_max_position_embeddings": 8, "mscale": 0.7, "mscale_all_dim": 0.3, "truncate": False},
        LONGROPE | {"original_max_position_embeddings": 8},
    ],
    ids=lambda parameters: parameters["rope_type"],
)
def test_each_kind_computes_what_transformers_does(parameters, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), 16)
    config = transformers.LlamaConfig(
        **sizes, num_hidden_layers=1, num_attention_heads=4, initializer_range=0.5, rope_parameters=parameters
    )
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    model, token_ids = GPT.from_preset(tmp_path), np.arange(15)[None] % 16
    with torch.no_grad():
        expected = theirs(torch.tensor(token_ids)).logits.numpy()
    outputs = model({"token_ids": token_ids.astype("int32"), "padding_mask": np.ones((1, 15), bool)})
    np.testing.assert_allclose(keras.ops.convert_to_numpy(outputs), expected, atol=1e-5 * np.abs(expected).max())
    model.save_to_preset(tmp_path / "again")
    assert GPT.from_preset(tmp_path / "again").arguments == model.arguments


def test_the_kinds_that_are_read_are_those_that_are_computed():
    assert set(KINDS) == set(ROPE_PARAMETERS)


@pytest.mark.parametrize(
    "fields, words",
    [
        (
            {"rope_scaling": {"rope_type": "proportional", "factor": 2.0}},
            "rope_scaling .*'proportional.* must be .*'llama3'",
        ),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_scaling .*'dynamic', 'max_position.* must be"),
        ({"rope_scaling": {**LLAMA_3, "low_freq_factor": None}}, "rope_scaling .*None.* must be"),
        ({"rope_scaling": {**YARN, "truncate": "no"}}, "rope_scaling .*'no'.* must be"),
        ({"rope_scaling": {**LONGROPE, "short_factor": [1.0, -1.0]}}, "rope_scaling .*-1.0.* must be"),
        ({"rope_scaling": LINEAR | {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor .0.5. must be 1.0"),
        ({"rope_scaling": LINEAR | {"surprise": 0.5}}, "rope_scaling .*surprise"),
        ({"rope_scaling": LINEAR | {"factor": "2"}}, "rope_scaling .*'2'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling .{'rope_type': 'linear'}. must be"),
        ({"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, r"rope_scaling .*\['linear'\].* must be"),
        ({"rope_parameters": {"full_attention": LINEAR}}, "rope_scaling .*full_attention"),
        ({"rope_scaling": "linear"}, "rope_scaling .'linear'."),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor .0.5. must be 1.0"),
        ({"rope_theta": math.nan}, "rope_theta"),
    ],
)
def test_rotary_positions_that_we_would_compute_differently_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        LLAMA.read_config(fields, "GPT", [])
