"""What is varied off a family's own model is written so that it comes back, or in our own layout: nothing is lost."""

import inspect
import json

import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.checkpoints.encoder_family import ELSEWHERE, EncoderFamily
from kerasllm.checkpoints.families import FAMILIES
from kerasllm.checkpoints.family import replaced, with_defaults, with_prefix
from kerasllm.checkpoints.presets import layout_of
from kerasllm.stack import NORMS, POSITIONS, RESIDUALS

OURS = FAMILIES[-1]
FOREIGN = {family.MODEL_TYPE: family for family in FAMILIES[:-1]}
BOOLEANS = (True, False)
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LABELS = ["a", "b", "c"]
# Values of each argument that any of our classes takes, some of them what a family has, most of them not.
VALUES = {
    **dict.fromkeys(("vocabulary_size", "source_vocabulary_size", "target_vocabulary_size"), (77,)),
    **{"num_layers": (24,), "num_heads": (24,), "hidden_dim": (384,)},
    **dict.fromkeys(("intermediate_dim", "max_sequence_length", "decoder_intermediate_dim"), (None, 40)),
    **dict.fromkeys(("embedding_dim", "head_dim"), (None, 10, 64, 768)),
    **dict.fromkeys(("num_key_value_heads", "num_decoder_layers", "num_decoder_heads"), (None, 1, 8, 12, 32)),
    **dict.fromkeys(("gated", "scale_embeddings", "norm_embeddings", "use_bias", "query_key_norm"), BOOLEANS),
    **dict.fromkeys(("tie_embeddings", "share_embeddings", "use_head_bias", "scale_head", "pooler"), BOOLEANS),
    "use_qkv_bias": (None, *BOOLEANS),
    "dropout": (0.0, 0.3),
    "activation": ("gelu", "gelu_tanh", "relu", "silu", "mish"),
    "norm": NORMS,
    "residual": RESIDUALS,
    "positions": POSITIONS,
    "norm_epsilon": (1e-3, 1e-5),
    "rope_base": (5e5, 1e4, [5e5, None], [5e5, 5e5]),
    "rope_scaling": (None, LINEAR, LLAMA3 | {"original_max_position_embeddings": 40}, [LINEAR, None], [LINEAR]),
    "rotary_fraction": (0.5, 1.0),
    "num_buckets": (8, 32),
    "max_distance": (9, 128),
    "attention_scale": (None, 0.125, 1.0),
    **dict.fromkeys(("attention_softcap", "logit_softcap"), (None, 20.0)),
    "sliding_window": (None, 5, [5, None], [5, 5]),
    "initializer_range": (None, 0.5),
    "num_segments": (0, 1, 3),
    "family": ("bert", "roberta", "electra"),
    "labels": (LABELS, ["LABEL_0", "LABEL_1"]),
    "problem_type": (None, "regression"),
    "pooler_activation": ("tanh", "relu", "gelu"),
    "remat": (False,),  # `write_preset` leaves it out
}
# Arguments that say nothing with other positions.
SILENT = {
    **dict.fromkeys(("rope_base", "rope_scaling", "rotary_fraction"), "rotary"),
    **dict.fromkeys(("num_buckets", "max_distance"), "relative"),
}
NOT_SAID = {"self", "name", "dtype", "tokenizer", "source_tokenizer", "target_tokenizer", *ELSEWHERE}
READERS = [(name, class_name) for name, family in FOREIGN.items() for class_name in family.ARCHITECTURES]


def names_of_tensors(family, class_name, arguments):
    tables = family.families[class_name] if isinstance(family, EncoderFamily) else family
    return [row.name for row in tables.expanded(arguments)]


