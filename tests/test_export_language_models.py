import json

import keras
import numpy as np
import pytest
from alone import run_alone

from kerasllm.export import verification
from kerasllm.export.contents import Options
from kerasllm.export.language_models import LanguageModelContents
from kerasllm.generation.config import GenerationConfig
from kerasllm.models.gpt import GPT
from kerasllm.models.rnn import RNNLanguageModel
from kerasllm.text.batches import pad
from kerasllm.text.tokenizers import Tokenizer

BACKEND = keras.backend.backend()
V, LENGTH = 23, 24
# A model of random weights writes halves of characters, too.
TOKENIZER = Tokenizer.train_bpe(["the cat sat on the mat", "Zürich und Köln"] * 2, 290)
GPT2 = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": LENGTH}
# Each mechanism of a stack once: in one model what Llama, Qwen3 and Gemma 2 have, in another what GPT-NeoX has.
GEMMA = {
    **GPT2,
    "norm": "unit_offset_rms",
    "residual": "both",
    "positions": "rotary",
    "gated": True,
    "activation": "silu",
    "num_key_value_heads": 1,
    "use_bias": False,
    "tie_embeddings": False,
    "sliding_window": [6, None],
    "query_key_norm": True,
    "attention_softcap": 2.0,
    "logit_softcap": 5.0,
}
NEOX = {
    **GPT2,
    "residual": "parallel",
    "positions": "rotary",
    "rotary_fraction": 0.5,
    "rope_base": [100.0, None],
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "scale_embeddings": True,
}
MODELS = {
    "gpt": lambda: GPT(V, **GPT2),
    "gpt with strings": lambda: GPT(TOKENIZER.vocabulary_size, **GPT2, tokenizer=TOKENIZER),
    "gemma": lambda: GPT(V, **GEMMA),
    "neox": lambda: GPT(V, **NEOX),
    "lstm": lambda: RNNLanguageModel(V, 2, 16, tie_embeddings=True),
    "gru with attention": lambda: RNNLanguageModel(V, 1, 16, cell="gru", num_attention_heads=2),
}
# What a file has built in, beside what it is told.
DEFAULTS = {
    "gemma": {
        "no_repeat_ngram_size": 2,
        "bad_words": [[3], [4, 5]],
        "min_length": 6,
        "stop": 2,
        "min_p": 0.001,
        "presence_penalty": 0.1,
        "forced_bos_token_id": 9,
        "logit_bias": {7: 0.5},
        "temperature": 3.0,
    },
    "lstm": {"no_repeat_ngram_size": 3, "frequency_penalty": 0.2, "min_new_tokens": 3},
}
WITH_STRINGS = pytest.param("gpt with strings", "tf_saved_model", marks=pytest.mark.slow)
CASES = {  # A process started for each takes seconds.
    "tensorflow": [
        ("gpt with strings", "tf_saved_model"),
        ("lstm", "tf_saved_model"),
        ("gru with attention", "litert"),
        pytest.param("gemma", "litert", marks=pytest.mark.slow),
    ],
    "jax": [
        ("neox", "litert"),
        pytest.param("gru with attention", "tf_saved_model", marks=pytest.mark.slow),
        WITH_STRINGS,
    ],
    "torch": [("gemma", "litert"), WITH_STRINGS],
}[BACKEND]
TEXTS = ["the cat", "", "Köln"]
PROMPTS = [[5, 6, 7, 8], [9, 10]]
EQUALLY_LONG = [[5, 6, 7, 8], [9, 10, 3, 4]]
FILES = {"tf_saved_model": "model", "litert": "model.tflite"}


def make(name):
    """A model whose weights are as large as trained ones."""
    model = MODELS[name]()
    rng = np.random.default_rng(0)
    for v in model.weights:
        v.assign(rng.normal(scale=0.3, size=v.shape))
    model.generation_defaults = GenerationConfig(**DEFAULTS.get(name, {}))
    model.end_token_ids = [1, 17]
    return model


def inputs(count, temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0, seed=0, stop=(-1,), **others):
    """The inputs of a file's `generate`."""
    values = {"temperature": temperature, "top_p": top_p, "repetition_penalty": repetition_penalty}
    whole = {"max_new_tokens": count, "top_k": top_k, "seed": seed, **others}
    return {
        **{name: np.float32(value) for name, value in values.items()},
        **{name: np.int32(value) for name, value in whole.items()},
        "stop_token_ids": np.array(stop, "int32"),
    }


# The same program of the model serves all: top_k=V and top_p=1 are off, too.
SAMPLES = [
    {"temperature": 0.8, "top_k": 5, "seed": 1},
    {"temperature": 1.3, "top_p": 0.7, "repetition_penalty": 1.5, "seed": 2},
    {"temperature": 1.0, "seed": 3, "stop": (11, 12)},
]


