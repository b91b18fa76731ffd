"""What all models share: the contract of `keras.Model`, of generation, of files."""

import collections
import json
import pathlib
import types

import keras
import numpy as np
import pytest
from checks import check_generation, check_model, check_padding_changes_nothing, check_parts
from keras import ops

from kerasllm import (
    BERT,
    GPT,
    BERTClassifier,
    BERTEmbedder,
    BERTMaskedLM,
    BERTQuestionAnswerer,
    BERTTokenClassifier,
    LSTMTranslator,
    RNNLanguageModel,
    Summarizer,
    TransformerTranslator,
)
from kerasllm.models.base import Model
from kerasllm.text.tokenizers import Tokenizer
from kerasllm.training import TokenCrossentropy

V = 13
GEMMA = {
    "norm": "unit_offset_rms",
    "residual": "both",
    "attention_softcap": 5.0,
    "logit_softcap": 9.0,
    "positions": "rotary",
    "gated": True,
    "activation": "silu",
    "use_bias": False,
    "num_key_value_heads": 1,
    "tie_embeddings": False,
}
SMALL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "initializer_range": 0.3}
SHARED = {"embedding_dim": 4, "tie_embeddings": True, "share_embeddings": True}
LANGUAGE_MODELS = {
    "gpt": lambda **k: GPT(V, **SMALL, max_sequence_length=32, dropout=0.0, **k),
    "gemma": lambda **k: GPT(V, **SMALL, max_sequence_length=32, dropout=0.0, **GEMMA, **k),
    "lstm": lambda **k: RNNLanguageModel(V, num_layers=2, hidden_dim=8, dropout=0.0, **k),
    "gru": lambda **k: RNNLanguageModel(V, hidden_dim=8, cell="gru", tie_embeddings=True, embedding_dim=4, **k),
    "rnn": lambda **k: RNNLanguageModel(V, hidden_dim=8, cell="simple", num_attention_heads=2, **k),
}
TRANSLATORS = {
    "additive": lambda **k: LSTMTranslator(11, V, num_layers=2, hidden_dim=8, dropout=0.0, **k),
    "general": lambda **k: LSTMTranslator(
        11, V, hidden_dim=8, embedding_dim=4, cell="gru", attention="general", tie_embeddings=True, **k
    ),
    "dot": lambda **k: LSTMTranslator(11, V, hidden_dim=8, attention="dot", bidirectional=False, **k),
    "none": lambda **k: LSTMTranslator(11, V, hidden_dim=8, attention=None, cell="simple", **k),
    "fed": lambda **k: LSTMTranslator(11, V, num_layers=2, hidden_dim=8, dropout=0.0, input_feeding=True, **k),
    "shared": lambda **k: LSTMTranslator(
        V, V, hidden_dim=8, cell="gru", attention="general", dropout=0.0, **SHARED, input_feeding=True, **k
    ),
    "transformer": lambda **k: TransformerTranslator(
        11, V, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=32, dropout=0.0, **k
    ),
    "pre-norm": lambda **k: TransformerTranslator(
        11, V, 1, 2, 8, max_sequence_length=32, norm_first=True, positions="relative", tie_embeddings=False, **k
    ),
}
ENCODERS = {
    "bert": lambda **k: BERT(V, **SMALL, max_sequence_length=32, dropout=0.0, **k),
    "masked_lm": lambda **k: BERTMaskedLM(V, **SMALL, max_sequence_length=32, dropout=0.0, **k),
    "electra": lambda **k: BERTClassifier(
        V, **SMALL, embedding_dim=4, num_segments=1, labels=3, pooler_activation="gelu", dropout=0.0, **k
    ),
}


def ids(*shape, size=V):
    return np.random.default_rng(0).integers(1, size, shape).astype("int32")


def ragged(rows=4, length=6):
    return np.arange(length)[None] < length - np.arange(rows)[:, None]


def language_batch():
    labels = np.where(ragged(), ids(4, 6), -1)
    return {"token_ids": ids(4, 6), "padding_mask": ragged()}, labels


