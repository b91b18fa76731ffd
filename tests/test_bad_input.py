"""Every mistake is a `ValueError` that names the argument, its value and what to do."""

import json

import keras
import numpy as np
import pytest

from kerasllm import (
    BERT,
    GPT,
    BERTClassifier,
    BERTMaskedLM,
    GenerationConfig,
    LSTMTranslator,
    RNNLanguageModel,
    Tokenizer,
    TransformerTranslator,
    layers,
)
from kerasllm.training import WarmupCosine

TEXTS = ["the cat sat on the mat .", "the dog ran to the cat .", "a bird sings"]
SMALL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def words():
    return Tokenizer.train_words(TEXTS, 40, pad="<pad>", unk="<unk>", bos="<s>", eos="</s>")


@pytest.fixture(scope="module")
def startless():
    return Tokenizer.train_words(TEXTS, 40, bos=None)


@pytest.fixture(scope="module")
def pieces():
    return Tokenizer.train_wordpiece(TEXTS, 60)


@pytest.fixture(scope="module")
def gpt(words):
    return GPT(words.vocabulary_size, **SMALL, tokenizer=words)


@pytest.fixture(scope="module")
def bert(pieces):
    return BERTMaskedLM(pieces.vocabulary_size, **SMALL, tokenizer=pieces)


@pytest.fixture(scope="module")
def translator(words):
    n = words.vocabulary_size
    return TransformerTranslator(n, n, **SMALL, source_tokenizer=words, target_tokenizer=words)


def refused(call, *said):
    """`call` raises a `ValueError` that holds every one of `said`."""
    with pytest.raises(ValueError) as error:
        call()
    for part in said:
        assert part in str(error.value), f"{part!r} is not in: {error.value}"


