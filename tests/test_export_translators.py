"""Files of translators translate as the models do, in a process that has neither Keras nor kerasllm."""

import functools
import json
import pathlib

import keras
import numpy as np
import pytest
from alone import run_alone

from kerasllm import GenerationConfig, LSTMTranslator, Summarizer, Tokenizer, TransformerTranslator
from kerasllm.export import core
from kerasllm.export.contents import Options
from kerasllm.export.contents_by_model import contents_of
from kerasllm.text import batches

DATA = pathlib.Path(__file__).parent / "data"
IN_CHILD = keras.backend.backend() != "tensorflow"
V = 23
TEXTS = ["the cat sat on the mat", "a dog", "where is the cat ?", "the dog sat", "is a mat a cat ?"]
TRANSFORMER = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 16}
MODELS = {
    "lstm": lambda: LSTMTranslator(*tokenizer_sizes(), 1, 16, **tokenizers()),
    "gru": lambda: LSTMTranslator(V, V, 1, 16, attention="dot", bidirectional=False, cell="gru"),
    "general": lambda: LSTMTranslator(V, V, 1, 16, attention="general", tie_embeddings=True),
    "simple": lambda: LSTMTranslator(V, V, 1, 16, attention=None, cell="simple"),
    "fed": lambda: LSTMTranslator(V, V, 2, 16, tie_embeddings=True, share_embeddings=True, input_feeding=True),
    "fed gru": lambda: LSTMTranslator(
        V, V, 1, 16, attention="dot", bidirectional=False, cell="gru", share_embeddings=True, input_feeding=True
    ),
    "penalties": lambda: TransformerTranslator(V, V, **TRANSFORMER, positions="rotary"),
    "summarizer": lambda: Summarizer(V, **TRANSFORMER, share=True),
    **{name: functools.partial(TransformerTranslator.from_preset, DATA / name) for name in ("marian", "bart", "t5")},
}
DEFAULTS = {
    "penalties": GenerationConfig(
        repetition_penalty=1.3, frequency_penalty=0.4, logit_bias={5: 1.0}, min_new_tokens=3, stop=[7], temperature=0.5
    ),
    "summarizer": GenerationConfig(no_repeat_ngram_size=3, early_stopping="never", num_beams=2),
}


@functools.cache
def tokenizers():
    texts = {"source_tokenizer": TEXTS, "target_tokenizer": [text.upper() for text in TEXTS[::-1]]}
    return {name: Tokenizer.train_words(texts, 40) for name, texts in texts.items()}


def tokenizer_sizes():
    return [tokenizer.vocabulary_size for tokenizer in tokenizers().values()]


@functools.cache
def make(name):
    """A model whose weights are as large as trained ones."""
    model = MODELS[name]()
    if not (DATA / name).exists():
        # A recurrence that is fed with sharp attention makes the last digit of a number the first.
        rng, scale = np.random.default_rng(1), 0.4 if name.startswith("fed") else 0.7
        for v in model.weights:
            v.assign(rng.normal(scale=scale, size=v.shape))
        model.generation_defaults = DEFAULTS.get(name)
        if not model.tokenizers:
            model.start_token_id, model.end_token_ids = 1, [2, 3]
    return model


def export(model, folder, format, **options):
    path = folder / {"tf_saved_model": "model", "litert": "model.tflite"}[format]
    model.export(path, format, verbose=False, **options)
    return path


def sources(model, lengths=(2, 8, 5)):
    rng = np.random.default_rng(2)
    return [rng.integers(4, model.source_vocabulary_size - 1, length).tolist() for length in lengths]


def source_inputs(rows):
    token_ids, padding_mask = batches.pad(rows)
    return {"source_token_ids": token_ids, "source_padding_mask": padding_mask}


def completions(outputs):
    """The ids of each row; behind them stands 0."""
    rows = [row[:length] for row, length in zip(outputs["token_ids"], outputs["lengths"], strict=True)]
    assert outputs["token_ids"].shape[1] == max(map(len, rows))
    assert all(not row[length:].any() for row, length in zip(outputs["token_ids"], outputs["lengths"], strict=True))
    return [row.tolist() for row in rows]


def assert_as_generated(outputs, results):
    """Whether each row is what `generate` gives, a list of ids, or a `Generation` where there are scores."""
    rows = completions(outputs)
    if "scores" in outputs:
        np.testing.assert_allclose(outputs["scores"], [g.score for g in results], rtol=1e-5)
        results = [g.completion.tolist() for g in results]
    assert rows == results


@pytest.mark.once("tensorflow")
def test_a_saved_model_translates_padded_batches_and_strings(tmp_path):
    model, names = make("lstm"), ["translate_beams", "translate_text"]
    if not IN_CHILD:
        names += ["translate", "translate_beams_text"]
    model.generation_defaults = GenerationConfig(max_new_tokens=9, bad_words=["CAT"])
    path = export(model, tmp_path, "tf_saved_model", strings=True, signatures=names, num_beams=3)
    assert compared(path) == names

    rows = sources(model)
    inputs = {"max_new_tokens": np.int32(9), "length_penalty": np.float32(1.7)}
    calls = [(path, "translate_beams", x | inputs) for x in map(source_inputs, (rows, *([row] for row in rows)))]
    calls.append((path, "translate_text", {"texts": np.array(TEXTS[:3], object), "max_new_tokens": np.int32(9)}))
    calls.append((path, "POST", {"instances": TEXTS[:3]}))
    calls.append((path, ".translate_text", {"texts": TEXTS[:1], "max_new_tokens": -1}))
    batch, *singles, translations, served, refused = run_alone(tmp_path, calls)
    beams = {"num_beams": 3, "length_penalty": 1.7}
    expected = model.generate(rows, max_new_tokens=9, return_scores=True, **beams)
    assert_as_generated(batch, expected)
    for single, row in zip(singles, expected, strict=True):
        assert_as_generated(single, [row])
    expected = model.translate(TEXTS[:3], max_new_tokens=9, num_beams=1)
    assert [text.decode() for text in translations["texts"]] == expected
    assert len(set(expected)) == 3  # or nothing would be proved
    assert [row["texts"].decode() for row in served["predictions"]] == expected
    assert "max_new_tokens must be at least 0" in refused["error"]


