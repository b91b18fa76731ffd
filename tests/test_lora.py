"""Adapters of models: in training, in memory, and in PEFT's files, which answer as with PEFT.

The files are those of tests/data/make_adapter_fixtures.py.
"""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file

import kerasllm
from kerasllm.models.adapters import (
    Adapter,
    add_lora,
    get_adapter,
    load_adapter,
    merge_lora,
    read_adapter,
    save_adapter,
    set_adapter,
    unmerge_lora,
)

DATA = pathlib.Path(__file__).parent / "data"
CLASSES = {
    "gpt2": kerasllm.GPT,
    "llama": kerasllm.GPT,
    "gpt_neox": kerasllm.GPT,
    "bert_classifier": kerasllm.BERTClassifier,
    "marian": kerasllm.TransformerTranslator,
    "t5": kerasllm.TransformerTranslator,
}
X = {"token_ids": np.arange(3, 13).reshape(2, 5), "padding_mask": np.ones((2, 5), bool)}


def model_of(name, **arguments):
    return CLASSES[name].from_preset(DATA / name, **arguments)


def small_gpt(**arguments):
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 8, "dropout": 0.0}
    return kerasllm.GPT(20, **{**sizes, "initializer_range": 0.3, **arguments})


def inputs_of(name, ids):
    """As transformers reads them, which has no padding in these."""
    mask = np.ones(ids.shape, bool)
    if name in ("marian", "t5"):
        given = {"source_token_ids": ids, "target_token_ids": ids[:, ::-1].copy()}
        return given | {"source_padding_mask": mask, "target_padding_mask": mask}
    inputs = {"token_ids": ids, "padding_mask": mask}
    return inputs | ({"segment_ids": np.zeros_like(ids)} if name.startswith("bert") else {})


def logits_of(model, inputs):
    return ops.convert_to_numpy(model(inputs))


def with_numbers(model, seed=0):
    """The model, whose adapter has random numbers."""
    for i, variable in enumerate(model.trainable_variables):
        variable.assign(keras.random.normal(variable.shape, stddev=0.3, seed=seed + i))
    return model


