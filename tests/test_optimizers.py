import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm import GPT
from kerasllm.training.losses import TokenCrossentropy
from kerasllm.training.optimizers import AdamW, Muon, layerwise_decay
from kerasllm.training.schedules import WarmupCosine, WarmupLinear

RNG = np.random.default_rng(0)
SHAPES = {"kernel": (4, 3), "bias": (2, 3), "vector": (5,)}
START = {name: RNG.normal(size=shape).astype("float32") for name, shape in SHAPES.items()}
GRADIENTS = [{name: RNG.normal(size=shape).astype("float32") for name, shape in SHAPES.items()} for _ in range(6)]


def stepped(optimizer, gradients=GRADIENTS):
    """The variables of START after a step with each of the gradients."""
    variables = [keras.Variable(value, name=name) for name, value in START.items()]
    optimizer.build(variables)
    for gradient in gradients:
        optimizer.apply([ops.convert_to_tensor(gradient[name]) for name in SHAPES], variables)
    return {v.name: ops.convert_to_numpy(v.value) for v in variables}


def assert_close(actual, expected, atol=1e-6):
    for name in SHAPES:
        np.testing.assert_allclose(actual[name], expected[name], atol=atol, err_msg=name)


def test_steps_follow_the_formula():
    lr, decay, beta_1, beta_2, epsilon = 0.1, 0.2, 0.8, 0.9, 1e-3
    expected = {}
    for name, x in START.items():
        x, m, v = x.astype("float64"), 0.0, 0.0
        for t, gradient in enumerate(GRADIENTS, 1):
            g = gradient[name] * min(1, 1 / np.sqrt(sum((a.astype("float64") ** 2).sum() for a in gradient.values())))
            x = x * (1 - lr * decay) if name == "kernel" else x
            m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
            x = x - lr * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (np.sqrt(v) + epsilon)
        expected[name] = x
    assert_close(
        stepped(AdamW(lr, weight_decay=decay, global_clipnorm=1.0, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)),
        expected,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"global_clipnorm": 0.5},
        {"global_clipnorm": 100.0},
        {"global_clipnorm": 0.0},
        {"loss_scale_factor": 8.0},
        {"clipnorm": 0.5},
        {"clipvalue": 0.1},
        {"amsgrad": True},
        {"epsilon": 0.1},
        {"gradient_accumulation_steps": 2},
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"learning_rate": WarmupLinear(0.1, 2, 6)},
    ],
    ids=lambda arguments: ",".join(arguments) or "defaults",
)
def test_it_is_the_adamw_of_keras_without_decay_of_vectors_and_biases(arguments):
    ours = AdamW(**{"learning_rate": 0.1, "weight_decay": 0.3, **arguments})
    theirs = keras.optimizers.AdamW(**{"learning_rate": 0.1, "weight_decay": 0.3, **arguments})
    theirs.exclude_from_weight_decay(var_names=["vector", "bias"])
    assert isinstance(ours, keras.optimizers.AdamW)
    assert_close(stepped(ours), stepped(theirs), atol=1e-5)


class Signed:
    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, learning_rate * ops.sign(gradient))


class Doubled:
    def assign_sub(self, variable, value):
        super().assign_sub(variable, 2 * value)


@pytest.mark.parametrize("change", [Signed, Doubled])
def test_what_a_subclass_changes_is_done(change):
    ours, theirs = (type(change.__name__, (change, cls), {}) for cls in (AdamW, keras.optimizers.AdamW))
    assert_close(stepped(ours(0.1, weight_decay=0.0)), stepped(theirs(0.1, weight_decay=0.0)), atol=1e-5)


