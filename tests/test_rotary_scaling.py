"""Rotary positions beyond the first lengths: every kind gives transformers' angles, and models decode as they read."""

import functools
from pathlib import Path

import keras
import numpy as np
import pytest
from checks import check_layer
from keras import ops

from kerasllm import GPT
from kerasllm.export.contents import Options
from kerasllm.export.language_models import LanguageModelContents
from kerasllm.layers import RotaryPositions, TransformerDecoder
from kerasllm.layers.rotary_scaling import KINDS

to_numpy = ops.convert_to_numpy
DATA = Path(__file__).parent / "data"
FIRST = 32
LENGTHS = (7, FIRST, FIRST + 1, 1024)
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "max_position_embeddings": FIRST},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": FIRST,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": FIRST},
    "longrope": {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": FIRST},
}
MORE = {  # what else the kinds read
    "dynamic less": {"factor": 0.5},
    "llama3 bands": {"low_freq_factor": 0.5, "high_freq_factor": 2.5, "factor": 3.0},
    "yarn mscale": {"mscale": 0.707, "mscale_all_dim": 0.5, "beta_fast": 20.0, "beta_slow": 2.0},
    "yarn one mscale": {"mscale": 0.707, "mscale_all_dim": 0.0, "attention_factor": None},
    "yarn attention": {"attention_factor": 0.75, "truncate": False},
    "yarn smaller": {"factor": 0.5, "truncate": False, "original_max_position_embeddings": 4096},
    "yarn long first": {"original_max_position_embeddings": 10**7},
    "yarn lengths": {"factor": None, "max_position_embeddings": 5 * FIRST},
    "longrope attention": {"attention_factor": 1.25},
    "longrope smaller": {"factor": 0.5},
    "longrope lengths": {"factor": None, "max_position_embeddings": 6 * FIRST},
}
HEADS = [(8, 1.0, 10000.0), (64, 1.0, 500000.0), (80, 0.4, 10000.0), (20, 0.25, 10000.0)]  # the last turns 5: 3 pairs


def scaling_of(case, num_pairs=4):
    """The dict of a name of SCALINGS or MORE."""
    scaling = SCALINGS[case.split()[0]] | MORE.get(case, {})
    if scaling["rope_type"] == "longrope":
        lists = (1 + np.arange(num_pairs) / 9).tolist(), (2 + np.arange(num_pairs) ** 2 / 3).tolist()
        scaling |= dict(zip(("short_factor", "long_factor"), lists, strict=True))
    return scaling


def their_config(scaling, head_dim, fraction, base, **sizes):
    """The config of a Llama in transformers with a `scaling` of ours."""
    transformers = pytest.importorskip("transformers")
    theirs = scaling | {"rope_theta": base, "partial_rotary_factor": fraction}
    length = theirs.pop("max_position_embeddings", 4 * FIRST)
    return transformers.LlamaConfig(
        head_dim=head_dim, rope_parameters=theirs, max_position_embeddings=length, attn_implementation="eager", **sizes
    )


