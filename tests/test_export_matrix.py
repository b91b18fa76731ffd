"""Every kind of model in every format that holds it: all functions, run in a process without Keras, equal to the model.

`make test-all` prints the table of each backend; `make test` runs a diagonal of it, in the tests of each.
"""

import functools
import json
import pathlib

import numpy as np
import pytest
from alone import run_alone

from kerasllm import (
    BERT,
    GPT,
    BERTClassifier,
    BERTEmbedder,
    BERTMaskedLM,
    BERTQuestionAnswerer,
    BERTTokenClassifier,
    LSTMTranslator,
    RNNLanguageModel,
    Summarizer,
    Tokenizer,
    TransformerTranslator,
)
from kerasllm.export import core, verification
from kerasllm.export.contents import Options
from kerasllm.export.contents_by_model import contents_of

DATA = pathlib.Path(__file__).parent / "data"
TEXTS = ["the cat sat on the mat", "Zürich und Köln", "a naïve café, isn't it?", "who saw the big city?"]
TRANSFORMER = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "max_sequence_length": 32}
LLAMA = {
    "norm": "rms",
    "positions": "rotary",
    "gated": True,
    "activation": "silu",
    "num_key_value_heads": 1,
    "use_bias": False,
    "tie_embeddings": False,
}
NEOX = {"residual": "parallel", "positions": "rotary", "rotary_fraction": 0.25, "tie_embeddings": False}
GEMMA = LLAMA | {
    "norm": "unit_offset_rms",
    "residual": "both",
    "scale_embeddings": True,
    "sliding_window": [6, None],
    "attention_softcap": 5.0,
    "logit_softcap": 6.0,
    "tie_embeddings": True,
}


@functools.cache
def pieces(kind):
    """A tokenizer, with its vocabulary's size, as arguments of a model."""
    train, size = {
        "bpe": (Tokenizer.train_bpe, 300),
        "wordpiece": (Tokenizer.train_wordpiece, 90),
        "words": (Tokenizer.train_words, 40),
    }[kind]
    tokenizer = train(TEXTS * 2, size)
    return {"vocabulary_size": tokenizer.vocabulary_size, "tokenizer": tokenizer}


def translated(cls, *sizes, **others):
    """A translator whose two languages share a tokenizer."""
    size, tokenizer = pieces("words").values()
    return cls(size, size, *sizes, source_tokenizer=tokenizer, target_tokenizer=tokenizer, **others)


MODELS = {
    "GPT": lambda: GPT(**pieces("bpe"), **TRANSFORMER),
    "GPT, as Llama": lambda: GPT(**pieces("bpe"), **TRANSFORMER, **LLAMA),
    "GPT, as GPT-NeoX": lambda: GPT(**pieces("bpe"), **TRANSFORMER, **NEOX),
    "GPT, as Gemma 2": lambda: GPT(**pieces("bpe"), **TRANSFORMER | {"num_layers": 2}, **GEMMA),
    "RNNLanguageModel, LSTM": lambda: RNNLanguageModel(**pieces("bpe"), num_layers=2, hidden_dim=16),
    "RNNLanguageModel, GRU with attention": lambda: RNNLanguageModel(
        **pieces("bpe"), num_layers=1, hidden_dim=16, cell="gru", num_attention_heads=2
    ),
    "LSTMTranslator": lambda: translated(LSTMTranslator, 1, 16),
    "TransformerTranslator": lambda: translated(TransformerTranslator, **TRANSFORMER),
    "TransformerTranslator, Marian": lambda: TransformerTranslator.from_preset(DATA / "marian"),
    "TransformerTranslator, BART": lambda: TransformerTranslator.from_preset(DATA / "bart"),
    "TransformerTranslator, T5": lambda: TransformerTranslator.from_preset(DATA / "t5"),
    "Summarizer": lambda: Summarizer(**pieces("words"), **TRANSFORMER, share=True),
    "BERT": lambda: BERT(**pieces("wordpiece"), **TRANSFORMER),
    "BERTMaskedLM": lambda: BERTMaskedLM(**pieces("wordpiece"), **TRANSFORMER),
    "BERTClassifier": lambda: BERTClassifier(**pieces("wordpiece"), **TRANSFORMER, labels=["bad", "good"]),
    "BERTTokenClassifier": lambda: BERTTokenClassifier(**pieces("wordpiece"), **TRANSFORMER, labels=["O", "B", "I"]),
    "BERTQuestionAnswerer": lambda: BERTQuestionAnswerer(**pieces("wordpiece"), **TRANSFORMER),
    "BERTEmbedder": lambda: BERTEmbedder(**pieces("wordpiece"), **TRANSFORMER),
}
FORMATS = {
    "SavedModel": ("tf_saved_model", {}),
    "with strings": ("tf_saved_model", {"strings": True}),
    "TFLite": ("litert", {}),
    "TFLite, dynamic_int8": ("litert", {"quantize": "dynamic_int8", "min_agreement": 0.5}),
    "LiteRT-LM": ("litertlm", {"max_length": 24}),
    "MediaPipe": ("mediapipe", {"max_length": 24}),
}
ENDINGS = {"tf_saved_model": "", "litert": ".tflite", "mediapipe": ".tflite", "litertlm": ".litertlm"}
REFUSED = {
    "with strings": [
        "BERT",
        "TransformerTranslator, Marian",
        "TransformerTranslator, BART",
        "TransformerTranslator, T5",
    ],
    "LiteRT-LM": [name for name in MODELS if not name.startswith("GPT")],
    "MediaPipe": [name for name in MODELS if name != "BERTClassifier"],
}


