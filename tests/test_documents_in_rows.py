"""Rows of several documents: positions that start anew, and attention that stays inside a document."""

import h5py
import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.training import Perplexity, TokenCrossentropy

LENGTHS = [[4, 3, 1], [7, 2]]
KINDS = {
    "gpt2": {"max_sequence_length": 8},
    "llama": {"positions": "rotary", "norm": "rms", "gated": True, "num_key_value_heads": 1, "tie_embeddings": False},
    "sinusoidal": {"positions": "sinusoidal"},
    "alibi": {"positions": "alibi", "logit_softcap": 3.0},
    "window": {"positions": "rotary", "sliding_window": 2},
    "dynamic": {
        "positions": "rotary",
        "max_sequence_length": 16,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 5},
    },
}


def gpt(**arguments):
    keras.utils.set_random_seed(0)
    return kerasllm.GPT(20, 2, 2, 16, **{"dropout": 0.0, "initializer_range": 0.5, **arguments})


def documents():
    generator = np.random.default_rng(0)
    return [[generator.integers(1, 20, n).astype("int32") for n in lengths] for lengths in LENGTHS]


def packed(length):
    """Documents in two rows, and the same one to a row: inputs and labels of both."""
    rows = documents()
    single = [document for row in rows for document in row]
    ids, mask = kerasllm.text.batches.pad([np.concatenate(row) for row in rows], length)
    positions, _ = kerasllm.text.batches.pad([np.concatenate([np.arange(len(d)) for d in row]) for row in rows], length)
    alone, alone_mask = kerasllm.text.batches.pad(single, 7)
    together = {"token_ids": ids, "padding_mask": mask, "position_ids": positions}, np.where(mask, ids, -1)
    return together, ({"token_ids": alone, "padding_mask": alone_mask}, np.where(alone_mask, alone, -1))


@pytest.mark.in_turn
@pytest.mark.parametrize("kind", KINDS)
def test_documents_in_one_row_have_the_logits_of_each_alone(kind):
    model = gpt(**KINDS[kind])
    ids = np.random.default_rng(0).integers(1, 20, (2, 8)).astype("int32")
    mask = np.ones((2, 8), bool)
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5, 6, 0]], "int32")
    logits = ops.convert_to_numpy(model({"token_ids": ids, "padding_mask": mask, "position_ids": positions}))
    for row, start, end in ((0, 0, 4), (0, 4, 7), (1, 0, 7), (1, 7, 8)):
        document = ids[row : row + 1, start:end]
        alone = model({"token_ids": document, "padding_mask": np.ones_like(document, bool)})
        assert np.allclose(logits[row, start:end], ops.convert_to_numpy(alone)[0], atol=2e-5), (row, start)


@pytest.mark.in_turn
@pytest.mark.parametrize("chunk_size, remat", [(3, False), (None, False), (3, True)])
def test_training_on_packed_rows_is_training_on_documents(chunk_size, remat):
    results = []
    for inputs, labels in packed(9):
        model = gpt(max_sequence_length=9, remat=remat)
        model.compile(keras.optimizers.SGD(0.1), TokenCrossentropy(chunk_size=chunk_size), metrics=[Perplexity()])
        history = model.fit(inputs, labels, batch_size=8, epochs=2, verbose=0)
        evaluated = model.evaluate(inputs, labels, batch_size=8, verbose=0)
        weights = [ops.convert_to_numpy(v) for v in model.trainable_variables]
        results.append((history.history["loss"], history.history["perplexity"], evaluated, weights))
    keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), *results)


@pytest.mark.once("torch")
def test_the_graph_for_documents_is_no_part_of_a_file(tmp_path):
    (inputs, labels), _ = packed(9)
    model = gpt(max_sequence_length=9)
    model.compile("sgd", TokenCrossentropy(chunk_size=3))
    model.fit(inputs, labels, verbose=0)
    model(inputs)
    model.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5") as file:
        assert set(file) <= {"layers", "optimizer", "vars", "_layer_checkpoint_dependencies"}


def test_models_without_positions_and_positions_beyond_a_model_are_errors():
    (inputs, labels), _ = packed(9)
    model = kerasllm.RNNLanguageModel(20, hidden_dim=8)
    model.compile("sgd", TokenCrossentropy())
    with pytest.raises(ValueError, match="position_ids"):
        model.fit(inputs, labels, verbose=0)
    model = gpt(max_sequence_length=9)
    model.compile("sgd", TokenCrossentropy())
    inputs["position_ids"][1, 2] = 9
    with pytest.raises(ValueError, match=r"position_ids\[1, 2\] \(9\)"):
        model.fit(inputs, labels, verbose=0)
