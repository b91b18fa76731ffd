"""Heads of attention: their scores are derivatives of the loss, and a model without some computes what masking does."""

import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm import head_scores, prune_heads
from kerasllm.training import TokenCrossentropy

SIZES = {"num_layers": 2, "num_heads": 4, "hidden_dim": 8, "max_sequence_length": 8, "initializer_range": 0.5}
IDS = np.random.default_rng(0).integers(1, 12, (3, 6)).astype("int32")
X = {"token_ids": IDS, "padding_mask": np.arange(6) < np.array([[6], [4], [3]])}
MODELS = {
    "gpt": (
        lambda: kerasllm.GPT(12, **SIZES, dropout=0.5, positions="rotary"),
        X,
        np.where(X["padding_mask"], IDS, -1),
    ),
    "classifier": (
        lambda: kerasllm.BERTClassifier(12, labels=3, **SIZES),
        {**X, "segment_ids": 0 * IDS},
        np.array([0, 2, 1]),
    ),
}


def output_kernel(model, block):
    return next(v for v in model.weights if v.path.endswith(f"block_{block}/attention/output/kernel"))


@pytest.mark.in_turn
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_derivatives_by_what_a_head_is_multiplied_with(name):
    make, x, y = MODELS[name]
    model = make()
    scores, before = head_scores(model, x, y), model.get_weights()
    assert scores.shape == (2, 4) and (scores >= 0).all() and not model.compiled
    loss = TokenCrossentropy()
    kernel, block, head = output_kernel(model, 1), 1, 2
    values, sums = ops.convert_to_numpy(kernel.value), []
    for sign in (1, -1):
        scaled = np.array(values)
        scaled[head * 2 : head * 2 + 2] *= 1 + sign * 0.01
        kernel.assign(scaled)
        rows = [{k: v[i : i + 1] for k, v in x.items()} for i in range(3)]
        sums.append([float(loss(y[i : i + 1], model(row, training=False))) for i, row in enumerate(rows)])
    expected = np.abs(np.subtract(*sums) / 0.02).mean()
    assert scores[block, head] == pytest.approx(expected, rel=0.02, abs=1e-4)
    kernel.assign(values)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.in_turn
@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_heads_is_one_whose_heads_are_masked(name, tmp_path):
    make, x, _ = MODELS[name]
    model = make()
    scores = np.array([[1.0, 4, 3, 2], [5, 1, 1, 7]])
    smaller = prune_heads(model, 2, scores)
    assert smaller.count_params() < model.count_params() and smaller.arguments["num_heads"] == 2
    for block, heads in enumerate(([0, 3], [1, 2])):
        kernel = output_kernel(model, block)
        values = np.array(ops.convert_to_numpy(kernel.value))
        for head in heads:
            values[head * 2 : head * 2 + 2] = 0
        kernel.assign(values)
    expected = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(ops.convert_to_numpy(smaller(x)), expected, atol=1e-5)
    smaller.save_to_preset(tmp_path)
    again = type(smaller).from_preset(tmp_path)
    np.testing.assert_allclose(ops.convert_to_numpy(again(x)), expected, atol=1e-5)


@pytest.mark.once("torch")
def test_what_has_no_such_heads_is_named():
    model, (_, x, y) = kerasllm.GPT(12, **SIZES), MODELS["gpt"]
    translator = kerasllm.TransformerTranslator(9, 9, num_layers=1, num_heads=2, hidden_dim=4)
    others = [kerasllm.GPT(12, **SIZES, **more) for more in ({"num_key_value_heads": 2}, {"positions": "alibi"})]
    for wrong in ("x", translator, *others):
        with pytest.raises(ValueError, match="^model"):
            head_scores(wrong, x, y)
        with pytest.raises(ValueError, match="^model"):
            prune_heads(wrong, 1, np.ones((2, 4)))
    for wrong in (None, {}, {"token_ids": IDS[:0]}, {"token_ids": IDS[:2]}):
        with pytest.raises(ValueError, match="^x "):
            head_scores(model, wrong, y)
    for wrong in (0, 5, None, 1.5):
        with pytest.raises(ValueError, match="^num_heads "):
            prune_heads(model, wrong, np.ones((2, 4)))
    for wrong in (None, "x", np.ones((2, 3)), np.full((2, 4), np.nan)):
        with pytest.raises(ValueError, match="^scores "):
            prune_heads(model, 2, wrong)