def make(name):
    """A model whose weights are as large as trained ones."""
    model = MODELS[name]()
    if not name.endswith(("Marian", "BART", "T5")):
        rng = np.random.default_rng(0)
        for variable in model.weights:
            variable.assign(rng.normal(scale=0.3, size=variable.shape))
    return model


@pytest.mark.once("torch")
@pytest.mark.parametrize("name", ["GPT", "LSTMTranslator", *(name for name in MODELS if name.startswith("BERT"))])
def test_each_function_says_what_proves_it(name):
    for format, (key, given) in FORMATS.items():
        if name not in REFUSED.get(format, []):
            options = {field: x for field, x in given.items() if field != "min_agreement"}
            writer = core.FORMATS[key]
            signatures = contents_of(writer, MODELS[name](), Options(static=writer.STATIC, **options)).signatures
            unproved = {function for function, signature in signatures.items() if signature.proof is list}
            # `decode` begins with what these leave.
            assert {name for name in unproved if not name.startswith("prefill_")} <= {"encode"}


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_a_file_holds_what_its_model_does(name, format, tmp_path, monkeypatch, record_property):
    record_property("export", (name, format, "failed"))  # until it is found to be right
    model, (key, given) = make(name), FORMATS[format]
    path = tmp_path / f"model{ENDINGS[key]}"
    if name in REFUSED.get(format, []):
        with pytest.raises(ValueError, match=r"strings \(True\)|holds (Transformers|a BERTClassifier)"):
            model.export(path, key, **given)
        assert not list(tmp_path.iterdir())
        record_property("export", (name, format, "refused"))
        return
    model.export(path, key, verbose=False, **given)
    assets = core.FORMATS[key].assets_folder(path)
    functions = json.loads((assets / "signatures.json").read_text())["signatures"]
    report = json.loads((assets / "parity.json").read_text())["checks"]
    if key != "litertlm":  # whose functions LiteRT-LM alone can open; it has run them
        monkeypatch.setattr(verification, "SIZES", ((2, 7),))  # others than the export compares
        options = {field: x for field, x in given.items() if field != "min_agreement"}
        writer = core.FORMATS[key]
        checks = contents_of(writer, model, Options(static=writer.STATIC, **options)).checks()
        calls = [[(path, *call) for call in check.calls] for check in checks]
        outputs = iter(run_alone(tmp_path, [call for chain in calls for call in chain]))
        last = [[next(outputs) for _ in chain][-1] for chain in calls]
        report += verification.compare(checks, last, given.get("min_agreement"))
    called = {call for check in report for call in check["calls"]}
    # Quantised, another token is drawn: `sample` is not compared.
    assert called == set(functions) - ({"sample"} if "quantize" in given else set())
    differences = [y["largest difference"] for check in report for y in check["outputs"].values()]
    text = f"{len(functions)} functions, {max(x or 0.0 for x in differences):.0e}"
    if "quantize" in given:
        text += f", {verification.agreement(report):.0%}"
    record_property("export", (name, format, text))
