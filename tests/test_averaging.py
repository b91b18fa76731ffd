"""The mean of the weights of several files."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm.training import average_weights
from kerasllm.training.averaging import mean_of


def model(width=3, seed=0):
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((2,)),
        keras.layers.Dense(width),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.1),
    ]
    return keras.Sequential(layers)


def test_a_model_gets_the_mean_of_files(tmp_path):
    files = [tmp_path / f"{seed}.weights.h5" for seed in range(3)]
    for seed, file in enumerate(files):
        model(seed=seed).save_weights(file)
    made = model(seed=7)
    average_weights(made, files)
    lists = [model(seed=seed).get_weights() for seed in range(3)]
    for mean, *arrays in zip(made.get_weights(), *lists, strict=True):
        np.testing.assert_allclose(mean, np.mean(arrays, axis=0), rtol=1e-6)
        assert mean.dtype == arrays[0].dtype


def test_halves_are_averaged_as_floats_and_whole_numbers_are_the_last():
    half = [ops.convert_to_numpy(ops.cast([value, 1.0], "bfloat16")) for value in (1.0, 2.0)]
    mean = mean_of([half[i], np.array([i])] for i in range(2))
    assert mean[0].dtype == half[0].dtype and mean[0].astype("float32").tolist() == [1.5, 1.0]
    assert mean[1].tolist() == [1]


def test_a_file_of_another_model_leaves_the_weights_as_they_were(tmp_path):
    model().save_weights(tmp_path / "good.weights.h5")
    model(width=4).save_weights(tmp_path / "other.weights.h5")
    made = model(seed=5)
    with pytest.raises(ValueError):
        average_weights(made, [tmp_path / "good.weights.h5", tmp_path / "other.weights.h5"])
    assert all(map(np.array_equal, made.get_weights(), model(seed=5).get_weights()))
    with pytest.raises(ValueError, match=r"files \(\[\]\) must name one file at least"):
        average_weights(made, [])
