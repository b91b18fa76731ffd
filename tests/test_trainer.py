"""Interrupting `fit`, `evaluate` and `predict`: no weight is lost, and what a step has changed is whole."""

import functools
import signal

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.backend.interruption import whole
from kerasllm.models.base import Model

ON_JAX = keras.backend.backend() == "jax"
ROWS, BATCH, LENGTH = 12, 4, 5
STEPS = ROWS // BATCH
IDS = np.random.default_rng(0).integers(1, 20, (ROWS, LENGTH + 1)).astype("int32")
X, Y = {"token_ids": IDS[:, :-1], "padding_mask": np.ones((ROWS, LENGTH), "int32")}, IDS[:, 1:]
HOOKS = ("begin", "batch_begin", "batch_end", "end")


class Interrupted(BaseException):
    """Neither `Exception` nor `KeyboardInterrupt`, as what other signals' handlers raise."""


class Interrupt(keras.callbacks.Callback):
    """Raise at the n-th call of a hook."""

    def __init__(self, hook, n=1):
        super().__init__()
        self.left = n
        setattr(self, hook, self.count)

    def count(self, *arguments, **logs):
        self.left -= 1
        if not self.left:
            raise Interrupted


class Recorder(keras.callbacks.Callback):
    """Keep the state after each step."""

    def on_train_begin(self, logs=None):
        self.states = [state(self.model)]

    def on_train_batch_end(self, batch, logs=None):
        self.states.append(state(self.model))


class Tiny(Model):
    """As small as a model of ours can be."""

    def __init__(self, dtype="float32", name="tiny"):
        inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in X}
        outputs = keras.layers.Dense(20)(keras.layers.Embedding(20, 4)(inputs["token_ids"]))
        super().__init__(inputs, outputs)


def make_model(make=Tiny, **options):
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(keras.optimizers.AdamW(0.01), loss=kerasllm.training.TokenCrossentropy(), **options)
    model.fit(X, Y, batch_size=BATCH, verbose=0)
    model.start = state(model)
    return model


def gpt(dropout):
    return kerasllm.GPT(20, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=32, dropout=dropout)


shared_model = functools.cache(make_model)


def state(model):
    return [np.array(ops.convert_to_numpy(v)) for v in [*model.weights, *model.optimizer.variables]]


def restart(model):
    for variable, value in zip([*model.weights, *model.optimizer.variables], model.start, strict=True):
        variable.assign(value)
    return model


def assert_same(a, b, tolerance=0.0):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


def batches(n, error, labels=True):
    """So many batches, and then an error, if there is one."""
    for i in range(n):
        rows = slice(i * BATCH, (i + 1) * BATCH)
        x = {name: array[rows] for name, array in X.items()}
        yield (x, Y[rows]) if labels else (x,)
    if error is not None:
        raise error


def fit(model, **options):
    options = {"epochs": 2, "batch_size": BATCH, "shuffle": False, "verbose": 0, **options}
    return model.fit(*options.pop("data", (X, Y)), **options)


@functools.cache
def uninterrupted_states():
    recorder = Recorder()
    fit(restart(shared_model()), callbacks=[recorder])
    return recorder.states


INTERRUPTIONS = [
    *[("predict", f"on_predict_{hook}", 1) for hook in HOOKS],
    *[("evaluate", f"on_test_{hook}", 1) for hook in HOOKS],
    ("predict", "on_predict_batch_end", 2),
    ("evaluate", "on_test_batch_begin", 2),
]