def compared(path):
    """The functions that were compared with the model, in their order."""
    assets = core.FORMATS["litert" if path.suffix else "tf_saved_model"].assets_folder(path)
    checks = json.loads((assets / "parity.json").read_text())["checks"]
    return list(dict.fromkeys(name for check in checks for name in check["calls"]))


# TensorFlow writes the file on every backend: the other two write it in the slow run.
@pytest.mark.once("torch")
def test_a_marian_in_tflite_keeps_to_its_generation_config(tmp_path):
    """Its own start token, a forced end, a bad word, n-grams, probabilities that sum to one again."""
    model = make("marian")
    names = ["translate", "translate_beams", "encode", "decode"]
    path = export(model, tmp_path, "litert", signatures=names, num_beams=3)
    assert compared(path) == names
    settings = json.loads((path.with_name("model.tflite.assets") / "signatures.json").read_text())["settings"]
    assert settings == {"max_length": 24, "start_token_id": 96, "end_token_ids": [0], "num_beams": 3}

    rows, calls, expected = sources(model, (2, 8)), [], []
    for limit, penalty in ((9, 0.3), (1000, 2.0)):  # no more than there is room for
        length = {"max_new_tokens": min(limit, 23)}
        expected += model.generate(rows, num_beams=1, strip_prompt=True, **length)
        expected += model.generate(rows, num_beams=3, length_penalty=penalty, return_scores=True, **length)
        inputs = {"max_new_tokens": np.int32(limit)}
        calls += [(path, "translate", source_inputs([row]) | inputs) for row in rows]
        inputs["length_penalty"] = np.float32(penalty)
        calls += [(path, "translate_beams", source_inputs([row]) | inputs) for row in rows]
    results = run_alone(tmp_path, calls)
    for outputs, row in zip(results, expected, strict=True):
        assert_as_generated(outputs, [row])
    assert len({tuple(row) for outputs in results for row in completions(outputs)}) > 4


CASES = [
    pytest.param("gru", "litert", {"batch_size": 2, "max_length": 20}, marks=pytest.mark.slow),
    ("general", "litert", {"signatures": ["encode", "decode"], "max_length": 16}),
    pytest.param("simple", "litert", {"signatures": ["translate"], "max_length": 16}, marks=pytest.mark.slow),
    pytest.param("fed", "litert", {"max_length": 16}, marks=pytest.mark.slow),
    ("fed gru", "tf_saved_model", {"signatures": ["forward", "translate", "translate_beams"]}),
    ("penalties", "litert", {"signatures": ["translate", "translate_beams"]}),
    pytest.param("summarizer", "tf_saved_model", {"signatures": ["translate_beams"]}, marks=pytest.mark.slow),
    ("bart", "tf_saved_model", {"signatures": ["translate_beams"]}),
    ("t5", "litert", {"signatures": ["translate_beams", "encode", "decode"], "max_length": 16}),
]


@pytest.mark.skipif(IN_CHILD, reason="the TensorFlow process would do the same; above it is tested once")
@pytest.mark.parametrize("name, format, options", CASES)
def test_files_of_all_kinds_are_equal_to_the_model(name, format, options, tmp_path):
    path = export(make(name), tmp_path, format, **options)
    assert compared(path) == options.get("signatures", ["forward", "encode", "decode", "translate", "translate_beams"])


def test_a_model_without_a_start_token_has_steps_alone():
    model = LSTMTranslator(V, V, 1, 8)
    assert list(contents_of(None, model, Options(static=True)).available()) == ["forward", "encode", "decode"]
    assert list(contents_of(None, model, Options()).available()) == ["forward"]
    with pytest.raises(ValueError, match=r"signatures \('translate'\) must be among forward"):
        contents_of(None, model, Options(signatures=("translate",)))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("gru", {"num_beams": 1}, r"num_beams \(1\) must be an integer >= 2"),
        ("gru", {"strings": True}, r"strings \(True\) need a tokenizer: the model's source_tokenizer is None"),
        ("gru", {"strings": True, "static": True}, r"strings \(True\) must be False in TFLite"),
        ("penalties", {"max_length": 17}, r"max_length \(17\) must be in \[2, 16\], the model's max_sequence_length"),
        ("gru", {"max_length": 1}, r"max_length \(1\) must be at least 2"),
    ],
)
def test_options_that_do_not_suit_the_model_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        contents_of(None, make(name), Options(**options))


def test_stop_strings_are_refused_unless_the_function_is_left_out():
    model = LSTMTranslator(*tokenizer_sizes(), 1, 8, **tokenizers())
    model.generation_defaults = GenerationConfig(stop=["mat"])
    with pytest.raises(ValueError, match=r"generation_defaults.stop \(\['mat'\]\) must be token ids for translate"):
        contents_of(None, model, Options())
    assert contents_of(None, model, Options(signatures=("forward",))).signatures.keys() == {"forward"}
