"""The contracts that every layer and every model keeps; their tests are mostly one call of these.

def test_feed_forward_keeps_the_layer_contract():
    check_layer(lambda **kwargs: FeedForward(32, **kwargs), np.ones((2, 5, 16), "float32"), lengths=(5,))
"""

import json
import pathlib
import tempfile

import keras
import numpy as np
from keras import tree

from kerasllm.generation.config import GenerationConfig
from kerasllm.generation.generator import generate
from kerasllm.generation.task import Task
from kerasllm.layers.parts import cheap_collections
from kerasllm.models.base import Model
from kerasllm.text import batches


def check_layer(make, inputs, *, arguments=None, lengths=(), unreached=(), tolerance=1e-6):
    """Build, call, serialise, save, train a layer; raise AssertionError where it breaks the contract.

    Args:
        make: `make(**kwargs)` makes a new layer, always the same, and hands it `kwargs` (`dtype`, `name`).
        inputs: the array given to `call`, or a dict of argument names to (nests of) arrays, batch axis first;
            the first argument comes first.
        arguments: dict of plain arguments of `call`, such as `{"causal": True}`.
        lengths: sizes that stand for sequence lengths: the symbolic call leaves axes of such a size open.
        unreached: endings of the paths of trainable variables that these inputs give no gradient.
        tolerance: largest difference between two calls that should be equal.
    """
    inputs = inputs if isinstance(inputs, dict) else {None: inputs}
    arguments = arguments or {}
    layer = make(name="checked")
    outputs = _outputs(_call(layer, inputs, arguments))
    assert all(np.isfinite(y).all() for y in outputs), "the outputs are not finite"
    another = make(name="checked")
    _call(another, inputs, arguments)
    _check_paths(layer, another)

    symbols = tree.map_structure(lambda x: _symbol(x, lengths), inputs)
    symbolic = tree.flatten(_call(layer, symbols, arguments))
    _check_shapes(symbolic, outputs)
    flat_inputs = tree.flatten(inputs)
    model = keras.Model(tree.flatten(symbols), symbolic)
    inside = _outputs(model(flat_inputs, training=False))
    _check_equal(outputs, inside, tolerance, "inside a functional model")
    shorter = [_shorter(x, lengths) for x in flat_inputs]
    _check_shapes(symbolic, _outputs(model(shorter, training=False)))

    copy = _round_trip(layer)
    _call(copy, inputs, arguments)
    copy.set_weights(layer.get_weights())
    again = _outputs(_call(copy, inputs, arguments))
    _check_equal(outputs, again, tolerance, "after get_config and from_config")
    _check_file(model, flat_inputs, tolerance)
    for policy in ("float32", "mixed_bfloat16", "bfloat16"):
        _check_precision(make(name="checked", dtype=policy), layer, inputs, arguments, outputs)
    _check_gradients(model, flat_inputs, unreached)


