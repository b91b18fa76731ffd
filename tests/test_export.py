import importlib.util
import json
import pathlib
import warnings

import keras
import numpy as np
import pytest
from alone import run_alone

from kerasllm.export import child, core, verification
from kerasllm.export.contents import Check, Contents, Options
from kerasllm.models.bert import BERT
from kerasllm.models.gpt import GPT
from kerasllm.models.lstm_translator import LSTMTranslator
from kerasllm.models.masked_lm import BERTMaskedLM
from kerasllm.models.rnn import RNNLanguageModel
from kerasllm.models.summarizer import Summarizer
from kerasllm.models.transformer_translator import TransformerTranslator
from kerasllm.training.losses import TokenCrossentropy

BACKEND = keras.backend.backend()
IN_CHILD = BACKEND != "tensorflow"
V = 23
TRANSFORMER = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 32}
LLAMA = {
    **TRANSFORMER,
    "norm": "rms",
    "positions": "rotary",
    "gated": True,
    "activation": "silu",
    "num_key_value_heads": 1,
    "use_bias": False,
    "tie_embeddings": False,
}
MODELS = {
    "gpt": lambda: GPT(V, **{**TRANSFORMER, "num_layers": 2}),
    "llama": lambda: GPT(V, **LLAMA),
    "mixed llama": lambda: GPT(V, **LLAMA, dtype="mixed_bfloat16"),
    "lstm": lambda: RNNLanguageModel(V, 2, 16, tie_embeddings=True),
    "gru with attention": lambda: RNNLanguageModel(V, 1, 16, cell="gru", num_attention_heads=2),
    "simple rnn": lambda: RNNLanguageModel(V, 1, 16, cell="simple"),
    "simple rnn with attention": lambda: RNNLanguageModel(V, 1, 16, cell="simple", num_attention_heads=2),
    "additive translator": lambda: LSTMTranslator(V, V + 1, 2, 16),
    "dot translator": lambda: LSTMTranslator(V, V, 1, 16, attention="dot", bidirectional=False, cell="gru"),
    "general translator": lambda: LSTMTranslator(V, V, 1, 16, attention="general", tie_embeddings=True),
    "translator without attention": lambda: LSTMTranslator(V, V, 1, 16, attention=None, cell="simple"),
    "transformer translator": lambda: TransformerTranslator(V, V + 1, **TRANSFORMER),
    "relative translator": lambda: TransformerTranslator(V, V, **TRANSFORMER, positions="relative"),
    "alibi translator": lambda: TransformerTranslator(V, V, **TRANSFORMER, positions="alibi", norm_first=True),
    "summarizer": lambda: Summarizer(V, **TRANSFORMER, share=True),
    "bert": lambda: BERT(V, **TRANSFORMER),
    "masked lm": lambda: BERTMaskedLM(V, **TRANSFORMER),
}
FORMATS = ("tf_saved_model", "litert")  # which hold any model
# Others have all their parts.
ONLY_LITERT = {"llama", "simple rnn", "summarizer"}
# One format of each model, and both of some; the rest are slow tests.
BOTH = ("gpt", "transformer translator")
CASES = [
    pytest.param(name, f, marks=() if name in (*BOTH, *ONLY_LITERT) or i % 2 == FORMATS.index(f) else pytest.mark.slow)
    for i, name in enumerate(MODELS)
    for f in FORMATS
    if f == "litert" or name not in ONLY_LITERT
]
if IN_CHILD:  # A process started for each takes seconds: each kind of model once, here or further below.
    CASES = [
        ("transformer translator", "tf_saved_model"),
        ("bert", "tf_saved_model"),
        ("masked lm", "litert"),
    ]


def make(name):
    """A model whose weights are as large as trained ones."""
    model = MODELS[name]()
    rng = np.random.default_rng(0)
    for v in model.weights:
        v.assign(rng.normal(scale=0.3, size=v.shape))
    return model


def export(model, folder, format="litert", **options):
    path = folder / {"tf_saved_model": "model", "litert": "model.tflite"}[format]
    model.export(path, format, verbose=False, **options)
    return path


def examples(model, sizes, monkeypatch):
    monkeypatch.setattr(verification, "SIZES", sizes)
    return verification.example_inputs(model, Contents(model, Options()).forward_inputs())


