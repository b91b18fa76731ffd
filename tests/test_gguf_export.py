"""GGUF files that models write: what they hold is what the model is, and what GGUF cannot say is an error."""

import json
import re

import keras
import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

import kerasllm
from kerasllm import GPT, Tokenizer, cli
from kerasllm.checkpoints import gguf as reading
from kerasllm.export import llama_cpp
from kerasllm.text import sentencepiece_model

pytest.importorskip("gguf")

TEXTS = ["the cat sat on the mat", "she said: 42 is not 7!", "naïve café 東京 🙂\n\ttabs"]
LLAMA = {
    "num_layers": 2,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 64,  # blocks of 32 values
    "intermediate_dim": 96,
    "max_sequence_length": 64,
    "gated": True,
    "norm": "rms",
    "activation": "silu",
    "positions": "rotary",
    "use_bias": False,
    "tie_embeddings": False,
    "initializer_range": 0.2,
}


def byte_level(pre="gpt-2"):
    tokenizer = Tokenizer.train_bpe(TEXTS, 300, min_frequency=1, bos="<s>", eos="</s>")
    spec = json.loads(tokenizer.backend.to_str())
    spec["pre_tokenizer"] = reading.pre_tokenizer(reading.PRE_TOKENIZERS[pre])
    spec["model"]["ignore_merges"] = not reading.PRE_TOKENIZERS[pre]["merge_all"]
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(spec)), bos="<s>", eos="</s>")


def pieces():
    """SentencePiece's pairs with bytes, as Llama 2 has them."""
    letters = sorted(set("▁" + "".join(TEXTS[:2]).replace(" ", "▁")))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "th", "▁th", "▁the", "at", "▁c", *letters]
    types = [2, 3, 3, *[6] * 256, *[1] * (5 + len(letters))]
    scores = [0.0] * 259 + [-float(i) for i in range(5 + len(letters))]
    model = sentencepiece_model.SentencePieceModel(tokens, scores, types, "bpe", remove_extra_whitespaces=False)
    return Tokenizer(sentencepiece_model.to_tokenizer(model), bos="<s>", eos="</s>", unk="<unk>")


def model(tokenizer=None, **changes):
    keras.utils.set_random_seed(0)
    return GPT(320, **LLAMA | changes, tokenizer=byte_level() if tokenizer is None else tokenizer or None)


KINDS = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}


@pytest.mark.in_turn
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_opens_as_the_model_that_wrote_it(kind, tmp_path, capsys):
    written = model(**KINDS[kind])
    written.export(tmp_path / "x.gguf", "gguf")
    assert "Saved gguf" in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    read = GPT.from_preset(tmp_path / "x.gguf")
    inputs = {"token_ids": np.arange(3, 23)[None], "padding_mask": np.ones((1, 20), bool)}
    np.testing.assert_allclose(read.predict_on_batch(inputs), written.predict_on_batch(inputs), atol=1e-5)
    assert read.tokenizer.encode(TEXTS[2]) == written.tokenizer.encode(TEXTS[2])
    assert read.token_id("eos") == written.token_id("eos")


@pytest.mark.once("torch")
@pytest.mark.parametrize("quantize, bound", [("float16", 1e-3), ("bfloat16", 8e-3), ("q8_0", 1e-2), ("q4_0", 0.2)])
def test_quantised_weights_are_near_their_values(quantize, bound, tmp_path):
    written = model()
    written.export(tmp_path / "x.gguf", "gguf", quantize=quantize, verbose=False)
    read = GPT.from_preset(tmp_path / "x.gguf")
    for ours, theirs in zip(written.weights, read.weights, strict=True):
        a, b = (keras.ops.convert_to_numpy(v.value) for v in (ours, theirs))
        apart = np.abs(a - b).max() / np.abs(a).max()
        assert apart <= (bound if a.ndim > 1 else 0), ours.path
        assert apart or a.ndim == 1, ours.path