def test_each_variable_has_a_learning_rate_of_its_own():
    factors = {"^kernel": 0.25, "bias|kernel": 2.0}
    arguments = {"weight_decay": 0.3, "global_clipnorm": 1.0}
    ours = stepped(AdamW(0.1, learning_rate_factors=factors, **arguments))
    for name in SHAPES:
        rate = 0.1 * {"kernel": 0.25, "bias": 2.0}.get(name, 1)
        np.testing.assert_allclose(ours[name], stepped(AdamW(rate, **arguments))[name], atol=1e-6, err_msg=name)
    optimizer = AdamW(WarmupCosine(0.1, 1, 9), learning_rate_factors=factors)
    assert AdamW.from_config(optimizer.get_config()).learning_rate_factors == factors
    for wrong in ({"(": 1.0}, {"kernel": -1.0}, {"kernel": "x"}, ["kernel"]):
        with pytest.raises(ValueError, match="learning_rate_factors"):
            AdamW(learning_rate_factors=wrong)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="there Keras's own steps look at them")
def test_rates_that_a_backend_would_not_look_at_are_refused():
    with pytest.raises(ValueError, match="learning_rate_factors"):
        stepped(AdamW(0.1, learning_rate_factors={"kernel": 0.5}, amsgrad=True))


def test_layers_learn_the_less_the_farther_they_are_from_the_output():
    model = kerasllm.BERTClassifier(20, num_layers=3, num_heads=2, hidden_dim=8, labels=2)
    optimizer = AdamW(learning_rate_factors=layerwise_decay(model, 0.5))
    found = {v.path: optimizer.rate_factor(v) for v in model.trainable_variables}
    assert found["classifier/kernel"] == found["pooler/kernel"] == 1
    assert [found[f"encoder/block_{i}/attention/query/kernel"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert found["encoder/embeddings/token/embeddings"] == found["encoder/embeddings/norm/gamma"] == 0.0625
    with pytest.raises(ValueError, match="has no blocks"):
        layerwise_decay(small_model())


def test_gradients_that_are_not_finite_spoil_all_variables_as_in_keras():
    infinite = {**GRADIENTS[0], "vector": np.full((5,), np.inf, "float32")}
    assert all(np.isnan(x).all() for x in stepped(AdamW(0.1, global_clipnorm=1.0), [infinite]).values())


def test_gradients_of_half_precision_train_variables_of_float32():
    variable = keras.Variable(np.ones((2, 2), "float32"))
    optimizer = AdamW(0.1, weight_decay=0.0)
    optimizer.build([variable])
    optimizer.apply([ops.ones((2, 2), "float16")], [variable])
    np.testing.assert_allclose(ops.convert_to_numpy(variable.value), 0.9, atol=1e-5)


def test_biases_alone_can_be_trained():
    bias = keras.Variable(np.ones(3, "float32"), name="bias")
    optimizer = AdamW(0.1, weight_decay=0.5)
    optimizer.build([bias])
    optimizer.apply([ops.ones(3)], [bias])
    np.testing.assert_allclose(ops.convert_to_numpy(bias.value), 0.9, atol=1e-5)


def small_model(dtype=None):
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(7, 8, name="token", dtype=dtype)(inputs)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention", dtype=dtype)(x, x)
    x = keras.layers.LayerNormalization(name="norm", dtype=dtype)(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head", dtype=dtype)(x))


def decayed(model, optimizer):
    """Paths of the variables that shrink when all gradients are zero."""
    variables = model.trainable_variables
    model.set_weights([np.ones_like(w) for w in model.get_weights()])
    if not optimizer.built:
        optimizer.build(variables)
    optimizer.apply([ops.zeros(v.shape) for v in variables], variables)
    weights = {v.path: ops.convert_to_numpy(v.value) for v in variables}
    assert all((w == w.max()).all() for w in weights.values())
    return {path for path, w in weights.items() if w.max() < 1}


KERNELS = {f"attention/{name}/kernel" for name in ("query", "key", "value", "attention_output")} | {"head/kernel"}


def test_biases_and_norms_do_not_decay():
    assert decayed(small_model(), AdamW(0.1, weight_decay=0.5)) == KERNELS | {"token/embeddings"}


def test_embeddings_decay_only_if_asked():
    for no_decay in (["embeddings"], "embeddings"):
        assert decayed(small_model(), AdamW(0.1, weight_decay=0.5, no_decay=no_decay)) == KERNELS


def test_a_saved_model_goes_on_without_decaying_what_is_excluded(tmp_path):
    model = small_model()
    model.compile(AdamW(0.1, weight_decay=0.5, no_decay=["embeddings"]), loss="mse")
    model.fit(np.zeros((2, 4)), np.ones((2, 4, 3)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is AdamW
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a.value), ops.convert_to_numpy(b.value))
    for v in loaded.optimizer.variables:
        if "momentum" in v.path:
            v.assign(ops.zeros(v.shape))
    assert decayed(loaded, loaded.optimizer) == KERNELS


def test_keras_own_exclusions_are_refused_not_forgotten():
    with pytest.raises(ValueError, match="no_decay"):
        AdamW().exclude_from_weight_decay(var_names=["bias"])


@pytest.mark.parametrize("scaled", [False, True])
def test_mixed_precision_and_loss_scaling_train(scaled):
    model = small_model("float32" if scaled else "mixed_bfloat16")
    optimizer = AdamW(0.01, global_clipnorm=0.5)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, loss="mse")
    x, y = RNG.integers(0, 7, (4, 4)), np.ones((4, 4, 3))
    losses = model.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0] and int(optimizer.iterations) == 8


def trained(steps, model=None, rows=12, **arguments):
    """A model after `fit` on batches of 4, each divided into so many that are accumulated."""
    model = model or small_model()
    accumulated = {} if steps == 1 else {"gradient_accumulation_steps": steps}
    model.compile(AdamW(WarmupCosine(0.1, 1, 4), weight_decay=0.3, **accumulated, **arguments), loss="mse")
    ids = np.arange(4 * rows).reshape(rows, 4) % 7
    model.fit(ids, np.sin(np.arange(12 * rows)).reshape(rows, 4, 3), batch_size=4 // steps, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize(
    "arguments",
    [
        {"global_clipnorm": 0.05},
        pytest.param({"use_ema": True, "ema_momentum": 0.5}, marks=pytest.mark.slow),
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
        pytest.param({"loss_scale_factor": 8.0, "clipvalue": 0.01}, marks=pytest.mark.slow),
    ],
    ids=lambda arguments: ",".join(arguments),
)
def test_accumulated_batches_train_as_the_whole_batch(arguments):
    whole = small_model()
    parts = keras.models.clone_model(whole)
    parts.set_weights(whole.get_weights())
    trained(1, whole, **arguments)
    trained(4, parts, **arguments)
    assert float(whole.optimizer.learning_rate) == pytest.approx(float(parts.optimizer.learning_rate), abs=1e-8)
    assert int(parts.optimizer.iterations) == 3
    for a, b in zip(whole.weights, parts.weights, strict=True):
        # The key's bias has no gradient but what rounding makes of 0, which Adam enlarges.
        if not a.path.endswith("key/bias"):
            np.testing.assert_allclose(*(ops.convert_to_numpy(v.value) for v in (a, b)), atol=2e-6, err_msg=a.path)


def test_the_schedule_that_is_saved_is_the_one_that_was_given():
    schedule = WarmupCosine(0.1, 1, 4)
    config = AdamW(schedule, gradient_accumulation_steps=2).get_config()
    assert config["learning_rate"] == keras.optimizers.schedules.serialize(schedule)
    assert AdamW.from_config(dict(config)).get_config() == config


def test_an_average_of_the_weights_is_the_weights_until_the_first_update():
    model = small_model()
    before = model.get_weights()
    trained(4, model, rows=3, use_ema=True)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "arguments", [{}, {"global_clipnorm": 0.5}, {"clipvalue": 0.1}, {"loss_scale_factor": 8.0}, {"amsgrad": True}]
)
def test_the_norm_of_the_gradients_is_measured_before_they_are_clipped(arguments):
    optimizer = AdamW(0.1, weight_decay=0.3, **arguments)
    optimizer.measures_gradient_norm = True
    last = stepped(optimizer)
    scale = arguments.get("loss_scale_factor", 1.0)
    expected = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in GRADIENTS[-1].values())) / scale
    assert float(optimizer.gradient_norm) == pytest.approx(expected, rel=1e-5)
    assert optimizer.gradient_norm.dtype == "float32" and optimizer.gradient_norm.shape == ()
    assert_close(last, stepped(AdamW(0.1, weight_decay=0.3, **arguments)))


