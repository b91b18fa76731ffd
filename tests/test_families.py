"""The tables of the families against what transformers writes, and presets as a whole; no model is built."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from kerasllm import BERT, GPT, BERTMaskedLM
from kerasllm.checkpoints import bert as bert_families
from kerasllm.checkpoints import files, llama, ours
from kerasllm.checkpoints.bart import BART
from kerasllm.checkpoints.gpt2 import GPT2
from kerasllm.checkpoints.marian import MARIAN
from kerasllm.checkpoints.presets import read_preset, write_preset
from kerasllm.checkpoints.t5 import T5
from kerasllm.stack import OFF

DATA = Path(__file__).parent / "data"
bert = bert_families.BERT
FIXTURES = {
    "gpt2": (GPT2, "GPT"),
    "gpt2_untied": (GPT2, "GPT"),
    "bert": (bert, "BERT"),
    "bert_masked_lm": (bert, "BERTMaskedLM"),
    "bert_masked_lm_gelu_new": (bert, "BERTMaskedLM"),
}


class LSTMTranslator:
    def __init__(self, source_vocabulary_size, hidden_dim=8, attention=None, **kwargs):
        pass


CLASSES = {model_class.__name__: model_class for model_class in (GPT, BERT, BERTMaskedLM, LSTMTranslator)}
TRANSLATOR = {"source_vocabulary_size": 7, "attention": "dot"}
TRANSLATOR_ARRAYS = {
    "encoder/cell/kernel": np.ones((3, 8), "float32"),
    "head/bias": np.arange(5, dtype="float32"),
}


def config_of(name):
    return json.loads((DATA / name / "config.json").read_text())


def shapes_of(class_name, a):
    """The variables that the model of these arguments has, written out once more."""
    d, f = a["hidden_dim"], a["intermediate_dim"] or 4 * a["hidden_dim"]
    stack = "decoder" if class_name == "GPT" else "encoder"
    shapes = {
        f"{stack}/embeddings/token/embeddings": (a["vocabulary_size"], d),
        f"{stack}/embeddings/position/embeddings": (a["max_sequence_length"], d),
    }
    norms = [f"{stack}/block_{i}/{n}_norm" for i in range(a["num_layers"]) for n in ("attention", "feed_forward")]
    if class_name == "GPT":
        norms.append("decoder/final_norm")
        shapes |= {} if a["tie_embeddings"] else {"head/kernel": (d, a["vocabulary_size"])}
    else:
        norms.append("encoder/embeddings/norm")
        shapes["encoder/embeddings/segment/embeddings"] = (a["num_segments"], d)
    if class_name == "BERTMaskedLM":
        norms.append("masked_lm_head/norm")
        shapes |= {"masked_lm_head/dense/kernel": (d, d), "masked_lm_head/dense/bias": (d,)}
        shapes["masked_lm_head/bias"] = (a["vocabulary_size"],)
    if a.get("pooler"):
        shapes |= {"pooler/kernel": (d, d), "pooler/bias": (d,)}
    for i in range(a["num_layers"]):
        for name in ("query", "key", "value", "output"):
            shapes[f"{stack}/block_{i}/attention/{name}/kernel"] = (d, d)
            shapes[f"{stack}/block_{i}/attention/{name}/bias"] = (d,)
        shapes[f"{stack}/block_{i}/feed_forward/input/kernel"] = (d, f)
        shapes[f"{stack}/block_{i}/feed_forward/input/bias"] = (f,)
        shapes[f"{stack}/block_{i}/feed_forward/output/kernel"] = (f, d)
        shapes[f"{stack}/block_{i}/feed_forward/output/bias"] = (d,)
    for norm in norms:
        shapes |= {f"{norm}/gamma": (d,), f"{norm}/beta": (d,)}
    return shapes


def load(folder, class_name):
    """What a model does with a preset: arguments, then arrays for its variables."""
    preset = read_preset(folder, CLASSES[class_name])
    return preset.arguments, preset.read_weights(shapes_of(class_name, preset.arguments))


def changed(tmp_path, name, config=None, tensors=None):
    """A copy of a fixture with another config or other tensors."""
    files.write_json(tmp_path / "config.json", config or config_of(name))
    files.write_tensors(tmp_path, tensors or files.read_tensors(DATA / name))
    return tmp_path


def assert_same_tensors(actual, expected):
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (tensor.dtype, tensor.shape), name
        assert actual[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("name", FIXTURES)
def test_a_fixture_is_read_whole_and_written_back_bit_equal(name, tmp_path):
    family, class_name = FIXTURES[name]
    arguments, arrays = load(DATA / name, class_name)
    assert {path: array.shape for path, array in arrays.items()} == shapes_of(class_name, arguments)
    write_preset(tmp_path / "copy", class_name, arguments, arrays)
    assert_same_tensors(files.read_tensors(tmp_path / "copy"), files.read_tensors(DATA / name))
    written, original = files.read_json(tmp_path / "copy" / "config.json"), config_of(name)
    original["pad_token_id"] = None  # which the tokenizer tells
    assert written == {key: original[key] for key in written}
    assert load(tmp_path / "copy", class_name)[0] == arguments


def test_the_arguments_are_those_of_the_config():
    """And what a family does not name is off."""
    assert load(DATA / "gpt2_untied", "GPT")[0] == OFF | {
        "logit_softcap": None,
        "vocabulary_size": 97,
        "max_sequence_length": 24,
        "hidden_dim": 16,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_dim": 24,
        "activation": "relu",
        "dropout": 0.1,
        "norm_epsilon": 1e-3,
        "initializer_range": 0.02,
        "tie_embeddings": False,
    }
    arguments = load(DATA / "bert_masked_lm_gelu_new", "BERTMaskedLM")[0]
    assert (arguments["activation"], arguments["num_segments"], arguments["norm_epsilon"]) == (
        "gelu_tanh",
        3,
        1e-5,
    )


def test_absent_fields_mean_what_transformers_takes():
    arguments = GPT2.read_config({"model_type": "gpt2"}, "GPT", [])
    assert (arguments["vocabulary_size"], arguments["num_layers"], arguments["activation"]) == (
        50257,
        12,
        "gelu_tanh",
    )
    assert bert.read_config({"model_type": "bert"}, "BERTMaskedLM", [])["intermediate_dim"] == 3072


def test_the_largest_of_the_dropout_rates_is_taken():
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.3, "attn_pdrop": 0.2}
    assert GPT2.read_config(rates, "GPT", [])["dropout"] == 0.3


@pytest.mark.parametrize(
    "family, class_name, field, value",
    [
        (GPT2, "GPT", "reorder_and_upcast_attn", True),
        (GPT2, "GPT", "scale_attn_by_inverse_layer_idx", True),
        (GPT2, "GPT", "scale_attn_weights", False),
        (GPT2, "GPT", "add_cross_attention", True),
        (GPT2, "GPT", "activation_function", "mish"),
        (GPT2, "GPT", "activation_function", ["gelu"]),
        (GPT2, "GPT", "n_layer", -1),
        (GPT2, "GPT", "n_embd", "16"),
        (GPT2, "GPT", "n_inner", 2.5),
        (GPT2, "GPT", "attn_pdrop", 1.0),
        (GPT2, "GPT", "layer_norm_epsilon", math.nan),
        (GPT2, "GPT", "tie_word_embeddings", None),
        (GPT2, "GPT", "quantization_config", {"bits": 4}),
        (GPT2, "GPT", "rope_theta", 1e4),
        (bert, "BERT", "position_embedding_type", "relative_key"),
        (bert, "BERT", "is_decoder", True),
        (bert, "BERT", "pruned_heads", {"0": [1]}),
        (bert, "BERT", "hidden_act", "quick_gelu"),
        (bert, "BERT", "sliding_window", 4096),
        (bert, "BERTMaskedLM", "tie_word_embeddings", False),
    ],
)
def test_a_config_field_that_is_not_understood_is_named(family, class_name, field, value):
    with pytest.raises(ValueError) as error:
        family.read_config({field: value}, class_name, [])
    assert f"{field} ({value!r})" in str(error.value)


def test_all_config_problems_are_in_one_error():
    with pytest.raises(ValueError, match="n_head.*scale_attn_weights.*n_heads"):
        GPT2.read_config({"n_head": 0, "scale_attn_weights": False, "n_heads": 4}, "GPT", [])


@pytest.mark.parametrize("name", ["bert", "bert_masked_lm"])
def test_old_norm_names_and_buffers_are_understood(name, tmp_path):
    tensors = dict(files.read_tensors(DATA / name))
    old = {key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t for key, t in tensors.items()}
    assert set(old) != set(tensors)
    old["bert.embeddings.position_ids"] = np.arange(24).reshape(1, 24)
    class_name = FIXTURES[name][1]
    arguments, arrays = load(changed(tmp_path, name, tensors=old), class_name)
    assert_same_tensors(bert.write_weights(class_name, arguments, arrays), tensors)


def test_gpt2_without_prefix_and_with_causal_masks_is_understood(tmp_path):
    tensors = files.read_tensors(DATA / "gpt2")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare |= {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 24, 24), "float32")) for i in range(2)}
    bare |= {f"h.{i}.attn.masked_bias": np.array(-1e4, "float32") for i in range(2)}
    arguments, arrays = load(changed(tmp_path, "gpt2", tensors=bare), "GPT")
    assert_same_tensors(GPT2.write_weights("GPT", arguments, arrays), tensors)


@pytest.mark.parametrize(
    "name, duplicate, original",
    [
        ("gpt2", "lm_head.weight", "transformer.wte.weight"),
        ("bert_masked_lm", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("bert_masked_lm", "cls.predictions.decoder.bias", "cls.predictions.bias"),
    ],
)
def test_tied_duplicates_must_equal_their_originals(name, duplicate, original, tmp_path):
    tensors = files.read_tensors(DATA / name)
    class_name = FIXTURES[name][1]
    load(changed(tmp_path, name, tensors={**tensors, duplicate: tensors[original]}), class_name)
    with pytest.raises(ValueError, match=duplicate):
        load(changed(tmp_path, name, tensors={**tensors, duplicate: tensors[original] + 1}), class_name)


def test_an_encoder_is_read_from_a_masked_lm_and_its_heads_are_left(tmp_path):
    arguments, arrays = load(DATA / "bert_masked_lm", "BERT")
    assert arguments["pooler"] is False
    tensors = bert.write_weights("BERT", arguments, arrays)
    masked_lm = files.read_tensors(DATA / "bert_masked_lm")
    assert_same_tensors(tensors, {n.removeprefix("bert."): t for n, t in masked_lm.items() if n.startswith("bert.")})


def test_a_masked_lm_is_not_read_from_an_encoder():
    with pytest.raises(ValueError, match="data.bert'.*missing tensors: cls.predictions.transform.dense.weight"):
        load(DATA / "bert", "BERTMaskedLM")


def test_missing_extra_and_misshaped_tensors_are_named(tmp_path):
    tensors = dict(files.read_tensors(DATA / "gpt2"))
    del tensors["transformer.ln_f.bias"]
    tensors["transformer.h.2.ln_1.bias"] = np.zeros(16, "float32")
    tensors["transformer.wpe.weight"] = np.zeros((23, 16), "float32")
    with pytest.raises(ValueError) as error:
        load(changed(tmp_path, "gpt2", tensors=tensors), "GPT")
    for words in ("missing tensors: transformer.ln_f.bias", "extra tensors: transformer.h.2.ln_1.bias"):
        assert words in str(error.value)
    assert "transformer.wpe.weight (23, 16) instead of (24, 16)" in str(error.value)
    assert str(tmp_path) in str(error.value)


GPT_ARGUMENTS = OFF | {
    "logit_softcap": None,
    "vocabulary_size": 9,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "max_sequence_length": 4,
    "dropout": 0.1,
    "activation": "gelu_tanh",
    "tie_embeddings": True,
    "initializer_range": 0.02,
}


@pytest.mark.parametrize(
    "same",
    [
        {},
        {"intermediate_dim": 32},
        {"num_key_value_heads": 2},
        {"head_dim": 4},
        {"use_qkv_bias": True},
        {"attention_scale": 0.5},
        {"embedding_dim": 8},
        {"rope_base": 5.0},
        {"num_buckets": 4},
        {"max_distance": 9},
    ],
)
def test_a_gpt_that_is_a_gpt2_is_written_as_one(same):
    config = GPT2.write_config("GPT", {**GPT_ARGUMENTS, **same})
    assert config["activation_function"] == "gelu_new" and config["n_positions"] == 4 and config["attn_pdrop"] == 0.1
    assert config["n_inner"] is None


@pytest.mark.parametrize(
    "other",
    [
        {"norm": "rms"},
        {"positions": "sinusoidal"},
        {"gated": True},
        {"num_key_value_heads": 1},
        {"head_dim": 8},
        {"use_bias": False},
        {"activation": "mish"},
        {"query_key_norm": True},
        {"residual": "post"},
        {"argument_of_a_later_version": True},
    ],
)
def test_a_gpt_that_is_no_gpt2_is_written_in_our_layout(other, tmp_path):
    arguments = {**GPT_ARGUMENTS, **other}
    assert GPT2.write_config("GPT", arguments) is None
    write_preset(tmp_path, "GPT", arguments, {"x": np.zeros(2, "float32")})
    config = files.read_json(tmp_path / "config.json")
    del arguments["remat"]  # which is for those to say who load it
    assert config == {"model_type": "kerasllm", "architectures": ["GPT"], "arguments": arguments}


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"sliding_window": 4096}, "sliding_window .4096. is unknown"),
    ],
)
def test_a_llama_that_we_would_compute_differently_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        llama.LLAMA.read_config(fields, "GPT", [])


SLIDES = {"layer_types": ["full_attention", "sliding_attention"]}


@pytest.mark.parametrize(
    "fields, windows",
    [
        ({"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 3}, None),
        ({"use_sliding_window": True, "sliding_window": None}, None),
        ({"use_sliding_window": True, "max_window_layers": 0, "layer_types": ["full_attention"] * 2}, None),
        ({"use_sliding_window": False, "max_window_layers": 0, "layer_types": None}, None),
        ({"use_sliding_window": True, "max_window_layers": 1}, [None, 4096]),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 5}, 5),
        (SLIDES | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 9}, [None, 3]),
        ({"use_sliding_window": True, "max_window_layers": "2"}, "max_window_layers .'2'."),
        ({"use_sliding_window": 1}, "use_sliding_window .1."),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": [3]}, "sliding_window"),
        (SLIDES, "layer_types .*sliding_attention.*need a sliding_window"),
        ({"num_hidden_layers": 2**30}, "num_hidden_layers .1073741824. must be at most 1024"),
        ({"layer_types": ["full_attention"]}, "layer_types .*for each of num_hidden_layers .2"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types .*must be a list of"),
    ],
)
def test_a_qwen_says_which_blocks_have_a_window(fields, windows):
    qwen2 = next(family for family in llama.FAMILIES if family.MODEL_TYPE == "qwen2")
    fields = {"num_hidden_layers": 2} | fields
    if isinstance(windows, str):
        with pytest.raises(ValueError, match=windows):
            qwen2.read_config(fields, "GPT", [])
        return
    arguments = qwen2.read_config(fields, "GPT", [])
    assert arguments["sliding_window"] == windows
    written = qwen2.write_config("GPT", arguments)
    assert qwen2.read_config(written, "GPT", [])["sliding_window"] == windows


@pytest.mark.parametrize(
    "family, fields, arguments",
    [
        (GPT2, {"n_embd": 4, "hidden_size": 8, "num_hidden_layers": 3}, {"hidden_dim": 8, "num_layers": 3}),
        (GPT2, {"n_head": 4, "num_attention_heads": 2}, {"num_heads": 2}),
        (GPT2, {"n_positions": 4, "max_position_embeddings": 9}, {"max_sequence_length": 9}),
        (BART, {"encoder_layers": 1, "num_hidden_layers": 2}, {"num_layers": 2, "num_decoder_layers": 12}),
        (MARIAN, {"d_model": 4, "hidden_size": 8, "num_attention_heads": 2}, {"hidden_dim": 8, "num_heads": 2}),
        (T5, {"num_layers": 2, "num_hidden_layers": 3}, {"num_layers": 3, "num_decoder_layers": 2}),
        (T5, {"d_kv": 4, "head_dim": 5, "d_model": 4, "hidden_size": 8}, {"head_dim": 5, "hidden_dim": 8}),
        (T5, {"feed_forward_proj": "relu", "dense_act_fn": "gelu"}, {"activation": "gelu", "gated": False}),
        (T5, {"feed_forward_proj": "gated-relu", "is_gated_act": False}, {"activation": "relu", "gated": False}),
        (bert_families.DISTILBERT, {"dim": 4, "hidden_size": 8}, {"hidden_dim": 8}),
    ],
)
def test_the_second_name_of_a_field_goes_first(family, fields, arguments):
    assert arguments.items() <= family.read_config(fields, next(iter(family.ARCHITECTURES)), []).items()


@pytest.mark.parametrize("fields", [{"dense_act_fn": None}, {"is_gated_act": 1}, {"num_hidden_layers": None}])
def test_a_second_name_has_the_values_of_the_first(fields):
    with pytest.raises(ValueError, match=rf"{'num_layers' if 'num_hidden_layers' in fields else next(iter(fields))}"):
        T5.read_config(fields, "TransformerTranslator", [])


def test_rates_that_a_bart_does_not_say_are_those_of_transformers():
    assert BART.read_config({"dropout": 0.0}, "TransformerTranslator", [])["dropout"] == 0.0
    assert BART.read_config({"dropout": 0.0, "attention_dropout": 0.3}, "TransformerTranslator", [])["dropout"] == 0.3
    assert BART.read_config({}, "TransformerTranslator", [])["dropout"] == 0.1


def test_our_layout_keeps_arguments_and_arrays(tmp_path):
    write_preset(tmp_path, "LSTMTranslator", TRANSLATOR, TRANSLATOR_ARRAYS)
    preset = read_preset(tmp_path, LSTMTranslator)
    assert preset.arguments == TRANSLATOR
    shapes = {path: array.shape for path, array in TRANSLATOR_ARRAYS.items()}
    assert_same_tensors(preset.read_weights(shapes), TRANSLATOR_ARRAYS)
    with pytest.raises(ValueError, match="missing tensors: new/kernel; .*misshaped tensors: head/bias"):
        preset.read_weights({**shapes, "new/kernel": (1,), "head/bias": (4,)})


@pytest.mark.parametrize(
    "change, words",
    [
        ({"surprise": 1}, "surprise"),
        ({"arguments": 3}, "arguments"),
        ({"arguments": {**TRANSLATOR, "surprise": 1}}, "surprise"),
        ({"arguments": {}}, "source_vocabulary_size"),
        ({"architectures": ["GPT"]}, "GPT.*not 'LSTMTranslator'"),
        ({"architectures": None}, "architectures .None. must be"),
        ({"architectures": []}, "architectures .... must be"),
        ({"model_type": "gpt2"}, "'gpt2' model.*GPT.*not 'LSTMTranslator'"),
        (
            {"model_type": "xlnet"},
            "model_type.*'xlnet'.*'bert', 'roberta', .*'gpt2', .*'llama', .*'marian', 'bart', 't5', 'kerasllm'",
        ),
        ({"model_type": ["gpt2"]}, "model_type"),
    ],
)
def test_a_config_of_ours_that_says_something_else_is_refused(change, words, tmp_path):
    write_preset(tmp_path, "LSTMTranslator", TRANSLATOR, TRANSLATOR_ARRAYS)
    config = files.read_json(tmp_path / "config.json")
    files.write_json(tmp_path / "config.json", {**config, **change})
    with pytest.raises(ValueError, match=words):
        read_preset(tmp_path, LSTMTranslator)


def test_a_folder_of_another_family_is_refused():
    with pytest.raises(ValueError, match="gpt2'.*'gpt2' model, which .*GPT.* can read, not 'BERT'"):
        read_preset(DATA / "gpt2", BERT)


def test_the_tokenizer_is_written_with_the_preset_or_nothing_is(tmp_path):
    write_preset(tmp_path, "LSTMTranslator", TRANSLATOR, TRANSLATOR_ARRAYS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(folder):
        (folder / "tokenizer.json").write_text("half")
        raise OSError("disk full")

    with pytest.raises(ValueError, match="disk full"):
        write_preset(tmp_path, "LSTMTranslator", {"source_vocabulary_size": 8}, TRANSLATOR_ARRAYS, write_files=fail)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def succeed(folder):
        (folder / "tokenizer.json").write_text("whole")

    write_preset(tmp_path, "LSTMTranslator", TRANSLATOR, TRANSLATOR_ARRAYS, write_files=succeed)
    assert (tmp_path / "tokenizer.json").read_text() == "whole"


def test_the_dtype_policy_does_not_choose_the_layout_nor_enter_the_preset(tmp_path):
    arguments, arrays = load(DATA / "gpt2", "GPT")
    write_preset(tmp_path / "gpt2", "GPT", {**arguments, "dtype": "mixed_bfloat16"}, arrays)
    assert load(tmp_path / "gpt2", "GPT")[0] == arguments
    write_preset(tmp_path / "ours", "LSTMTranslator", {**TRANSLATOR, "dtype": "float32"}, TRANSLATOR_ARRAYS)
    assert read_preset(tmp_path / "ours", LSTMTranslator).arguments == TRANSLATOR


def test_special_token_ids_reach_the_config(tmp_path):
    arguments, arrays = load(DATA / "gpt2", "GPT")
    ids = {"bos_token_id": None, "eos_token_id": [3, 96], "pad_token_id": 0, "sep_token_id": 5}
    write_preset(tmp_path, "GPT", arguments, arrays, special_token_ids=ids)
    config = files.read_json(tmp_path / "config.json")
    assert ids.items() <= config.items() and "cls_token_id" not in config
    assert load(tmp_path, "GPT")[0] == arguments
    assert read_preset(tmp_path, GPT).token_ids == ids
    files.write_json(tmp_path / "config.json", config | {"eos_token_id": [3, 97], "pad_token_id": -1})
    assert read_preset(tmp_path, GPT).token_ids == ids | {"eos_token_id": [3], "pad_token_id": None}


def test_the_layout_of_ours_has_a_row_for_each_variable():
    assert ours.write_weights("Any", {}, TRANSLATOR_ARRAYS).keys() == TRANSLATOR_ARRAYS.keys()


# BERT's relatives


def family_of(model_type):
    return next(family for family in bert_families.FAMILIES if family.MODEL_TYPE == model_type)


@pytest.mark.parametrize(
    "model_type, class_name, fields, words",
    [
        ("roberta", "BERT", {"pad_token_id": 0}, r"pad_token_id \(0\) must be 1"),
        (
            "roberta",
            "BERT",
            {"max_position_embeddings": 2},
            "max_position_embeddings .2. must be .*above 2",
        ),
        ("roberta", "BERTMaskedLM", {"hidden_act": "relu"}, "hidden_act .'relu'. must be 'gelu'"),
        ("electra", "BERT", {"embedding_size": None}, "embedding_size"),
        ("distilbert", "BERT", {"type_vocab_size": 2}, "type_vocab_size .2. is unknown"),
        ("distilbert", "BERTMaskedLM", {"tie_weights_": False}, "tie_weights_"),
        ("bert", "BERTClassifier", {"problem_type": "ranking"}, "problem_type .'ranking'"),
        ("bert", "BERTClassifier", {"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ("bert", "BERTClassifier", {"id2label": {"0": "a", "1": "a"}}, "different names"),
    ],
)
def test_a_relative_that_we_would_compute_differently_is_refused(model_type, class_name, fields, words):
    with pytest.raises(ValueError, match=words):
        family_of(model_type).read_config(fields, class_name, [])


def test_labels_are_named_or_numbered():
    read = family_of("bert").read_config
    assert read({"id2label": {"1": "b", "0": "a"}}, "BERTClassifier", [])["labels"] == ["a", "b"]
    assert read({"num_labels": 3}, "BERTTokenClassifier", [])["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert read({}, "BERTClassifier", [])["labels"] == ["LABEL_0", "LABEL_1"]
    two = {"id2label": {"0": "a", "1": "b"}}
    assert read(two | {"num_labels": 2}, "BERTClassifier", [])["labels"] == ["a", "b"]
    assert read(two | {"num_labels": 3}, "BERTClassifier", [])["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    for number in (None, "3", 0, 2**30):
        with pytest.raises(ValueError, match="num_labels"):
            read({"num_labels": number}, "BERTClassifier", [])
    assert family_of("roberta").read_config({}, "BERT", [])["vocabulary_size"] == 50265


def test_positions_of_roberta_begin_after_those_of_its_padding_token():
    roberta = family_of("roberta")
    arguments = roberta.read_config({"max_position_embeddings": 514, "type_vocab_size": 1}, "BERT", [])
    assert (arguments["max_sequence_length"], arguments["family"]) == (512, "roberta")
    config = roberta.write_config("BERT", arguments)
    assert (config["max_position_embeddings"], config["pad_token_id"]) == (514, 1)
    assert family_of("xlm-roberta").write_config("BERT", arguments) is None


@pytest.mark.parametrize("name", ["roberta_masked_lm", "distilbert_masked_lm", "electra_generator"])
def test_tied_duplicates_of_a_relative_are_understood(name):
    tensors, config = files.read_tensors(DATA / name), config_of(name)
    family = family_of(config["model_type"])
    arguments = family.read_config(config, "BERTMaskedLM", list(tensors))
    masked_lm = family.families["BERTMaskedLM"]
    rows = masked_lm.expanded(arguments)
    short = {key.removeprefix(f"{family.prefix}."): tensor for key, tensor in tensors.items()}
    unused = {"encoder/embeddings/position/embeddings": slice(2 if "roberta" in name else 0, None)}
    shapes = {
        path: short[row][unused.get(path, slice(None))].T.shape
        if path.endswith("kernel")
        else short[row][unused.get(path, slice(None))].shape
        for row, (path,), _ in rows
    }
    tied = {duplicate: short[original] for duplicate, original in masked_lm.tied.items()}
    arrays = family.read_weights("BERTMaskedLM", arguments, {**tensors, **tied}, shapes)
    assert_same_tensors(family.write_weights("BERTMaskedLM", arguments, arrays), tensors)
    duplicate = next(iter(tied))
    with pytest.raises(ValueError, match=f"{duplicate} .tied to embeddings.word_embeddings.weight"):
        family.read_weights("BERTMaskedLM", arguments, {**tensors, duplicate: tied[duplicate] + 1}, shapes)


def test_heads_that_we_have_no_model_for_are_left_out_with_a_warning(tmp_path):
    tensors = {**files.read_tensors(DATA / "bert_masked_lm"), "cls.species.weight": np.zeros((3, 16), "float32")}
    folder = changed(tmp_path, "bert_masked_lm", tensors=tensors)
    with pytest.warns(UserWarning, match="cls.species.weight"):
        load(folder, "BERTMaskedLM")
    tensors["cls.predictions.surprise"] = np.zeros(3, "float32")
    with pytest.raises(ValueError, match="extra tensors: cls.predictions.surprise"), pytest.warns(UserWarning):
        load(changed(tmp_path, "bert_masked_lm", tensors=tensors), "BERTMaskedLM")