@pytest.mark.parametrize("name, format", CASES)
def test_a_file_computes_what_the_model_computes_at_any_size(name, format, tmp_path, monkeypatch):
    model = make(name)
    path = export(model, tmp_path, format, signatures=["forward"])
    assets = core.FORMATS[format].assets_folder(path)
    assert set(tmp_path.iterdir()) == {path, assets} - {path / "assets.extra"}
    assert {file.name for file in assets.iterdir()} >= {"signatures.json", "parity.json"}
    if not IN_CHILD or format == "litert":  # A SavedModel would bring TensorFlow into this process.
        inputs = examples(model, ((1, 1), (4, 31)), monkeypatch)
        call = core.FORMATS[format].load(path)
        expected = verification.model_outputs(core.in_float32(model), inputs)
        assert_same(expected, [call("forward", x) for x in inputs])


def assert_same(expected, outputs):
    """Raise unless each of `outputs` is within 1e-5 of the largest of those expected."""
    verification.compare([Check([], y) for y in expected], outputs)


@pytest.mark.once("tensorflow")
@pytest.mark.parametrize("name, format", [("gru with attention", "tf_saved_model"), ("additive translator", "litert")])
def test_files_run_without_keras(name, format, tmp_path, monkeypatch):
    model = make(name)
    path = export(model, tmp_path, format, signatures=["forward"])
    (inputs,) = examples(model, ((3, 9),), monkeypatch)
    names = ["forward", "serving_default"] if format == "tf_saved_model" else ["forward"]
    [expected] = verification.model_outputs(model, [inputs])
    assert_same([expected] * len(names), run_alone(tmp_path, [(path, name, inputs) for name in names]))


@pytest.mark.skipif(IN_CHILD, reason="the TensorFlow process writes the same")
def test_a_saved_model_holds_each_weight_once(tmp_path):
    import tensorflow as tf

    model = make("gpt")
    path = export(model, tmp_path, "tf_saved_model", verify=False)
    variables = dict(tf.train.list_variables(str(path / "variables" / "variables")))
    del variables["_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert sum(map(np.prod, variables.values())) == model.count_params()


@pytest.mark.once("tensorflow")
def test_the_model_predicts_and_trains_on(tmp_path, monkeypatch):
    model = make("mixed llama")
    (inputs,) = examples(model, ((4, 6),), monkeypatch)
    model.compile(keras.optimizers.Adam(0.01), loss=TokenCrossentropy())
    model.fit(inputs, inputs["token_ids"], verbose=0)
    outputs, weights = model.predict(inputs, verbose=0), model.get_weights()
    export(model, tmp_path, input_signature={name: keras.InputSpec(shape=(4, None)) for name in inputs})
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), outputs)
    model.fit(inputs, inputs["token_ids"], verbose=0)
    assert int(model.optimizer.iterations) == 2


@pytest.mark.once("tensorflow")
@pytest.mark.parametrize("format", ["litert"] if IN_CHILD else FORMATS)
def test_a_wrong_file_is_found_and_the_earlier_one_stays(format, tmp_path, monkeypatch):
    path = place_earlier(tmp_path, format)
    before = contents(path)
    spoil(monkeypatch)
    with pytest.raises(RuntimeError, match="differs from the model"):
        export(make("simple rnn"), tmp_path, format)
    assert contents(path) == before
    assert list(tmp_path.iterdir()) == [path]


def place_earlier(folder, format):
    """Put something where `export` writes."""
    if format == "litert":
        (folder / "model.tflite").write_text("earlier")
        return folder / "model.tflite"
    (folder / "model" / "variables").mkdir(parents=True)
    (folder / "model" / "saved_model.pb").write_text("earlier")
    return folder / "model"


def contents(path):
    return {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}


def spoil(monkeypatch):
    """Let the files that are written compute something else than the model."""
    write_tensors = child.files.write_tensors

    def write_others(folder, tensors):
        write_tensors(folder, {path: x * np.float32(1.001) for path, x in tensors.items()})

    def forward(contents, **inputs):
        return {name: y * 1.001 for name, y in verification.forward(contents.model, inputs).items()}

    monkeypatch.setattr(child.files, "write_tensors", write_others)
    monkeypatch.setattr(Contents, "forward", forward)