@pytest.mark.parametrize("scaled", [False, True])
def test_fit_measures_the_norm_of_the_whole_batch(scaled):
    first, norms = small_model(), {}
    x, y = np.array([[1, 1, 2, 3], [4, 4, 4, 4]] * 2), np.sin(np.arange(48)).reshape(4, 4, 3)
    for steps in (None, 2):
        model = keras.models.clone_model(first)
        model.set_weights(first.get_weights())
        optimizer = AdamW(0.1, gradient_accumulation_steps=steps)
        model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, loss="mse")
        optimizer.measures_gradient_norm = True
        model.fit(x, y, batch_size=4 // (steps or 1), shuffle=False, verbose=0)
        norms[steps] = float(optimizer.gradient_norm)
    weights = first.get_weights()
    first.compile(keras.optimizers.SGD(1.0), loss="mse")
    first.fit(x, y, batch_size=4, verbose=0)
    changes = [a - b for a, b in zip(weights, first.get_weights(), strict=True)]
    expected = np.sqrt(sum((c.astype("float64") ** 2).sum() for c in changes))
    assert norms == pytest.approx({None: expected, 2: expected}, rel=1e-4)


def test_measuring_the_norm_changes_nothing_that_is_saved(tmp_path):
    plain, measured = tmp_path / "plain.keras", tmp_path / "measured.keras"
    model = trained(1)
    model.save(plain)
    before = len(model.optimizer.variables)
    model.optimizer.measures_gradient_norm = True
    assert model.optimizer.variables[-1] is model.optimizer.gradient_norm
    model.save(measured)
    model.load_weights(plain)
    for path in (plain, measured):
        loaded = keras.saving.load_model(path)
        assert not loaded.optimizer.measures_gradient_norm and len(loaded.optimizer.variables) == before
        for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=False):
            np.testing.assert_array_equal(ops.convert_to_numpy(a.value), ops.convert_to_numpy(b.value))
    model.optimizer.measures_gradient_norm = False
    assert len(model.optimizer.variables) == before and not hasattr(model.optimizer, "gradient_norm")
    with pytest.raises(ValueError, match=r"measures_gradient_norm \('yes'\) must be True or False"):
        model.optimizer.measures_gradient_norm = "yes"


@pytest.mark.in_turn
@pytest.mark.parametrize("optimizer", [AdamW, keras.optimizers.SGD, Muon, keras.optimizers.Adam])
def test_texts_are_those_of_the_weights_after_each_step(optimizer):
    model = GPT(20, 1, 2, 8, max_sequence_length=8, dropout=0.0, initializer_range=0.5)
    model.compile(optimizer(0.1), TokenCrossentropy())
    ids = np.arange(1, 7, dtype="int32")[None]
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids, bool)}
    for _ in range(3):
        [text] = model.generate([[1, 2]], return_scores=True, max_length=6)
        fresh = GPT.from_config(model.get_config())
        fresh.set_weights(model.get_weights())
        [expected] = fresh.generate([[1, 2]], return_scores=True, max_length=6)
        assert list(text.token_ids) == list(expected.token_ids)
        np.testing.assert_allclose(text.log_probs, expected.log_probs, atol=1e-4)
        model.fit(inputs, ids, verbose=0)
