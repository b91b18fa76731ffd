"""What `describe` says of presets, against what their files say."""

import math
from pathlib import Path

import numpy as np
import pytest
import test_gguf

from kerasllm.checkpoints import describe, files

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    "name, family, class_names",
    [
        ("llama", "llama", ("GPT",)),
        ("gpt2", "gpt2", ("GPT",)),
        ("bert", "bert", ("BERT", "BERTEmbedder")),
        ("bert_masked_lm", "bert", ("BERTMaskedLM", "BERT")),
    ],
)
def test_a_folder_is_described(name, family, class_names):
    found, tensors = describe(DATA / name), files.read_tensors(DATA / name)
    size = sum(math.prod(tensor.shape) for tensor in tensors.values())
    assert (found.path, found.family, found.num_parameters) == (DATA / name, family, size)
    assert found.class_names[:2] == class_names
    assert found.dtypes == {"float32": size} and found.tokenizer_files == ()
    config = files.read_json(DATA / name / "config.json")
    assert found.arguments["vocabulary_size"] == config["vocab_size"]


def test_types_and_tokenizers_are_named(tmp_path):
    arrays = {"head/bias": np.ones(5, "float16"), "head/kernel": np.ones((2, 5), "float32")}
    config = {"model_type": "kerasllm", "architectures": ["RNNLanguageModel"], "arguments": {"hidden_dim": 2}}
    files.write_json(tmp_path / "config.json", config)
    files.write_tensors(tmp_path, arrays)
    for name in ("source_tokenizer.json", "target_tokenizer.json", "README.md"):
        (tmp_path / name).write_text("")
    found = describe(tmp_path)
    assert (found.family, found.class_names) == ("kerasllm", ("RNNLanguageModel",))
    assert found.dtypes == {"float32": 10, "float16": 5} and found.arguments == {"hidden_dim": 2}
    assert found.tokenizer_files == ("source_tokenizer.json", "target_tokenizer.json")


def test_a_gguf_file_is_described(tmp_path):
    pytest.importorskip("gguf")
    found = describe(test_gguf.write(tmp_path / "model.gguf", test_gguf.byte_level()[1]))
    assert (found.family, found.class_names, found.arguments["num_layers"]) == ("llama", ("GPT",), 2)
    assert "tokenizer.json" in found.tokenizer_files


def test_what_is_no_preset_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"preset .'{tmp_path}'.: .*has no config.json"):
        describe(tmp_path)