def their_tables(config, length):
    """Cosines and sines (T, R/2) of a sequence, by a layer of transformers that has seen no other."""
    torch = pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    layer = LlamaRotaryEmbedding(config)
    tables = layer(torch.zeros(1, dtype=torch.float32), torch.arange(length)[None])
    return [table[0, :, : table.shape[-1] // 2].numpy() for table in tables], layer.inv_freq.numpy()


@pytest.mark.in_turn
@pytest.mark.parametrize("case", [*SCALINGS, *MORE])
@pytest.mark.parametrize("head_dim, fraction, base", HEADS)
def test_angles_equal_those_of_transformers(case, head_dim, fraction, base):
    if case.startswith("yarn") and head_dim == 20:
        head_dim = 24  # transformers' rotates no odd number of channels
    num_pairs = (int(head_dim * fraction) + 1) // 2
    scaling = scaling_of(case, num_pairs)
    config = their_config(scaling, head_dim, fraction, base)
    layer = RotaryPositions(base, scaling, fraction)
    for length in LENGTHS:
        expected, frequency = their_tables(config, length)
        angles = np.arange(length)[:, None] * frequency
        for table, theirs in zip(layer.tables(np.arange(length), head_dim), expected, strict=True):
            assert table.shape == (1, 1, length, num_pairs)
            # Both compute angles in float32.
            assert (np.abs(to_numpy(table)[0, 0] - theirs) <= 1e-6 * (1 + angles)).all(), length


FEW, ALL = 5, 12  # first lengths of small models, and what they read
SIZES = {"vocabulary_size": 11, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "max_sequence_length": 16}
IDS = np.random.default_rng(0).integers(0, 11, (2, ALL)).astype("int32")


def small(case, num_pairs):
    """A scaling whose first lengths are `FEW`."""
    return {name: FEW if value == FIRST else value for name, value in scaling_of(case, num_pairs).items()}


def decoder_with(case, fraction=1.0):
    decoder = TransformerDecoder(**SIZES, positions="rotary", initializer_range=0.3)
    scaling = None if case is None else small(case, int(16 * fraction) // 2)
    decoder.rotary = [RotaryPositions(scaling=scaling, fraction=fraction, name="rotary")]
    decoder(IDS)
    return decoder


def stepped(decoder, ids, prompt_length, width=1, padding=0):
    """Hidden states (B, T - P + 1, D) of the last prompt token and those after it, read some at a time."""
    prompt = np.pad(ids[:, :prompt_length], [(0, 0), (padding, 0)])
    is_real = np.arange(padding + prompt_length)[None].repeat(len(ids), 0) >= padding
    state, hidden = decoder.start(ops.convert_to_tensor(prompt), ops.convert_to_tensor(is_real), capacity=20), []
    for start in range(prompt_length - 1, ids.shape[1], width):
        tokens = ops.convert_to_tensor(ids[:, start : start + width])
        h, state = decoder.step(tokens, state, ops.convert_to_tensor(np.int32(padding + start)))
        hidden.append(to_numpy(h))
    return np.concatenate(hidden, axis=1)


@pytest.mark.in_turn
@pytest.mark.parametrize(
    "case, fraction", [*((case, 1.0) for case in SCALINGS), (None, 0.25), ("yarn", 0.5), ("dynamic", 0.5)]
)
def test_cached_steps_equal_the_full_pass(case, fraction):
    decoder, follows = decoder_with(case, fraction), case in SCALINGS and KINDS[case].follows_beyond
    spans = [(2, FEW)] if follows else [(4, ALL)]
    spans += [(FEW + 1, ALL)] if case == "longrope" else []  # long from the start
    for prompt_length, length in spans:
        whole = to_numpy(decoder(IDS[:, :length]))
        steps = stepped(decoder, IDS[:, :length], prompt_length, width=2, padding=1)
        np.testing.assert_allclose(steps, whole[:, prompt_length - 1 :], atol=2e-5)


@pytest.mark.in_turn
@pytest.mark.parametrize("case", ["dynamic", "longrope"])
def test_beyond_the_first_lengths_steps_do_not_depend_on_their_width_or_on_padding(case):
    decoder = decoder_with(case)
    one, whole = stepped(decoder, IDS, 3), to_numpy(decoder(IDS))[:, 2:]
    assert np.abs(one[:, : FEW - 2] - whole[:, : FEW - 2]).max() > 1e-3  # they stand in a shorter text
    assert np.abs(one[:, FEW - 2 :] - whole[:, FEW - 2 :]).max() > 1e-3  # they see keys of a shorter text
    np.testing.assert_allclose(stepped(decoder, IDS, 3, width=5, padding=2), one, atol=2e-5)


@pytest.mark.in_turn
@pytest.mark.parametrize("case", ["dynamic", "longrope"])
def test_padding_on_either_side_changes_nothing(case):
    decoder = decoder_with(case)
    for length, left, right in ((FEW, 0, 4), (FEW, 4, 0), (FEW + 2, 2, 2)):
        whole = to_numpy(decoder(IDS[:, :length]))
        ids = np.pad(IDS[:, :length], [(0, 0), (left, right)])
        is_real = np.pad(np.ones((2, length), bool), [(0, 0), (left, right)])
        padded = to_numpy(decoder(ids, padding_mask=is_real))[:, left : left + length]
        np.testing.assert_allclose(padded, whole, atol=2e-5)


@functools.cache
def llama():
    return GPT.from_preset(DATA / "llama")


@pytest.mark.in_turn
@pytest.mark.parametrize("case", SCALINGS)
def test_a_model_reads_and_writes_as_in_transformers(case):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    scaling = small(case, 2)
    model = GPT(**{**llama().arguments, "rope_scaling": scaling})
    model.set_weights(llama().get_weights())
    ids = np.random.default_rng(1).integers(0, 97, (2, ALL))

    def theirs():  # a new one, for it keeps the angles of the longest text it has seen
        config = transformers.AutoConfig.from_pretrained(DATA / "llama")
        parameters = {name: value for name, value in scaling.items() if name != "max_position_embeddings"}
        config.rope_parameters = parameters | {"rope_theta": 10000.0}
        config.max_position_embeddings = scaling.get("max_position_embeddings", 24)
        return transformers.LlamaForCausalLM.from_pretrained(DATA / "llama", config=config).eval()

    def check_close(actual, expected):
        np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-5 * np.abs(expected.numpy()).max())

    with torch.no_grad():
        for length in (FEW, ALL):
            inputs = {"token_ids": ids[:, :length].astype("int32"), "padding_mask": np.ones((2, length), bool)}
            check_close(to_numpy(model(inputs)), theirs()(torch.tensor(ids[:, :length])).logits)
        for prompt_length in (3, FEW + 2):
            other = theirs()
            read = other(torch.tensor(ids[:, :prompt_length]), use_cache=True)
            expected = [read.logits[:, -1:]]
            for i in range(prompt_length, ALL):
                read = other(torch.tensor(ids[:, i : i + 1]), use_cache=True, past_key_values=read.past_key_values)
                expected.append(read.logits)
            steps = stepped(model.decoder, ids.astype("int32"), prompt_length)
            check_close(to_numpy(model.head(ops.convert_to_tensor(steps))), torch.cat(expected, dim=1))


@pytest.mark.parametrize("case", ["dynamic", "longrope", "yarn attention"])
def test_keeps_the_layer_contract(case):
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 8)).astype("float32")
    check_layer(lambda **kwargs: RotaryPositions(100.0, small(case, 2), 0.5, **kwargs), x, lengths=(7,))