@pytest.mark.once("torch")
@pytest.mark.parametrize("name", CLASSES)
def test_peft_files_open_and_answer_as_with_peft(name, tmp_path):
    model = model_of(name)
    answers = np.load(DATA / "adapters" / name / "answers.npz")
    inputs, expected = inputs_of(name, answers["token_ids"].astype("int32")), answers["logits"]
    before = logits_of(model, inputs)
    load_adapter(model, DATA / "adapters" / name)
    scale = np.abs(expected).max()
    assert np.abs(before - expected).max() > 0.05 * scale
    np.testing.assert_allclose(logits_of(model, inputs), expected, atol=1e-5 * scale)
    # Written and read again they are the same: as factors, and merged.
    save_adapter(model, tmp_path)
    copy = model_of(name)
    load_adapter(copy, tmp_path)
    merge_lora(copy)
    np.testing.assert_allclose(logits_of(copy, inputs), expected, atol=2e-5 * scale)
    theirs = load_file(DATA / "adapters" / name / "adapter_model.safetensors")
    ours = load_file(tmp_path / "adapter_model.safetensors")
    assert theirs.keys() == ours.keys()
    whole = [tensor for tensor in ours if "lora" not in tensor]
    assert all(np.array_equal(ours[tensor], theirs[tensor]) for tensor in whole) and bool(whole) == ("bert" in name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_peft_opens_what_we_write(name, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    import torch

    model = model_of(name)
    add_lora(model, 2, 5, r"attention/(query|output)$|feed_forward")
    with_numbers(model)
    save_adapter(model, tmp_path)
    ids = np.load(DATA / "adapters" / name / "answers.npz")["token_ids"]
    kind = {
        "bert_classifier": transformers.AutoModelForSequenceClassification,
        "marian": transformers.AutoModelForSeq2SeqLM,
        "t5": transformers.AutoModelForSeq2SeqLM,
    }.get(name, transformers.AutoModelForCausalLM)
    reference = peft.PeftModel.from_pretrained(kind.from_pretrained(DATA / name), tmp_path).eval()
    ids = torch.from_numpy(ids)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids.flip(1)} if name in ("marian", "t5") else {})
    with torch.no_grad():
        expected = reference(**inputs).logits.numpy()
    ours = logits_of(model, inputs_of(name, ids.numpy().astype("int32")))
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.in_turn
@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_only_the_factors_are_trained(mode, tmp_path):
    model = small_gpt(num_layers=1)
    if mode:
        model.quantize(mode)
    before = logits_of(model, X)
    paths = add_lora(model, 4, 8)
    np.testing.assert_array_equal(logits_of(model, X), before)
    assert len(paths) == 6 and "decoder/block_0/feed_forward/output" in paths
    assert len(model.trainable_variables) == 12
    frozen = {v.path: ops.convert_to_numpy(v.value) for v in model.variables if "lora" not in v.path}
    model.compile(keras.optimizers.Adam(0.03), kerasllm.training.TokenCrossentropy())
    labels = np.roll(X["token_ids"], -1, axis=1)
    losses = model.fit(X, labels, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    for variable in model.variables:
        if variable.path in frozen and "seed" not in variable.path:
            np.testing.assert_array_equal(ops.convert_to_numpy(variable.value), frozen[variable.path])
    # In a file of its own, and in the model's, it goes on.
    after = logits_of(model, X)
    save_adapter(model, tmp_path / "adapter")
    set_adapter(model, None)
    np.testing.assert_allclose(logits_of(model, X), before, atol=1e-5)
    load_adapter(model, tmp_path / "adapter")
    np.testing.assert_allclose(logits_of(model, X), after, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(logits_of(loaded, X), after, atol=1e-5)
    assert [v.path for v in loaded.trainable_variables] == [v.path for v in model.trainable_variables]


def test_adapters_take_turns():
    model = small_gpt()
    plain = logits_of(model, X)
    add_lora(model, 2, 4, "query|value")
    adapters, answers = {}, {}
    for seed, name in enumerate(("a", "b")):
        with_numbers(model, 10 * seed)
        adapters[name], answers[name] = get_adapter(model), model.predict(X, verbose=0)
    # Another alpha, rank and layers.
    other = small_gpt()
    for variable, value in zip(other.variables, (v for v in model.variables if "lora" not in v.path), strict=True):
        variable.assign(value)
    add_lora(other, 3, 9, "feed_forward/output")
    adapters["c"], answers["c"] = get_adapter(with_numbers(other, 50)), other.predict(X, verbose=0)
    scaled = {path: f._replace(scale=5 * f.scale, b=f.b / 5) for path, f in adapters["a"].factors.items()}
    adapters["d"], answers["d"] = Adapter(scaled), answers["a"]
    for name in ("a", "b", "d", "c", "b", "d"):
        set_adapter(model, adapters[name])
        np.testing.assert_allclose(model.predict(X, verbose=0), answers[name], atol=1e-5, err_msg=name)
    set_adapter(model, None)
    np.testing.assert_allclose(model.predict(X, verbose=0), plain, atol=1e-5)


def test_merged_and_unmerged_is_as_before():
    model = small_gpt()
    plain = logits_of(model, X)
    add_lora(model)
    adapted = logits_of(with_numbers(model), X)
    adapter = merge_lora(model)
    assert not any("lora" in v.path for v in model.variables)
    assert all(v.trainable for v in model.variables if "seed" not in v.path)
    np.testing.assert_allclose(logits_of(model, X), adapted, atol=1e-5)
    unmerge_lora(model, adapter)
    np.testing.assert_allclose(logits_of(model, X), adapted, atol=1e-5)
    set_adapter(model, None)
    np.testing.assert_allclose(logits_of(model, X), plain, atol=1e-5)


def test_a_head_that_begins_at_random_is_trained_too():
    model = model_of("bert_classifier")
    add_lora(model, 2, 2)
    whole = [v.path for v in model.trainable_variables if "lora" not in v.path]
    assert whole == ["classifier/kernel", "classifier/bias"]
    assert get_adapter(model).whole.keys() == set(whole)
    model = model_of("bert_classifier")
    add_lora(model, 2, 2, "query", train_also=["norm/", "^classifier"])
    assert {v.path.split("/")[-2] for v in model.trainable_variables if "lora" not in v.path} > {"classifier"}


@pytest.mark.once("jax")
def test_what_is_wrong_is_named(tmp_path):
    model = small_gpt()
    with pytest.raises(ValueError, match="has no layer with LoRA"):
        get_adapter(model)
    for arguments, message in (
        ({"targets": "qeury"}, "targets: 'qeury' is found in none of"),
        ({"targets": ["query", "("]}, "targets"),
        ({"train_also": "nowhere"}, "train_also: 'nowhere' is found in no path"),
        ({"rank": 0}, "rank"),
        ({"alpha": -1}, "alpha"),
    ):
        with pytest.raises(ValueError, match=message):
            add_lora(model, **arguments)
    assert not any("lora" in v.path for v in model.variables) and len(model.trainable_variables) == 36
    with pytest.raises(ValueError, match="RNNLanguageModel has no such layer"):
        add_lora(kerasllm.RNNLanguageModel(20, hidden_dim=8, num_layers=1, tie_embeddings=True))
    model.compile("adam", kerasllm.training.TokenCrossentropy())
    model.fit(X, X["token_ids"], verbose=0)
    add_lora(model)
    with pytest.raises(ValueError, match="call `compile"):
        model.fit(X, X["token_ids"], verbose=0)
    model = small_gpt()
    add_lora(model, targets="query")
    with pytest.raises(ValueError, match="has LoRA already"):
        add_lora(model, targets="query|value")
    with pytest.raises(ValueError, match="is of another model"):
        set_adapter(small_gpt(hidden_dim=8), get_adapter(model))
    model = small_gpt()
    model.quantize("int8")
    add_lora(model)
    with pytest.raises(ValueError, match="is quantized"):
        merge_lora(model)
    tied = small_gpt()
    add_lora(tied, targets="token$")
    with pytest.raises(ValueError, match="PEFT adapts where it is looked up alone"):
        save_adapter(tied, tmp_path)


CHANGES = {
    "use_dora": (True, r"use_dora \(True\) is not computed here"),
    "peft_type": ("LOHA", "peft_type"),
    "bias": ("all", "bias"),
    "init_lora_weights": ("pissa", "init_lora_weights"),
    "r": (4, "are not of rank 4"),
    "lora_alpha": ("8", "lora_alpha"),
    "rank_pattern": ([1], "rank_pattern"),
    "alpha_pattern": ({"(": 2}, "alpha_pattern"),
    "new_field_of_2027": (3, "new_field_of_2027"),
}


@pytest.mark.once("torch")
@pytest.mark.parametrize("field", CHANGES)
def test_fields_that_are_not_computed_are_errors(field, tmp_path):
    value, message = CHANGES[field]
    folder = shutil.copytree(DATA / "adapters" / "gpt2", tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text()) | {field: value}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_adapter(model_of("gpt2"), folder)


@pytest.mark.once("torch")
def test_tensors_of_another_model_are_errors(tmp_path):
    model, folder = model_of("gpt2"), shutil.copytree(DATA / "adapters" / "gpt2", tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    for changed, message in (
        ({name: tensors[name][:, :-1].copy()}, "are for a matrix of"),
        ({name.replace("h.0", "h.9"): tensors[name]}, "one of LoRA's factors"),
        ({name.replace("lora_A.weight", "lora_magnitude_vector"): tensors[name]}, "is not computed here"),
        ({"base_model.model.score.weight": tensors[name]}, "has no tensor 'score.weight'"),
        ({"transformer.h.0": tensors[name]}, "does not begin with"),
    ):
        save_file(tensors | changed, folder / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=message):
            read_adapter(model, folder)
    with pytest.raises(ValueError, match="is of another model|has no module"):
        load_adapter(model_of("llama"), DATA / "adapters" / "gpt2")
    with pytest.raises(ValueError, match="adapter_config.json"):
        read_adapter(model, tmp_path)


def test_generation_follows_the_adapter():
    model = small_gpt()
    plain = model.generate([[1, 2, 3]], max_new_tokens=4, temperature=0.0)
    add_lora(model, 4, 32)
    adapted = with_numbers(model).generate([[1, 2, 3]], max_new_tokens=4, temperature=0.0)
    assert adapted != plain
    set_adapter(model, None)
    assert model.generate([[1, 2, 3]], max_new_tokens=4, temperature=0.0) == plain
