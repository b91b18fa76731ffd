"""GGUF files: what is read from one is what was written into it, and files that lie are refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from kerasllm import GPT
from kerasllm.checkpoints import files, gguf, llama
from kerasllm.layers.rotary_scaling import read_rope_scaling
from kerasllm.text import Tokenizer, sentencepiece_model

library = pytest.importorskip("gguf")

LLAMA = Path(__file__).parent / "data" / "llama"
NAMES = {ours: theirs for theirs, ours in llama.LLAMA.gguf.tensors.items()}
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


def test_names_and_layout_are_those_of_the_family(tmp_path, monkeypatch):
    """Here of one that calls its feed-forward otherwise, and whose queries and keys lie in halves."""
    names = llama.LLAMA.gguf
    tensors = {theirs: ours for theirs, ours in names.tensors.items() if theirs != "ffn_up"} | {"wide": "mlp.up_proj"}
    names = names._replace(architecture="other", tensors=tensors, in_pairs=())
    family = llama.family("relative", "RelativeForCausalLM", gguf=names)
    monkeypatch.setitem(gguf.BY_ARCHITECTURE, "other", family)
    metadata = {name.replace("llama.", "other."): value for name, value in llama_metadata().items()}
    metadata |= dict.fromkeys(name for name in llama_metadata() if name.startswith("llama."))
    metadata |= {"general.architecture": "other"}
    arrays = {name.replace("ffn_up", "wide"): array for name, array in llama_tensors().items()}
    arrays |= dict.fromkeys(name for name in llama_tensors() if "ffn_up" in name)
    config, found, _ = gguf.read(write(tmp_path / "model.gguf", metadata, arrays))
    assert config["model_type"] == "relative" and config["hidden_size"] == 16
    assert set(found) == set(files.read_tensors(LLAMA))
    np.testing.assert_array_equal(found["model.layers.1.self_attn.q_proj.weight"], arrays["blk.1.attn_q.weight"])
    with pytest.raises(ValueError, match="other.expert_count .4. must be 0"):
        gguf.read(write(tmp_path / "model.gguf", metadata | {"other.expert_count": 4}, arrays))


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
    assert tokenizer.roles == {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}


def test_llama_3_reads_three_digits_at_a_time_and_whole_words_without_merging(tmp_path):
    trained, metadata = byte_level(pre="llama-bpe")
    whole = "tokenizer.ggml.tokens"
    metadata |= {whole: [*metadata[whole], "Ġnever", "1234", "123"]}
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 1, 1]
    tokenizer = tokenizer_in(write(tmp_path / "model.gguf", metadata), tmp_path)
    first, start = trained.vocabulary_size, trained.bos_id
    assert tokenizer.encode(" never") == [start, first]  # a symbol of its own, which no merges make
    assert tokenizer.encode("1234") == [start, first + 2, tokenizer.token_to_id("4")]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    metadata["tokenizer.ggml.pre"] = "smaug-bpe"  # the same words, merged, and no start token
    tokenizer = tokenizer_in(write(tmp_path / "model.gguf", metadata), tmp_path)
    assert len(tokenizer.encode(" never")) > 1 and start not in tokenizer.encode("1234")


@pytest.mark.parametrize(
    "changes, before, after",
    [
        ({"pre": "smollm"}, 0, 0),
        ({"pre": "smollm", "add_bos_token": True}, 1, 0),
        ({"pre": "smollm", "add_eos_token": True}, 0, 1),
        ({"pre": "llama3"}, 1, 0),
        ({"pre": "llama-v3", "add_bos_token": False}, 0, 0),
        ({"pre": "llama-bpe", "add_eos_token": True}, 1, 1),
    ],
    ids=str,
)
def test_the_start_and_the_end_token_are_added_where_llama_cpp_adds_them(changes, before, after, tmp_path):
    trained, metadata = byte_level(**changes)
    tokenizer = tokenizer_in(write(tmp_path / "model.gguf", metadata), tmp_path)
    start, end = [trained.bos_id] * before, [trained.eos_id] * after
    assert tokenizer.encode("cat") == start + tokenizer.encode("cat", special_tokens=False) + end
    ids, segments = tokenizer.encode_with_segments("cat", "mat")
    assert ids == tokenizer.encode("cat") + tokenizer.encode("mat") and set(segments) == {0, 1}


def test_digits_stand_alone_in_smollm(tmp_path):
    tokenizer = tokenizer_in(write(tmp_path / "model.gguf", byte_level(pre="smollm")[1]), tmp_path)
    assert tokenizer.encode("42") == [tokenizer.token_to_id(digit) for digit in "42"]


def test_kinds_of_tokens_and_all_that_ends_a_text(tmp_path):
    trained, metadata = byte_level(eot_token_id=5, eom_token_id=7)
    more = {"<|eot_id|>": 1, "<tool>": 4, "": 5, "<bos>": 3, "<oov>": 2}  # the first is control, whatever is said
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *more]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *more.values()]
    size = trained.vocabulary_size
    tensors = {"token_embd.weight": np.ones((size + 5, 16), "float32"), "output.weight": None}
    model = GPT.from_preset(write(tmp_path / "model.gguf", metadata, tensors))
    assert model.end_token_ids == (trained.eos_id, 5, 7, size)
    assert model.tokenizer.encode("cat<|eot_id|><tool>")[-2:] == [size, size + 1]
    assert model.tokenizer.decode([size + 1, size, size + 3, size + 4]) == "<tool>"
    assert model.special_token_ids()["bos_token_id"] == trained.bos_id
    metadata = {"tokenizer.ggml.model": "no_vocab", "tokenizer.ggml.eos_token_id": 9}
    model = GPT.from_preset(write(tmp_path / "model.gguf", metadata))
    assert model.tokenizer is None and model.end_token_ids == (9,)


def stretched(frequencies, scaling):
    """What rotary positions make of their frequencies."""
    kind, parameters = read_rope_scaling(scaling or {"rope_type": "linear", "factor": 1.0})
    return kind.frequencies(frequencies, parameters, None)[0]


def divisors(scaling, head_dim, base=10000.0):
    """rope_freqs.weight as convert_hf_to_gguf.py computes it."""
    frequencies = 1 / base ** (np.arange(0, head_dim, 2, dtype="float32") / head_dim)
    old, factors = scaling["original_max_position_embeddings"], []
    for wavelength in 2 * np.pi / frequencies:
        if wavelength < old / scaling["high_freq_factor"]:
            factors.append(1)
        elif wavelength > old / scaling["low_freq_factor"]:
            factors.append(scaling["factor"])
        else:
            smooth = old / wavelength - scaling["low_freq_factor"]
            smooth /= scaling["high_freq_factor"] - scaling["low_freq_factor"]
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, "float32")


@pytest.mark.parametrize(
    "factor, low, high, old, base",
    [(8.0, 1.0, 4.0, 8192, 5e5), (32.0, 1.0, 4.0, 8192, 5e5), (4.0, 1.5, 6.0, 3000, 1e4), (2.0, 1.0, 4.0, 64, 1e4)],
)
def test_the_tensor_of_rotary_frequencies_is_llama_3_1s_scaling(factor, low, high, old, base):
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    scaling = dict(zip(names, (factor, low, high, old), strict=True))
    found = gguf._scaling_of(divisors(scaling, 64, base), 64, base)
    frequencies = base ** (-np.arange(0, 64, 2) / 64)
    expected = stretched(frequencies, scaling | {"rope_type": "llama3"})
    np.testing.assert_allclose(stretched(frequencies, found), expected, rtol=1e-5)
    if low == 1.0:
        assert found == scaling | {"rope_type": "llama3"}


def test_scalings_of_rotary_positions_reach_the_model(tmp_path):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    linear = {"rope_type": "linear", "factor": 4.0}
    ones = {"rope_freqs.weight": np.ones(2, "float32")}
    cases = [
        ({}, {"rope_freqs.weight": divisors(scaling, 4)}, scaling | {"rope_type": "llama3"}),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, ones, None),
        ({"llama.rope.scaling.factor": 4.0}, {}, linear),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scale_linear": 4.0}, {}, linear),
        ({"llama.rope.scaling.type": "linear"}, {}, None),
    ]
    for metadata, tensors, expected in cases:
        config, names, _ = gguf.read(write(tmp_path / "model.gguf", metadata, tensors))
        assert "rope_freqs.weight" not in names and (config.get("rope_scaling") is None) == (expected is None)
        frequencies = np.array([1.0, 0.01])
        found = stretched(frequencies, config.get("rope_scaling"))
        np.testing.assert_allclose(found, stretched(frequencies, expected), rtol=1e-6)


def test_quantised_weights_are_near_the_originals(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(40, 32)).astype("float32")
    writer = library.GGUFWriter(tmp_path / "model.gguf", "llama")
    for name in llama.LLAMA.gguf.required:
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
        ({"general.type": "adapter"}, {}, "general.type .'adapter'. must be 'model'"),
        ({"split.count": 2}, {}, "split.count .2."),
        ({"llama.expert_count": 4}, {}, "llama.expert_count .4. must be 0"),
        ({"llama.logit_scale": 0.5}, {}, "llama.logit_scale .0.5. must be 0 or 1"),
        ({"llama.attention.sliding_window": 4}, {}, "llama.attention.sliding_window .4."),
        ({"llama.attention.head_count": None}, {}, "llama.attention.head_count is missing"),
        ({"llama.context_length": None}, {}, "llama.context_length is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, {}, "layer_norm_rms_epsilon is missing"),
        ({"llama.rope.dimension_count": 2}, {}, "rope.dimension_count .2. must be .* 4"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, {}, "rope.scaling.type .'yarn'."),
        ({"llama.rope.surprise": 1}, {}, "llama.rope.surprise is unknown"),
        ({"llama.feed_forward_length": 0}, {}, "intermediate_size .0."),
        ({"llama.vocab_size": 5}, {}, "llama.vocab_size .5. must be that of token_embd"),
        ({}, {"rope_freqs.weight": np.array([7, 1], "float32")}, "rope_freqs.weight must be Llama 3.1's scaling"),
        ({}, {"blk.1.ffn_up.weight": None}, "missing tensors: model.layers.1.mlp.up_proj.weight"),
        ({}, {"blk.1.attn_q.bias": np.ones(16, "float32")}, "extra tensors: model.layers.1.self_attn.q_proj.bias"),
        ({}, {"blk.0.attn_q.weight": np.ones((3, 16), "float32")}, "attn_q.weight .3, 16. does not divide"),
        ({"llama.attention.head_count": 0}, {}, "contradict"),
        (
            {"llama.attention.head_count": [4, 2]},
            {},
            r"llama.attention.head_count .\[4, 2\]. must be the same in all 2",
        ),
        (byte_level(bos_token_id=9999)[1], {}, "tokenizer.ggml.bos_token_id .9999. must be below the number of tokens"),
        (byte_level(bos_token_id=None, add_bos_token=True)[1], {}, "add_bos_token .true. needs .*ggml.bos_token_id"),
        (byte_level(bos_token_id=None, pre="llama-bpe")[1], {}, "add_bos_token .true. needs .*ggml.bos_token_id"),
        (byte_level(merges=None)[1], {}, "tokenizer.ggml.merges is missing"),
        (byte_level(tokens=["a", "b", "a"])[1], {}, "tokenizer.ggml.tokens has 1 tokens twice"),
        (byte_level(token_type=[1, 1])[1], {}, "tokenizer.ggml.token_type has 2 entries"),
        (byte_level(add_sep_token=True)[1], {}, "tokenizer.ggml.add_sep_token .True. must be False"),
        (byte_level(surprise=1)[1], {}, "tokenizer.ggml.surprise is unknown"),
        (byte_level(pre="qwen2")[1], {}, "tokenizer.ggml.pre .'qwen2'. must be .*'smollm'"),
        (byte_level(pre=None)[1], {}, "tokenizer.ggml.pre .None. must be"),
        (byte_level(model="bert")[1], {}, "tokenizer.ggml.model .'bert'."),
        (byte_level(tokens=[1, 2])[1], {}, "tokenizer.ggml.tokens .*must be a list of str"),
        (byte_level(merges=[True])[1], {}, "tokenizer.ggml.merges .*must be a list of str"),
        (byte_level(token_type=["a"])[1], {}, "tokenizer.ggml.token_type .*must be a list of int"),
        (byte_level(bos_token_id=True)[1], {}, "tokenizer.ggml.bos_token_id .True. must be a token id"),
        (byte_level(add_bos_token="false")[1], {}, "tokenizer.ggml.add_bos_token .'false'. must be"),
        ({"llama.rope.scaling.factor": -2.0}, {}, "rope_scaling .*-2.0.* must be null or"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, dict) else "",
)
def test_a_file_that_says_something_else_is_refused(metadata, tensors, words, tmp_path):
    with pytest.raises(ValueError, match=f"model.gguf.*{words}"):
        GPT.from_preset(write(tmp_path / "model.gguf", metadata, tensors))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="missing.gguf.*no such file"):
        GPT.from_preset(tmp_path / "missing.gguf")
