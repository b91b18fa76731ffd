"""Real models as TFLite files, run by LiteRT alone.

Run them with `pytest -m network tests/test_real_weights_export.py`; they download 184 MB once, and take minutes.
"""

import json
import math

import keras
import numpy as np
import pytest

from kerasllm import GPT, BERTEmbedder, datasets, pretrained

pytestmark = pytest.mark.network

LENGTH, WINDOWS = 256, 8
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf")
    return GPT.from_preset(pretrained.smollm2())


@pytest.fixture(scope="module")
def float32_file(smollm2, tmp_path_factory):
    path = tmp_path_factory.mktemp("float32") / "smollm2.tflite"
    smollm2.export(
        path, "litert", verbose=False, signatures=["prefill_16", "decode"], max_length=64, prefill_lengths=(16,)
    )
    return path


def open_file(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=2)
    return interpreter, interpreter.get_signature_runner


def continue_greedily(path, ids, count):
    """The next tokens by a file's `prefill_16` and `decode`."""
    _, function = open_file(path)
    prefill, decode = function("prefill_16"), function("decode")
    details = prefill.get_input_details()
    state = {
        name: np.zeros(x["shape"], x["dtype"]) for name, x in details.items() if name not in ("tokens", "input_pos")
    }
    # Later steps overwrite the slots that are filled up.
    tokens = np.pad(ids[:-1], (0, 17 - len(ids)))[None].astype("int32")
    state = prefill(tokens=tokens, input_pos=np.arange(16, dtype="int32"), **state)
    new = [ids[-1]]
    for place in range(len(ids) - 1, len(ids) - 1 + count):
        outputs = decode(tokens=np.array([new[-1:]], "int32"), input_pos=np.array([place], "int32"), **state)
        new.append(int(outputs.pop("logits").argmax()))
        state = outputs
    return new[1:]


def test_a_file_of_smollm2_writes_the_text_of_keras(smollm2, float32_file):
    ids = smollm2.tokenizer.encode(PROMPT)
    expected = smollm2.generate([ids], max_new_tokens=32, temperature=0)[0][len(ids) :]
    assert "Paris" in smollm2.tokenizer.decode(expected)
    assert continue_greedily(float32_file, ids, len(expected)) == expected


def test_eight_bits_lose_little(smollm2, float32_file, tmp_path):
    """The perplexity is that of the beginning of WikiText-2's test set."""
    ids = smollm2.tokenizer.encode("\n\n".join(datasets.wikitext2().test[:3]))[: LENGTH * WINDOWS]
    windows = [ids[start : start + LENGTH] for start in range(0, LENGTH * WINDOWS, LENGTH)]
    path = tmp_path / "smollm2.tflite"
    smollm2.export(
        path,
        "litert",
        verbose=False,
        quantize="dynamic_int8",
        signatures=["forward", "prefill_16", "decode"],
        max_length=64,
        prefill_lengths=(16,),
        calibration_data=windows,
        input_signature={name: keras.InputSpec(shape=(1, LENGTH)) for name in smollm2.input},
    )
    parity = json.loads((tmp_path / "smollm2.tflite.assets" / "parity.json").read_text())
    perplexity = parity["perplexity"]
    print(f"{path.stat().st_size / float32_file.stat().st_size:.1%} of the float32 file, {parity['agreement']:.1%}")
    print(perplexity)
    assert path.stat().st_size <= 0.30 * float32_file.stat().st_size
    assert perplexity["tokens"] == WINDOWS * (LENGTH - 1)
    assert 10 < perplexity["model"] < 40 and abs(perplexity["change"]) < 0.03
    ids = smollm2.tokenizer.encode(PROMPT)
    assert "Paris" in smollm2.tokenizer.decode(continue_greedily(path, ids, 8))


def test_a_file_of_minilm_gives_the_vectors_of_keras(tmp_path):
    model = BERTEmbedder.from_preset(pretrained.minilm())
    path = tmp_path / "minilm.tflite"
    model.export(path, "litert", verbose=False, signatures=["forward"])
    interpreter, function = open_file(path)
    forward, texts = function("forward"), ["The weather is lovely today.", "He drove to the stadium."]
    for text in texts:
        ids = np.array([model.tokenizer.encode(text)], "int32")
        inputs = {
            "token_ids": ids,
            "padding_mask": np.ones_like(ids, "bool"),
            "segment_ids": np.zeros_like(ids),
        }
        [vector] = forward(**inputs).values()
        np.testing.assert_allclose(vector[0], model.embed(text), atol=1e-5)
        assert math.isclose(np.linalg.norm(vector), 1, abs_tol=1e-4)
