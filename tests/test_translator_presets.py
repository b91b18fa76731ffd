"""Marian, BART and T5: with the same weights we give transformers' logits and ids, and it reads what we write."""

import functools
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from kerasllm import GenerationConfig, Tokenizer, TransformerTranslator
from kerasllm.checkpoints import files
from kerasllm.checkpoints.bart import BART
from kerasllm.checkpoints.marian import MARIAN
from kerasllm.checkpoints.t5 import T5

DATA = Path(__file__).parent / "data"
NAMES = ("marian", "marian_separate", "bart", "t5", "flan_t5")
FAMILIES = {"marian": MARIAN, "marian_separate": MARIAN, "bart": BART, "t5": T5, "flan_t5": T5}
# GPUs may round the factors of a matrix product to TF32.
TOLERANCE = 1e-5 if "cpu" in str(keras.ops.zeros(1).device).lower() else 5e-3


@functools.cache
def loaded(name):
    return TransformerTranslator.from_preset(DATA / name)


@functools.cache
def answers_of(name):
    return dict(np.load(DATA / name / "answers.npz"))


def config_of(name):
    return json.loads((DATA / name / "config.json").read_text())


def inputs_of(name):
    answers = answers_of(name)
    return {
        "source_token_ids": answers["token_ids"].astype("int32"),
        "source_padding_mask": answers["padding_mask"],
        "target_token_ids": answers["target_token_ids"].astype("int32"),
        "target_padding_mask": answers["target_padding_mask"],
    }


def assert_close(name, logits, expected):
    """Equal up to TOLERANCE of the largest value, at real tokens."""
    is_real = answers_of(name)["target_padding_mask"]
    logits, expected = keras.ops.convert_to_numpy(logits)[is_real], expected[is_real]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name):
    assert_close(name, loaded(name)(inputs_of(name)), answers_of(name)["logits"])


@pytest.mark.in_turn
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_those_of_transformers_by_the_presets_own_defaults(name, num_beams):
    """Start and end, least and largest length, forced and forbidden tokens, n-grams: generation_config.json says."""
    model, answers = loaded(name), answers_of(name)
    sources = [row[mask].tolist() for row, mask in zip(answers["token_ids"], answers["padding_mask"], strict=True)]
    found = model.generate(sources, num_beams=num_beams)
    ends = model.end_token_ids
    for row, expected in zip(found, answers["greedy" if num_beams == 1 else "beams"].tolist(), strict=True):
        end = next((i for i, token in enumerate(expected) if i and token in ends), len(expected) - 1)
        assert row == expected[: end + 1]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_read_is_written_back(name, tmp_path):
    loaded(name).save_to_preset(tmp_path)
    written, original = files.read_tensors(tmp_path), files.read_tensors(DATA / name)
    assert set(written) == set(original)
    for key, tensor in written.items():
        # The two rows that nothing looks up are written as zeros.
        first = 2 if name == "bart" and "embed_positions" in key else 0
        assert tensor.shape == original[key].shape and tensor[first:].tobytes() == original[key][first:].tobytes()
    config, expected = files.read_json(tmp_path / "config.json"), config_of(name)
    told = ("bos_token_id", "pad_token_id")  # by the tokenizer
    # Flan's head is not tied, whatever transformers 5 says.
    expected["tie_word_embeddings"] = name != "flan_t5"
    assert {k: v for k, v in config.items() if k not in told} == {k: expected[k] for k in config if k not in told}
    again = files.read_json(tmp_path / "generation_config.json")
    expected = files.read_json(DATA / name / "generation_config.json") | {"do_sample": False}
    expected["eos_token_id"] = [expected["eos_token_id"]]
    assert again == {key: expected[key] for key in again}