CONSTRUCTORS = {
    "heads do not divide the width": (lambda: GPT(9, 1, 3, 8), "hidden_dim (8)", "num_heads (3)"),
    "key/value heads do not divide heads": (
        lambda: GPT(9, 1, 4, 8, num_key_value_heads=3),
        "num_key_value_heads (3)",
        "num_heads (4)",
    ),
    "unknown size": (lambda: BERT.from_size("huge", vocabulary_size=9), "size ('huge')", "'tiny'"),
    "unknown cell": (lambda: LSTMTranslator(9, 9, cell="rnn"), "cell ('rnn')", "'lstm'"),
    "unknown attention": (lambda: LSTMTranslator(9, 9, attention="luong"), "attention ('luong')", "'additive'"),
    "input feeding without attention": (
        lambda: LSTMTranslator(9, 9, attention=None, input_feeding=True),
        "input_feeding (True)",
        "attention (None)",
        "'additive'",
    ),
    "one table for two vocabularies": (
        lambda: LSTMTranslator(9, 8, share_embeddings=True),
        "share_embeddings (True)",
        "source_vocabulary_size (9)",
        "target_vocabulary_size (8)",
    ),
    "dot products of unequal widths": (
        lambda: LSTMTranslator(9, 9, attention="dot"),
        "attention ('dot')",
        "bidirectional (True)",
        "'general'",
    ),
    "a mask of floats": (
        lambda: layers.MultiHeadAttention(2)(np.ones((2, 3, 8), "float32"), attention_mask=np.zeros((2, 1, 3, 3))),
        "attention_mask of shape (2, 1, 3, 3) must be boolean",
    ),
    "a mask of another length": (
        lambda: layers.TransformerEncoder(9, 1, 2, 8)(np.ones((2, 3), "int32"), padding_mask=np.ones((2, 4), bool)),
        "padding_mask of shape (2, 4)",
        "(2, 3)",
    ),
    "a mask of one row for two": (
        lambda: layers.Recurrent(4)(np.ones((2, 3, 8), "float32"), padding_mask=np.ones((1, 3), bool)),
        "padding_mask of shape (1, 3)",
        "(2, 3)",
    ),
    "unknown norm": (lambda: GPT(9, 1, 2, 8, norm="batch"), "norm ('batch')", "'rms'"),
    "unknown positions": (lambda: GPT(9, 1, 2, 8, positions="absolute"), "positions ('absolute')", "'rotary'"),
    "unknown activation": (lambda: GPT(9, 1, 2, 8, activation="glue"), "activation ('glue')"),
    "odd rotary heads": (lambda: GPT(9, 1, 2, 6, positions="rotary"), "head_dim (3)", "even"),
    "unknown rope scaling": (
        lambda: GPT(9, 1, 2, 8, positions="rotary", rope_scaling={"rope_type": "ntk"}),
        "rope_scaling ({'rope_type': 'ntk'})",
        "'llama3'",
    ),
    "rope scaling without its factor": (
        lambda: GPT(9, 1, 2, 8, positions="rotary", rope_scaling={"rope_type": "linear"}),
        "rope_scaling",
        "factor",
    ),
    "rope scaling of learned positions": (
        lambda: GPT(9, 1, 2, 8, rope_scaling={"rope_type": "linear", "factor": 2.0}),
        "rope_scaling",
        "'learned'",
    ),
    "empty window": (lambda: GPT(9, 1, 2, 8, sliding_window=0), "sliding_window (0)", "positive"),
    "no windows": (lambda: GPT(9, 1, 2, 8, sliding_window=[]), "sliding_window ([])", "non-empty list"),
    "empty window of a block": (lambda: GPT(9, 2, 2, 8, sliding_window=[2, 0]), "sliding_window[1] (0)", "positive"),
    "windows without blocks": (lambda: GPT(9, 1, 2, 8, sliding_window=[2, 3]), "sliding_window ([2, 3])", "blocks (1)"),
    "no base": (lambda: GPT(9, 1, 2, 8, positions="rotary", rope_base=None), "rope_base (None)", "one block at least"),
    "two names": (
        lambda: layers.TransformerEncoder(9, 1, 2, 8, residual="pre", norm_first=True),
        "norm_first (True)",
        "older name of residual",
    ),
    "window of an encoder": (
        lambda: layers.TransformerEncoder(9, 1, 2, 8, sliding_window=2),
        "sliding_window (2)",
        "decoders",
    ),
    "warm-up longer than training": (lambda: WarmupCosine(1e-3, 10, 5), "total_steps (5)"),
    "both lengths": (
        lambda: GenerationConfig(max_length=3, max_new_tokens=3),
        "max_length (3)",
        "max_new_tokens (3)",
    ),
    "top_p of zero": (lambda: GenerationConfig(top_p=0.0), "top_p (0.0)", "(0, 1]"),
    "top_p above one": (lambda: GenerationConfig(top_p=1.5), "top_p (1.5)", "(0, 1]"),
}


@pytest.mark.parametrize("mistake", CONSTRUCTORS)
def test_constructors_refuse(mistake):
    call, *said = CONSTRUCTORS[mistake]
    refused(call, *said)