def check_model(make, batch, *, loss, unreached=(), tolerance=1e-5):
    """Call, serialise, train, evaluate, save a model; raise AssertionError where it breaks the contract.

    Args:
        make: `make(**kwargs)` makes a new model, always the same, and hands it `kwargs` (`dtype`).
        batch: `(x, y)` as for `fit`, of at least two different rows.
        loss: what `compile` takes.
        unreached: endings of the paths of trainable variables that this batch gives no gradient.
        tolerance: largest difference between two calls that should be equal.
    """
    x, y = batch
    model = make()
    _check_paths(model, make())
    model.summary(print_fn=lambda text, **_: None)

    outputs = _outputs(model(x, training=False))
    _check_equal(outputs, _outputs(model.predict(x, verbose=0)), tolerance, "by predict")
    turned = model(tree.map_structure(lambda a: a[::-1], x), training=False)
    _check_equal(outputs, [a[::-1] for a in _outputs(turned)], tolerance, "with the batch in another order")
    copy = _round_trip(model)
    copy.set_weights(model.get_weights())
    _check_equal(outputs, _outputs(copy(x, training=False)), tolerance, "after get_config and from_config")
    assert "parts" not in model.get_config(), "a fresh model's config says more than its arguments"
    if isinstance(model, Model):
        check_parts(make(), x, loss, tolerance)

    model.compile(keras.optimizers.Adam(0.01), loss=loss)
    model.optimizer.build(model.trainable_variables)  # Or TensorFlow traces the first step twice.
    before = model.get_weights()
    first = np.ravel(model.evaluate(x, y, verbose=0))[0]
    model.fit(x, y, epochs=3, batch_size=len(tree.flatten(x)[0]), verbose=0)
    last = np.ravel(model.evaluate(x, y, verbose=0))[0]
    assert np.isfinite(first) and last < first, f"the loss goes from {first} to {last} in three steps"
    _check_changed(model, before, unreached)
    loaded = _check_file(model, x, tolerance)
    optimizer = getattr(loaded, "optimizer", None)
    assert optimizer and int(optimizer.iterations) == 3, "the saved file loses the optimizer"

    mixed = make(dtype="mixed_bfloat16")
    assert "parts" not in mixed.get_config(), "a fresh model's config says more than its arguments"
    for v in mixed.trainable_variables:
        assert v.dtype == "float32", f"{v.path} is {v.dtype} under mixed_bfloat16"
    mixed.compile("sgd", loss=loss)
    assert np.isfinite(mixed.train_on_batch(x, y)).all(), "the loss is not finite under mixed_bfloat16"


def check_padding_changes_nothing(model, x, names=None, extra=3, tolerance=1e-5):
    """Longer padding leaves every output alone: `x` (dict) grows by `extra` positions on axis 1.

    Args:
        names: the inputs to lengthen (all of `x`, if None): those that end in "padding_mask" with False, the
            others with 1, an id that the model must not look at.
    """
    outputs = _outputs(model(x, training=False))
    longer = dict(x)
    for key in names or x:
        value = 0 if key.endswith("padding_mask") else 1
        longer[key] = np.pad(x[key], [(0, 0), (0, extra)], constant_values=value)
    padded = _outputs(model(longer, training=False))
    cut = [b[:, : a.shape[1]] for a, b in zip(outputs, padded, strict=True)]
    _check_equal(outputs, cut, tolerance, "with longer padding")


def _call(layer, inputs, arguments):
    """The first input by position, as most users give it; the others by name."""
    first, *names = inputs
    return layer(inputs[first], **{name: inputs[name] for name in names}, **arguments)


def _symbol(x, lengths):
    x = np.asarray(x)
    return keras.Input([None if size in lengths else size for size in x.shape[1:]], dtype=str(x.dtype))


def _shorter(x, lengths):
    """One position less on the axes that are sequence lengths, and one row."""
    return x[(slice(1), *(slice(size - (size in lengths)) for size in x.shape[1:]))]


def _outputs(nest):
    """The leaves as numpy arrays; bfloat16 as float32."""
    leaves = [y if isinstance(y, np.ndarray) else keras.ops.convert_to_tensor(y) for y in tree.flatten(nest)]
    floats = [keras.ops.cast(y, "float32") if "float" in str(y.dtype) else y for y in leaves]
    return [keras.ops.convert_to_numpy(y) for y in floats]


def _check_equal(expected, actual, tolerance, when):
    assert len(expected) == len(actual), f"{len(expected)} outputs become {len(actual)} {when}"
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance, err_msg=f"the outputs differ {when}")


def _check_shapes(symbolic, outputs):
    assert len(symbolic) == len(outputs), f"{len(symbolic)} symbolic outputs, {len(outputs)} eager ones"
    for symbol, y in zip(symbolic, outputs, strict=True):
        same_rank = len(symbol.shape) == y.ndim
        fits = same_rank and all(a in (None, b) for a, b in zip(symbol.shape, y.shape, strict=True))
        assert fits, f"the symbolic call says shape {symbol.shape}, the eager call gives {y.shape}"


def _check_paths(first, second):
    """Paths of weights are checkpoint keys: each one once, the same in every new object."""
    paths, again = ([v.path for v in thing.weights] for thing in (first, second))
    assert len(paths) == len(set(paths)), f"two variables share a path: {sorted(paths)}"
    assert paths == again, f"variable paths change from object to object: {sorted(set(paths) ^ set(again))}"


