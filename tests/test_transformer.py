"""Block and stacks: parity with torch, causality, and the walk with a cache equal to the walk without."""

import keras
import numpy as np
import pytest
from checks import check_layer
from keras import ops

from kerasllm.layers import (
    FeedForward,
    MultiHeadAttention,
    TransformerBlock,
    TransformerDecoder,
    TransformerEncoder,
)

to_numpy = ops.convert_to_numpy
IDS = np.random.default_rng(0).integers(0, 11, (2, 7)).astype("int32")
SIZES = {"vocabulary_size": 11, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "initializer_range": 0.3}


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def numpy_norm(weights, kind, h, name):
    if kind == "layer":
        scale = np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        return (h - h.mean(-1, keepdims=True)) / scale * weights[f"{name}/gamma"] + weights[f"{name}/beta"]
    scale = weights[f"{name}/scale"] + (1 if kind == "unit_offset_rms" else 0)
    return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5) * scale


@pytest.mark.parametrize(
    ("norm", "residual"),
    [("layer", "pre"), ("layer", "post"), ("layer", "parallel"), ("rms", "both"), ("unit_offset_rms", "both")],
)
def test_a_block_is_what_its_equation_says(norm, residual):
    """The arithmetic of torch.nn.TransformerEncoderLayer, and of GPT-NeoX and Gemma 2, written out in numpy."""
    options = {"softcap": 0.7} if residual == "both" else {}
    block = TransformerBlock(MultiHeadAttention(2, **options), FeedForward(12, "relu"), norm=norm, residual=residual)
    x = normal(2, 5, 8)
    block(x)
    rng = np.random.default_rng(1)
    block.set_weights([rng.normal(size=w.shape) for w in block.get_weights()])
    weights = {v.path.split("/", 1)[1]: to_numpy(v) for v in block.weights}

    def normed(h, name):
        return numpy_norm(weights, norm, h, f"{name}_norm")

    def dense(h, name):
        return h @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    def attend(h):
        name = block.attention.name
        q, k, v = (dense(h, f"{name}/{p}").reshape(2, 5, 2, 4) for p in ("query", "key", "value"))
        scores = np.einsum("btnh,bsnh->bnts", q, k) / 2
        scores = np.tanh(scores / 0.7) * 0.7 if options else scores
        probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        mixed = np.einsum("bnts,bsnh->btnh", probabilities, v).reshape(2, 5, 8)
        return dense(mixed, f"{name}/output")

    def feed(h):
        name = block.feed_forward.name
        return dense(np.maximum(dense(h, f"{name}/input"), 0), f"{name}/output")

    expected = x
    for sublayer, name in ((attend, "attention"), (feed, "feed_forward")):
        if residual == "pre":
            expected = expected + sublayer(normed(expected, name))
        elif residual == "post":
            expected = normed(expected + sublayer(expected), name)
        elif residual == "both":
            expected = expected + normed(sublayer(normed(expected, name)), f"{name}_output")
        else:
            expected = expected + sublayer(normed(x, name))
    np.testing.assert_allclose(to_numpy(block(x)), expected, atol=1e-4)


RELATIVES_OF_LLAMA = {
    "positions": "rotary",
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "num_key_value_heads": 2,
    "norm": "rms",
    "use_bias": False,
    "use_qkv_bias": True,
    "query_key_norm": True,
    "sliding_window": 3,
}


@pytest.mark.in_turn
@pytest.mark.parametrize(
    "arguments",
    [
        *({"positions": p} for p in ("learned", "sinusoidal", "rotary", "relative", "alibi", None)),
        {"positions": "rotary", "num_key_value_heads": 2},
        {"sliding_window": [3, None], "attention_softcap": 0.5},
        {"residual": "both", "norm": "unit_offset_rms"},
        {"residual": "parallel"},
        {
            "positions": "rotary",
            "rope_base": [1e4, 10.0],
            "rope_scaling": [None, {"rope_type": "linear", "factor": 2.0}],
        },
        {"positions": "rotary", "rope_base": [None, 1e4]},
        RELATIVES_OF_LLAMA,
    ],
    ids=lambda arguments: "-".join(map(str, arguments.values())) if len(arguments) < 4 else "relatives of llama",
)
def test_cached_steps_over_ragged_prompts_equal_the_full_pass(arguments):
    decoder = TransformerDecoder(**SIZES, **arguments, max_sequence_length=8)
    whole = to_numpy(decoder(IDS))
    alone = to_numpy(decoder(np.pad(IDS[:1, 2:], [(0, 0), (0, 2)])))  # row 0 without its first two tokens
    padding_mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]], bool)
    ids = ops.convert_to_tensor(IDS)
    state = decoder.start(ids[:, :4], ops.convert_to_tensor(padding_mask), capacity=4)
    hidden, state = decoder.step(ids[:, 3:4], state, 3)
    state = decoder.grow(state, 8)
    more, state = decoder.step(ids[:, 4:], state, 4)  # several tokens at once
    steps = np.concatenate([to_numpy(hidden), to_numpy(more)], axis=1)
    np.testing.assert_allclose(steps[1], whole[1, 3:], atol=1e-5)
    np.testing.assert_allclose(steps[0], alone[0, 1:5], atol=1e-5)