GENERATE = {
    "None": (lambda gpt: gpt.generate(None), "prompts (None)"),
    "an empty list": (lambda gpt: gpt.generate([]), "prompts ([])"),
    "a number": (lambda gpt: gpt.generate(3), "prompts (3)"),
    "an empty row": (lambda gpt: gpt.generate([[1], []]), "prompts[1]", "non-empty"),
    "strings among ids": (lambda gpt: gpt.generate(["the", [1]]), "prompts"),
    "a negative id": (lambda gpt: gpt.generate([[1, -1]]), "prompts", "-1"),
    "an id beyond the vocabulary": (lambda gpt: gpt.generate(np.array([[1, 999]])), "prompts", "999"),
    "fractions": (lambda gpt: gpt.generate(np.array([[0.5, 1.0]])), "prompts[0]"),
    "a prompt beyond the positions": (lambda gpt: gpt.generate([[1] * 17]), "17 tokens", "max_sequence_length (16)"),
    "max_length beyond the positions": (lambda gpt: gpt.generate([[1]], max_length=17), "max_length (17)", "(16)"),
    "too many new tokens": (lambda gpt: gpt.generate([[1, 2]], max_new_tokens=15), "max_new_tokens (15)", "(16)"),
    "a prompt as long as max_length": (lambda gpt: gpt.generate([[1, 2]], max_length=2), "max_length (2)"),
    "an unknown option": (lambda gpt: gpt.generate([[1]], max_tokens=3), "max_tokens", "max_new_tokens"),
    "a config of another kind": (lambda gpt: gpt.generate([[1]], {"top_k": 3}), "config", "GenerationConfig"),
    "no batch": (lambda gpt: gpt.generate([[1]], batch_size=0), "batch_size (0)"),
    "beams and filters": (lambda gpt: gpt.generate([[1]], num_beams=2, top_k=3), "num_beams (2)", "top_k (3)"),
    "more sequences than beams": (
        lambda gpt: gpt.generate([[1]], num_beams=2, num_return_sequences=3),
        "num_return_sequences (3)",
        "num_beams (2)",
    ),
    "an empty stop string": (lambda gpt: gpt.generate([[1]], stop=[""]), "stop ([''])", "non-empty"),
    "a stop id beyond the vocabulary": (lambda gpt: gpt.generate([[1]], stop=999), "stop", "999"),
    "a bad word beyond the vocabulary": (lambda gpt: gpt.generate([[1]], bad_words=[[1, 999]]), "bad_words", "999"),
    "a bias beyond the vocabulary": (lambda gpt: gpt.generate([[1]], logit_bias={999: 1.0}), "logit_bias", "999"),
    "a forced end beyond the vocabulary": (
        lambda gpt: gpt.generate([[1]], forced_eos_token_id=99),
        "forced_eos_token_id",
        "99",
    ),
    "an end that is forced and suppressed": (
        lambda gpt: gpt.generate([[1]], forced_eos_token_id=3, suppress_tokens=[3]),
        "forced_eos_token_id (3)",
        "suppress_tokens",
    ),
    "a start that is forced and a bad word": (
        lambda gpt: gpt.generate([[1]], forced_bos_token_id=3, bad_words=[[3]]),
        "forced_bos_token_id (3)",
        "bad_words",
    ),
    "an end that is forced and ruled out by its bias": (
        lambda gpt: gpt.generate([[1]], forced_eos_token_id=3, logit_bias={3: -np.inf}),
        "forced_eos_token_id (3)",
        "logit_bias",
    ),
    "every id a bad word": (lambda gpt: gpt.generate([[1]], bad_words=[[i] for i in range(16)]), "bad_words", "leave"),
    "every id suppressed or an end": (
        lambda gpt: gpt.generate([[1]], suppress_tokens=[i for i in range(16) if i != 3], stop=3, min_new_tokens=1),
        "suppress_tokens",
        "min_new_tokens (1)",
    ),
    "more beams than symbols": (lambda gpt: gpt.generate([[1]], num_beams=1000), "num_beams (1000)", "(16)"),
    "a penalty that overflows": (
        lambda gpt: gpt.generate([[1]], num_beams=2, length_penalty=-50.0),
        "length_penalty (-50.0)",
        "float32",
    ),
    "a minimum above the length": (
        lambda gpt: gpt.generate([[1]], min_new_tokens=5, max_new_tokens=4),
        "min_new_tokens (5)",
        "max_new_tokens (4)",
    ),
    "nothing that may follow": (
        lambda gpt: gpt.generate([[1]], max_new_tokens=2, prefix_allowed_tokens=lambda i, tokens: []),
        "prefix_allowed_tokens",
    ),
    "an id that may follow and is none": (
        lambda gpt: gpt.generate([[1]], max_new_tokens=2, prefix_allowed_tokens=lambda i, tokens: [999]),
        "prefix_allowed_tokens",
        "999",
    ),
    "an unknown draft": (lambda gpt: gpt.generate([[1]], draft="lookup"), "draft ('lookup')", "'prompt'"),
    "a draft that samples": (lambda gpt: gpt.generate([[1]], draft="prompt", top_k=2), "draft ('prompt')", "top_k"),
    "a draft for two prompts": (lambda gpt: gpt.generate([[1], [2]], draft="prompt"), "draft ('prompt')", "not 2"),
    "a draft that recurs": (lambda gpt: gpt.generate([[1]], draft=RNNLanguageModel(9)), "draft", "RNNLanguageModel"),
    "a draft of other symbols": (lambda gpt: gpt.generate([[1]], draft=GPT(9, **SMALL)), "draft", "9 symbols"),
    "no guesses": (lambda gpt: gpt.generate([[1]], draft="prompt", num_draft_tokens=0), "num_draft_tokens (0)"),
    "a mask of another shape": (
        lambda gpt: gpt.generate({"token_ids": np.ones((1, 3), "int32"), "padding_mask": np.ones((1, 2))}),
        "token_ids (1, 3)",
        "padding_mask (1, 2)",
    ),
    "a dict without a mask": (lambda gpt: gpt.generate({"token_ids": np.ones((1, 3), "int32")}), "padding_mask"),
    "a stream of ids": (lambda gpt: gpt.stream([[1]]), "prompt ([[1]])"),
    "a stream of beams": (lambda gpt: gpt.stream("the", num_beams=2), "num_beams (2)"),
    "half a character": (lambda gpt: gpt.generate(["the", "a\ud800"]), "prompts[1] ('a\\ud800')", "surrogate"),
    "half a character in a stream": (lambda gpt: gpt.stream("\udfff"), "prompts[0]", "surrogate"),
    "half a character to score": (lambda gpt: gpt.score("the \ud800"), "texts[0]", "surrogate"),
    "nothing to score": (lambda gpt: gpt.score([]), "texts ([])"),
    "one token to score": (lambda gpt: gpt.score([[1, 2], [1]]), "texts[1] ([1])", "two tokens"),
    "too much to score": (lambda gpt: gpt.score([[1] * 17]), "17 tokens", "max_sequence_length (16)"),
}