@pytest.mark.once("tensorflow", "torch")
def test_a_quantised_model_with_lora_is_written_as_it_is(tmp_path):
    model = make("simple rnn")
    with warnings.catch_warnings(action="ignore"):
        model.quantize("int8")
    model.head.enable_lora(2)
    model.head.lora_kernel_b.assign(np.ones(model.head.lora_kernel_b.shape))
    path = export(model, tmp_path, "tf_saved_model", signatures=["forward"])
    parity = json.loads((path / "assets.extra" / "parity.json").read_text())
    assert parity["agreement"] > 0.9
    assert max(y["largest difference"] for check in parity["checks"] for y in check["outputs"].values()) < 0.01
    model = make("simple rnn")
    model.head.quantize("float8")
    with pytest.raises(ValueError, match="format .'litert'. must be 'tf_saved_model' for weights of float8"):
        export(model, tmp_path)


@pytest.mark.once("torch")
@pytest.mark.skipif(not IN_CHILD, reason="the model itself is exported, with all it has")
def test_what_a_copy_would_lack_is_named(tmp_path, monkeypatch):
    model = make("simple rnn")
    with warnings.catch_warnings(action="ignore"):
        model.quantize("int8")
    monkeypatch.setattr(child, "merged_config", lambda model: {"name": model.name, **model.arguments})
    with pytest.raises(ValueError, match="config does not account for .*head/kernel_scale"):
        export(model, tmp_path, verify=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.once("tensorflow", "torch")
def test_lora_is_written_as_part_of_the_weights(tmp_path):
    model = make("mixed llama")
    model.head.enable_lora(2)
    model.decoder.embeddings.token.enable_lora(2)
    rng = np.random.default_rng(1)
    for v in model.trainable_weights:
        v.assign(rng.normal(scale=0.3, size=v.shape))
    export(model, tmp_path, signatures=["forward"])  # which compares
    ids = {"token_ids": np.arange(6)[None], "padding_mask": np.ones((1, 6), bool)}
    model.save_to_preset(tmp_path / "preset")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(GPT.from_preset(tmp_path / "preset")(ids)),
        keras.ops.convert_to_numpy(core.in_float32(model)(ids)),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.skipif(not IN_CHILD, reason="no other process is needed")
def test_a_class_that_no_other_process_finds_is_refused(tmp_path):
    class Mine(RNNLanguageModel):
        pass

    with pytest.raises(ValueError, match="Mine, must stand in a module"):
        export(Mine(V, 1, 16), tmp_path)


def test_a_model_that_is_not_finite_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        child,
        "write_here" if not IN_CHILD else "write_in_child",
        lambda *_: ({}, [{"logits": np.zeros((1, 5, V))}] * 3),
    )
    model = make("simple rnn")
    model.weights[0].assign(model.weights[0] + float("nan"))
    with pytest.raises(ValueError, match="logits are not finite"):
        export(model, tmp_path)


@pytest.mark.parametrize(
    "outputs, difference",
    [([1.0, -2.0], 0), ([1.0, -2.00001], 5e-6), ([1.0, -2.0001], None), ([1, np.nan], None), ([1.0], None)],
)
def test_differences_count_as_parts_of_the_largest_output(outputs, difference):
    pair = [Check([("forward", {})], {"logits": np.array([1.0, -2.0])})], [{"logits": np.array(outputs)}]
    if difference is None:
        with pytest.raises(RuntimeError, match="not kept"):
            verification.compare(*pair)
    else:
        [entry] = verification.compare(*pair)
        assert entry["calls"] == ["forward"]
        assert entry["outputs"]["logits"]["largest difference"] == pytest.approx(difference)


@pytest.mark.parametrize("expected, given", [([1, 2, 3, 4], [1, 2, 3, 5]), ([b"a"], [b"b"])])
def test_whole_numbers_and_strings_must_be_equal(expected, given):
    checks = [Check([("generate", {})], {"token_ids": np.array(expected)})]
    outputs = [{"token_ids": np.array(given)}]
    verification.compare(checks, [{"token_ids": np.array(expected)}])
    with pytest.raises(RuntimeError, match="differs from the model: token_ids"):
        verification.compare(checks, outputs)
    with pytest.raises(RuntimeError, match=r"min_agreement \(0.9\)"):
        verification.compare(checks, outputs, min_agreement=0.9)