def meanings(a):
    """What None stands for, written out once more."""
    width, heads = a["hidden_dim"], a["num_heads"]
    return {
        "intermediate_dim": 4 * width,
        "embedding_dim": width,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "use_qkv_bias": a["use_bias"],
        "attention_scale": (a["head_dim"] or width // heads) ** -0.5,
        "num_decoder_layers": a["num_layers"],
        "num_decoder_heads": heads,
        "decoder_intermediate_dim": a["intermediate_dim"] or 4 * width,
    }


def difference(arguments, read):
    """The arguments in which two models differ."""
    plain = [a | {n: meanings(a).get(n) for n, value in a.items() if value is None} for a in (arguments, read)]
    # All blocks may have one value.
    plain = [{n: x[0] if isinstance(x, list) and x[1:] in ([], x[:1]) else x for n, x in a.items()} for a in plain]
    return {
        name
        for name, value in plain[0].items()
        if name not in read
        or (value != pytest.approx(plain[1][name]) if isinstance(value, float) else value != plain[1][name])
        if arguments["positions"] == SILENT.get(name, arguments["positions"])
    }


@pytest.mark.once("torch")
@pytest.mark.parametrize("model_type, class_name", READERS)
def test_no_argument_that_is_varied_is_lost(model_type, class_name):
    own = FOREIGN[model_type].read_config({}, class_name, []) | {"num_layers": 2}
    arguments = set(inspect.signature(getattr(kerasllm, class_name)).parameters) - NOT_SAID
    assert arguments == set(own), "a family reads all that the class takes"
    own = {name: own[name] for name in arguments}
    found = {}
    for name in arguments:
        for value in VALUES[name]:
            varied = own | {name: value}
            family, config = layout_of(class_name, json.loads(json.dumps(varied)), None)
            config = {key: x for key, x in config.items() if key not in ("model_type", "architectures")}
            if family is OURS:
                assert config["arguments"] == varied
            else:
                read = family.read_config(config, class_name, names_of_tensors(family, class_name, varied))
                assert not difference(varied, read), (family.MODEL_TYPE, name, value)
            found[name, str(value)] = family.MODEL_TYPE
    assert FOREIGN[model_type].write_config(class_name, own)
    other = "pre" if own["residual"] == "post" else "post"
    assert found["residual", other] == found["activation", "mish"] == OURS.MODEL_TYPE
    told = {found[name, str(value)] for name in SILENT for value in VALUES[name] if SILENT[name] != own["positions"]}
    assert OURS.MODEL_TYPE not in told


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen2", "qwen3", "bert", "marian", "bart", "t5"])
def test_a_switch_that_is_new_is_off_in_every_family(model_type):
    """Whoever adds an argument edits no family: models that have it are not the family's."""
    family = FOREIGN[model_type]
    class_name = next(iter(family.ARCHITECTURES))
    tables = family.families[class_name] if isinstance(family, EncoderFamily) else family
    tables.fixed["new"] = "off"
    try:
        own = family.read_config({}, class_name, [])
        assert own["new"] == "off" and family.write_config(class_name, own)
        assert family.write_config(class_name, own | {"new": "on"}) is None
    finally:
        del tables.fixed["new"]
    assert family.write_config(class_name, own) is None  # an argument that no family has heard of


def test_rows_of_the_same_argument_or_path_are_replaced():
    fields = [("a", "x", "size", 1), ("b", ("y", "z"), "size", 2), ("c", "w", "size", 3)]
    assert replaced(fields, [("d", "y", "rate", 4)]) == [fields[0], fields[2], ("d", "y", "rate", 4)]
    assert with_defaults(fields, {"c": 5})[2] == ("c", "w", "size", 5)
    rows = [("q", "block/query/kernel", "same"), ("k", ["block/key/kernel"], "same"), ("o", "out/kernel", "same")]
    both = ("qk", ["block/query/kernel", "block/key/kernel"], "fused")
    assert replaced(rows, [both]) == [rows[2], both]


def test_names_without_a_prefix_get_the_first():
    name = with_prefix("model.", "head.")
    assert [name("model.a"), name("head.a"), name("a")] == ["model.a", "head.a", "model.a"]


SMALL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "initializer_range": 0.5, "max_sequence_length": 8}
NUMBERS = {
    "intermediate_dim": 32,
    "embedding_dim": 8,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "attention_scale": 0.5,
}
LLAMA = {"norm": "rms", "positions": "rotary", "gated": True, "activation": "silu", "use_bias": False}
MARIAN = {"positions": "split_sinusoidal", "use_head_bias": True, "num_decoder_layers": 2}
WITHOUT_BASE = {"rope_base": 9.0, "num_buckets": 8, "max_distance": 9}


@pytest.mark.once("torch")
@pytest.mark.parametrize(
    "class_name, given, model_type",
    [
        ("GPT", NUMBERS | WITHOUT_BASE | {"use_qkv_bias": True}, "gpt2"),
        ("GPT", LLAMA | NUMBERS | {"use_qkv_bias": False, "num_buckets": 8}, "llama"),
        ("BERT", NUMBERS | WITHOUT_BASE | {"use_qkv_bias": True}, "bert"),
        ("TransformerTranslator", MARIAN | NUMBERS | WITHOUT_BASE | {"decoder_intermediate_dim": 32}, "marian"),
        # Heads of the decoder are as wide as its number of heads makes them, or as all are told to be.
        ("TransformerTranslator", MARIAN | {"num_decoder_heads": 4}, "marian"),
        ("TransformerTranslator", MARIAN | {"num_decoder_heads": 4, "head_dim": 4}, "kerasllm"),
        ("TransformerTranslator", MARIAN | {"num_decoder_heads": 4, "num_key_value_heads": 2}, "kerasllm"),
    ],
)
def test_a_number_that_none_stands_for_makes_the_same_model(class_name, given, model_type, tmp_path):
    vocabularies = (11, 13) if class_name == "TransformerTranslator" else (13,)
    model = getattr(kerasllm, class_name)(*vocabularies, **SMALL | given)
    model.save_to_preset(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == model_type
    copy = type(model).from_preset(tmp_path)
    inputs = {name: np.ones((2, 5), "int32") for name in model.input}
    for name in inputs:
        inputs[name][:] = np.arange(5) + 1 if name.endswith("token_ids") else 1
        inputs[name][:] = 0 if name == "segment_ids" else inputs[name]
    outputs, again = (x if isinstance(x, dict) else {"": x} for x in (model(inputs), copy(inputs)))
    assert set(outputs) == set(again)
    for name, output in outputs.items():
        np.testing.assert_array_equal(ops.convert_to_numpy(output), ops.convert_to_numpy(again[name]))
