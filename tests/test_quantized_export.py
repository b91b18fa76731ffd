"""Exported files of fewer bits: their sizes, what they compute, and what is refused."""

import json
import types

import keras
import numpy as np
import pytest

from kerasllm.export import litert, quantization, verification
from kerasllm.export.contents import Check, Options
from kerasllm.models.bert import BERT
from kerasllm.models.gpt import GPT
from kerasllm.models.rnn import RNNLanguageModel

pytestmark = pytest.mark.once("tensorflow")

IN_CHILD = keras.backend.backend() != "tensorflow"
V = 200


@pytest.fixture(scope="module")
def model():
    """A GPT with tied embeddings whose weights are as large as trained ones."""
    model = GPT(V, num_layers=1, num_heads=2, hidden_dim=64, max_sequence_length=32)
    rng = np.random.default_rng(0)
    for v in model.weights:
        v.assign(rng.normal(scale=0.2, size=v.shape))
    return model


@pytest.fixture(scope="module")
def data():
    """Inputs of `forward`, padded."""
    rng = np.random.default_rng(1)
    padding_mask = np.arange(12) < rng.integers(4, 13, (4, 1))
    return [{"token_ids": rng.integers(0, V, (4, 12)), "padding_mask": padding_mask} for _ in range(4)]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The path of a float32 file."""
    path = tmp_path_factory.mktemp("float32") / "model.tflite"
    model.export(path, "litert", verbose=False, signatures=["forward"])
    return path


def agreement(model, path, data):
    """How the file's logits agree with the model's, on real tokens."""
    inputs = [{**x, "token_ids": x["token_ids"].astype("int32")} for x in data]
    call, pairs = litert.load(path), []
    for x, expected in zip(inputs, verification.model_outputs(model, inputs), strict=True):
        real = x["padding_mask"]
        pairs.append((expected["logits"][real], call("forward", x)["logits"][real]))
    return np.mean(np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in pairs]))


def largest_buffers(content):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    return sorted((0 if b.data is None else b.data.nbytes for b in model.buffers), reverse=True)


def places_of_scales(content):
    """Where a file has the scales of its matrices: for each matrix a set of places."""
    from ai_edge_litert import schema_py_generated as schema

    file, places = schema.Model.GetRootAs(content, 0), {}
    for graph in map(file.Subgraphs, range(file.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            if tensor.Quantization() and tensor.Quantization().ScaleLength() > 1:
                places.setdefault(tensor.Buffer(), set()).add(tensor.Quantization()._tab.Pos)
    return places


def test_a_float32_file_holds_each_weight_once(model, exported):
    assert exported.stat().st_size < 4 * model.count_params() + 50_000
    assert sum(largest_buffers(exported.read_bytes())) < 1.01 * 4 * model.count_params()
    parity = json.loads((exported.with_name("model.tflite.assets") / "parity.json").read_text())
    assert parity["bytes"] == exported.stat().st_size
    assert parity["bytes of the weights"] == 4 * model.count_params()
    assert parity["agreement"] == 1.0


@pytest.mark.skipif(IN_CHILD, reason="once is enough")
def test_a_norm_before_the_head_does_not_double_it(tmp_path):
    model = GPT(V, num_layers=1, num_heads=2, hidden_dim=64, max_sequence_length=32, norm="rms", use_bias=False)
    model.weights[-1].assign(model.weights[-1] + 0.5)  # the norm's scale
    spec = {name: keras.InputSpec(shape=(1, 8)) for name in model.input}
    model.export(
        tmp_path / "model.tflite", "litert", verbose=False, signatures=["forward", "decode"], input_signature=spec
    )
    sizes = largest_buffers((tmp_path / "model.tflite").read_bytes())
    assert sum(sizes) < 1.05 * 4 * model.count_params()


@pytest.mark.parametrize("bits, least, part", [(8, 0.95, 0.27), (4, 0.8, 0.22)])
def test_a_quantised_file_holds_each_weight_once_and_agrees(bits, least, part, model, exported, data, tmp_path):
    content = quantization.quantized(exported.read_bytes(), bits)
    (tmp_path / "model.tflite").write_bytes(content)
    assert len(content) < part * 4 * model.count_params() + 50_000
    assert largest_buffers(content)[0] == 256 * 64 if bits == 8 else V * 64
    assert sum(largest_buffers(content)) < part * 4 * model.count_params()
    assert agreement(model, tmp_path / "model.tflite", data) >= least


@pytest.mark.parametrize("quantize", ["dynamic_int8", "float16", "int4", "int8"][3 if IN_CHILD else 0 :])
def test_quantised_files_say_how_far_they_agree(quantize, model, data, tmp_path):
    path = tmp_path / "model.tflite"
    model.export(
        path,
        "litert",
        verbose=False,
        signatures=["forward", *{"dynamic_int8": ["generate"], "int8": ["decode"]}.get(quantize, [])],
        quantize=quantize,
        min_agreement=0.7,
        calibration_data=data,
    )
    parity = json.loads((tmp_path / "model.tflite.assets" / "parity.json").read_text())
    assert parity["quantize"] == quantize
    assert parity["bytes"] == path.stat().st_size
    assert sum(largest_buffers(path.read_bytes())) < 0.6 * parity["bytes of the weights"]
    if quantize == "dynamic_int8":
        assert {len(places) for places in places_of_scales(path.read_bytes()).values()} == {1}
    assert {"dynamic_int8": 0.95, "float16": 0.99, "int4": 0.7, "int8": 0.8}[quantize] <= parity["agreement"] <= 1
    assert agreement(model, path, data) >= parity["agreement"] - 0.2
    perplexity = parity["perplexity"]
    assert perplexity["tokens"] == sum((x["padding_mask"].sum() - 4) for x in data)
    assert perplexity["change"] == pytest.approx(perplexity["file"] / perplexity["model"] - 1)
    assert 0 < abs(perplexity["change"]) < {"float16": 0.01, "int4": 1.0}.get(quantize, 0.2)


@pytest.mark.skipif(IN_CHILD, reason="once is enough")
@pytest.mark.parametrize(
    "make",
    [
        lambda: BERT(V, num_layers=1, num_heads=2, hidden_dim=32, max_sequence_length=32),
        lambda: RNNLanguageModel(V, 1, 32),
    ],
)
def test_models_of_other_kinds_too(make, tmp_path):
    make().export(tmp_path / "model.tflite", "litert", verbose=False, signatures=["forward"], quantize="dynamic_int8")
    parity = json.loads((tmp_path / "model.tflite.assets" / "parity.json").read_text())
    assert parity["agreement"] >= 0.9
    assert parity["bytes"] < 0.3 * parity["bytes of the weights"] + 80_000


def test_agreement_is_that_of_all_choices():
    checks = [Check([("forward", {})], {"logits": np.eye(4)[None]})]
    with pytest.raises(RuntimeError, match=r"0.750 of the choices, less than min_agreement \(0.8\)"):
        verification.compare(checks, [{"logits": np.eye(4)[[0, 1, 2, 2]][None]}], min_agreement=0.8)


def compared(expected, given, **options):
    checks = [Check([("f", {})], {name: np.array(y) for name, y in expected.items()}, **options)]
    return verification.compare(checks, [{name: np.array(y) for name, y in given.items()}], min_agreement=0)


def test_chosen_tokens_count_up_to_the_first_difference():
    report = compared({"token_ids": [[1, 2, 3, 4], [5, 6, 7, 8]]}, {"token_ids": [[1, 2, 3, 4], [5, 9, 9, 9]]})
    assert report[0]["outputs"]["token_ids"]["choices"] == 6
    assert verification.agreement(report) == pytest.approx(5 / 6)


def test_what_stands_after_the_end_does_not_count():
    report = compared({"token_ids": [[1, 2, 0, 0]], "lengths": [2]}, {"token_ids": [[1, 3, 0, 0]], "lengths": [2]})
    assert report[0]["outputs"]["token_ids"] == {
        "shape": [1, 4],
        "largest difference": None,
        "agreement": 0.5,
        "choices": 2,
    }


@pytest.mark.parametrize("given", [[[1, 3]], [[1, 3, 4, 5, 6]]])
def test_a_quantised_file_may_end_a_text_elsewhere(given):
    expected = {"token_ids": [[1, 2, 3]], "lengths": [3]}
    report = compared(expected, {"token_ids": given, "lengths": [len(given[0])]})
    assert verification.agreement(report) == 0.5
    with pytest.raises(RuntimeError, match="the exported file's token_ids is"):
        verification.compare(
            [Check([], {k: np.array(x) for k, x in expected.items()})], [{"token_ids": np.array(given)}]
        )


def test_what_follows_from_the_tokens_is_not_judged():
    report = compared({"token_ids": [[1, 2]], "lengths": [2]}, {"token_ids": [[1, 2]], "lengths": [1]})
    assert verification.agreement(report) == 1
    assert "agreement" not in report[0]["outputs"]["lengths"]


def test_vectors_agree_by_their_cosine():
    report = compared({"embeddings": [[1.0, 0.0], [0.0, 2.0]]}, {"embeddings": [[3.0, 0.0], [1.0, 1.0]]})
    assert verification.agreement(report) == pytest.approx((1 + 0.5**0.5) / 2)


def test_checks_weigh_as_many_choices_as_they_have():
    report = compared({"logits": np.eye(3)}, {"logits": np.eye(3)}) + compared({"ids": [1]}, {"ids": [2]})
    assert verification.agreement(report) == pytest.approx(3 / 4)


def test_perplexity_is_that_of_the_labels():
    logits = {"logits": np.log([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]])}
    other = {"logits": np.log([[[0.25, 0.5, 0.25], [0.2, 0.1, 0.7]]])}
    parity = verification.parity(compared(logits, other, labels=np.array([[0, -1]])))
    assert parity["perplexity"] == {
        "model": pytest.approx(2),
        "file": pytest.approx(4),
        "change": pytest.approx(1),
        "tokens": 1,
    }


@pytest.mark.parametrize(
    "format, options, message",
    [
        ("tf_saved_model", {"quantize": "dynamic_int8"}, "quantize .*'tf_saved_model': its weights are float32"),
        ("litert", {"quantize": "int2"}, "quantize .'int2'. must be one of"),
        ("litert", {"quantize": "int8"}, "calibration_data .None. must be given"),
        ("litert", {"calibration_data": [[1]]}, "calibration_data must be None"),
        ("litert", {"quantize": "dynamic_int8", "min_agreement": 2}, "min_agreement .2. must be"),
        ("litert", {"quantize": "int8", "calibration_data": []}, "must be given"),
        ("litert", {"quantize": "int4", "calibration_data": "abc"}, "must be a list of texts"),
        ("litert", {"quantize": "int4", "calibration_data": ["abc"]}, "tokenizer .None. must be set"),
        ("litert", {"quantize": "int4", "calibration_data": [[1], [V]]}, r"calibration_data\[1\].* from 0 to 199"),
        ("litert", {"quantize": "int4", "calibration_data": [[1] * 33]}, "sequence length .33. must be at most max"),
        ("litert", {"quantize": "int4", "calibration_data": [{"ids": [[1]]}]}, r"calibration_data\[0\] has the inputs"),
        (
            "litert",
            {"quantize": "int4", "calibration_data": [{"token_ids": [1], "padding_mask": [True]}]},
            r"token_ids has the shape \(1,\)",
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(format, options, message, model, tmp_path):
    path = tmp_path / ("model.tflite" if format == "litert" else "model")
    with pytest.raises(ValueError, match=message):
        model.export(path, format, signatures=["forward"], **options)
    assert not list(tmp_path.iterdir())


def test_loops_are_not_calibrated(model):
    contents = types.SimpleNamespace(
        model=model,
        options=Options(static=True, quantize="int8"),
        signatures={"forward": None, "generate": None},
        calibration=lambda: [[("forward", {})]],
    )
    with pytest.raises(ValueError, match="signatures: quantize .'int8'. cannot calibrate generate.*'dynamic_int8'"):
        litert.check_contents(contents)


def test_a_model_that_is_too_large_for_a_file_is_refused_early(model, tmp_path, monkeypatch):
    monkeypatch.setattr(litert, "MAX_BYTES", 4 * model.count_params() - 1)
    with pytest.raises(ValueError, match="GiB in float32; a TFLite file holds less than 2"):
        model.export(tmp_path / "model.tflite", "litert", quantize="int4")
