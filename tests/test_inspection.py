"""`model.inspect`: what it collects is transformers', and what the models compute."""

import functools
import json
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.layers.collecting import collecting, is_collecting

DATA = Path(__file__).parent / "data"
CLASSES = {
    "bert": "BERT",
    "bert_question_answerer": "BERTQuestionAnswerer",
    "distilbert_classifier": "BERTClassifier",
    "electra_classifier": "BERTClassifier",
    "roberta_masked_lm": "BERTMaskedLM",
    **dict.fromkeys(("gpt2", "llama3_tied", "mistral", "qwen3", "gpt_neox", "gpt_neox_sequential", "gemma2"), "GPT"),
    **dict.fromkeys(("marian", "bart", "t5", "flan_t5"), "TransformerTranslator"),
}
TOLERANCE = 1e-5 if "cpu" in str(keras.ops.zeros(1).device).lower() else 5e-3
SMALL = {"num_layers": 2, "hidden_dim": 6, "dropout": 0.3}
IDS = np.array([[3, 5, 8, 2, 0], [4, 1, 7, 6, 9]], "int32")
REAL = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
TARGET, TARGET_REAL = IDS[:, :4] // 2 + 1, np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)


@functools.cache
def theirs():
    with np.load(DATA / "hidden_states.npz") as arrays:
        return dict(arrays)


def inputs_of(model, answers):
    """A fixture's inputs under the model's names."""
    inputs = {}
    for name in model.input:
        tail = name.removeprefix("source_")
        if name == "masked_positions":
            inputs[name] = np.zeros((len(answers["token_ids"]), 1), "int32")
        else:
            inputs[name] = answers[tail].astype("bool" if name.endswith("mask") else "int32")
    return inputs


