import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.training import flops

V, D, L, H = 20, 8, 2, 2
IDS = np.ones((2, 5), "int32")
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
PAIRS = {"source_token_ids": IDS, "source_padding_mask": MASK, "target_token_ids": IDS[:, :4]}


def step(model, inputs):
    return flops.step_flops(model, inputs, flops.real_lengths(inputs))


def size(model, *without):
    """The number of weights, without those that are looked up."""
    return sum(
        np.prod(v.shape) for v in model.weights if not any(part in v.path for part in ("/embeddings/", *without))
    )


def test_real_tokens_count_or_all_positions():
    assert flops.real_lengths({"token_ids": IDS, "padding_mask": MASK})[""].tolist() == [3, 5]
    assert flops.real_lengths({"token_ids": IDS})[""].tolist() == [5, 5]
    lengths = flops.real_lengths(PAIRS)
    assert lengths["source"].tolist() == [3, 5] and lengths["target"].tolist() == [4, 4]
    assert flops.real_lengths(IDS) is flops.real_lengths({"x": IDS}) is None


@pytest.mark.parametrize("tied", [True, False])
def test_operations_of_a_gpt_are_those_of_the_formula(tied):
    model = kerasllm.GPT(V, num_layers=L, num_heads=H, hidden_dim=D, max_sequence_length=8, tie_embeddings=tied)
    expected = 6 * (size(model) + V * D * tied) * 8 + 12 * L * D * (3**2 + 5**2)
    assert step(model, {"token_ids": IDS, "padding_mask": MASK}) == pytest.approx(expected)


def test_padding_and_shapes_of_batches_change_nothing():
    model = kerasllm.GPT(V, num_layers=1, num_heads=H, hidden_dim=D, max_sequence_length=16)
    wide = {name: np.pad(x, ((0, 0), (0, 7))) for name, x in {"token_ids": IDS, "padding_mask": MASK}.items()}
    assert step(model, wide) == step(model, {"token_ids": IDS, "padding_mask": MASK})


def test_frozen_weights_have_no_products_for_their_gradients():
    model = kerasllm.GPT(V, num_layers=1, num_heads=H, hidden_dim=D, max_sequence_length=8)
    inputs = {"token_ids": IDS}
    whole = step(model, inputs)
    model.decoder.trainable = False
    attention = 12 * D * 2 * 5**2
    assert step(model, inputs) - attention == pytest.approx((whole - attention) * 4 / 6)


def test_a_translator_counts_each_side():
    model = kerasllm.TransformerTranslator(V, V + 1, num_layers=1, num_heads=H, hidden_dim=D)
    attention = 12 * D * ((3**2 + 5**2) + 2 * 4**2 + 4 * (3 + 5))
    source = sum(np.prod(v.shape) for v in model.weights if v.path.startswith("encoder/block"))
    source += 2 * (D * D + D)  # keys and values of the memory
    target = size(model) - source + (V + 1) * D
    assert step(model, PAIRS) == pytest.approx(6 * (source * 8 + target * 8) + attention)


def test_a_shared_encoder_counts_as_one_of_its_own():
    sizes = {"num_layers": 1, "num_heads": H, "hidden_dim": D}
    shared, apart = (step(kerasllm.Summarizer(V, **sizes, share=share), PAIRS) for share in (True, False))
    assert shared == pytest.approx(apart, rel=0.02)  # but for the norm of the embeddings


def test_a_masked_lm_counts_the_head_where_it_reads():
    model = kerasllm.BERTMaskedLM(V, num_layers=1, num_heads=H, hidden_dim=D)
    counts = [step(model, {"token_ids": IDS, "masked_positions": np.zeros((2, n), "int32")}) for n in (1, 2)]
    assert counts[1] - counts[0] == 6 * 2 * (V * D + V + D * D + D + 2 * D)


def test_a_recurrent_model_counts_its_weights():
    model = kerasllm.RNNLanguageModel(V, hidden_dim=D)
    weights = sum(np.prod(v.shape) for v in model.weights if not v.path.endswith("/embeddings"))
    assert step(model, {"token_ids": IDS}) == pytest.approx(6 * weights * 10)


def test_of_other_models_nothing_is_said():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert flops.step_flops(model, {"token_ids": IDS}, {"": np.array([5, 5])}) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_is_above_what_a_product_reaches(dtype):
    peak = flops.measured_peak(dtype, seconds=1e-3)
    assert 1e8 < peak < 1e17