def _round_trip(thing):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(thing)))
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(thing), f"{type(thing).__name__} comes back as {type(copy).__name__}"
    assert copy.get_config() == thing.get_config(), "get_config is not what from_config was given"
    return copy


def check_parts(model, x, loss, tolerance=1e-5):
    """A file keeps what is set on parts: what is trained, LoRA, quantised weights; and the optimizer's state."""
    first = next(layer for layer in model.layers if layer.weights)
    first.trainable = False
    for part in [part for part in first._flatten_layers(include_self=False) if part.weights][:1]:
        part.trainable = True
    adaptable = [layer for layer in model._flatten_layers() if hasattr(layer, "enable_lora")]
    with cheap_collections():
        for layer, mode, rank in zip(adaptable, ("int8", None, "int4", "int8"), (2, 1, None, None), strict=False):
            if mode:
                layer.quantize(mode)
            if rank:
                layer.enable_lora(rank, lora_alpha=3)
    model.compile(keras.optimizers.Adam(0.01), loss=loss)
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    for v in (*model.optimizer.variables, *(v for v in model.trainable_variables if "lora" in v.path)):
        v.assign(rng.normal(size=v.shape).astype(v.dtype))
    loaded = _check_file(model, x, tolerance)
    for kept, again in ((model.weights, loaded.weights), (model.trainable_variables, loaded.trainable_variables)):
        assert [v.path for v in kept] == [v.path for v in again], "other variables after save and load"
    optimizers = [thing.optimizer.variables for thing in (model, loaded)]
    for v, again in zip(*optimizers, strict=True):
        same = np.array_equal(*(keras.ops.convert_to_numpy(state.value) for state in (v, again)))
        assert same, f"{v.path} is not the same after save and load"


def _check_file(model, x, tolerance):
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder, "model.keras"))
        model.save(path)
        loaded = keras.saving.load_model(path)
    for v, value in zip(model.weights, loaded.get_weights(), strict=True):
        same = np.array_equal(keras.ops.convert_to_numpy(v.value), value)
        assert same, f"{v.path} is not the same after save and load"
    expected = _outputs(model(x, training=False))
    _check_equal(expected, _outputs(loaded(x, training=False)), tolerance, "after save and load")
    return loaded


def _check_precision(layer, reference, inputs, arguments, expected):
    policy = layer.dtype_policy
    outputs = tree.flatten(_call(layer, inputs, arguments))
    layer.set_weights(reference.get_weights())
    for v in layer.trainable_variables:
        assert v.dtype == policy.variable_dtype, f"{v.path} is {v.dtype} under {policy.name}"
    for y in outputs:
        dtype = keras.backend.standardize_dtype(y.dtype)
        fits = "float" not in dtype or dtype == policy.compute_dtype
        assert fits, f"an output is {dtype} under {policy.name}"
    for a, b in zip(expected, _outputs(_call(layer, inputs, arguments)), strict=True):
        if np.issubdtype(a.dtype, np.floating) and a.size:
            near = np.abs(a - b).max() <= 0.1 * max(1, np.abs(a).max())
            assert near, f"an output is far from float32 under {policy.name}"


def _check_gradients(model, x, unreached):
    """One step of plain descent, compiled as `fit` compiles it, moves every trainable variable."""
    rng = np.random.default_rng(0)
    outputs = _outputs(model(x, training=False))
    y = [rng.normal(size=a.shape).astype("float32") for a in outputs]
    model.compile(keras.optimizers.SGD(0.1), loss=["mse" if "f" in a.dtype.kind else None for a in outputs])
    before = model.get_weights()
    model.fit(x, y, batch_size=len(x[0]), verbose=0)
    _check_changed(model, before, unreached)


def _check_changed(model, before, unreached):
    for v, old, new in zip(model.weights, before, model.get_weights(), strict=True):
        if v.trainable and not v.path.endswith(tuple(unreached)):
            assert not np.array_equal(new, old), f"no gradient reaches {v.path}"
            assert np.isfinite(new).all(), f"{v.path} is not finite after a step"