@pytest.mark.in_turn
@pytest.mark.parametrize("name", CLASSES)
def test_states_and_weights_equal_those_of_transformers(name):
    model = getattr(kerasllm, CLASSES[name]).from_preset(DATA / name)
    answers = np.load(DATA / name / "answers.npz")
    found = model.inspect(inputs_of(model, answers))
    expected = {key.split("/", 1)[1]: x for key, x in theirs().items() if key.startswith(f"{name}/")}
    assert {f"{kind}/{i}" for kind, xs in found.items() for i in range(len(xs))} == set(expected)
    source, target = answers["padding_mask"], answers.get("target_padding_mask")
    for key, x in expected.items():
        kind, i = key.split("/")
        actual = found[kind][int(i)]
        assert actual.shape == x.shape and actual.dtype == np.float32
        is_real = target if kind.startswith(("decoder", "cross")) else source
        if "attentions" in kind:  # (B, N, T, S) -> (B, T, N, S)
            actual, x = np.swapaxes(actual, 1, 2), np.swapaxes(x, 1, 2)
            np.testing.assert_allclose(actual[is_real].sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(actual[is_real], x[is_real], rtol=0, atol=TOLERANCE * np.abs(x[is_real]).max())


@pytest.mark.parametrize(
    "arguments",
    [
        {"positions": "alibi", "num_key_value_heads": 1},
        {"positions": "relative", "sliding_window": [2, None]},
        {"positions": None, "attention_softcap": 2.0, "residual": "both"},
    ],
    ids=lambda arguments: str(arguments["positions"]),
)
@pytest.mark.in_turn
def test_the_last_hidden_state_gives_the_logits(arguments):
    model = kerasllm.GPT(10, num_heads=2, **SMALL, **arguments)
    inputs = {"token_ids": IDS, "padding_mask": REAL}
    found = model.inspect(inputs)
    assert [x.shape for x in found["hidden_states"]] == [(2, 5, 6)] * 3
    assert [x.shape for x in found["attentions"]] == [(2, 2, 5, 5)] * 2
    logits = keras.ops.convert_to_numpy(model.head(found["hidden_states"][-1]))
    np.testing.assert_allclose(logits[REAL], model.predict(inputs, verbose=0)[REAL], rtol=1e-5, atol=1e-5)
    for window, x in zip(model.decoder.windows, found["attentions"], strict=True):
        distance = np.arange(5)[:, None] - np.arange(5)
        assert (x[1][:, distance < 0] == 0).all() and (window is None or (x[1][:, distance >= window] == 0).all())


def test_documents_in_rows_see_only_themselves():
    model = kerasllm.GPT(10, num_heads=2, **SMALL)
    whole = np.ones((1, 5), bool)
    positions = np.array([[0, 1, 0, 1, 2]], "int32")
    packed = model.inspect({"token_ids": IDS[1:], "padding_mask": whole, "position_ids": positions})
    alone = model.inspect({"token_ids": IDS[1:, 2:], "padding_mask": whole[:, 2:]})
    assert (packed["attentions"][0][0][:, 2:, :2] == 0).all()
    np.testing.assert_allclose(packed["hidden_states"][-1][:, 2:], alone["hidden_states"][-1], atol=1e-5)


@pytest.mark.in_turn
@pytest.mark.parametrize("share", [False, True])
def test_both_sides_of_a_summariser_are_told_apart(share):
    model = kerasllm.Summarizer(10, 2, 2, 6, share=share, max_sequence_length=8)
    sides = {"source_token_ids": IDS, "source_padding_mask": REAL}
    sides |= {"target_token_ids": TARGET, "target_padding_mask": TARGET_REAL}
    found = model.inspect(sides)
    shapes = {name: {x.shape for x in xs} for name, xs in found.items()}
    assert shapes == {
        "encoder_hidden_states": {(2, 5, 6)},
        "encoder_attentions": {(2, 2, 5, 5)},
        "decoder_hidden_states": {(2, 4, 6)},
        "decoder_attentions": {(2, 2, 4, 4)},
        "cross_attentions": {(2, 2, 4, 5)},
    }
    memory = keras.ops.convert_to_numpy(model.encoder(IDS, padding_mask=REAL))
    np.testing.assert_allclose(found["encoder_hidden_states"][-1][REAL], memory[REAL], atol=1e-5)
    assert (found["cross_attentions"][0][0][..., 3:] == 0).all()


@pytest.mark.parametrize(
    "cell, attention, feeding",
    [("lstm", "general", True), ("gru", "dot", True), ("lstm", "additive", False), ("gru", None, False)],
)
@pytest.mark.in_turn
def test_a_recurrent_translator_shows_its_states_and_its_alignment(cell, attention, feeding):
    sizes = {"num_layers": 2, "hidden_dim": 4, "embedding_dim": 3, "cell": cell, "dropout": 0.3}
    if attention == "dot":
        sizes["bidirectional"] = False
    model = kerasllm.LSTMTranslator(10, 9, **sizes, attention=attention, input_feeding=feeding)
    inputs = {"source_token_ids": IDS, "source_padding_mask": REAL}
    inputs |= {"target_token_ids": TARGET, "target_padding_mask": TARGET_REAL}
    found = model.inspect(inputs)
    hidden = found["decoder_hidden_states"]
    logits = keras.ops.convert_to_numpy(model.head(hidden[-1]))
    np.testing.assert_allclose(logits[TARGET_REAL], model.predict(inputs, verbose=0)[TARGET_REAL], atol=1e-5)
    assert [x.shape for x in hidden[:3]] == [(2, 4, 3), (2, 4, 4), (2, 4, 4)]
    num_states = {"lstm": 2, "gru": 1}[cell]
    last = found["encoder_last_states"]
    assert [len(states) for states in last] == [num_states] * 2 and "decoder_last_states" not in found
    forward = slice(0, 4)  # whose last state is the output at the last real token
    outputs = found["encoder_hidden_states"][2][[0, 1], [2, 4], forward]
    np.testing.assert_allclose(last[1][0][:, forward], outputs, atol=1e-5)
    memory, _ = model.encoder(IDS, padding_mask=REAL)
    memory = keras.ops.convert_to_numpy(memory)
    np.testing.assert_allclose(found["encoder_hidden_states"][-1][REAL], memory[REAL], atol=1e-5)
    if attention is None:
        assert "cross_attentions" not in found
        return
    [weights] = found["cross_attentions"]
    assert weights.shape == (2, 1, 4, 5) and (weights[0, 0, :2, 3:] == 0).all()
    np.testing.assert_allclose(weights[1].sum(-1), 1, rtol=1e-5)
    # The result is what the weights and the last layer's outputs say.
    context = np.einsum("bts,bsm->btm", weights[:, 0], memory)
    result = keras.ops.convert_to_numpy(model.decoder.combine(np.concatenate([context, hidden[2]], -1)))
    np.testing.assert_allclose(result[TARGET_REAL], hidden[-1][TARGET_REAL], atol=1e-5)


@pytest.mark.in_turn
@pytest.mark.parametrize("heads", [None, 2])
def test_a_recurrent_language_model_shows_its_states(heads):
    model = kerasllm.RNNLanguageModel(10, num_layers=2, hidden_dim=4, num_attention_heads=heads)
    found = model.inspect({"token_ids": IDS, "padding_mask": REAL})
    assert [x.shape for x in found["hidden_states"]] == [(2, 5, 4)] * 3
    assert [[x.shape for x in states] for states in found["last_states"]] == [[(2, 4)] * 2] * 2
    assert set(found) == {"hidden_states", "last_states", *(["attentions"] if heads else [])}
    if heads:
        assert found["attentions"][0].shape == (2, 2, 5, 5)


def test_inspecting_leaves_the_ordinary_path_alone(tmp_path):
    model = kerasllm.BERT(10, 2, 2, 8, max_sequence_length=8)
    inputs = {"token_ids": IDS, "padding_mask": REAL, "segment_ids": np.zeros_like(IDS)}
    before = model.predict(inputs, verbose=0)["sequence_output"]
    with collecting() as found:
        assert is_collecting()
    assert not found and not is_collecting()
    states = model.inspect(inputs)
    np.testing.assert_array_equal(model.predict(inputs, verbose=0)["sequence_output"], before)
    model.save(tmp_path / "bert.keras")
    again = keras.models.load_model(tmp_path / "bert.keras").inspect(inputs)
    np.testing.assert_allclose(again["attentions"][1], states["attentions"][1], atol=1e-6)
    for variable in model.trainable_variables:
        variable.assign(variable * 1.5)
    assert np.abs(model.inspect(inputs)["attentions"][1] - states["attentions"][1]).max() > 1e-4
    half = kerasllm.BERT(10, 2, 2, 8, max_sequence_length=8, dtype="mixed_bfloat16").inspect(inputs)
    assert half["attentions"][0].dtype == np.float32
    json.dumps({name: len(x) for name, x in half.items()})


@pytest.mark.once("torch")
def test_bad_inputs_are_named():
    model = kerasllm.GPT(10, num_heads=2, **SMALL)
    for inputs, message in (
        (None, "inputs .None. must be a dict of token_ids, padding_mask"),
        ({"token_ids": IDS}, "must be a dict of token_ids, padding_mask"),
        ({"token_ids": IDS, "padding_mask": REAL, "segment_ids": IDS}, "inputs: 'segment_ids' must be one of"),
        ({"token_ids": IDS + 9, "padding_mask": REAL}, "token_ids.* must be"),
        ({"token_ids": IDS, "padding_mask": REAL[:, ::-1]}, "padding_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            model.inspect(inputs)
