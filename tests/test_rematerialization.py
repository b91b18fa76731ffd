"""`remat=True`: the same training from less memory."""

import json

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.layers import TransformerDecoder, TransformerEncoder
from kerasllm.training import TokenCrossentropy

SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 8, "dropout": 0.2}
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 11, (4, 6)).astype("int32")
IS_REAL = np.arange(6) < np.array([[6], [3], [5], [2]])
LABELS = np.where(IS_REAL, RNG.integers(1, 11, (4, 6)), -1)
TEXTS = {"token_ids": IDS, "padding_mask": IS_REAL}
PAIRS = {f"{side}_{name}": value for side in ("source", "target") for name, value in TEXTS.items()}


def gpt(**arguments):
    return kerasllm.GPT(11, **{**SIZES, **arguments})


def with_lora(remat):
    model = gpt(remat=remat, residual="parallel", positions="alibi")
    for block in model.decoder.blocks:
        block.attention.query.enable_lora(2)
    return model


def mixed_bert(remat):
    own = {"num_segments": 0, "labels": [*"abcdefghijk"], "dtype": "mixed_bfloat16"}
    return kerasllm.BERTTokenClassifier(11, **SIZES, **own, remat=remat)


def with_implicit_masks(remat):
    """A memory and a text, each with the mask of its embeddings."""
    tables = [keras.layers.ReversibleEmbedding(11, 8, mask_zero=True) for _ in range(2)]
    source, target = (keras.Input((None,), dtype="int32", name=f"{side}_token_ids") for side in ("source", "target"))
    memory = TransformerEncoder(11, **SIZES, remat=remat, token_embedding=tables[0])(source)
    decoder = TransformerDecoder(11, **SIZES, remat=remat, token_embedding=tables[1], cross_attention=True)
    return keras.Model([source, target], decoder.logits(decoder(target, memory=memory)))


LLAMA = {"norm": "rms", "positions": "rotary", "gated": True, "num_key_value_heads": 1, "sliding_window": [3, None]}
T5 = {"positions": "relative", "norm": "rms", "residual": "pre", "share_embeddings": True, "scale_embeddings": False}
MODELS = {
    "gpt": (gpt, TEXTS),
    "llama": (lambda remat: gpt(remat=remat, **LLAMA), TEXTS),
    "lora": (with_lora, TEXTS),
    "mixed bert": (mixed_bert, TEXTS),
    "t5": (lambda remat: kerasllm.TransformerTranslator(11, 11, **SIZES, **T5, remat=remat), PAIRS),
    "shared": (lambda remat: kerasllm.Summarizer(11, **SIZES, num_segments=0, share=True, remat=remat), PAIRS),
    "implicit masks": (with_implicit_masks, [np.where(IS_REAL, IDS, 0)] * 2),
}
WAYS = {
    "jax": [{"run_eagerly": True}, {"steps_per_execution": 2, "accumulates": 2}],
    "tensorflow": [{"run_eagerly": True, "accumulates": 2}, {"jit_compile": True}, {"steps_per_execution": 2}],
    "torch": [{"accumulates": 2}],
}


def trained(make, x, remat, accumulates=None, **options):
    """The losses of two epochs with the same random numbers, and the weights after them."""
    keras.utils.set_random_seed(1)
    model = make(remat=remat)
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=accumulates)
    model.compile(optimizer, TokenCrossentropy(), **options)
    keras.utils.set_random_seed(2)
    losses = model.fit(x, LABELS, epochs=2, batch_size=2, shuffle=False, verbose=0).history["loss"]
    return losses, model.get_weights()


def check_equal(make, x, atol=1e-6, **options):
    (losses, weights), (expected_losses, expected) = (trained(make, x, remat, **options) for remat in (True, False))
    np.testing.assert_allclose(losses, expected_losses, atol=atol)
    for w, e in zip(weights, expected, strict=True):
        np.testing.assert_allclose(w, e, atol=atol)


# The others are made of the same parts.
OFTEN = ("lora", "mixed bert", "t5")
CASES = [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.slow]) for name in MODELS]


@pytest.mark.in_turn
@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_a_model_that_keeps_all(name):
    """Under dropout of one seed, whose masks change from step to step; XLA rounds bfloat16 where it stores it."""
    make, x = MODELS[name]
    check_equal(make, x, atol=3e-3 if name == "mixed bert" else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", WAYS[keras.backend.backend()], ids=str)
def test_every_way_to_take_a_step_gives_the_same(options):
    check_equal(gpt, TEXTS, **options)


def bytes_kept_on_jax(model):
    import jax

    def loss(trainable, others):
        logits, _ = model.stateless_call(trainable, others, LONG, training=True)
        return (logits**2).mean()

    values = ([v.value for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables))
    return jax.jit(jax.grad(loss)).lower(*values).compile().memory_analysis().temp_size_in_bytes


def bytes_kept_on_torch(model):
    import torch

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        model(LONG, training=True)
    return sum(kept)


def products_on_tensorflow(model):
    """Those that are left when XLA has merged what it can."""
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(LONG, training=True) ** 2)
        return tape.gradient(loss, model.trainable_variables)

    text = step.experimental_get_compiler_ir()(stage="optimized_hlo")
    return text.count(" dot(") + text.count("matmul")


LONG = {"token_ids": np.ones((4, 64), "int32"), "padding_mask": np.ones((4, 64), bool)}


def test_activations_are_not_kept():
    def measured(measure):
        return [measure(gpt(num_layers=3, max_sequence_length=64, remat=remat)) for remat in (True, False)]

    if keras.backend.backend() == "tensorflow":
        again, once = measured(products_on_tensorflow)
        assert again >= once + 3 * 4, "the second pass was merged with the first"
    else:
        less, all_ = measured(bytes_kept_on_jax if keras.backend.backend() == "jax" else bytes_kept_on_torch)
        assert less < 0.6 * all_


def test_remat_is_kept_in_keras_files_and_is_no_part_of_presets(tmp_path):
    model = gpt(remat=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.arguments["remat"] and loaded.decoder.remat
    model.save_to_preset(tmp_path / "preset")
    assert json.loads((tmp_path / "preset" / "config.json").read_text())["model_type"] == "gpt2"
    assert not kerasllm.GPT.from_preset(tmp_path / "preset").decoder.remat
    assert kerasllm.GPT.from_preset(tmp_path / "preset", remat=True).decoder.remat
    ours = gpt(remat=True, positions="alibi")
    ours.save_to_preset(tmp_path / "ours")
    assert "remat" not in json.loads((tmp_path / "ours" / "config.json").read_text())["arguments"]


def test_what_cannot_be_recomputed_is_refused():
    with pytest.raises(ValueError, match=r"remat \('blocks'\)"):
        gpt(remat="blocks")
    with pytest.raises(TypeError, match="remat"):
        kerasllm.RNNLanguageModel(11, 1, 8, remat=True)
    model = gpt(remat=True)
    model.decoder.blocks[0].feed_forward.activity_regularizer = keras.regularizers.L2(0.1)
    model.compile("sgd", TokenCrossentropy())
    with pytest.raises(ValueError, match=r"remat \(True\) does not go with losses that layers add"):
        model.fit(TEXTS, LABELS, verbose=0)
