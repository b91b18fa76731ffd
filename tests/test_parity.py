"""Our models give transformers' numbers with the same weights, and transformers reads what we write."""

import functools
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.checkpoints import files

DATA = Path(__file__).parent / "data"
CLASSES = {
    "gpt2": "GPT",
    "gpt2_untied": "GPT",
    "llama": "GPT",
    "llama3_tied": "GPT",
    "mistral": "GPT",
    "qwen2": "GPT",
    "qwen3": "GPT",
    "gpt_neox": "GPT",
    "gpt_neox_sequential": "GPT",
    "gemma2": "GPT",
    "bert": "BERT",
    "bert_masked_lm": "BERTMaskedLM",
    "bert_masked_lm_gelu_new": "BERTMaskedLM",
    "bert_classifier": "BERTClassifier",
    "bert_token_classifier": "BERTTokenClassifier",
    "bert_question_answerer": "BERTQuestionAnswerer",
    "roberta_masked_lm": "BERTMaskedLM",
    "roberta_classifier": "BERTClassifier",
    "xlm_roberta_token_classifier": "BERTTokenClassifier",
    "distilbert_masked_lm": "BERTMaskedLM",
    "distilbert_classifier": "BERTClassifier",
    "electra_generator": "BERTMaskedLM",
    "electra_discriminator": "BERT",
    "electra_classifier": "BERTClassifier",
}
# Relative to the largest value. GPUs may round the factors of a matrix product to TF32.
TOLERANCE = 1e-5 if "cpu" in str(keras.ops.zeros(1).device).lower() else 5e-3


def load(folder, name):
    return getattr(kerasllm, CLASSES[name]).from_preset(folder)


@functools.cache
def unchanged(name):
    """The model of a fixture, for tests that leave it as it is."""
    return load(DATA / name, name)


def run(model, answers):
    """The model's outputs under transformers' names, for the inputs of a fixture."""
    inputs = {key: answers[key] for key in ("token_ids", "segment_ids", "padding_mask") if key in answers}
    inputs["token_ids"] = inputs["token_ids"].astype("int32")
    if "masked_positions" in model.input:
        inputs["masked_positions"] = np.tile(np.arange(inputs["token_ids"].shape[1], dtype="int32"), (3, 1))
    outputs = keras.tree.map_structure(keras.ops.convert_to_numpy, model(inputs))
    if not isinstance(outputs, dict):
        return {"logits": outputs}
    theirs = {"sequence_output": "last_hidden_state", "pooled_output": "pooler_output"}
    return {theirs.get(key, key): output for key, output in outputs.items()}


def assert_close(actual, expected, is_real):
    """Equal up to TOLERANCE of the largest value, at real tokens."""
    if expected.shape[:2] == is_real.shape:
        actual, expected = actual[is_real], expected[is_real]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_equal_those_of_transformers(name):
    answers = np.load(DATA / name / "answers.npz")
    outputs = run(unchanged(name), answers)
    assert set(outputs) == set(answers) - {"token_ids", "segment_ids", "padding_mask"}
    for key, output in outputs.items():
        assert_close(output, answers[key], answers["padding_mask"])


@pytest.mark.parametrize("name", CLASSES)
def test_what_was_read_is_written_back_bit_equal(name, tmp_path):
    unchanged(name).save_to_preset(tmp_path)
    written, original = files.read_tensors(tmp_path), files.read_tensors(DATA / name)
    if name == "electra_discriminator":  # its own head is none of ours
        original = {
            key.removeprefix("electra."): tensor for key, tensor in original.items() if key.startswith("electra.")
        }
    assert set(written) == set(original)
    types = [files.read_json(folder / "config.json")["model_type"] for folder in (tmp_path, DATA / name)]
    assert types[0] == types[1]
    assert all(written[key].tobytes() == original[key].tobytes() for key in original)


@pytest.mark.in_turn
@pytest.mark.parametrize("name", CLASSES)
def test_transformers_opens_what_we_write_and_gives_the_same_outputs(name, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = load(DATA / name, name)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.01)  # other weights than those transformers wrote
    sharded = name in ("gpt2", "bert")
    model.save_to_preset(tmp_path, max_shard_size=4000 if sharded else None)
    assert (tmp_path / files.INDEX).exists() == sharded

    architecture = getattr(transformers, files.read_json(tmp_path / "config.json")["architectures"][0])
    theirs, report = architecture.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    answers = dict(np.load(DATA / name / "answers.npz"))
    answers["padding_mask"][[0, 1], [1, 0]] = False  # a hole, and padding on the left: positions stay as they are
    given = {"token_ids": "input_ids", "padding_mask": "attention_mask", "segment_ids": "token_type_ids"}
    inputs = {given[k]: torch.tensor(answers[k].astype("int64")) for k in given if k in answers}
    with torch.no_grad():
        expected = theirs.eval()(**inputs)
    for key, output in run(model, answers).items():
        assert_close(output, expected[key].numpy(), answers["padding_mask"])


def test_bfloat16_weights_are_written_and_read_bit_equal(tmp_path):
    kerasllm.BERT.from_preset(DATA / "bert", dtype="bfloat16").save_to_preset(tmp_path)
    written, original = files.read_tensors(tmp_path), files.read_tensors(DATA / "bert")
    assert {str(tensor.dtype) for tensor in written.values()} == {"bfloat16"}
    for key, tensor in written.items():
        assert tensor.tobytes() == original[key].astype(tensor.dtype).tobytes()
    kerasllm.BERT.from_preset(tmp_path, dtype="bfloat16").save_to_preset(tmp_path / "again")
    again = files.read_tensors(tmp_path / "again")
    assert all(again[key].tobytes() == written[key].tobytes() for key in written)


def test_an_encoder_is_read_from_a_masked_lm():
    encoder = kerasllm.BERT.from_preset(DATA / "bert_masked_lm")
    assert set(encoder.output) == {"sequence_output"}


@pytest.mark.parametrize("name, class_name", [("gpt2", "BERT"), ("bert", "GPT"), ("bert", "BERTMaskedLM")])
def test_a_preset_of_another_model_is_refused(name, class_name):
    with pytest.raises(ValueError, match=f"{name}.*(not '{class_name}'|missing tensors: cls.predictions)"):
        getattr(kerasllm, class_name).from_preset(DATA / name)


@pytest.mark.parametrize("name", ["gpt_neox", "gemma2"])
def test_texts_equal_those_of_transformers(name):
    """Greedy and with beams, from prompts of different lengths, beyond the window of Gemma's blocks."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = unchanged(name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(DATA / name).eval()
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12], [13]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    for num_beams in (1, 3):
        options = {"max_new_tokens": 12, "num_beams": num_beams}
        expected = theirs.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, **options)[:, width:]
        assert model.generate(prompts, strip_prompt=True, **options) == expected.tolist()