@pytest.mark.parametrize("name", NAMES)
def test_transformers_opens_what_we_write_and_gives_the_same_logits(name, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    loaded(name).save_to_preset(tmp_path)
    architecture = getattr(transformers, files.read_json(tmp_path / "config.json")["architectures"][0])
    theirs, report = architecture.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    given = {"source_token_ids": "input_ids", "source_padding_mask": "attention_mask"}
    given |= {"target_token_ids": "decoder_input_ids", "target_padding_mask": "decoder_attention_mask"}
    inputs = {given[key]: torch.tensor(value.astype("int64")) for key, value in inputs_of(name).items()}
    with torch.no_grad():
        assert_close(name, theirs.eval()(**inputs).logits.numpy(), answers_of(name)["logits"])


def test_the_kinds_of_t5_differ_in_gate_and_head():
    arguments = {name: loaded(name).arguments for name in ("t5", "flan_t5")}
    different = {k: (a, arguments["flan_t5"][k]) for k, a in arguments["t5"].items() if a != arguments["flan_t5"][k]}
    assert different == {
        "activation": ("relu", "gelu_tanh"),
        "gated": (False, True),
        "scale_head": (True, False),
        "tie_embeddings": (True, False),
    }


@pytest.mark.parametrize(
    "name, field, value",
    [
        ("marian", "normalize_before", True),
        ("marian", "static_position_embeddings", False),
        ("marian", "activation_function", "mish"),
        ("marian", "tie_word_embeddings", False),
        ("bart", "tie_word_embeddings", False),
        ("bart", "normalize_embedding", False),
        ("bart", "encoder_layers", 0),
        ("bart", "lora_rank", 4),
        ("t5", "feed_forward_proj", "gated-tanh"),
        ("t5", "relative_attention_num_buckets", 0),
        ("t5", "is_encoder_decoder", False),
    ],
)
def test_a_field_that_is_not_understood_is_named(name, field, value):
    with pytest.raises(ValueError, match=rf"config.json: .*{field} \({value!r}\)"):
        FAMILIES[name].read_config(config_of(name) | {field: value}, "TransformerTranslator", [])


def test_a_decoder_of_more_blocks_than_tensors_is_refused_before_it_is_made(tmp_path):
    shutil.copy(DATA / "bart" / "model.safetensors", tmp_path)
    files.write_json(tmp_path / "config.json", config_of("bart") | {"decoder_layers": 10**6})
    with pytest.raises(ValueError, match=r"num_decoder_layers \(1000000\) must be at most the number of tensors"):
        TransformerTranslator.from_preset(tmp_path)


def test_the_fields_of_older_files_are_understood():
    """opus-mt-en-de and t5-small as they are on the hub."""
    old = {"model_type": "marian", "add_bias_logits": False, "add_final_layer_norm": False, "classif_dropout": 0.0}
    old |= {"encoder_layers": 6, "num_hidden_layers": 6, "normalize_before": False, "normalize_embedding": False}
    old |= {
        "static_position_embeddings": True,
        "activation_function": "swish",
        "vocab_size": 58101,
        "bad_words_ids": [[58100]],
        "num_beams": 6,
    }
    arguments = MARIAN.read_config(old, "TransformerTranslator", [])
    assert arguments["target_vocabulary_size"] == 58101 and arguments["share_embeddings"]
    old = {"model_type": "t5", "n_positions": 512, "output_past": True, "task_specific_params": {}, "num_layers": 6}
    arguments = T5.read_config(old, "TransformerTranslator", ["lm_head.weight"])
    assert arguments["scale_head"] and arguments["tie_embeddings"] and arguments["num_decoder_layers"] == 6
    arguments = T5.read_config(old | {"tie_word_embeddings": False}, "TransformerTranslator", ["lm_head.weight"])
    assert not arguments["scale_head"] and not arguments["tie_embeddings"]


def older(name, arrays):
    """The tensors of a fixture, some in an older form."""
    tensors = files.read_tensors(DATA / name) | arrays
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def shapes_of(name):
    return {v.path: tuple(v.shape) for v in loaded(name).weights}


def test_tensors_of_older_files_are_read():
    model, original = loaded("bart"), files.read_tensors(DATA / "bart")
    # A bare BartModel, its shared embeddings three times, and no output bias.
    bare = {key.removeprefix("model."): t for key, t in original.items() if key != "final_logits_bias"}
    bare |= {f"{side}.embed_tokens.weight": bare["shared.weight"] for side in ("encoder", "decoder")}
    arrays = BART.read_weights("TransformerTranslator", model.arguments, bare, shapes_of("bart"))
    assert not arrays["head/bias"].any() and arrays["head/bias"].shape == (97,)
    bare["decoder.embed_tokens.weight"] = bare["shared.weight"] + 1
    with pytest.raises(ValueError, match="differ .* model.decoder.embed_tokens.weight"):
        BART.read_weights("TransformerTranslator", model.arguments, bare, shapes_of("bart"))


def test_a_marians_stored_positions_must_be_sinusoids():
    j = np.arange(8)
    angles = np.arange(24)[:, None] / 10000 ** (2 * j / 16)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype("float16")
    name = "model.encoder.embed_positions.weight"
    tensors = files.read_tensors(DATA / "marian")
    arguments = ("TransformerTranslator", loaded("marian").arguments)
    MARIAN.read_weights(*arguments, tensors | {name: table}, shapes_of("marian"))
    with pytest.raises(ValueError, match=f"{name} holds no sinusoids"):
        MARIAN.read_weights(*arguments, tensors | {name: table[::-1]}, shapes_of("marian"))


def test_without_generation_config_the_config_decides(tmp_path):
    shutil.copy(DATA / "t5" / "model.safetensors", tmp_path)
    files.write_json(tmp_path / "config.json", config_of("t5") | {"num_beams": 4, "early_stopping": True})
    model = TransformerTranslator.from_preset(tmp_path)
    assert (model.start_token_id, model.end_token_ids) == (0, (1,))
    assert (model.generation_defaults.num_beams, model.generation_defaults.early_stopping) == (4, True)


TOKENIZERS = DATA / "tokenizers"


def fresh(name, size, folder):
    """A folder of an untrained model of a fixture's kind, without its tokenizer."""
    arguments = {"source_vocabulary_size": size, "target_vocabulary_size": size, "initializer_range": 0.5}
    model = TransformerTranslator(**loaded(name).arguments | arguments)
    model.save_to_preset(folder)
    return model


def test_the_tokenizer_of_a_folder_serves_both_sides(tmp_path):
    fresh("bart", 306, tmp_path)
    for file in (TOKENIZERS / "roberta").iterdir():
        shutil.copy(file, tmp_path)
    model = TransformerTranslator.from_preset(tmp_path)
    tokenizer = Tokenizer.from_folder(TOKENIZERS / "roberta")
    assert model.source_tokenizer == model.target_tokenizer == tokenizer
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    assert (model.start_token_id, model.end_token_ids) == (bos, (eos,))  # of its own bos, as nobody said otherwise
    model.start_token_id = eos
    model.generation_defaults = GenerationConfig(forced_bos_token_id=bos, max_length=6)  # BART's

    source = tokenizer.encode("the cat sat")
    assert (source[0], source[-1]) == (bos, eos)
    [ids] = model.generate([source])
    assert ids[:2] == [eos, bos]
    assert model.summarize("the cat sat") == model.translate("the cat sat") == tokenizer.decode(ids)
    target = tokenizer.encode("the mat")
    by_text, [by_ids] = model.score("the cat sat", "the mat"), model.score([source], [[eos, *target]])
    np.testing.assert_array_equal(by_text.token_ids, [eos, *target])
    np.testing.assert_allclose(by_text.log_probs, by_ids.log_probs, rtol=1e-6)

    model.save_to_preset(tmp_path / "again")
    assert not list((tmp_path / "again").glob("*_tokenizer.json"))
    config = files.read_json(tmp_path / "again" / "config.json")
    assert (config["decoder_start_token_id"], config["eos_token_id"], config["bos_token_id"]) == (eos, eos, bos)
    again = TransformerTranslator.from_preset(tmp_path / "again")
    assert again.source_tokenizer == again.target_tokenizer == tokenizer
    assert (again.start_token_id, again.generation_defaults) == (eos, model.generation_defaults)


def test_marians_tokenizers_are_one_for_each_side(tmp_path):
    fresh("marian", 123, tmp_path)
    for file in (TOKENIZERS / "marian").iterdir():
        shutil.copy(file, tmp_path)
    model = TransformerTranslator.from_preset(tmp_path)
    for side in ("source", "target"):
        assert getattr(model, f"{side}_tokenizer") == Tokenizer.from_folder(TOKENIZERS / "marian", f"{side}_")
    model.save_to_preset(tmp_path / "again")
    again = TransformerTranslator.from_preset(tmp_path / "again")
    assert again.tokenizers == model.tokenizers and len(again.tokenizers) == 2


def test_a_start_token_must_be_of_the_vocabulary():
    model = loaded("t5")
    with pytest.raises(ValueError, match="start_token_id"):
        model.start_token_id = 97