def generated(model, prompts, **options):
    """What the model gives: for each prompt two lists of ids."""
    request = {"top_k": model.output_vocabulary_size, "top_p": 1.0, "repetition_penalty": 1.0, **options}
    if "stop" in request:
        request["stop"] = [*model.generation_defaults.stop, *request["stop"]]
    rows = model.generate(prompts, num_return_sequences=2, return_scores=True, **request)
    return [[generation.completion.tolist() for generation in row] for row in rows]


@pytest.mark.parametrize("name, format", CASES)
def test_a_file_generates_what_the_model_generates(name, format, tmp_path):
    model, path = make(name), tmp_path / FILES[format]
    if format == "litert":
        prompts = EQUALLY_LONG[: 2 if name == "gru with attention" else 1]
        sizes = {"max_length": LENGTH, "prefill_lengths": (4, 16), "batch_size": len(prompts)}
        model.export(path, format, verbose=False, **sizes)
        calls = prompts_of_one_length(model, prompts)
    else:
        model.export(path, format, verbose=False, strings=model.tokenizer is not None)
        calls = prompts_padded_on_either_side(model)
    calls, expected = zip(*calls, strict=True)
    assert len(set(map(str, expected))) >= len(SAMPLES)
    too_many = ("generate", {**calls[-1][1], "max_new_tokens": np.int32(1000)})
    if format == "litert":
        too_many[1]["token_ids"] = np.full((len(prompts), LENGTH - 1), 5, "int32")
    texts = ("generate_text", {"texts": np.array([t.encode() for t in TEXTS]), **inputs(8, num_return_sequences=2)})
    further = [too_many] + [texts] * (model.tokenizer is not None)
    outputs = run_alone(tmp_path, [(path, *call) for call in [*calls, *further]])
    for rows, given in zip(expected, outputs[: len(calls)], strict=True):
        assert given["lengths"].tolist() == [len(ids) for ids in rows]
        width = max(given["lengths"]) if format == "tf_saved_model" else LENGTH
        assert given["token_ids"].tolist() == [ids + [0] * (width - len(ids)) for ids in rows]
    beyond = outputs[len(calls)]
    if format == "litert":  # it ends where there is no more room
        assert beyond["lengths"].tolist() == [1] * len(prompts)
    elif model.max_sequence_length:
        assert "exceeds max_sequence_length (24)" in beyond["error"]
    if model.tokenizer:
        written = model.generate(TEXTS, max_new_tokens=8, strip_prompt=True)
        assert [text.decode() for text in outputs[-1]["texts"]] == [text for text in written for _ in range(2)]
        check_how_it_is_served(model, path, tmp_path)


def prompts_padded_on_either_side(model):
    """Calls of a SavedModel's `generate`, and the completions that they must give."""
    for options in SAMPLES:
        rows = generated(model, PROMPTS, max_new_tokens=8, **options)
        for side in ("left", "right"):
            token_ids, padding_mask = pad(PROMPTS, 5, side=side)
            prompts = {"token_ids": token_ids, "padding_mask": padding_mask}
            call = ("generate", {**prompts, **inputs(8, num_return_sequences=2, **options)})
            yield call, [ids for row in rows for ids in row]


def prompts_of_one_length(model, prompts):
    """Calls of a TFLite file's `generate`, and the completions that they must give."""
    for options in SAMPLES:
        completions = generated(model, prompts, max_new_tokens=8, **options)
        for row in range(2):
            call = ("generate", {"token_ids": np.array(prompts, "int32"), **inputs(8, row=row, **options)})
            yield call, [rows[row] for rows in completions]


