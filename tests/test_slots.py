"""Rows of one batch that stand in slots of their own go on as each would alone."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import GPT, RNNLanguageModel, TransformerTranslator, backend
from kerasllm.layers import ALiBi, MultiHeadAttention, RelativePositionBias
from kerasllm.layers.masks import causal_mask

to_numpy = ops.convert_to_numpy
V, CAPACITY = 13, 12
SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": CAPACITY, "dropout": 0.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 4}
MODELS = {
    "learned": lambda: GPT(V, **SIZES),
    "rotary, window": lambda: GPT(V, **SIZES, positions="rotary", sliding_window=3, num_key_value_heads=1),
    "dynamic rotary": lambda: GPT(V, **SIZES, positions="rotary", rope_scaling=DYNAMIC),
    "alibi": lambda: GPT(V, **SIZES, positions="alibi"),
    "relative": lambda: GPT(V, **SIZES, positions="relative"),
    "translator": lambda: TransformerTranslator(V, V, **SIZES),
    "recurrence with attention": lambda: RNNLanguageModel(V, 1, 16, num_attention_heads=2),
}
# Slots before the prompt, the prompt's, and those that are read after it.
ROWS = [(0, 3, 0), (2, 2, 4), (1, 5, 1)]


def make(name):
    model = MODELS[name]()
    rng = np.random.default_rng(0)
    for v in model.weights:
        v.assign(rng.normal(scale=0.3, size=v.shape))
    return model


def step(model, token_ids, state, index):
    return model.decode_step(token_ids, state, index)


def begun(model, row, tokens, run):
    """The state of a row that has read its prompt but for the last token, and some more, and its next slot."""
    padding, length, more = ROWS[row]
    prompt = {
        "token_ids": tokens[row : row + 1, : padding + length],
        "padding_mask": np.ones((1, padding + length), bool),
    }
    prompt["padding_mask"][:, :padding] = False
    source = {"source_token_ids": tokens[row : row + 1, :4], "source_padding_mask": np.ones((1, 4), bool)}
    source["source_padding_mask"][:, 4 - row :] = False
    inputs, prompt = keras.tree.map_structure(
        ops.convert_to_tensor, (source if "source_token_ids" in model.input else {}, prompt)
    )
    state, slot = model.start_decoding(inputs, prompt, CAPACITY), padding + length - 1
    for _ in range(more):
        _, state = run(tokens[row : row + 1, slot : slot + 1], state, slot)
        slot += 1
    return state, slot


@pytest.mark.in_turn
@pytest.mark.parametrize("name", MODELS)
def test_rows_in_slots_of_their_own_give_what_each_gives_alone(name):
    model = make(name)
    tokens = np.random.default_rng(1).integers(0, V, (len(ROWS), CAPACITY)).astype("int32")
    compiled = backend.compiled(lambda *arguments: step(model, *arguments), model)

    def run(token_ids, state, index):
        return compiled(ops.convert_to_tensor(token_ids), state, ops.convert_to_tensor(np.array(index, "int32")))

    states, slots = zip(*(begun(model, row, tokens, run) for row in range(len(ROWS))), strict=True)
    joined, slots = keras.tree.map_structure(lambda *rows: ops.concatenate(rows, axis=0), *states), np.array(slots)
    assert len(set(slots.tolist())) == len(ROWS)
    for width in (1, 3, 1):
        taken = slots[:, None] + np.arange(width)
        logits, joined = run(np.take_along_axis(tokens, taken, axis=1), joined, slots)
        alone = [run(tokens[i : i + 1, p], s, p[0]) for i, (p, s) in enumerate(zip(taken, states, strict=True))]
        expected, states = zip(*alone, strict=True)
        np.testing.assert_allclose(to_numpy(logits), np.concatenate([to_numpy(x) for x in expected]), atol=1e-5)
        slots = slots + width
    together = keras.tree.map_structure(lambda *rows: ops.concatenate(rows, axis=0), *states)
    for a, b in zip(keras.tree.flatten(joined), keras.tree.flatten(together), strict=True):
        np.testing.assert_allclose(to_numpy(ops.cast(a, "float32")), to_numpy(ops.cast(b, "float32")), atol=1e-5)


@pytest.mark.parametrize("length", [1, 2])
def test_each_row_is_written_where_it_stands(length):
    cache = np.arange(3 * 2 * 5 * 2, dtype="float32").reshape(3, 2, 5, 2)
    update = -1 - np.arange(3 * 2 * length * 2, dtype="float32").reshape(3, 2, length, 2)
    tensors = [ops.convert_to_tensor(x) for x in (cache, update, np.array([2, 9, -4], "int32"))]
    expected = cache.copy()
    for row, slot in enumerate((2, 5 - length, 0)):  # what lies outside is written at the nearest end
        expected[row, :, slot : slot + length] = update[row]
    for write in (backend.write_slots, backend.compiled(backend.write_slots, keras.Sequential())):
        np.testing.assert_array_equal(to_numpy(write(*tensors)), expected)


def test_masks_and_biases_have_the_slots_of_each_row():
    index = np.array([1, 3], "int32")
    masks = to_numpy(causal_mask(2, 6, index, window=2))
    assert masks.shape == (2, 1, 2, 6)
    queries = index[:, None] + np.arange(2)
    for layer in (ALiBi(3), RelativePositionBias(3)):
        biases = to_numpy(layer(queries, np.arange(6)))
        assert biases.shape == (2, 3, 2, 6) == layer.compute_output_shape((2, 2), (6,))
        for row in range(2):
            np.testing.assert_array_equal(masks[row], to_numpy(causal_mask(2, 6, int(index[row]), window=2))[0])
            np.testing.assert_array_equal(biases[row], to_numpy(layer(queries[row], np.arange(6)))[0])


def test_an_index_of_other_rows_is_refused():
    layer, cache = MultiHeadAttention(2), (ops.zeros((2, 2, 8, 4)),) * 2
    for index in (np.array([1, 2, 3]), np.array([[1], [2]]), np.array([1])):
        with pytest.raises(ValueError, match=r"index of shape \(.*\) must be a scalar or of shape \(B,\), here \(2,\)"):
            layer(np.ones((2, 1, 8), "float32"), cache=cache, index=index, use_causal_mask=True)
