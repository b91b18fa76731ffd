"""The uniform numbers are tested as a generator of random numbers, the sampler against numpy in float64."""

import numpy as np
import pytest
from keras import ops

from kerasllm.generation import samplers

# 99.99 % quantiles of chi-square: a fixed draw passes or fails for good, a bad generator exceeds them by far.
CHI_SQUARE = {12: 39.1, 255: 347.7}


def uniforms(seed=0, prompt=0, sequence=0, count=0):
    """numpy's, as 24-bit integers 0 .. 2**24 - 1."""
    numbers = (np.asarray(number, "int32") for number in (seed, prompt, sequence, count))
    return (samplers.uniform(*numbers, xp=np) * 2**24).astype("int64") - 1


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum()


def test_uniforms_are_the_same_bits_in_numpy_and_on_the_backend():
    numbers = np.random.default_rng(0).integers(-(2**31), 2**31, size=(4, 1000)).astype("int32")
    numbers[:, :3] = [0, 2**31 - 1, -(2**31)]
    expected = samplers.uniform(*numbers, xp=np)
    result = ops.convert_to_numpy(samplers.uniform(*map(ops.convert_to_tensor, numbers)))
    assert expected.dtype == result.dtype == "float32"
    np.testing.assert_array_equal(result, expected)


def test_uniforms_equal_the_stored_ones():
    seed = [0, 1, 0, 0, 0, 2**31 - 1, -(2**31), -1, 2024]
    prompt = [0, 0, 1, 0, 0, 0, 0, 5, 3]
    sequence = [0, 0, 0, 1, 0, 0, 0, 7, 1]
    count = [0, 0, 0, 0, 1, 1000, 0, 2, 50]
    assert uniforms(seed, prompt, sequence, count).tolist() == [
        362727, 15782326, 15918841, 6714650, 14803400,
        8798665, 8118289, 2694583, 3938627,
    ]  # fmt: skip


def test_uniforms_lie_above_zero_and_up_to_one():
    values = uniforms(count=np.arange(2**20))
    assert 0 <= values.min() < 100
    assert 2**24 - 100 < values.max() < 2**24


def test_a_large_seed_wraps_round():
    assert [samplers.wrap_seed(seed) for seed in (0, 2**31 - 1, 2**31, 2**32 - 1)] == [
        0,
        2**31 - 1,
        -(2**31),
        -1,
    ]


@pytest.mark.parametrize("argument", ["seed", "prompt", "sequence", "count"])
def test_uniforms_along_each_argument_are_even(argument):
    values = uniforms(**{argument: np.arange(100_000)})
    for bits in (values >> 16, values & 255):
        assert chi_square(np.bincount(bits, minlength=256), 100_000 / 256) < CHI_SQUARE[255]


@pytest.mark.parametrize("argument", ["seed", "prompt", "sequence", "count"])
def test_neighbours_along_each_argument_are_independent(argument):
    index, others = np.meshgrid(np.arange(300), np.arange(300))
    other = "seed" if argument == "count" else "count"
    for distance in (1, 2, 64):
        first = uniforms(**{argument: index, other: others}) >> 20
        second = uniforms(**{argument: index + distance, other: others}) >> 20
        counts = np.bincount((first * 16 + second).reshape(-1), minlength=256)
        assert chi_square(counts, 90_000 / 256) < CHI_SQUARE[255]


@pytest.mark.parametrize("argument", ["seed", "prompt", "sequence", "count"])
def test_each_bit_of_an_argument_flips_half_of_the_bits(argument):
    numbers = np.random.default_rng(1).integers(-(2**31), 2**31, size=(4, 4000)).astype("int32")
    arguments = dict(zip(["seed", "prompt", "sequence", "count"], numbers, strict=True))
    before = uniforms(**arguments)
    for bit in range(32):
        flipped = arguments[argument] ^ np.array([1 << bit], "uint32").astype("int32")
        changed = before ^ uniforms(**{**arguments, argument: flipped})
        flips = (changed[:, None] >> np.arange(24) & 1).mean(axis=0)
        # The standard deviation of a fair coin's mean over 4000 is 0.008.
        assert np.abs(flips - 0.5).max() < 0.045


def exact(logits):
    """The cumulative distribution of each row, in float64."""
    weights = np.exp(logits.astype("float64") - logits.max(axis=-1, keepdims=True))
    return np.cumsum(weights / weights.sum(axis=-1, keepdims=True), axis=-1)


def sampled(logits, uniform):
    ids = samplers.sample(ops.convert_to_tensor(logits), ops.convert_to_tensor(np.asarray(uniform, "float32")))
    assert ops.dtype(ids) == "int32"
    return ops.convert_to_numpy(ids)


@pytest.mark.in_turn
@pytest.mark.parametrize("size", [1, 5, 256, 257, 2000, 50_257])
@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_sampling_inverts_the_cumulative_distribution(size, scale):
    rng = np.random.default_rng(size)
    logits = (scale * rng.normal(size=(64, size))).astype("float32")
    uniform = ((uniforms(count=np.arange(64)) + 1) / 2**24).astype("float32")
    ids, edges = sampled(logits, uniform), exact(logits)
    expected = np.array([np.searchsorted(row, u) for row, u in zip(edges, uniform, strict=True)])
    from_edge = np.abs(edges - uniform[:, None]).min(axis=-1)
    assert ((ids == expected) | (from_edge < 1e-5)).all()
    lower = np.where(ids > 0, np.take_along_axis(edges, np.maximum(ids - 1, 0)[:, None], 1)[:, 0], 0)
    upper = np.take_along_axis(edges, ids[:, None], 1)[:, 0]
    assert ((lower - 1e-5 < uniform) & (uniform < upper + 1e-5)).all()


def test_sampled_frequencies_match_the_probabilities():
    logits = np.random.default_rng(0).normal(size=(1, 13)).astype("float32")
    uniform = (uniforms(count=np.arange(100_000)) + 1) / 2**24
    counts = np.bincount(sampled(np.repeat(logits, 100_000, axis=0), uniform), minlength=13)
    probabilities = np.diff(exact(logits)[0], prepend=0)
    assert chi_square(counts, 100_000 * probabilities) < CHI_SQUARE[12]


@pytest.mark.parametrize("size", [3, 600])
def test_tokens_at_minus_infinity_are_never_drawn(size):
    logits = np.full((4, size), -np.inf, "float32")
    logits[:, 1] = [5.0, 0.0, -50.0, 3e4]
    assert sampled(logits, [2.0**-24, 0.5, 1 - 2.0**-24, 1.0]).tolist() == [1, 1, 1, 1]


def test_the_largest_uniform_draws_the_last_possible_token():
    logits = np.zeros((1, 700), "float32")
    logits[:, 650:] = -np.inf
    assert sampled(logits, [1.0]).tolist() == [649]
    assert sampled(logits, [2.0**-24]).tolist() == [0]


def test_half_precision_logits_are_sampled_in_float32():
    logits = ops.cast(np.zeros((1, 5000)), "bfloat16")
    uniform = ops.convert_to_tensor(np.array([0.9], "float32"))
    assert abs(int(ops.convert_to_numpy(samplers.sample(logits, uniform))[0]) - 4500) <= 1