@pytest.mark.once("torch")
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "llama"])
def test_tokenizers_come_back(pre, tmp_path):
    tokenizer = pieces() if pre == "llama" else byte_level(pre)
    tokenizer.config["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model(tokenizer, num_layers=1).export(tmp_path / "x.gguf", "gguf", verbose=False)
    read = GPT.from_preset(tmp_path / "x.gguf").tokenizer
    for text in TEXTS:
        assert read.encode(text) == tokenizer.encode(text)
    assert read.config["chat_template"] == tokenizer.config["chat_template"]


@pytest.mark.once("torch")
def test_adapters_are_merged(tmp_path):
    written = model(num_layers=1)
    kerasllm.add_lora(written, 4)
    for variable in written.trainable_variables:
        variable.assign(np.random.default_rng(0).normal(size=variable.shape, scale=0.1))
    written.export(tmp_path / "x.gguf", "gguf", verbose=False)
    inputs = {"token_ids": np.arange(3, 23)[None], "padding_mask": np.ones((1, 20), bool)}
    read = GPT.from_preset(tmp_path / "x.gguf")
    np.testing.assert_allclose(read.predict_on_batch(inputs), written.predict_on_batch(inputs), atol=1e-4)


def other_words():
    tokenizer = byte_level()
    tokenizer.backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


@pytest.mark.once("torch")
@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda: model(positions="learned", norm="layer", gated=False), {}, "format.*'gguf'.*llama"),
        (lambda: model(rope_scaling={"rope_type": "yarn", "factor": 2.0}), {}, "rope_type.*'yarn'"),
        (lambda: model(other_words()), {}, "pre_tokenizer.*llama.cpp knows"),
        (lambda: model(Tokenizer.train_wordpiece(TEXTS, 60)), {}, "tokenizer.*byte-level"),
        (lambda: model(hidden_dim=16, intermediate_dim=32), {"quantize": "q8_0"}, "blocks.*32 values"),
        (lambda: model(), {"quantize": "int8"}, "quantize.*q8_0"),
        (lambda: model(tokenizer=False), {}, "tokenizer"),
        (lambda: model(), {"batch_size": 2}, "batch_size.*no option"),
        (lambda: model(), {"input_signature": {}}, "input_signature.*must be None"),
        (lambda: model(use_bias=True), {}, "families: llama"),
        (lambda: model(activation="gelu"), {}, "activation .*no word"),
    ],
)
def test_what_a_file_cannot_say_is_an_error(make, options, message, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"older")
    with pytest.raises(ValueError, match=message):
        make().export(path, "gguf", **options)
    assert path.read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.once("torch")
def test_the_command_writes_it(tmp_path):
    model(num_layers=1).save_to_preset(tmp_path / "llama")
    assert cli.main(["export", str(tmp_path / "llama"), str(tmp_path / "x.gguf"), "--quantize", "q8_0"]) == 0
    assert GPT.from_preset(tmp_path / "x.gguf").arguments["num_layers"] == 1


@pytest.mark.once("torch")
def test_a_name_without_the_ending_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="must end in '.gguf'"):
        model().export(tmp_path / "x", "gguf")


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [byte_level, pieces])
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_writes_what_the_model_writes(kind, tokenizer, tmp_path, capsys, monkeypatch):
    pytest.importorskip("xllamacpp")
    written = model(tokenizer(), **KINDS[kind])
    written.export(tmp_path / "x.gguf", "gguf")
    assert re.search(r"choice at (\d\d) of \1 tokens", capsys.readouterr().out)
    run = llama_cpp.run
    monkeypatch.setattr(llama_cpp, "run", lambda *a: run(*a) | {"texts": [[7] * 16] * 3})  # it can fail
    with pytest.raises(RuntimeError, match="llama.cpp takes 7"):
        written.export(tmp_path / "y.gguf", "gguf")