def check_how_it_is_served(model, path, folder):
    """A SavedModel with strings is asked in rows and columns, with few inputs, with other dtypes, and wrongly."""
    description = json.loads((path / "assets.extra" / "signatures.json").read_text())
    assert description["default_signature"] == "generate_text"
    options = description["signatures"]["generate_text"]["inputs"]
    assert options["temperature"] == {"shape": [], "dtype": "float32", "default": 0.0}
    assert options["max_new_tokens"]["default"] == -1 and "default" not in options["seed"]

    texts, ids = ["the cat", "Köln"], np.array([[5, 6, 7], [9, 10, 0]])
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    drawn = {"temperature": 0.8, "max_new_tokens": 4, "seed": 7}
    full = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "stop_token_ids": [-1], "num_return_sequences": 1}
    rows = [{"texts": text, **full, **drawn} for text in texts]
    long = np.ones((1, LENGTH + 1), int)
    asked = [
        ("POST", {"instances": texts}),
        ("POST", {"inputs": texts}),
        ("POST", {"signature_name": "generate_text", "instances": rows}),
        ("POST", {"signature_name": "generate_text", "inputs": {"texts": texts, **full, **drawn}}),
        (".serve", {"texts": texts, **drawn}),
        (".generate", {"token_ids": ids, "padding_mask": mask}),
        (".generate", {"token_ids": ids.astype("int32"), "padding_mask": mask > 0, "stop_token_ids": [11, 12]}),
        (".forward", {"token_ids": ids, "padding_mask": mask.astype("int32")}),
    ]
    refused = [
        (("POST", {"inputs": []}), "texts must not be empty"),
        ((".serve", {"texts": texts, "max_new_tokens": 0}), "max_new_tokens must be at least 1"),
        (
            ("serving_default", {"texts": ["the cat " * 20]}),
            "a prompt is as long as max_sequence_length (24) or longer",
        ),
        ((".generate", {"token_ids": ids[:, :0], "padding_mask": mask[:, :0]}), "must not be empty"),
        ((".forward", {"token_ids": ids[:1], "padding_mask": mask}), "must have as many rows as"),
        (
            (".forward", {"token_ids": long, "padding_mask": long}),
            "a row has more tokens than max_sequence_length (24)",
        ),
        (
            ("POST", {"signature_name": "generate_text", "instances": [rows[0], {**rows[1], "seed": 8}]}),
            "seed must be the same in all rows",
        ),
    ]
    found = run_alone(folder, [(path, *call) for call in [*asked, *(call for call, _ in refused)]])
    for (_, message), outputs in zip(refused, found[len(asked) :], strict=True):
        assert message in outputs["error"]

    written = [text.encode() for text in model.generate(texts, strip_prompt=True)]
    assert [row["texts"] for row in found[0]["predictions"]] == found[1]["texts"].tolist() == written
    written = [text.encode() for text in model.generate(texts, strip_prompt=True, **drawn)]
    assert [row["texts"] for row in found[2]["predictions"]] == written
    assert found[3]["texts"].tolist() == found[4]["texts"].tolist() == written
    prompts = [[5, 6, 7], [9, 10]]
    for outputs, stop in ((found[5], ()), (found[6], (11, 12))):
        expected = model.generate(prompts, strip_prompt=True, stop=stop)
        assert outputs["lengths"].tolist() == [len(row) for row in expected]
        assert outputs["token_ids"].tolist() == pad(expected)[0].tolist()
    [expected] = verification.model_outputs(model, [{"token_ids": ids.astype("int32"), "padding_mask": mask > 0}])
    np.testing.assert_allclose(found[7]["logits"][:1], expected["logits"][:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize(
    "defaults, message",
    [
        ({"num_beams": 2}, r"cannot hold generation_defaults.num_beams \(2\)"),
        ({"stop": ["word", 3]}, r"cannot hold generation_defaults.stop \(\['word'\]\)"),
    ],
)
def test_defaults_that_no_file_can_hold_are_named(defaults, message, format):
    model = make("lstm")
    model.generation_defaults = GenerationConfig(**defaults)
    options = {"static": format == "litert"}
    with pytest.raises(ValueError, match=message):
        LanguageModelContents(model, Options(**options))
    LanguageModelContents(model, Options(**options, signatures=("forward",)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"static": True, "max_length": LENGTH + 1}, r"max_length \(25\) must be at most .* \(24\)"),
        ({"static": True, "strings": True}, r"strings \(True\) are for a SavedModel"),
        ({"strings": True}, r"tokenizer \(None\) must be set"),
        ({"default_signature": "generate_text"}, r"default_signature \('generate_text'\) must be among forward, gen"),
        (
            {"static": True, "signatures": ("prefill_64",)},
            r"'prefill_64'\) must be among forward, generate, prefill_16, d",
        ),
    ],
)
def test_options_that_do_not_suit_the_model_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LanguageModelContents(make("gpt"), Options(**options))


@pytest.mark.parametrize("name, lengths", [("gpt", [16]), ("lstm", [])])
def test_a_file_says_what_a_program_needs_to_know(name, lengths):
    model = make(name)
    model.tokenizer = Tokenizer.train_words(["a b"], V, unk="<unk>", pad="<pad>")
    model.end_token_ids = [4, 1]
    contents = LanguageModelContents(model, Options(static=True))
    max_length = LENGTH if name == "gpt" else model.default_max_length
    settings = {"max_length": max_length, "end_token_ids": [4, 1], "prefill_lengths": lengths, "vocabulary_size": V}
    assert contents.settings() == {**settings, "pad_token_id": model.tokenizer.pad_id}
    assert [name for name in contents.signatures if name.startswith("prefill")] == [f"prefill_{n}" for n in lengths]
