"""The loss of tokens in `fit` and `evaluate`: without logits, and as a mean over tokens."""

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.backend.steps import marked
from kerasllm.training import Perplexity, TokenAccuracy, TokenCrossentropy
from kerasllm.training.datasets import BucketedDataset

SYMBOLS, WIDTH, ROWS, LENGTH, CHUNK = 40, 8, 6, 7, 4
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, SYMBOLS, (ROWS, LENGTH)).astype("int32")
IS_REAL = np.arange(LENGTH) < np.array([[7], [2], [5], [3], [7], [1]])
LABELS = np.where(IS_REAL, RNG.integers(1, SYMBOLS, (ROWS, LENGTH)), -1).astype("int32")
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": WIDTH, "max_sequence_length": 16, "dropout": 0.0}
MODELS = {
    "gpt": lambda **given: kerasllm.GPT(SYMBOLS, **SIZES, **given),
    "gpt with a head and a cap": lambda **given: kerasllm.GPT(
        SYMBOLS, **SIZES, tie_embeddings=False, logit_softcap=0.5, **given
    ),
    "rnn": lambda **given: kerasllm.RNNLanguageModel(SYMBOLS, 1, WIDTH, dropout=0.0, **given),
    "masked lm": lambda **given: kerasllm.BERTMaskedLM(SYMBOLS, **SIZES, **given),
    "translator": lambda **given: kerasllm.TransformerTranslator(
        SYMBOLS, SYMBOLS, **SIZES, use_head_bias=True, scale_head=True, **given
    ),
    "lstm translator": lambda **given: kerasllm.LSTMTranslator(SYMBOLS, SYMBOLS, 1, WIDTH, dropout=0.0, **given),
    "summarizer": lambda **given: kerasllm.Summarizer(SYMBOLS, **SIZES, **given),
    "fed translator": lambda **given: kerasllm.LSTMTranslator(
        SYMBOLS, SYMBOLS, 1, WIDTH, dropout=0.0, tie_embeddings=True, share_embeddings=True, input_feeding=True, **given
    ),
}


def batch(model):
    """Inputs and labels, of which rows have one to seven."""
    inputs = {name: IS_REAL if "padding" in name else IDS for name in model.input}
    inputs |= {name: np.zeros_like(IDS) for name in model.input if name == "segment_ids"}
    if "masked_positions" not in inputs:
        return inputs, LABELS
    return inputs | {"masked_positions": np.where(IS_REAL, np.arange(LENGTH), 0)[:, :3]}, LABELS[:, :3]


def compiled(model, chunk_size=CHUNK, optimizer="sgd", metrics=True, jit=None, eager=False, **options):
    """The model, for its loss with or without chunks."""
    loss = TokenCrossentropy(chunk_size=chunk_size, **options)
    metrics = [Perplexity(loss.ignore_class), TokenAccuracy(loss.ignore_class)] if metrics is True else metrics
    extra = {} if jit is None else {"jit_compile": jit}
    model.compile(optimizer, loss, metrics=metrics, run_eagerly=eager, **extra)
    return model


def results(model, chunk_size, weights, fit=None, **options):
    """What `evaluate` and `fit` show, and the weights, of a model that begins with some weights."""
    model.set_weights(weights)
    rate = 0.05 if options.get("reduction") == "sum" else 1.0
    compiled(model, chunk_size, optimizer=keras.optimizers.SGD(rate), **options)
    inputs, labels = batch(model)
    fit = {"batch_size": 2, "verbose": 0, "shuffle": False} | (fit or {})
    shown = model.evaluate(inputs, labels, batch_size=4, verbose=0, return_dict=True)
    shown |= {f"fit {k}": v[-1] for k, v in model.fit(inputs, labels, **fit).history.items()}
    return shown, model.get_weights()


def check_alike(model, **options):
    weights = model.get_weights()
    shown, expected = results(model, None, weights, **options)
    shown_in_chunks, actual = results(model, CHUNK, weights, **options)
    assert shown_in_chunks == pytest.approx(shown, rel=1e-5, abs=1e-6) and len(shown) == 6
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(expected, weights, strict=True))
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5, rtol=1e-5)


# The others are made of the same parts.
OFTEN = ("gpt with a head and a cap", "masked lm", "translator")
CASES = [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.slow]) for name in MODELS]


@pytest.mark.in_turn
@pytest.mark.parametrize("name", CASES)
def test_chunks_change_neither_what_is_shown_nor_what_is_learnt(name):
    check_alike(MODELS[name]())


OPTIONS = {
    "weights": {"label_smoothing": 0.2, "class_weight": {3: 0.0, 5: 4.0}, "fit": {"sample_weight": RNG.random(ROWS)}},
    "sum": {"reduction": "sum"},
    "mean": {"reduction": "mean_with_sample_weight", "fit": {"sample_weight": RNG.random((ROWS, LENGTH))}},
    "all count": {"ignore_class": None, "labels": "all"},
    "eager": {"eager": True},
    "no jit": {"jit": False},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "weights" else [pytest.mark.slow]) for n in OPTIONS])