def test_a_list_says_what_differs_from_block_to_block():
    """Two blocks of one stack are those of two stacks of one block."""
    options = {**SIZES, "positions": "rotary", "sliding_window": [3, None], "rope_base": [1e4, 10.0, None]}
    decoder = TransformerDecoder(**options | {"num_layers": 3})
    decoder(IDS)
    x = normal(2, 7, 16)
    expected = x
    for i, (window, base) in enumerate([(3, 1e4), (None, 10.0), (3, None)]):
        positions = None if base is None else "rotary"
        alone = TransformerDecoder(
            **options | {"num_layers": 1, "sliding_window": window, "positions": positions, "rope_base": base or 1e4}
        )
        alone(IDS)
        alone.blocks[0].set_weights(decoder.blocks[i].get_weights())
        slots = ops.arange(7)
        masks = alone._masks(7, 7, 0, None)
        tables = [rotary.tables(slots, 4) for rotary in alone.rotary]
        expected = alone.blocks[0](expected, attention_mask=masks[0], rotary=tables[0] if tables else None)
    walked, _ = decoder.walk(ops.convert_to_tensor(x), ops.arange(7), decoder._masks(7, 7, 0, None))
    np.testing.assert_allclose(to_numpy(walked), to_numpy(decoder.final_norm(expected)), atol=1e-5)
    alike = TransformerDecoder(**options | {"num_layers": 2, "sliding_window": [3], "rope_base": [1e4, 1e4]})
    assert len(alike.rotary) == 1 and alike.windows == [3, 3]


def test_a_decoder_with_memory_steps_as_it_walks():
    decoder = TransformerDecoder(**SIZES, cross_attention=True, norm_first=False, positions="sinusoidal")
    memory, memory_mask = normal(2, 3, 16), np.array([[1, 1, 0], [1, 1, 1]], bool)
    whole = to_numpy(decoder(IDS, memory=memory, memory_padding_mask=memory_mask))
    ids, ones = ops.convert_to_tensor(IDS), ops.ones((2, 3), "bool")
    state = decoder.start(ids[:, :3], ones, 8, ops.convert_to_tensor(memory), ops.convert_to_tensor(memory_mask))
    hidden, _ = decoder.step(ids[:, 2:], state, 2)
    np.testing.assert_allclose(to_numpy(hidden), whole[:, 2:], atol=1e-5)
    other = np.where(memory_mask[..., None], memory, 7.0).astype("float32")
    changed = to_numpy(decoder(IDS, memory=other, memory_padding_mask=memory_mask))
    np.testing.assert_allclose(changed, whole, atol=1e-5)


def test_a_decoder_is_causal_and_an_encoder_is_not():
    later = IDS.copy()
    later[:, 4:] = (later[:, 4:] + 1) % 11
    decoder = TransformerDecoder(**SIZES)
    np.testing.assert_allclose(to_numpy(decoder(IDS))[:, :4], to_numpy(decoder(later))[:, :4], atol=1e-6)
    encoder = TransformerEncoder(**SIZES)
    assert np.abs(to_numpy(encoder(IDS))[:, :4] - to_numpy(encoder(later))[:, :4]).max() > 1e-3


def test_an_encoder_does_not_see_padding():
    encoder = TransformerEncoder(**SIZES, norm_first=False, norm_embeddings=True, num_segments=2)
    padding_mask = np.array([[1] * 5 + [0] * 2] * 2, bool)
    short = to_numpy(encoder(IDS[:, :5], np.ones((2, 5), bool)))
    np.testing.assert_allclose(to_numpy(encoder(IDS, padding_mask))[:, :5], short, atol=1e-5)


def test_a_block_keeps_the_layer_contract():
    def make(**kwargs):
        policy = {"dtype": kwargs.get("dtype")}
        return TransformerBlock(
            MultiHeadAttention(2, name="attention", **policy),
            FeedForward(12, name="feed_forward", **policy),
            MultiHeadAttention(2, name="cross_attention", **policy),
            dropout=0.1,
            **kwargs,
        )

    inputs = {"x": normal(2, 5, 8), "memory": normal(2, 3, 8)}
    check_layer(make, inputs, lengths=(5, 3), unreached=("key/bias",))


@pytest.mark.parametrize("stack", [TransformerEncoder, TransformerDecoder])
def test_a_stack_keeps_the_layer_contract(stack):
    def make(**kwargs):
        return stack(11, 1, 2, 8, norm="rms", gated=True, positions="rotary", **kwargs)

    check_layer(make, {"token_ids": IDS, "padding_mask": IDS > -1}, lengths=(7,), unreached=("key/bias",))


def test_a_stack_runs_in_mixed_precision():
    policy = keras.dtype_policies.get("mixed_bfloat16")
    decoder = TransformerDecoder(**SIZES, dtype=policy)
    hidden = decoder(IDS)
    assert keras.backend.standardize_dtype(hidden.dtype) == "bfloat16"
    assert {v.dtype for v in decoder.weights} == {"float32"}


@pytest.mark.parametrize(
    "options",
    [
        {"norm_epsilon": 2**63},
        {"attention_scale": 2**40},
        {"attention_softcap": 10**30},
        {"initializer_range": 2**33},
        {"positions": "rotary", "rope_base": 2**63},
    ],
    ids=lambda options: list(options)[-1],
)
def test_a_number_may_be_whole_and_large(options):
    """jax takes Python's whole numbers for int32."""
    decoder = TransformerDecoder(**SIZES | options)
    hidden = to_numpy(decoder(IDS))
    values = decoder.get_weights() if "initializer_range" in options else [hidden]  # of such weights no products are
    assert all(np.isfinite(x).all() for x in values)