def check_generation(model, inputs, prompts, prefix="", num_tokens=6, tolerance=1e-4):
    """Greedy decoding through the cache, from ragged prompts, takes the tokens that one full pass ranks first.

    Their log-probabilities are those of the full pass, too.

    Args:
        model: has the three methods of `kerasllm.generation`.
        inputs: dict of arrays beside the tokens, one row for each prompt.
        prompts: lists of ids of unequal lengths.
        prefix: of the names of the model's token inputs.
        tolerance: how far below the largest logit a chosen one may lie, and how far off a log-probability.
    """
    config = GenerationConfig(max_new_tokens=num_tokens)
    results = generate(Task(model=model, inputs=inputs, prompts=prompts, config=config, scores=True))
    rows = [row[0].token_ids for row in results]
    token_ids, padding_mask = batches.pad(rows)
    x = {**inputs, f"{prefix}token_ids": token_ids, f"{prefix}padding_mask": padding_mask}
    (logits,) = _outputs(model(x, training=False))
    for prompt, row, result, scores in zip(prompts, rows, results, logits, strict=True):
        assert len(row) == len(prompt) + num_tokens and row[: len(prompt)].tolist() == prompt
        for t in range(len(prompt), len(row)):
            gap = scores[t - 1].max() - scores[t - 1][row[t]]
            assert gap <= tolerance, f"token {t} of {row} lies {gap} below the best"
            log_prob = scores[t - 1][row[t]] - np.log(np.sum(np.exp(scores[t - 1].astype("float64"))))
            gap = abs(log_prob - result[0].log_probs[t - len(prompt)])
            assert gap <= tolerance, f"the log-probability of token {t} of {row} is off by {gap}"


def check_user_model(model, x, fit=True):
    """A model that a user has made of our layers or models is trained on, saved, loaded and trained on again.

    The loaded one has the same outputs, no variable more (what was shared is shared), the optimizer, and learns alike.
    """
    rng = np.random.default_rng(0)
    y = [rng.normal(size=a.shape).astype("float32") for a in _outputs(model(x, training=False))]
    # TensorFlow takes long to compile with XLA what it runs twice.
    jit_compile = keras.backend.backend() == "jax"
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), loss="mse", jit_compile=jit_compile)
    model.optimizer.build(model.trainable_variables)  # Or TensorFlow traces the first step twice.
    rows = len(tree.flatten(x)[0])
    if fit:
        before = model.get_weights()
        model.fit(x, y, batch_size=rows, verbose=0)
        _check_changed(model, before, ("key/bias",))
    loaded = _check_file(model, x, 1e-6)
    if fit:
        for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
            same = np.array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
            assert same, f"{a.path} is not the same after save and load"
        for m in (model, loaded):
            m.fit(x, y, batch_size=rows, verbose=0)
        expected, again = (_outputs(m(x, training=False)) for m in (model, loaded))
        _check_equal(expected, again, 1e-4, "after load and fit")


def check_keras_mask(layer, embed, left=True):
    """A layer reads Keras's mask: outputs at real positions are those of the rows without padding, and carry it on.

    Args:
        layer: a function (B, T, D) -> (B, T, ...).
        embed: a function of ids (B, T) whose results carry the mask ids > 0, as `keras.layers.Embedding`'s do.
        left: whether padding may stand on the left too, which layers that count positions do not bear.
    """
    right = np.array([[3, 1, 4, 0, 0], [2, 5, 6, 0, 0]])
    for ids in (right, right[:, ::-1].copy()) if left else (right,):
        real = ids > 0
        outputs = layer(embed(ids))
        padded, passed_on = _outputs(outputs)[0], _outputs(_Mask()(outputs))[0]
        for row, where, y in zip(ids, real, padded, strict=True):
            (alone,) = _outputs(layer(embed(row[where][None])))
            _check_equal([alone[0]], [y[where]], 1e-5, "with padding that Keras's mask tells of")
        assert np.array_equal(passed_on, real), "Keras's mask is not passed on"


class _Mask(keras.layers.Layer):
    """The mask that Keras hands to a layer."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, x, mask=None):
        return keras.ops.zeros((1, 1)) if mask is None else keras.ops.cast(mask, "int32")