@pytest.mark.parametrize("mistake", GENERATE)
def test_generate_refuses(mistake, gpt):
    call, *said = GENERATE[mistake]
    refused(lambda: call(gpt), *said)


def test_an_empty_prompt_needs_a_start_token(startless):
    model = GPT(startless.vocabulary_size, **SMALL, tokenizer=startless)
    refused(lambda: model.generate(""), "prompts", "start token")
    translator = LSTMTranslator(9, startless.vocabulary_size, hidden_dim=4, target_tokenizer=startless)
    refused(lambda: translator.generate([[1]]), "prompts (None)", "start token")


def test_strings_need_a_tokenizer():
    refused(lambda: GPT(9, **SMALL).generate("the cat"), "tokenizer (None)", "Tokenizer.from_folder")


TRANSLATE = {
    "None": (lambda t: t.translate(None), "texts (None)"),
    "an empty list": (lambda t: t.translate([]), "texts ([])"),
    "an empty string": (lambda t: t.translate(""), "texts ('')", "not be empty"),
    "a blank among texts": (lambda t: t.translate(["the cat", "  "]), "texts[1] ('  ')"),
    "a number": (lambda t: t.translate(["the", 3]), "texts"),
    "a text beyond the positions": (lambda t: t.translate("the cat " * 9), "18 tokens", "max_sequence_length (16)"),
    "half a character": (lambda t: t.translate("the \ud800"), "texts ('the \\ud800')", "surrogate"),
    "no source": (lambda t: t.generate([]), "sources ([])"),
    "prompts of another number": (lambda t: t.generate([[1]], prompts=[[1], [2]]), "prompts (2", "sources (1)"),
}


@pytest.mark.parametrize("mistake", TRANSLATE)
def test_translate_refuses(mistake, translator):
    call, *said = TRANSLATE[mistake]
    refused(lambda: call(translator), *said)


FILL_MASK = {
    "None": (lambda b: b.fill_mask(None), "texts (None)"),
    "an empty list": (lambda b: b.fill_mask([]), "texts ([])"),
    "an empty string": (lambda b: b.fill_mask(""), "texts ('')"),
    "half a character": (lambda b: b.fill_mask(["[MASK]", "[MASK]\ud800"]), "texts[1]", "surrogate"),
    "no mask": (lambda b: b.fill_mask(["the [MASK]", "the cat"]), "texts[1] ('the cat')", "[MASK]"),
    "no proposals": (lambda b: b.fill_mask("the [MASK]", top_k=0), "top_k (0)"),
    "more proposals than symbols": (lambda b: b.fill_mask("[MASK]", top_k=10**6), "top_k (1000000)"),
    "a text beyond the positions": (lambda b: b.fill_mask("[MASK] " * 20), "22 tokens", "is 16"),
}


