"""GGUF files: what is read from one is what was written into it, and files that lie are refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from kerasllm import GPT
from kerasllm.checkpoints import files, gguf
from kerasllm.text import Tokenizer, sentencepiece_model

library = pytest.importorskip("gguf")

LLAMA = Path(__file__).parent / "data" / "llama"
NAMES = {ours: theirs for theirs, ours in gguf.TENSORS.items()}
TEXTS = ["the cat sat on the mat", "she said: 42 is not 7!", "naïve café 東京 🙂\n\ttabs"]


def in_neighbours(kernel, num_heads):
    """A kernel of queries or keys as llama.cpp has it, whose channels i and i + H/2 stand side by side."""
    heads = kernel.reshape(num_heads, 2, -1, kernel.shape[1])
    return np.stack([heads[:, 0], heads[:, 1]], axis=2).reshape(kernel.shape)


def llama_metadata():
    config = files.read_json(LLAMA / "config.json")
    return {
        "general.architecture": "llama",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 4,
    }


def llama_tensors():
    tensors = {}
    for name, array in files.read_tensors(LLAMA).items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            array = in_neighbours(array, num_heads=4)
        name = re.sub(r"model\.layers\.(\d+)\.", r"blk.\1|", name).removesuffix(".weight")
        block, _, part = name.rpartition("|")
        tensors[f"{block}{'.' * bool(block)}{NAMES[part]}.weight"] = np.ascontiguousarray(array)
    return tensors


def write(path, metadata=None, tensors=None):
    """The Llama of the parity fixtures as a GGUF file; `metadata` and `tensors` add, replace, or with None remove."""
    metadata = {k: v for k, v in (llama_metadata() | (metadata or {})).items() if v is not None}
    tensors = {k: v for k, v in (llama_tensors() | (tensors or {})).items() if v is not None}
    writer = library.GGUFWriter(path, metadata.pop("general.architecture"))
    for name, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add |= {str: writer.add_string, list: writer.add_array}
        add[type(value)](name, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level(**changes):
    """A tokenizer trained here, and its metadata in a GGUF file."""
    tokenizer = Tokenizer.train_bpe(TEXTS, 300, min_frequency=1, bos="<s>", eos="</s>")
    size, merges = tokenizer.vocabulary_size, json.loads(tokenizer.backend.to_str())["model"]["merges"]
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [tokenizer.id_to_token(i) for i in range(size)],
        "token_type": [gguf.CONTROL if i in tokenizer.special_ids else 1 for i in range(size)],
        "merges": [" ".join(merge) for merge in merges],
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
    }
    metadata = {f"tokenizer.ggml.{name}": value for name, value in (metadata | changes).items()}
    return tokenizer, metadata | {"tokenizer.chat_template": "{{ messages }}"}


def test_config_and_tensors_are_those_of_hugging_face(tmp_path):
    config, tensors, texts = gguf.read(write(tmp_path / "model.gguf"))
    expected = files.read_tensors(LLAMA)
    assert set(tensors) == set(expected) and texts == {}
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array)
    theirs = files.read_json(LLAMA / "config.json")
    assert config.pop("rope_theta") == 10000.0 and config.pop("rms_norm_eps") == pytest.approx(1e-6)
    assert config == {name: theirs[name] for name in config}


def test_the_model_is_that_of_the_folder(tmp_path):
    model, expected = GPT.from_preset(write(tmp_path / "model.gguf")), GPT.from_preset(LLAMA)
    for variable, other in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), other.numpy())
    arguments = {k: v for k, v in model.arguments.items() if k != "norm_epsilon"}
    assert arguments.items() <= expected.arguments.items() | {"head_dim": None}.items()


def test_the_tokenizer_and_the_end_of_a_text_come_with_the_model(tmp_path):
    expected, metadata = byte_level()
    embeddings = np.ones((expected.vocabulary_size, 16), "float32")
    tensors = {"token_embd.weight": embeddings, "output.weight": None}
    model = GPT.from_preset(write(tmp_path / "model.gguf", metadata, tensors))
    for text in (*TEXTS, "unseen words", "a</s>b"):
        ids = model.tokenizer.encode(text)
        assert ids == expected.encode(text)
        assert model.tokenizer.decode(ids) == expected.decode(ids)
    assert model.tokenizer.roles == expected.roles and model.end_token_ids == (expected.eos_id,)
    assert model.tokenizer.config["chat_template"] == "{{ messages }}"
    assert model.arguments["tie_embeddings"]


def tokenizer_in(path, folder):
    """The tokenizer that the GGUF file holds."""
    for name, text in gguf.read(path)[2].items():
        (folder / name).write_text(text, encoding="utf-8")
    return Tokenizer.from_folder(folder)


def test_sentencepiece_in_a_file_reads_as_llama_2_does(tmp_path):
    data = Path(__file__).parent / "data" / "tokenizers"
    answers = json.loads((data / "answers.json").read_text())
    model = sentencepiece_model.read(data / "llama_legacy" / "tokenizer.model")
    metadata = {"model": "llama", "tokens": model.pieces, "scores": model.scores, "token_type": model.types}
    metadata |= {f"{role}_token_id": model.pieces.index(token) for role, token in (("bos", "<s>"), ("eos", "</s>"))}
    metadata = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
    tokenizer = tokenizer_in(write(tmp_path / "model.gguf", metadata), tmp_path)
    assert tokenizer.encode_batch(answers["texts"]) == answers["llama_legacy"]["ids"]
    assert tokenizer.roles == {"bos": "<s>", "eos": "</s>"}


def test_llama_3_reads_three_digits_at_a_time_and_whole_words_without_merging(tmp_path):
    trained, metadata = byte_level(pre="llama-bpe")
    whole = "tokenizer.ggml.tokens"
    metadata |= {whole: [*metadata[whole], "Ġnever", "1234", "123"]}
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 1, 1]
    tokenizer = tokenizer_in(write(tmp_path / "model.gguf", metadata), tmp_path)
    first = trained.vocabulary_size
    assert tokenizer.encode(" never") == [first]  # a symbol of its own, which no merges make
    assert tokenizer.encode("1234") == [first + 2, tokenizer.token_to_id("4")]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stand_alone_and_a_start_token_is_added_where_the_file_says_so(tmp_path):
    expected, metadata = byte_level(pre="smollm", add_bos_token=True)
    tokenizer = tokenizer_in(write(tmp_path / "model.gguf", metadata), tmp_path)
    digits = [tokenizer.token_to_id(digit) for digit in "42"]
    assert tokenizer.encode("42") == [tokenizer.bos_id, *digits]


def test_quantised_weights_are_near_the_originals(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(40, 32)).astype("float32")
    writer = library.GGUFWriter(tmp_path / "model.gguf", "llama")
    for name in ("block_count", "embedding_length", "attention.head_count"):
        writer.add_uint32(f"llama.{name}", 2)
    quantised = library.quants.quantize(kernel, library.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", quantised, raw_dtype=library.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = gguf.read(tmp_path / "model.gguf")[1]
    np.testing.assert_allclose(tensors["model.layers.0.mlp.up_proj.weight"], kernel, atol=np.abs(kernel).max() / 127)


@pytest.mark.parametrize(
    "metadata, tensors, words",
    [
        ({"general.architecture": "falcon"}, {}, "general.architecture .'falcon'."),
        ({"llama.expert_count": 4}, {}, "llama.expert_count is unknown"),
        ({"llama.attention.head_count": None}, {}, "num_attention_heads is missing"),
        ({"llama.rope.dimension_count": 2}, {}, "rope.dimension_count .2. must be .* 4"),
        ({"llama.feed_forward_length": 0}, {}, "intermediate_size .0."),
        ({}, {"rope_freqs.weight": np.ones(2, "float32")}, "extra tensors: .*rope_freqs.weight"),
        ({}, {"blk.1.ffn_up.weight": None}, "missing tensors: model.layers.1.mlp.up_proj.weight"),
        ({}, {"blk.0.attn_q.weight": np.ones((3, 16), "float32")}, "attn_q.weight .3, 16. does not divide"),
        ({"llama.attention.head_count": 0}, {}, "contradict"),
        ({"llama.attention.head_count": [4, 4]}, {}, "contradict"),
        (byte_level(bos_token_id=9999)[1], {}, "contradict"),
        (byte_level(bos_token_id=None, add_bos_token=True)[1], {}, "contradict"),
        (byte_level(pre="qwen2")[1], {}, "tokenizer.ggml.pre .'qwen2'. must be .*'smollm'"),
        (byte_level(model="bert")[1], {}, "tokenizer.ggml.model .'bert'."),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, dict) else "",
)
def test_a_file_that_says_something_else_is_refused(metadata, tensors, words, tmp_path):
    with pytest.raises(ValueError, match=f"model.gguf.*{words}"):
        GPT.from_preset(write(tmp_path / "model.gguf", metadata, tensors))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="missing.gguf.*no such file"):
        GPT.from_preset(tmp_path / "missing.gguf")