def translation_batch():
    x = {
        "source_token_ids": ids(4, 5, size=11),
        "source_padding_mask": ragged(4, 5),
        "target_token_ids": ids(4, 6),
        "target_padding_mask": ragged(),
    }
    return x, np.where(ragged(), ids(4, 6), -1)


def encoder_batch(name):
    x = {"token_ids": ids(4, 6), "segment_ids": ids(4, 6) % 2, "padding_mask": ragged()}
    if name == "masked_lm":
        return {**x, "masked_positions": np.array([[1, 2], [0, 1], [0, 0], [2, 0]], "int32")}, ids(4, 2)
    if name == "electra":
        return {key: x[key] for key in ("token_ids", "padding_mask")}, ids(4, size=3)
    y = {"sequence_output": np.zeros((4, 6, 8), "float32"), "pooled_output": np.ones((4, 8), "float32")}
    return x, y


def but_rarely(models, *rare):
    """The models' names; those that are made of the same parts as others are tested with the slow tests."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in rare else []) for name in models]


@pytest.mark.in_turn
@pytest.mark.parametrize("name", but_rarely(LANGUAGE_MODELS, "gru"))
def test_a_language_model_keeps_the_model_contract(name):
    check_model(LANGUAGE_MODELS[name], language_batch(), loss=TokenCrossentropy(), unreached=("key/bias",))


@pytest.mark.in_turn
@pytest.mark.parametrize("name", but_rarely(TRANSLATORS, "dot", "none"))
def test_a_translator_keeps_the_model_contract(name):
    check_model(TRANSLATORS[name], translation_batch(), loss=TokenCrossentropy(), unreached=("key/bias",))


@pytest.mark.in_turn
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_keeps_the_model_contract(name):
    loss = TokenCrossentropy() if name != "bert" else {"sequence_output": "mse", "pooled_output": "mse"}
    check_model(ENCODERS[name], encoder_batch(name), loss=loss, unreached=("key/bias",))


@pytest.mark.in_turn
@pytest.mark.parametrize(
    "cls, given",
    [
        (Summarizer, {}),
        (Summarizer, {"share": True}),
        (BERTTokenClassifier, {"labels": 3}),
        (BERTQuestionAnswerer, {}),
        (BERTEmbedder, {}),
    ],
)
def test_files_of_other_models_keep_what_is_set_on_parts(cls, given):
    model = cls(V, **SMALL, max_sequence_length=32, **given)
    x = encoder_batch("bert")[0]
    if cls is Summarizer:
        x = translation_batch()[0]
    check_parts(model, x, loss="mse")


@pytest.mark.in_turn
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_do_not_see_padding_on_the_right(name):
    x, _ = language_batch()
    check_padding_changes_nothing(LANGUAGE_MODELS[name](), x)


@pytest.mark.in_turn
@pytest.mark.parametrize("name", TRANSLATORS)
def test_translators_do_not_see_padding(name):
    x, _ = translation_batch()
    check_padding_changes_nothing(TRANSLATORS[name](), x, ["source_token_ids", "source_padding_mask"])
    check_padding_changes_nothing(TRANSLATORS[name](), x, ["target_token_ids", "target_padding_mask"])


def test_bert_does_not_see_padding():
    x, _ = encoder_batch("masked_lm")
    check_padding_changes_nothing(ENCODERS["masked_lm"](), x, ["token_ids", "segment_ids", "padding_mask"])


@pytest.mark.in_turn
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_generate_what_the_full_pass_says(name):
    check_generation(LANGUAGE_MODELS[name](), {}, [[1, 2, 3, 4, 5], [7], [3, 4]])


@pytest.mark.in_turn
@pytest.mark.parametrize("name", TRANSLATORS)
def test_translators_generate_what_the_full_pass_says(name):
    source = {"source_token_ids": ids(3, 4, size=11), "source_padding_mask": ragged(3, 4)}
    check_generation(TRANSLATORS[name](), source, [[1], [1, 5, 6], [1]], prefix="target_")


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_are_causal(name):
    x, _ = language_batch()
    x["padding_mask"] = np.ones((4, 6), bool)
    model = LANGUAGE_MODELS[name]()
    later = {**x, "token_ids": np.where(np.arange(6) < 3, x["token_ids"], 1)}
    first, second = (ops.convert_to_numpy(model(inputs, training=False)) for inputs in (x, later))
    np.testing.assert_allclose(first[:, :3], second[:, :3], atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [LANGUAGE_MODELS["lstm"], TRANSLATORS["transformer"], TRANSLATORS["shared"], LANGUAGE_MODELS["gemma"]],
)
def test_a_preset_gives_the_model_back(make, tmp_path):
    model = make()
    model.save_to_preset(tmp_path / "preset")
    copy = type(model).from_preset(tmp_path / "preset")
    # What was left open at its default, a file in a foreign family's layout says.
    given = {key: value for key, value in model.get_config().items() if value is not None}
    assert given.items() <= copy.get_config().items()
    for a, b in zip(model.get_weights(), copy.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_a_quantised_preset_gives_the_model_back(tmp_path):
    model, x = LANGUAGE_MODELS["gemma"](), language_batch()[0]
    with pytest.warns(UserWarning, match="does not have a `quantize`"):
        model.quantize("int8", filters=["query", "token", "output"])
    for part, rank in ((model.decoder.blocks[0].attention.query, 2), (model.head, 1)):  # of int8 and of floats
        part.enable_lora(rank, lora_alpha=3)
        part.lora_kernel_b.assign(np.ones(part.lora_kernel_b.shape))
    model.decoder.trainable = False  # which a preset leaves to its user
    model.save_to_preset(tmp_path / "preset")
    copy = GPT.from_preset(tmp_path / "preset")
    assert [v.path for v in copy.weights] == [v.path for v in model.weights if "head/lora" not in v.path]
    assert copy.decoder.trainable and copy.decoder.blocks[0].attention.query.lora_enabled
    outputs = [ops.convert_to_numpy(each(x, training=False)) for each in (model, copy)]
    np.testing.assert_allclose(*outputs, atol=1e-5)
    assert copy.generate([[1, 2], [3]], max_new_tokens=4) == model.generate([[1, 2], [3]], max_new_tokens=4)
    config = json.loads((tmp_path / "preset" / "config.json").read_text())
    config["parts"]["head"] = {"quantization": {"module": "keras.utils", "class_name": "get_file", "config": {}}}
    (tmp_path / "preset" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="parts: module .'keras.utils'. must be 'keras.quantizers'"):
        GPT.from_preset(tmp_path / "preset")


def test_nothing_begins_with_the_weights_of_a_quantised_model(tmp_path):
    model = ENCODERS["bert"]()
    model.encoder.embeddings.token.quantize("int8")
    model.save_to_preset(tmp_path)
    for begin, options in (BERTClassifier.from_preset, {"fresh_head": True}), (Summarizer.from_bert, {}):
        with pytest.raises(ValueError, match="has quantised weights: begin with those from before"):
            begin(tmp_path, **options)
    with pytest.raises(ValueError, match="dtype .'int8_from_float32'. must be a policy of floats"):
        ENCODERS["bert"](dtype="int8_from_float32")


def test_a_trained_model_generates_with_its_new_weights():
    model = LANGUAGE_MODELS["gpt"]()
    before = model.generate([[1, 2]], max_new_tokens=8)
    x, y = language_batch()
    model.compile(keras.optimizers.SGD(5.0), TokenCrossentropy())
    model.fit(x, y, epochs=2, verbose=0)
    after = model.generate([[1, 2]], max_new_tokens=8)
    fresh = LANGUAGE_MODELS["gpt"]()
    fresh.set_weights(model.get_weights())
    assert after == fresh.generate([[1, 2]], max_new_tokens=8) != before


def test_parts_of_a_long_list_are_generated_like_the_whole():
    model = LANGUAGE_MODELS["gpt"]()
    prompts = [[1, 2], [3], [4, 5, 6], [7, 8], [9]]
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
    assert model.generate(prompts, batch_size=2, **options) == model.generate(prompts, **options)


def test_ids_come_back_in_the_form_they_came_in():
    model = LANGUAGE_MODELS["gpt"]()
    lists = model.generate([[1, 2], [3]], max_length=5)
    assert [len(row) for row in lists] == [5, 5] and lists[0][:2] == [1, 2]
    array = model.generate(np.array([[1, 2], [3, 4]]), max_new_tokens=3)
    assert array.shape == (2, 5) and array.dtype == "int32"
    assert model.generate(np.array([[1, 2]]), max_new_tokens=3, num_return_sequences=2).shape == (1, 2, 5)


MAPPINGS = {
    "dict": lambda ids, mask: {"token_ids": ids, "padding_mask": mask},
    "UserDict": lambda ids, mask: collections.UserDict(token_ids=ids, padding_mask=mask.astype(bool)),
    "names of transformers": lambda ids, mask: types.MappingProxyType({"input_ids": ids, "attention_mask": mask}),
    "lists": lambda ids, mask: collections.UserDict(input_ids=ids.tolist(), attention_mask=mask.tolist()),
    "tensors": lambda ids, mask: {"token_ids": ops.convert_to_tensor(ids), "padding_mask": mask},
}


@pytest.mark.once("torch")
@pytest.mark.parametrize("make", MAPPINGS.values(), ids=MAPPINGS)
def test_any_mapping_of_ids_and_mask_is_read_as_its_rows(make):
    model, rows = LANGUAGE_MODELS["gpt"](), [[1, 2, 3], [4, 5]]
    mapping = make(np.array([[1, 2, 3], [0, 4, 5]]), np.array([[1, 1, 1], [0, 1, 1]]))
    model.tokenizer = Tokenizer.train_words(["a b c d e f g h i"], V)  # with which keys could be read as texts
    expected = model.generate(rows, max_new_tokens=2, return_scores=True)
    for got, row in zip(model.generate(mapping, max_new_tokens=2, return_scores=True), expected, strict=True):
        assert got.token_ids.tolist() == row.token_ids.tolist()
    for got, row in zip(model.score(mapping), model.score(rows), strict=True):
        np.testing.assert_allclose(got.log_probs, row.log_probs, atol=1e-6)


def test_translators_read_mappings_and_arrays_too():
    model, rows = TRANSLATORS["transformer"](), [[1, 2, 3], [4, 5]]
    mapping = MAPPINGS["names of transformers"](np.array([[1, 2, 3], [0, 4, 5]]), np.array([[1, 1, 1], [0, 1, 1]]))
    targets = [[1, 2], [1, 3]]
    expected = model.generate(rows, targets, max_new_tokens=2)
    assert model.generate(mapping, np.array(targets), max_new_tokens=2) == expected
    for got, row in zip(model.score(mapping, np.array(targets)), model.score(rows, targets), strict=True):
        np.testing.assert_allclose(got.log_probs, row.log_probs, atol=1e-6)


@pytest.mark.parametrize(
    "mapping",
    [{"input_ids": [[1]]}, {"input_ids": [[1]], "attention_mask": [[1]], "token_type_ids": [[0]]}, {"text": ["a"]}],
)
def test_other_mappings_are_errors_that_name_the_keys(mapping):
    for model in (LANGUAGE_MODELS["gpt"](), TRANSLATORS["transformer"]()):
        for method in (model.generate, lambda x, model=model: model.score(x, *[[[1, 2]]] * (model.name != "gpt"))):
            with pytest.raises(ValueError, match="must hold token_ids and padding_mask, or input_ids and attention"):
                method(mapping)


def test_class_weights_are_refused_where_each_token_has_a_label():
    batches = [("gpt", language_batch), ("transformer", translation_batch)]
    for name, make_batch in batches:
        model = {**LANGUAGE_MODELS, **TRANSLATORS}[name]()
        model.compile("sgd", TokenCrossentropy())
        for call in (model.fit, model.train_on_batch):
            with pytest.raises(ValueError, match="class_weight .* is for rows of one label"):
                call(*make_batch(), class_weight={0: 5.0})
    assert not ENCODERS["masked_lm"]().has_one_label
    classifiers = {"single_label": 3, "multi_label": 3, "regression": 3}
    one = [BERTClassifier(V, **SMALL, labels=n, problem_type=kind).has_one_label for kind, n in classifiers.items()]
    assert one == [True, False, False]


def test_a_classifier_weighs_classes():
    model = ENCODERS["electra"]()
    x, y = {"token_ids": ids(4, 6), "padding_mask": ragged()}, np.array([0, 1, 2, 0])
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    weighted = model.fit(x, y, class_weight={0: 3.0}, verbose=0).history["loss"]
    weights = np.array([3.0, 1.0, 1.0, 3.0])
    assert weighted == pytest.approx(model.fit(x, y, sample_weight=weights, verbose=0).history["loss"])


def test_every_kind_of_tokenizer_file_is_found(tmp_path):
    data = pathlib.Path(__file__).parent / "data" / "tokenizers"
    prefixes = {"tokenizer": ""}
    for name in ("t5", "albert", "xlm_roberta", "llama", "roberta", "bert"):
        model = types.SimpleNamespace(tokenizer_prefixes=prefixes, named_token_ids=None)
        Model.load_tokenizers(model, data / name)
        assert model.tokenizer == Tokenizer.from_folder(data / name)
    translator = types.SimpleNamespace(tokenizer_prefixes=LSTMTranslator.tokenizer_prefixes, named_token_ids=None)
    for name in ("t5", "marian"):
        Model.load_tokenizers(translator, data / name)
        assert translator.source_tokenizer == Tokenizer.from_folder(data / name, "source_")
        assert translator.target_tokenizer == Tokenizer.from_folder(data / name, "target_")
    empty = types.SimpleNamespace(tokenizer_prefixes=prefixes, named_token_ids=None)
    Model.load_tokenizers(empty, tmp_path)
    assert not hasattr(empty, "tokenizer")


def test_int8_models_have_activations_of_12_bits_unless_told_otherwise():
    def activations(config=None):
        model = GPT(7, num_layers=1, num_heads=1, hidden_dim=4, max_sequence_length=4)
        with pytest.warns(UserWarning, match="does not have a `quantize`"):
            model.quantize("int8", config)
        return {layer.inputs_quantizer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)}

    assert {quantizer.value_range for quantizer in activations()} == {(-2032, 2032)}
    assert activations(keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)) == {None}


@pytest.mark.in_turn
@pytest.mark.parametrize("name", ["gpt", "general", "transformer", "masked_lm"])
def test_a_model_has_the_policy_it_was_given_and_outputs_of_its_dtype(name):
    make = {**LANGUAGE_MODELS, **TRANSLATORS, **ENCODERS}[name]
    model = make(dtype=keras.DTypePolicy("mixed_float16"))
    assert model.dtype_policy.name == type(model).from_config(model.get_config()).dtype_policy.name == "mixed_float16"
    assert (model.compute_dtype, model.variable_dtype) == ("float16", "float32")
    x = {key: np.ones((2, 3), "bool" if key.endswith("padding_mask") else "int32") for key in model.input}
    assert keras.backend.standardize_dtype(model(x).dtype) == model.output.dtype == "float16"


def test_maps_of_policies_are_refused():
    policies = keras.dtype_policies.DTypePolicyMap("mixed_bfloat16", {"decoder/block_0": keras.DTypePolicy("float32")})
    with pytest.raises(ValueError, match="dtype .<DTypePolicyMap.* must be one policy for all layers"):
        LANGUAGE_MODELS["gpt"](dtype=policies)


def test_the_loss_of_a_model_in_mixed_float16_is_scaled(tmp_path):
    model = LANGUAGE_MODELS["gpt"](dtype="mixed_float16")
    model.compile(keras.optimizers.Adam(0.01), loss=TokenCrossentropy())
    losses = model.fit(*language_batch(), epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0] and int(model.optimizer.step_counter) > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is keras.optimizers.LossScaleOptimizer
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a.value), ops.convert_to_numpy(b.value))
    # Files written before models had a policy hold the state of an optimizer without a scale.
    config = {key: value for key, value in model.get_compile_config().items() if key != "auto_scale_loss"}
    loaded.compile_from_config(config)
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)
