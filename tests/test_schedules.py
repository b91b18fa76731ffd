import json
import math

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm.training.schedules import InverseSquareRoot, WarmupCosine, WarmupLinear, WarmupStableDecay

STEPS = [0, 1, 5, 9, 10, 11, 60, 109, 110, 111, 1000]


def rates(schedule):
    return [float(schedule(step)) for step in STEPS]


def transformers_linear(step, warmup, total):
    """The lambda of transformers.get_linear_schedule_with_warmup."""
    return step / max(1, warmup) if step < warmup else max(0.0, (total - step) / max(1, total - warmup))


def transformers_cosine(step, warmup, total):
    """The lambda of transformers.get_cosine_schedule_with_warmup, with its half cycle and held at its end."""
    progress = min((step - warmup) / max(1, total - warmup), 1.0)
    return step / max(1, warmup) if step < warmup else 0.5 * (1.0 + math.cos(math.pi * progress))


def transformers_inverse_square_root(step, warmup):
    """The lambda of transformers.get_inverse_sqrt_schedule."""
    return step / max(1, warmup) if step < warmup else 1.0 / math.sqrt(step / warmup)


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_schedules_equal_those_of_transformers(warmup):
    linear = [1e-3 * transformers_linear(step, warmup, 110) for step in STEPS]
    np.testing.assert_allclose(rates(WarmupLinear(1e-3, warmup, 110)), linear, rtol=1e-5, atol=1e-12)
    cosine = [1e-3 * transformers_cosine(step, warmup, 110) for step in STEPS]
    np.testing.assert_allclose(rates(WarmupCosine(1e-3, warmup, 110)), cosine, rtol=1e-5, atol=1e-10)
    if warmup:
        root = [1e-3 * transformers_inverse_square_root(step, warmup) for step in STEPS]
        np.testing.assert_allclose(rates(InverseSquareRoot(1e-3, warmup)), root, rtol=1e-5)


def test_cosine_ends_at_the_final_learning_rate():
    schedule = WarmupCosine(1e-3, 10, 110, final_learning_rate=1e-4)
    assert float(schedule(10)) == pytest.approx(1e-3, rel=1e-5)
    assert float(schedule(60)) == pytest.approx(5.5e-4, rel=1e-5)
    assert float(schedule(110)) == float(schedule(9999)) == pytest.approx(1e-4, rel=1e-5)


def test_noam_equals_the_formula_of_the_paper():
    schedule = InverseSquareRoot.noam(512, warmup_steps=4000, scale=2.0)
    for step in (1, 100, 3999, 4000, 4001, 100_000):
        expected = 2.0 * 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_stable_rates_follow_the_formula_of_the_papers(shape):
    schedule = WarmupStableDecay(1e-3, 10, 110, 50, shape=shape, final_learning_rate=1e-4)
    assert rates(schedule)[:6] == pytest.approx([0.0, 1e-4, 5e-4, 9e-4, 1e-3, 1e-3])
    assert schedule(60) == pytest.approx(1e-3) and schedule(110) == schedule(9999) == pytest.approx(1e-4)
    left = {"linear": 1 - 2 / 5, "sqrt": 1 - math.sqrt(2 / 5)}[shape]
    assert schedule(80) == pytest.approx(1e-4 + 9e-4 * left)


def test_without_a_constant_part_it_is_the_linear_schedule():
    assert rates(WarmupStableDecay(1e-3, 10, 110, 100)) == pytest.approx(rates(WarmupLinear(1e-3, 10, 110)))


SCHEDULES = pytest.mark.parametrize(
    "schedule",
    [
        WarmupLinear(1e-3, 2, 9),
        WarmupCosine(1e-3, 2, 9, 1e-5),
        WarmupStableDecay(1e-3, 2, 9, 3, "sqrt", 1e-5),
        InverseSquareRoot.noam(16, 7),
    ],
)


@SCHEDULES
def test_numbers_give_floats_and_tensors_give_tensors_of_the_same_value(schedule):
    for step in STEPS:
        rate = schedule(step)
        assert type(rate) is float and rate == schedule(np.int64(step)) == schedule(float(step))
        tensor = schedule(ops.convert_to_tensor(step))
        assert ops.is_tensor(tensor) and float(tensor) == pytest.approx(rate, rel=1e-5)


def test_a_callback_of_keras_sets_the_rate_of_each_epoch():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    callback = keras.callbacks.LearningRateScheduler(WarmupLinear(1.0, 2, 4))
    history = model.fit(np.ones((1, 1)), np.ones((1, 1)), epochs=4, callbacks=[callback], verbose=0).history
    assert history["learning_rate"] == pytest.approx([0.0, 0.5, 1.0, 0.5])


@SCHEDULES
def test_config_brings_the_schedule_back(schedule):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(schedule) and copy.get_config() == schedule.get_config()
    assert rates(copy) == rates(schedule)


def test_fit_follows_the_schedule():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(WarmupLinear(1.0, 2, 4)), loss=lambda y, y_pred: y_pred)
    x = np.ones((1, 1))  # The gradient is 1, so the weight is minus the sum of the learning rates.
    weights = []
    for _ in range(3):
        model.fit(x, x, verbose=0)
        weights.append(float(model.get_weights()[0][0, 0]))
    assert weights == pytest.approx([0.0, -0.5, -1.5])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmupLinear(1e-3, -1, 2), r"warmup_steps \(-1\)"),
        (lambda: WarmupLinear(1e-3, 2, 2), r"total_steps \(2\) must be greater than warmup_steps \(2\)"),
        (lambda: WarmupCosine(1e-3, 0, 0), r"total_steps \(0\)"),
        (lambda: WarmupStableDecay(1e-3, 1, 9, 0), r"decay_steps \(0\) must be a positive whole number"),
        (lambda: WarmupStableDecay(1e-3, 1, 9, 9), r"decay_steps \(9\) must be at most .* \(8\)"),
        (lambda: WarmupStableDecay(1e-3, 1, 9, 2, "root"), r"shape \('root'\) must be one of 'linear', 'sqrt'"),
        (lambda: WarmupStableDecay(1e-3, 1, 9, 2, final_learning_rate=0.1), r"final_learning_rate \(0.1\)"),
        (lambda: WarmupCosine(1e-3, 1, 2, -1e-5), r"final_learning_rate \(-1e-05\) must be a non-negative"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