def test_channels_that_are_not_rotated_stay_as_they_are():
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 10)).astype("float32")
    rotated = to_numpy(RotaryPositions(fraction=0.65)(x))
    np.testing.assert_allclose(rotated[..., :6], to_numpy(RotaryPositions()(x[..., :6].copy())), atol=1e-6)
    np.testing.assert_array_equal(rotated[..., 6:], x[..., 6:])


WRONG = {
    "no kind": ({"rope_type": "ntk"}, "'linear', 'dynamic', 'llama3', 'yarn', 'longrope'"),
    "no dict": ("yarn", "must be a dict"),
    "kind of a list": ({"rope_type": ["yarn"]}, "must be a dict whose rope_type"),
    "without": ({"rope_type": "dynamic", "factor": 2.0}, "must hold factor, max_position_embeddings"),
    "with another's": (scaling_of("yarn") | {"low_freq_factor": 1.0}, "must hold original_max.*, and may hold factor"),
    "no factor": (scaling_of("yarn") | {"factor": None}, "must hold factor or max_position_embeddings"),
    "no way to a factor": (scaling_of("longrope") | {"factor": None}, "must hold one of attention_factor, factor"),
    "required none": (scaling_of("linear") | {"factor": None}, r"rope_scaling\['factor'\] \(None\)"),
    "negative": (scaling_of("yarn") | {"beta_fast": -1}, r"rope_scaling\['beta_fast'\] \(-1\)"),
    "negative mscale": (scaling_of("yarn") | {"mscale": -1.0}, r"rope_scaling\['mscale'\] \(-1.0\)"),
    "truncate": (scaling_of("yarn") | {"truncate": None}, r"rope_scaling\['truncate'\] \(None\) must be True or"),
    "no list": (scaling_of("longrope") | {"long_factor": 2.0}, r"\['long_factor'\] \(2.0\) must be a list"),
    "a list with 0": (scaling_of("longrope") | {"short_factor": [1, 0]}, r"\['short_factor'\] \(\[1, 0\]\)"),
    "one token": (
        scaling_of("longrope") | {"original_max_position_embeddings": 1},
        r"\['original_max_position_embeddings'\] \(1\) must be greater than 1",
    ),
    "bands": (scaling_of("llama3") | {"low_freq_factor": 4.0}, r"low_freq_factor \(4.0\) .* high_freq_factor \(4.0\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_scaling_is_refused_by_name(name):
    scaling, message = WRONG[name]
    with pytest.raises(ValueError, match=f"rope_scaling.*{message}|{message}"):
        RotaryPositions(scaling=scaling)


def test_a_head_that_a_scaling_does_not_fit_is_refused():
    for arguments, head_dim, message in [
        ({"scaling": scaling_of("longrope", 3)}, 8, r"short_factor'\] \(.*\) must hold 4 numbers, .* not 3"),
        ({"scaling": scaling_of("dynamic"), "fraction": 0.25}, 8, "more than 2 channels of a head, not 2"),
        ({"scaling": scaling_of("yarn"), "base": 1.0}, 8, r"base \(1.0\) must be greater than 1"),
        ({"fraction": 0.1}, 8, r"fraction \(0.1\) must leave a channel of heads of 8"),
        ({}, 5, r"head_dim \(5\) must be even"),
    ]:
        with pytest.raises(ValueError, match=message):
            RotaryPositions(**arguments).tables(np.arange(3), head_dim)
    for fraction in (0, 1.5, True, "x", None, float("nan")):
        with pytest.raises(ValueError, match=r"fraction \(.*\) must be a number in \(0, 1\]"):
            RotaryPositions(fraction=fraction)


def export_contents(max_length):
    model = GPT(11, 1, 2, 16, max_sequence_length=16, positions="rotary", rope_scaling=small("dynamic", 4))
    return LanguageModelContents(model, Options(static=True, max_length=max_length, prefill_lengths=(4,)))


def test_files_hold_no_steps_that_would_need_the_length_of_a_prompt():
    assert "prefill_4" in export_contents(FEW).signatures
    with pytest.raises(ValueError, match=r"max_length \(6\) must be at most 5 for prefill_4, decode"):
        export_contents(FEW + 1)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends export by a process of TensorFlow")
@pytest.mark.parametrize("format", ["tf_saved_model", "litert"])
def test_files_write_past_the_first_lengths_as_the_model_does(format, tmp_path):
    """`export` compares texts of twelve tokens."""
    model = GPT(11, 1, 2, 16, max_sequence_length=16, positions="rotary", rope_scaling=small("longrope", 4))
    path = tmp_path / ("model.tflite" if format == "litert" else "model")
    model.export(path, format, verbose=False, signatures=["generate"])
