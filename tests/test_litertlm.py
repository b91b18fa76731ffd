"""Bundles for LiteRT-LM: what litert_lm writes with them on the CPU is what the model writes."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from kerasllm import BERT, GPT, GenerationConfig, RNNLanguageModel, Tokenizer
from kerasllm.export import litertlm
from kerasllm.training import LanguageModelDataset, TokenCrossentropy

TEXTS = ["the quick brown fox jumps over the lazy dog", "keras runs on tensorflow jax and pytorch"]
PROMPTS = ["the quick", "keras runs on tensor"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] + ' ' + m['content'].strip() }} {% endfor %}"


@pytest.fixture(scope="module")
def gpt():
    """A GPT that has learnt its texts by heart: what it says is text, and not broken characters."""
    tokenizer = Tokenizer.train_bpe(TEXTS, 300)
    tokenizer.config["chat_template"] = TEMPLATE
    model = GPT(tokenizer.vocabulary_size, 1, 2, 32, max_sequence_length=64, initializer_range=0.1, tokenizer=tokenizer)
    data = LanguageModelDataset(TEXTS * 20, tokenizer, batch_size=8, sequence_length=24)
    model.compile(keras.optimizers.Adam(1e-2), TokenCrossentropy())
    model.fit(data, epochs=6, verbose=0)
    return model


RUN = """
import json, sys
sys.modules.update(dict.fromkeys(["keras", "tensorflow", "torch", "jax", "kerasllm"]))  # importing them fails
import litert_lm
results = []
options = {"sampler_config": litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0), "max_output_tokens": 12}
with litert_lm.Engine(sys.argv[1], backend=litert_lm.Backend.CPU(), cache_dir=":nocache") as engine:
    for prompt in sys.argv[2:]:
        with engine.create_session(apply_prompt_template=False, **options) as session:
            session.run_prefill([prompt])
            results.append(session.run_decode().texts[0])
    with engine.create_conversation(**options) as conversation:
        results.append(conversation.send_message(sys.argv[2])["content"][0]["text"])
print(json.dumps(results))
"""


def run(path):
    result = subprocess.run([sys.executable, "-c", RUN, str(path), *PROMPTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.once("torch")
def test_litert_lm_writes_and_chats_as_the_model(gpt, tmp_path):
    path = tmp_path / "model.litertlm"
    gpt.generation_defaults = GenerationConfig(temperature=5.0)  # which the proof must leave aside
    gpt.export(path, "litertlm", verbose=False, prefill_lengths=(4, 8))
    gpt.generation_defaults = None
    options = {"max_new_tokens": 12, "strip_prompt": True}
    answer = gpt.chat([{"role": "user", "content": PROMPTS[0]}], max_new_tokens=12)
    assert run(path) == [*gpt.generate(PROMPTS, **options), answer]
    assert set(tmp_path.iterdir()) == {path, tmp_path / "model.litertlm.assets"}
    report = json.loads((tmp_path / "model.litertlm.assets" / "parity.json").read_text())
    assert report["checks"][-1]["calls"] == ["litert_lm"]
    assert {name: y["agreement"] for name, y in report["checks"][-1]["outputs"].items()} == {"text": 1, "chat": 1}


@pytest.mark.once("torch")
def test_a_quantised_bundle_runs(gpt, tmp_path):
    path = tmp_path / "model.litertlm"
    gpt.export(path, "litertlm", verbose=False, prefill_lengths=(8,), quantize="dynamic_int8", verify=False)
    texts = run(path)
    assert len(texts) == 3 and all(texts)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"path": "model.tflite"}, "must end in '.litertlm'"),
        ({"model": lambda t: RNNLanguageModel(300, 1, 8, tokenizer=t)}, "not a RNNLanguageModel"),
        ({"model": lambda t: BERT(300, 1, 2, 8)}, "not a BERT"),
        ({"model": lambda t: GPT(300, 1, 2, 8)}, r"tokenizer \(None\) must be set"),
        ({"batch_size": 2}, r"batch_size \(2\) must be 1"),
        ({"strings": True}, r"strings \(True\)"),
        ({"prefill_lengths": (128,)}, r"prefill_lengths \(\(128,\)\)"),
        ({"signatures": ["decode"]}, "must hold decode and a prefill_N"),
        ({"signatures": ["forward"]}, "'forward'.* must be among"),
    ],
)
def test_what_litert_lm_cannot_run_is_refused_at_once(change, message, gpt, tmp_path):
    options = dict(change)
    model = options.pop("model", lambda t: gpt)(gpt.tokenizer)
    path = tmp_path / options.pop("path", "model.litertlm")
    with pytest.raises(ValueError, match=message):
        model.export(path, "litertlm", **options)
    assert not list(tmp_path.iterdir())


def test_tokens_round_a_text_are_a_start_token_or_none():
    tokenizer = Tokenizer.train_wordpiece(TEXTS * 2, 80)
    with pytest.raises(ValueError, match="more than a start token"):
        litertlm.start_token_ids(tokenizer)
    assert litertlm.start_token_ids(Tokenizer.train_words(TEXTS, 40)) == []


def test_a_file_that_litert_lm_cannot_read_is_an_error(tmp_path):
    path = tmp_path / "model.litertlm"
    path.write_bytes(b"nothing" * 100)
    with pytest.raises(RuntimeError, match="LiteRT-LM cannot run the file"):
        litertlm.run(path, np.array(b"a", object), 3)