def test_chunks_change_nothing_under_other_options(name, monkeypatch):
    options = dict(OPTIONS[name])
    if options.pop("labels", None):
        monkeypatch.setitem(globals(), "LABELS", np.abs(LABELS))
    check_alike(MODELS["gpt"](), **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "gpt with a head and a cap"])
def test_chunks_train_the_factors_of_lora(name):
    model = MODELS[name]()
    (model.decoder.embeddings.token if name == "gpt" else model.head).enable_lora(2)
    check_alike(model)


@pytest.mark.once("tensorflow", "torch")
def test_chunks_under_mixed_precision():
    model = MODELS["translator"](dtype="mixed_bfloat16")
    weights = model.get_weights()
    shown, expected = results(model, None, weights)
    shown_in_chunks, actual = results(model, CHUNK, weights)
    assert shown_in_chunks["loss"] == pytest.approx(shown["loss"], rel=0.01)
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(b, a, atol=0.03)


def sizes_of_a_step(model):
    """The numbers of elements of the arrays that a step of training makes."""
    inputs, labels = batch(model)
    data = ({name: ops.convert_to_tensor(x) for name, x in inputs.items()}, ops.convert_to_tensor(labels))
    model.fit(inputs, labels, batch_size=ROWS, verbose=0)  # which builds the optimizer
    step = marked(model, model.train_step)
    return {"jax": sizes_on_jax, "tensorflow": sizes_on_tensorflow, "torch": sizes_on_torch}[keras.backend.backend()](
        model, step, data
    )


def sizes_on_jax(model, step, data):
    import jax

    state = model._get_jax_state(
        trainable_variables=True, non_trainable_variables=True, optimizer_variables=True, metrics_variables=True
    )
    sizes = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    walk(inner)

    walk(jax.make_jaxpr(step)(tuple(map(list, state)), data).jaxpr)
    return sizes


def sizes_on_tensorflow(model, step, data):
    import tensorflow as tf

    graph = tf.function(step).get_concrete_function(data).graph
    sizes, graphs = [], [graph]
    for function in graph.as_graph_def(add_shapes=True).library.function:
        for node in function.node_def:
            for shape in node.attr["_output_shapes"].list.shape:
                sizes.append(int(np.prod([d.size for d in shape.dim])))
    for graph in graphs:
        sizes += [x.shape.num_elements() or 0 for operation in graph.get_operations() for x in operation.outputs]
    return sizes


def sizes_on_torch(model, step, data):
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            results = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in keras.tree.flatten(results) if isinstance(x, torch.Tensor))
            return results

    with Watch():
        step(data)
    return sizes


@pytest.mark.parametrize("name", ["gpt with a head and a cap", "translator"])
def test_no_array_of_a_step_in_chunks_is_as_large_as_the_logits(name):
    model = MODELS[name]()
    all_logits = batch(model)[1].size * SYMBOLS
    assert max(sizes_of_a_step(compiled(model, None))) >= all_logits
    assert max(sizes_of_a_step(compiled(model))) < all_logits


def test_calls_and_predict_go_on_giving_logits():
    model = MODELS["gpt"]()
    inputs, labels = batch(model)
    expected = model.predict(inputs, verbose=0)
    compiled(model, optimizer=keras.optimizers.SGD(0.0)).fit(inputs, labels, verbose=0)
    np.testing.assert_allclose(model.predict(inputs, verbose=0), expected, atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(model(inputs, training=True)), expected, atol=1e-6)


def test_a_metric_that_needs_logits_is_named():
    model = compiled(MODELS["gpt"](), metrics=[Perplexity(), "accuracy"])
    with pytest.raises(ValueError, match="'accuracy' needs logits.*chunk_size \\(4\\)"):
        model.fit(*batch(model), verbose=0)
    with pytest.raises(ValueError, match="'accuracy' needs logits"):
        model.test_on_batch(*batch(model))


def test_a_metric_that_ignores_another_class_is_named():
    model = compiled(MODELS["gpt"](), metrics=[Perplexity(ignore_class=0)])
    with pytest.raises(ValueError, match=r"'perplexity' has ignore_class \(0\), the loss another \(-1\)"):
        model.fit(*batch(model), verbose=0)


def test_a_quantized_output_layer_is_named():
    model = MODELS["gpt with a head and a cap"]()
    model.quantize("int8")
    for layer in model._flatten_layers():
        layer.trainable = layer is model.decoder.embeddings.position
    with pytest.raises(ValueError, match="chunk_size: the output layer 'head' is quantized"):
        compiled(model).evaluate(*batch(model), verbose=0)


