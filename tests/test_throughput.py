import csv
import functools
import math

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.models.base import Model
from kerasllm.training import AdamW, Throughput, TokenCrossentropy, WarmupLinear

RNG = np.random.default_rng(0)
ROWS, BATCH, LENGTH = 12, 4, 6
IDS = RNG.integers(1, 20, (ROWS, LENGTH + 1)).astype("int32")
LENGTHS = RNG.integers(2, LENGTH + 1, ROWS)
MASK = np.arange(LENGTH) < LENGTHS[:, None]
X, Y = {"token_ids": IDS[:, :-1], "padding_mask": MASK}, np.where(MASK, IDS[:, 1:], -1)


class Tiny(Model):
    """As small as a model of ours can be."""

    def __init__(self, dropout=0.0, dtype="float32", name="tiny"):
        inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in X}
        hidden = keras.layers.Dropout(dropout)(keras.layers.Embedding(20, 4)(inputs["token_ids"]))
        super().__init__(inputs, keras.layers.Dense(20)(hidden))


def gpt(**arguments):
    return kerasllm.GPT(20, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=8, **arguments)


def compiled(model, optimizer=None, **options):
    model.compile(optimizer or AdamW(0.01), loss=TokenCrossentropy(), **options)
    return model


def fit(model, *callbacks, **options):
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "epochs": 2} | options
    return model.fit(*options.pop("data", (X, Y)), callbacks=list(callbacks), **options)


@functools.cache
def shared_model():
    return compiled(gpt())


class StepLogs(keras.callbacks.Callback):
    """Keeps the logs of all steps."""

    def on_train_begin(self, logs=None):
        self.logs = []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))


class Clock:
    """In place of `time`: a second goes by each time that a step ends."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self):
        return self.seconds


def test_figures_are_those_of_the_steps(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("kerasllm.training.throughput.time", clock)
    monkeypatch.setattr("kerasllm.backend.aside.time", clock)

    class Tick(keras.callbacks.Callback):
        writes_logs = True  # so that it is called before

        def on_train_batch_end(self, batch, logs=None):
            clock.seconds += 2.0

    model, logs = compiled(gpt(), AdamW(WarmupLinear(0.1, 2, 10))), StepLogs()
    history = fit(model, Tick(), Throughput(peak_flops=1e6), logs).history
    tokens = [LENGTHS[i : i + BATCH].sum() for i in range(0, ROWS, BATCH)]
    assert "tokens_per_second" not in logs.logs[0]  # it compiles
    assert logs.logs[1]["tokens_per_second"] == pytest.approx(tokens[1] / 2)
    assert history["tokens_per_second"] == pytest.approx([sum(tokens[1:]) / 4, sum(tokens) / 6])
    weights = sum(math.prod(v.shape) for v in model.weights if "embeddings" not in v.path) + 20 * 8
    operations = 6 * weights * LENGTHS.sum() + 12 * 1 * 8 * (LENGTHS**2).sum()
    assert history["mfu"][1] == pytest.approx(operations / 6 / 1e6)
    assert [x["learning_rate"] for x in logs.logs] == pytest.approx([0, 0.05, 0.1, 0.0875, 0.075, 0.0625])


@pytest.mark.parametrize("kind", ["arrays", "generator", "dataset", "tensors"])
def test_tokens_of_all_kinds_of_data_are_counted(kind):
    def batches():
        while True:
            for i in range(0, ROWS, BATCH):
                yield {name: x[i : i + BATCH] for name, x in X.items()}, Y[i : i + BATCH]

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return ROWS // BATCH

        def __getitem__(self, index):
            i = index * BATCH
            return {name: x[i : i + BATCH] for name, x in X.items()}, Y[i : i + BATCH]

    data = {
        "arrays": lambda: (X, Y),
        "generator": lambda: (batches(),),
        "dataset": lambda: (Data(),),
        "tensors": lambda: (keras.tree.map_structure(ops.convert_to_tensor, X), ops.convert_to_tensor(Y)),
    }[kind]()
    throughput, size = Throughput(peak_flops=1e9), {"batch_size": BATCH if kind in ("arrays", "tensors") else None}
    fit(shared_model(), throughput, data=data, steps_per_epoch=ROWS // BATCH, **size)
    assert throughput._done[1] == LENGTHS.sum()


def test_training_is_the_same_with_and_without():
    losses = []
    for callbacks in [], [Throughput(peak_flops=1e9, gradient_norm=False)]:
        keras.utils.set_random_seed(1)
        logs = StepLogs()
        fit(compiled(Tiny(0.5)), *callbacks, logs)
        losses.append([x["loss"] for x in logs.logs])
    assert losses[0] == losses[1]


def test_the_norm_is_asked_of_optimizers_that_measure_it(capsys):
    class Measuring(keras.optimizers.SGD):
        measures_gradient_norm = False

        def build(self, variables):
            super().build(variables)
            self.gradient_norm = self.add_variable((), name="gradient_norm")

        def apply(self, grads, trainable_variables=None):
            if self.measures_gradient_norm:
                self.gradient_norm.assign(ops.cast(self.iterations, "float32") + 0.5)
            return super().apply(grads, trainable_variables)

    model, logs = compiled(Tiny(), Measuring(1.0)), StepLogs()
    fit(model, epochs=1)  # the step is compiled without
    assert float(ops.convert_to_numpy(model.optimizer.gradient_norm)) == 0
    history = fit(model, logs, Throughput(peak_flops=1e9), epochs=1).history
    assert [x["gradient_norm"] for x in logs.logs] == [3.5, 4.5, 5.5] and history["gradient_norm"] == [5.5]
    assert "gradient_norm" not in fit(compiled(Tiny(), "sgd"), Throughput(peak_flops=1e9), epochs=1).history
    assert capsys.readouterr().out.count("no gradient_norm: SGD does not measure it") == 1


def test_csv_progress_line_and_history_have_the_figures(tmp_path, capsys):
    file = tmp_path / "log.csv"
    # Before Throughput in the list, behind it in `fit`.
    history = fit(shared_model(), keras.callbacks.CSVLogger(file), Throughput(1e9, every=2), verbose=1).history
    rows = list(csv.DictReader(file.open()))
    names = {"tokens_per_second", "mfu", "learning_rate"}
    assert names < set(history) and names < set(rows[0])
    assert float(rows[1]["mfu"]) == pytest.approx(history["mfu"][1])
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in names)


def test_what_is_not_known_is_left_out_and_said_once(capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    data = np.ones((8, 4), "float32"), np.ones((8, 3), "float32")
    history = model.fit(*data, batch_size=2, epochs=2, verbose=0, callbacks=[Throughput(1e9)]).history
    assert not {"tokens_per_second", "mfu"} & set(history)
    assert capsys.readouterr().out.count("no tokens_per_second: the inputs are no dict with token_ids") == 1


@pytest.mark.parametrize("arguments", [{"peak_flops": 0}, {"every": 0}, {"gradient_norm": 1}, {"flops_per_token": "x"}])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} .*must be"):
        Throughput(**arguments)
