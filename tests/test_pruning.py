"""Pruned weights: the schedule, that they stay 0 through steps, files and resumed runs, and how many they are."""

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.training import AdamW, MagnitudePruning, ResumableTraining, TokenCrossentropy, sparsity

SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 8, "dropout": 0.0}
IDS = np.random.default_rng(0).integers(1, 12, (8, 6)).astype("int32")
X = {"token_ids": IDS, "padding_mask": np.ones_like(IDS, bool)}


def gpt(**arguments):
    keras.utils.set_random_seed(1)
    model = kerasllm.GPT(12, **{**SIZES, **arguments})
    model.compile(AdamW(0.05), TokenCrossentropy())
    return model


def kernels(model):
    return {v.path: ops.convert_to_numpy(v.value) for v in model.weights if v.path.endswith("kernel")}


class Watch(keras.callbacks.Callback):
    """The sparsity before and after each step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(round(sparsity(self.model), 3))


@pytest.mark.once("torch")
def test_the_schedule_is_that_of_the_paper_and_each_kernel_has_it():
    pruning = MagnitudePruning(0.75, end_step=6, begin_step=2, initial_sparsity=0.25, every=2)
    assert [round(pruning.sparsity_at(t), 4) for t in (0, 2, 4, 6, 9)] == [0, 0.25, 0.6875, 0.75, 0.75]
    model, watch = gpt(), Watch()
    history = model.fit(X, IDS, batch_size=2, epochs=2, verbose=0, callbacks=[pruning, watch]).history
    expected = [0, 0.25, 0.25, 0.6875, 0.6875, 0.75, 0.75, 0.75]
    np.testing.assert_allclose(watch.seen, expected, atol=0.01)
    assert history["sparsity"] == pytest.approx([0.6875, 0.75], abs=0.01)
    assert all((kernel == 0).mean() == 0.75 for kernel in kernels(model).values())
    assert (ops.convert_to_numpy(model.decoder.embeddings.token.embeddings) != 0).all()
    chosen = MagnitudePruning(0.5, end_step=0, targets=r"feed_forward/input/kernel$")
    model = gpt()
    before = kernels(model)
    model.optimizer.learning_rate = 0.0
    model.fit(X, IDS, verbose=0, callbacks=[chosen])
    for path, kernel in kernels(model).items():
        if "feed_forward/input" not in path:
            assert (kernel != 0).all()
        else:  # the smallest are gone
            assert np.abs(before[path][kernel == 0]).max() <= np.abs(before[path][kernel != 0]).min()


@pytest.mark.once("torch")
def test_zeros_stay_through_files_and_further_training(tmp_path):
    model = gpt()
    model.fit(X, IDS, batch_size=2, verbose=0, callbacks=[MagnitudePruning(0.5, end_step=1)])
    zeros = {path: kernel == 0 for path, kernel in kernels(model).items()}
    model.save(tmp_path / "pruned.keras")
    loaded = keras.saving.load_model(tmp_path / "pruned.keras")
    assert sparsity(loaded) == 0.5
    loaded.fit(X, IDS, batch_size=2, verbose=0, callbacks=[MagnitudePruning(0.0, end_step=0)])
    for path, kernel in kernels(loaded).items():
        assert np.array_equal(kernel == 0, zeros[path])
    loaded.fit(X, IDS, verbose=0)
    assert sparsity(loaded) < 0.01


def test_a_resumed_run_prunes_as_the_whole_one(tmp_path):
    def fit(folder, epochs):
        model = gpt()
        callbacks = [ResumableTraining(tmp_path / folder), MagnitudePruning(0.8, end_step=7, every=2)]
        model.fit(X, IDS, batch_size=2, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks)
        return model

    whole = fit("whole", 2)
    assert 0 < sparsity(fit("stopped", 1)) < 0.8
    resumed = fit("stopped", 2)
    assert all(np.array_equal(a, b) for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True))
    assert sparsity(resumed) == pytest.approx(0.8, abs=0.01)


@pytest.mark.once("jax")
def test_what_cannot_be_pruned_is_named():
    for wrong, name in (
        ({"begin_step": 9}, "begin_step"),
        ({"initial_sparsity": 0.9}, "initial_sparsity"),
        ({"final_sparsity": 1}, "final_sparsity"),
    ):
        with pytest.raises(ValueError, match=f"^{name} "):
            MagnitudePruning(**{"final_sparsity": 0.5, "end_step": 5, **wrong})
    model = gpt()
    with pytest.raises(ValueError, match="^targets "):
        model.fit(X, IDS, verbose=0, callbacks=[MagnitudePruning(0.5, 1, targets="nothing")])
    with pytest.raises(ValueError, match="^targets "):
        sparsity(model, "nothing")
    with pytest.raises(ValueError, match="^model "):
        sparsity("x")
    query = model.decoder.blocks[0].attention.query.kernel
    query.assign(np.zeros(query.shape))
    with pytest.raises(ValueError, match="all 0"):
        model.fit(X, IDS, verbose=0, callbacks=[MagnitudePruning(0.5, 1)])


@pytest.mark.once("jax", "tensorflow")  # Keras has no several steps in one call on torch
def test_several_steps_in_one_call_are_refused():
    model = gpt()
    model.compile(AdamW(0.05), TokenCrossentropy(), steps_per_execution=2)
    if keras.backend.backend() != "torch":
        with pytest.raises(ValueError, match="steps_per_execution"):
            model.fit(X, IDS, batch_size=2, verbose=0, callbacks=[MagnitudePruning(0.5, 1)])