def test_files_keep_the_chunks(tmp_path):
    model = compiled(MODELS["gpt"](), class_weight={3: 2.0})
    inputs, labels = batch(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.loss.chunk_size, loaded.loss.class_weight) == (CHUNK, {3: 2.0})
    assert loaded.evaluate(inputs, labels, verbose=0) == pytest.approx(model.evaluate(inputs, labels, verbose=0))


@pytest.mark.parametrize(("chunk_size", "batch_size"), [(None, 1), (CHUNK, 4)])
def test_the_loss_that_is_shown_is_the_mean_over_tokens(chunk_size, batch_size):
    model = compiled(MODELS["gpt"](), chunk_size, optimizer=keras.optimizers.SGD(0.0))
    inputs, labels = batch(model)
    logits = model.predict(inputs, verbose=0)
    expected = float(TokenCrossentropy()(labels, logits))
    history = model.fit(
        inputs, labels, batch_size=batch_size, validation_data=(inputs, labels), validation_batch_size=4, verbose=0
    ).history
    shown = [history["loss"][0], history["val_loss"][0], model.evaluate(inputs, labels, batch_size, verbose=0)[0]]
    assert shown == pytest.approx([expected] * 3, rel=1e-5)


def test_metrics_list_one_loss():
    model = compiled(MODELS["gpt"]())
    assert len(model.evaluate(*batch(model), verbose=0)) == 3
    assert [metric.name for metric in model.metrics].count("loss") == 1


class Rows(BucketedDataset):
    """The rows of `LABELS`, which count one to seven tokens, two in a batch."""

    def __init__(self, shuffle=False, batch_size=2, **kwargs):
        super().__init__(np.full(ROWS, LENGTH), batch_size, 1, LENGTH, 0, shuffle, **kwargs)

    def make_batch(self, indices, widths, generator):
        inputs = {"token_ids": IDS[indices], "padding_mask": IS_REAL[indices]}
        return inputs, LABELS[indices]


def updated(dataset, epochs, steps=None, loss=None):
    """The weights and losses of `fit`, with N batches to an update."""
    keras.utils.set_random_seed(0)
    model = MODELS["gpt"]()
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
    model.compile(optimizer, loss or TokenCrossentropy())
    history = model.fit(dataset, epochs=epochs, verbose=0).history
    return model.get_weights(), history["loss"]


@pytest.mark.parametrize("chunk_size", [None, CHUNK])
def test_an_update_of_many_batches_has_the_gradient_of_one_large_batch(chunk_size):
    expected, losses = updated(Rows(batch_size=ROWS), 2, loss=TokenCrossentropy())
    actual, losses_of_parts = updated(Rows(), 2, 3, loss=TokenCrossentropy(chunk_size=chunk_size))
    assert losses_of_parts == pytest.approx(losses, rel=1e-5)
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)


def test_batches_of_users_are_averaged_as_keras_does():
    inputs = {"token_ids": IDS, "padding_mask": IS_REAL}
    expected, _ = updated(Rows(), 1, 3)
    keras.utils.set_random_seed(0)
    model = MODELS["gpt"]()
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=3), TokenCrossentropy())
    model.fit(inputs, LABELS, batch_size=2, shuffle=False, verbose=0)
    assert max(np.abs(a - b).max() for a, b in zip(expected, model.get_weights(), strict=True)) > 1e-4


def test_shares_of_an_update_that_goes_over_the_end_of_an_epoch():
    dataset, counted = Rows(shuffle=True), (LABELS != -1).sum(axis=1)
    dataset.epoch = 5
    model = MODELS["gpt"]()
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), TokenCrossentropy())
    with dataset.accumulated(model.accumulation()):
        dataset.accumulation.num_before = 1
        shares = [dataset[i][2]["share"] for i in range(3)]
    tokens = [counted[dataset._plan_of(epoch)[i][0]].sum() for epoch, i in [(4, 2), (5, 0), (5, 1), (5, 2)]]
    expected = [2 * tokens[i] / (tokens[i - i % 2] + tokens[i - i % 2 + 1]) for i in (1, 2, 3)]
    assert [float(share[0]) for share in shares] == pytest.approx(expected)
    assert shares[0].shape == (2,) and len(dataset[0]) == 2


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_updates_go_on_from_one_epoch_to_the_next(workers):
    dataset = Rows(shuffle=True, workers=workers)
    weights, _ = updated(dataset, 4, 2)
    assert dataset.accumulation is None
    dataset = Rows(shuffle=True, workers=workers)
    batches = [dataset.batch_of(1 + step // 3, step % 3) for step in range(12)]
    keras.utils.set_random_seed(0)
    reference = MODELS["gpt"]()
    reference.compile(keras.optimizers.SGD(0.1), TokenCrossentropy())
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        x = {name: np.concatenate([first[0][name], second[0][name]]) for name in first[0]}
        reference.train_on_batch(x, np.concatenate([first[1], second[1]]))
    for a, b in zip(reference.get_weights(), weights, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)