def test_examples_keep_to_what_the_model_takes():
    model = BERTMaskedLM(V, **{**TRANSFORMER, "max_sequence_length": 8})
    fixed = {name: keras.InputSpec(shape=(5, None)) for name in model.input}
    for x in verification.example_inputs(
        model, Contents(model, Options(inputs=core.read_shapes(model, fixed))).forward_inputs()
    ):
        batch, length = x["token_ids"].shape
        assert batch == 5 and length <= 8
        assert x["token_ids"].max() < V and x["masked_positions"].max() < length
        assert x["padding_mask"].any(axis=1).all() and (np.diff(x["padding_mask"].astype(int)) <= 0).all()


@pytest.mark.parametrize(
    "path, format, message",
    [
        ("model", "litert", "must end in '.tflite'"),
        ("model.keras", "litert", "model.keras.*must end in '.tflite'"),
        ("model.tflite", "tf_saved_model", "without '.tflite'"),
        ("missing/model", "tf_saved_model", "missing' does not exist"),
        ("file", "tf_saved_model", "is no SavedModel"),
        ("full", "tf_saved_model", "is no SavedModel"),
        ("full.tflite", "litert", "is a folder"),
        (
            "model",
            "tflite",
            "Do you mean 'litert'. Supported formats are: .*'litertlm', 'mediapipe', 'gguf', 'onnx', 'openvino'",
        ),
        ("model.pt", "torch", r"model.pt'\) must end in '.pt2' for the format 'torch'"),
    ],
)
def test_bad_targets_are_refused_before_anything_is_written(path, format, message, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in ("full", "full.tflite"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        make("simple rnn").export(tmp_path / path, format)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "format, options, message",
    [
        ("tf_saved_model", {"string": True}, r"string \(True\) is no option of the format 'tf_saved_model', which has"),
        ("onnx", {"quantize": "int8"}, r"quantize \('int8'\) is no option of the format 'onnx', which has opset_v"),
        (
            "litert",
            {"default_signature": "forward"},
            r"default_signature \('forward'\) must be None for the format 'lit",
        ),
        (
            "tf_saved_model",
            {"truncate": True},
            r"truncate \(True\) must be False: .* not of a RNNLanguageModel without",
        ),
    ],
)
def test_options_that_a_format_does_not_have_are_named(format, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make("simple rnn").export(tmp_path / ("model.tflite" if format == "litert" else "model"), format, **options)
    assert not list(tmp_path.iterdir())


def test_what_a_format_of_keras_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for format in ("onnx", "openvino"):
        with pytest.raises(ImportError, match=rf"'{format}' on the backend {BACKEND} needs \w+: `pip install \w+`"):
            make("simple rnn").export(tmp_path / "model.xml", format)


def test_a_folder_that_cannot_be_written_is_named(monkeypatch):
    with pytest.raises(ValueError, match="cannot be written"):
        make("simple rnn").export(pathlib.Path("/proc/model"))


@pytest.mark.parametrize("package", ["tensorflow", "ai_edge_litert"])
def test_what_is_not_installed_is_named(package, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(ImportError, match=rf"{package}: `pip install 'kerasllm\[export\]'`"):
        export(make("simple rnn"), tmp_path)


@pytest.mark.parametrize(
    "signature, message",
    [
        ({"token_ids": keras.InputSpec(shape=(1, 8))}, "for each of token_ids, padding_mask"),
        ({"token_ids": (1, 8), "padding_mask": (1, 8, 1)}, r"\['padding_mask'\] has the shape \(1, 8, 1\)"),
        ({"token_ids": (1, 8), "padding_mask": ((1, 8), "int32")}, r"\['padding_mask'\] has the dtype int32"),
    ],
)
def test_signatures_that_contradict_the_model_are_refused(signature, message, tmp_path):
    def spec(given):
        if isinstance(given, keras.InputSpec):
            return given
        shape, dtype = given if isinstance(given[0], tuple) else (given, None)
        return keras.InputSpec(shape=shape, dtype=dtype)

    with pytest.raises(ValueError, match=message):
        export(make("simple rnn"), tmp_path, input_signature={k: spec(v) for k, v in signature.items()})