@pytest.mark.parametrize("mistake", FILL_MASK)
def test_fill_mask_refuses(mistake, bert):
    call, *said = FILL_MASK[mistake]
    refused(lambda: call(bert), *said)


def test_a_tokenizer_with_more_symbols_than_the_model_is_refused(words):
    size = words.vocabulary_size
    refused(lambda: GPT(size - 1, **SMALL, tokenizer=words), f"tokenizer has {size} symbols", str(size - 1))
    assert GPT(size + 1, **SMALL, tokenizer=words).tokenizer is words  # as in padded checkpoints


@pytest.fixture
def preset(gpt, tmp_path):
    gpt.save_to_preset(tmp_path / "preset")
    return tmp_path / "preset"


def test_a_missing_preset_is_refused(tmp_path):
    refused(lambda: GPT.from_preset(tmp_path / "nothing"), "nothing")


def test_a_preset_of_another_family_is_refused(preset):
    refused(lambda: BERT.from_preset(preset), "gpt2", "BERT")


def test_a_half_written_preset_is_refused(preset):
    weights = preset / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    refused(lambda: GPT.from_preset(preset), "model.safetensors")


def test_half_a_config_is_refused(preset):
    config = preset / "config.json"
    config.write_text(config.read_text()[:-10])
    refused(lambda: GPT.from_preset(preset), "config.json")


def test_a_preset_whose_tokenizer_is_larger_than_the_model_opens_without_it(gpt, preset):
    larger = Tokenizer.train_bpe(["a b c d e f g h"], 300)
    for file in preset.glob("*token*"):
        file.unlink()
    larger.save(preset)
    refused(lambda: GPT.from_preset(preset), str(larger.vocabulary_size), "from_preset(..., tokenizer=None) opens it")
    assert GPT.from_preset(preset, tokenizer=None).tokenizer is None
    assert GPT.from_preset(preset, tokenizer=gpt.tokenizer).tokenizer is gpt.tokenizer


def test_a_fresh_head_takes_no_tokenizer_or_another_one(bert, tmp_path):
    bert.save_to_preset(tmp_path)
    for tokenizer in (None, bert.tokenizer):
        model = BERTClassifier.from_preset(tmp_path, fresh_head=True, labels=2, tokenizer=tokenizer)
        assert model.tokenizer is tokenizer


def test_an_unknown_config_field_is_refused(preset):
    config = preset / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_flux_capacitor": True}))
    refused(lambda: GPT.from_preset(preset), "use_flux_capacitor")


@pytest.mark.parametrize("change", ["missing", "extra", "misshaped"])
def test_tensors_that_do_not_fit_are_named(preset, change):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(preset / "model.safetensors")
    name = next(n for n in tensors if n.endswith("ln_f.weight"))
    if change == "missing":
        del tensors[name]
    elif change == "misshaped":
        tensors[name] = tensors[name][:-1]
    else:
        tensors[name.replace("ln_f", "ln_g")] = tensors[name]
        name = name.replace("ln_f", "ln_g")
    save_file(tensors, preset / "model.safetensors")
    refused(lambda: GPT.from_preset(preset), name)


def test_a_target_that_cannot_be_written_is_refused(gpt, tmp_path):
    (tmp_path / "file").write_text("whole")
    refused(lambda: gpt.save_to_preset(tmp_path / "file"), "file")
    assert (tmp_path / "file").read_text() == "whole"


def test_an_unknown_export_format_is_refused(gpt, tmp_path):
    refused(lambda: gpt.export(tmp_path / "model", format="tflight"), "format=tflight", "litert")


def test_an_unknown_backend_is_refused(monkeypatch):
    from kerasllm import backend

    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    refused(lambda: backend.compiled(lambda: None, None), "backend ('numpy')", "'torch'")
