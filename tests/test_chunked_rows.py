"""`chunk_size` of losses of vectors: the same training of large batches in the memory of small ones."""

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm import backend
from kerasllm.backend.steps import marked
from kerasllm.training import CosineSimilarityLoss, InBatchNegativesLoss, MatryoshkaLoss

ROWS, LENGTH = 12, 5
RNG = np.random.default_rng(0)
IS_REAL = np.arange(LENGTH) < RNG.integers(1, 6, ROWS)[:, None]
TEXTS = {
    "token_ids": RNG.integers(1, 20, (ROWS, LENGTH)).astype("int32"),
    "segment_ids": np.zeros((ROWS, LENGTH), "int32"),
    "padding_mask": IS_REAL,
}
LABELS = np.stack([np.arange(ROWS) // 2, np.arange(ROWS) % 2], axis=1)
SCORED = np.stack([np.arange(ROWS) // 2, np.arange(ROWS) // 2 / 5], axis=1).astype("float32")
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 64}


def trained(loss, dropout=0.0, labels=LABELS, fit=None, accumulates=None, mend=None, **options):
    """What `fit` and `evaluate` show, and the weights after two epochs."""
    keras.utils.set_random_seed(1)
    arguments = {name: options.pop(name) for name in ("remat", "dtype") if name in options}
    model = kerasllm.BERTEmbedder(20, **SIZES, dropout=dropout, **arguments)
    if mend:
        mend(model)
    model.compile(keras.optimizers.SGD(0.3, gradient_accumulation_steps=accumulates), loss, **options)
    fit = {"batch_size": ROWS, "epochs": 2, "shuffle": False, "verbose": 0} | (fit or {})
    shown = model.fit(TEXTS, labels, **fit).history["loss"]
    return [*shown, model.evaluate(TEXTS, labels, batch_size=fit["batch_size"], verbose=0)], model.get_weights()


def check_equal(one, other, atol=1e-5):
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def with_lora(model):
    for block in model.encoder.blocks:
        block.attention.query.enable_lora(2)
    model.encoder.embeddings.trainable = False


CASES = {
    "last chunk and last batch smaller": {"chunk_size": 3, "fit": {"batch_size": 8}},
    "one chunk": {"chunk_size": 64},
    "remat": {"chunk_size": 4, "remat": True},
    "lora": {"chunk_size": 4, "mend": with_lora},
    "accumulated": {"chunk_size": 4, "accumulates": 2, "fit": {"batch_size": 6}},
    "eager": {"chunk_size": 5, "run_eagerly": True},
}


@pytest.mark.in_turn
@pytest.mark.parametrize("name", CASES)
def test_chunks_change_nothing(name):
    case = dict(CASES[name])
    chunk_size = case.pop("chunk_size")
    whole = trained(InBatchNegativesLoss(0.5), **case)
    check_equal(trained(InBatchNegativesLoss(0.5, chunk_size=chunk_size), **case), whole)


@pytest.mark.in_turn
def test_chunks_serve_every_loss_of_vectors():
    for make, labels in (
        (CosineSimilarityLoss, SCORED),
        (lambda **given: MatryoshkaLoss(InBatchNegativesLoss(0.5, **given), [8, 3]), LABELS),
    ):
        check_equal(trained(make(chunk_size=4), labels=labels), trained(make(), labels=labels))


def test_dropout_has_the_same_masks_on_the_way_back(monkeypatch):
    """Plain calls of the chunks, one after the other, differentiated as one."""
    loss = InBatchNegativesLoss(0.5, chunk_size=4)
    in_chunks = trained(loss, dropout=0.3)

    def plain(layer, inputs, chunk_size, **arguments):
        starts = range(0, ROWS, chunk_size)
        chunks = [{name: x[start : start + chunk_size] for name, x in inputs.items()} for start in starts]
        return ops.concatenate([layer(chunk, **arguments) for chunk in chunks])

    monkeypatch.setattr(backend, "by_chunks", plain)
    check_equal(in_chunks, trained(loss, dropout=0.3))
    assert in_chunks[0][0] != pytest.approx(in_chunks[0][2], rel=1e-5), "evaluation has no dropout"


def num_bytes_kept(rows, chunk_size):
    """The bytes that a step of so many rows keeps between its way forth and its way back, or takes in all on jax."""
    model = kerasllm.BERTEmbedder(20, **{**SIZES, "num_layers": 2}, dropout=0.1)
    model.compile("sgd", InBatchNegativesLoss(chunk_size=chunk_size))
    model.optimizer.build(model.trainable_variables)
    texts = {"token_ids": np.ones((rows, 32), "int32"), "segment_ids": np.zeros((rows, 32), "int32")}
    texts["padding_mask"] = np.ones((rows, 32), "bool")
    labels = np.stack([np.arange(rows) // 2, np.arange(rows) % 2], axis=1)
    if keras.backend.backend() == "torch":
        import torch

        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
            marked(model, lambda: model(texts, training=True))()
        return sum(kept)
    if keras.backend.backend() == "jax":
        import jax

        def loss(trainable, others):
            vectors, _ = model.stateless_call(trainable, others, texts, training=True)
            return model.loss(labels, vectors)

        values = [[v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables)]
        return jax.jit(jax.grad(marked(model, loss))).lower(*values).compile().memory_analysis().temp_size_in_bytes
    return None


@pytest.mark.once("jax", "torch")
def test_a_large_batch_takes_the_memory_of_a_small_one():
    whole, small, in_chunks = num_bytes_kept(256, None), num_bytes_kept(16, None), num_bytes_kept(256, 16)
    scores = 4 * 256**2
    assert in_chunks < small + 8 * scores < whole / 2


def test_losses_of_layers_are_refused():
    def mend(model):
        model.encoder.blocks[0].feed_forward.activity_regularizer = keras.regularizers.L2(0.1)

    with pytest.raises(ValueError, match="losses that layers add.* nor does a loss's chunk_size of rows"):
        trained(InBatchNegativesLoss(chunk_size=4), mend=mend)