def test_nothing_is_lost_when_evaluate_or_predict_is_interrupted():
    model = restart(shared_model())
    outputs, loss = model.predict(X, verbose=0), model.evaluate(X, Y, verbose=0)
    for name, hook, n in INTERRUPTIONS:
        data = (X,) if name == "predict" else (X, Y)
        with pytest.raises(Interrupted):
            getattr(model, name)(*data, batch_size=BATCH, verbose=0, callbacks=[Interrupt(hook, n)])
        assert_same(state(model), model.start)
    for n in range(2):
        for name in ("predict", "evaluate"):
            with pytest.raises(Exception, match="no more"):
                getattr(model, name)(batches(n, OSError("no more"), name != "predict"), verbose=0, steps=3)
            assert_same(state(model), model.start)
    assert_same(model.predict(X, verbose=0), outputs)
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(loss, rel=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch traces nothing")
def test_a_step_is_traced_once():
    model, traces = Tiny(), []
    step = model.train_step

    def counting(*arguments):
        traces.append(arguments)
        return step(*arguments)

    model.train_step = counting
    model.compile(
        kerasllm.training.AdamW(0.01),
        kerasllm.training.TokenCrossentropy(),
        metrics=[kerasllm.training.TokenAccuracy()],
    )
    fit(model)
    assert len(traces) == 1


def test_after_an_interrupted_fit_stands_the_last_whole_step():
    model, states = shared_model(), uninterrupted_states()
    steps = {"on_train_begin": [0], "on_epoch_begin": [0, STEPS], "on_epoch_end": [STEPS, 2 * STEPS]}
    steps |= {"on_train_batch_begin": [0, 1, 2, 3, 4], "on_train_batch_end": [1, 2, 3, 4, 5, 6]}
    steps |= {"on_test_begin": [STEPS], "on_test_batch_end": [STEPS, STEPS, STEPS, 2 * STEPS]}
    for hook, expected in steps.items():
        for n, step in enumerate(expected, start=1):
            if n not in (1, len(expected)):
                continue
            with pytest.raises(Interrupted):
                fit(restart(model), callbacks=[Interrupt(hook, n)], validation_data=(X, Y), validation_batch_size=BATCH)
            assert_same(state(model), states[step], 1e-6)
    fit(model, epochs=1, data=({name: x[:BATCH] for name, x in X.items()}, Y[:BATCH]))  # and goes on
    fit(restart(model))
    assert_same(state(model), states[-1], 1e-6)


def test_data_may_end_in_an_error():
    """Keras reads some batches ahead: what counts are whole steps."""
    model, states = shared_model(), uninterrupted_states()
    fit(restart(model), data=(batches(STEPS, None),), epochs=1)
    assert_same(state(model), states[STEPS], 1e-6)
    for n in range(STEPS):
        with pytest.raises(Exception, match="no more"):
            fit(restart(model), data=(batches(n, OSError("no more")),), steps_per_epoch=STEPS, epochs=1)
        done = int(model.optimizer.iterations) - STEPS
        assert 0 <= done <= n
        assert_same(state(model), states[done], 1e-6)


def test_a_ctrl_c_waits_for_the_end_of_a_step():
    model, states = make_model(run_eagerly=True), uninterrupted_states()
    compute_loss, calls = model.compute_loss, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return compute_loss(*arguments, **options)

    model.compute_loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        fit(model)
    assert len(calls) == 3
    assert_same(state(model), states[3], 1e-5)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_ctrl_c_waits_for_the_end_of_quantization(monkeypatch):
    model = make_model()
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.Embedding))
    quantize = layer.quantize

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return quantize(*arguments, **options)

    monkeypatch.setattr(layer, "quantize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.quantize("int8")
    assert [layer.quantization_mode for layer in model.layers if layer.weights] == ["int8", "int8"]


def test_a_second_ctrl_c_does_not_wait():
    reached = []

    def function(times):
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        reached.append(times)
        return "done"

    assert whole(function, 0) == "done"
    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            whole(function, times)
    assert reached == [0, 1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert whole(function, 2) == "done"  # who ignores it goes on ignoring it
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_optimizer_that_was_built_in_part_is_built_anew(monkeypatch):
    model = shared_model()
    expected = fit(restart(model), epochs=1).history["loss"]
    restart(model).compile(kerasllm.training.AdamW(0.01), loss=kerasllm.training.TokenCrossentropy())
    build = type(model.optimizer).add_variable_from_reference
    calls = []

    def fail(optimizer, *arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            raise MemoryError
        return build(optimizer, *arguments, **options)

    monkeypatch.setattr(type(model.optimizer), "add_variable_from_reference", fail)
    with pytest.raises(MemoryError):
        fit(model, epochs=1)
    again = fit(model, epochs=1).history["loss"]
    assert np.isfinite(again).all() and np.isfinite(expected).all()
    assert len(model.optimizer.variables) == 2 + 2 * len(model.trainable_variables)
    shared_model.cache_clear()


@pytest.mark.skipif("not ON_JAX", reason="only JAX takes the memory of the weights")
def test_evaluate_and_predict_copy_no_weights():
    model = shared_model()
    values = [v.value for v in model.weights]
    model.predict(X, verbose=0)
    model.evaluate(X, Y, verbose=0)
    model.predict_on_batch(X)
    model.test_on_batch(X, Y)
    assert all(v.value is value for v, value in zip(model.weights, values, strict=True))


@pytest.mark.skipif("not ON_JAX", reason="only JAX takes the memory of the weights")
def test_what_a_failed_step_has_taken_is_named_when_it_is_read(tmp_path):
    import jax

    model, fails = make_model(lambda: gpt(dropout=0.1)), []

    class Loss(kerasllm.training.TokenCrossentropy):
        def call(self, y_true, y_pred):
            def watch(x):
                if fails:
                    raise OSError("no device")
                return x

            mean = ops.stop_gradient(ops.mean(y_pred))
            watched = jax.pure_callback(watch, jax.ShapeDtypeStruct((), "float32"), mean)
            return super().call(y_true, y_pred) + 0 * watched

    model.compile(keras.optimizers.AdamW(0.02), loss=Loss())
    fit(model)
    model.save_weights(tmp_path / "all.weights.h5")
    weights, outputs = model.get_weights(), model.predict(X, verbose=0)
    restores = (lambda: model.set_weights(weights), lambda: model.load_weights(tmp_path / "all.weights.h5"))
    for train, restore in zip((lambda: model.train_on_batch(X, Y), lambda: fit(model)), restores, strict=True):
        fails.append(1)
        with pytest.raises(Exception, match="no device"):
            train()
        fails.clear()
        for call in (
            lambda: model.predict(X, verbose=0),
            lambda: model.evaluate(X, Y, verbose=0),
            lambda: fit(model),
            lambda: model.train_on_batch(X, Y),
            lambda: model.predict_on_batch(X),
            lambda: model.generate([[3, 4]], max_new_tokens=2),
            lambda: model.score([[3, 4]]),
            lambda: model(X),
            lambda: model.get_weights(),
            lambda: model.save(tmp_path / "model.keras"),
            lambda: model.save_to_preset(tmp_path / "preset"),
            lambda: model.export(tmp_path / "model", verbose=False),
            lambda: model.quantize("int8"),
        ):
            with pytest.raises(RuntimeError, match="weights of the model .* are gone.*load_weights"):
                call()
        restore()
        assert_same(model.predict(X, verbose=0), outputs)
        assert float(model.optimizer.learning_rate) == pytest.approx(0.02)
        assert np.isfinite(fit(model).history["loss"]).all()
