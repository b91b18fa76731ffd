"""A run of `fit` that is stopped anywhere and started again equals one that was not, in all that it leaves."""

import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.backend.random_state import random_state, restore_random_state
from kerasllm.models.base import Model
from kerasllm.processes import python
from kerasllm.training import LanguageModelDataset, ResumableTraining, TokenAccuracy, TokenCrossentropy, state_files
from kerasllm.training.checkpoints import Checkpoints
from kerasllm.training.labelled_datasets import TokenClassificationDataset

BACKEND = keras.backend.backend()
TOKENIZER = kerasllm.Tokenizer.train_words(["a b c d e f g h"] * 2, 20)
SIZE, BATCH, LENGTH = TOKENIZER.vocabulary_size, 4, 5
IDS = np.random.default_rng(0).integers(5, SIZE, (22, LENGTH + 1)).astype("int32")
X, Y = {"token_ids": IDS[:, :-1], "padding_mask": np.ones((22, LENGTH), "int32")}, IDS[:, 1:]
STEPS = 6


class Tiny(Model):
    """As small as a model of ours can be, with dropout."""

    def __init__(self, width=4, dtype="float32", name="tiny"):
        inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in X}
        x = keras.layers.Dropout(0.3)(keras.layers.Embedding(SIZE, width)(inputs["token_ids"]))
        super().__init__(inputs, keras.layers.Dense(SIZE)(x))


class Interrupted(BaseException):
    """What ends a process, in place of it."""


class Interrupt(keras.callbacks.Callback):
    """Do something at the n-th call of a hook: interrupt, by default."""

    not_resumed = ("left", "on_hook")

    def __init__(self, hook=None, n=1, act=None):
        super().__init__()
        self.left, self.act_then = n, act
        if hook:
            setattr(self, hook, self.count)

    def count(self, *arguments, **logs):
        self.left -= 1
        if not self.left:
            if self.act_then is None:
                raise Interrupted
            self.act_then()


class StepLog(keras.callbacks.CSVLogger):
    """A line for each step."""

    def on_epoch_begin(self, epoch, logs=None):
        self.begun = epoch

    def on_train_batch_end(self, batch, logs=None):
        super().on_epoch_end(f"{self.begun}:{batch}", logs)

    def on_epoch_end(self, epoch, logs=None):
        pass


class Draws(keras.callbacks.Callback):
    """Numbers that are drawn at the end of steps, which all random states decide on."""

    def on_train_begin(self, logs=None):
        self.drawn = []

    def on_train_batch_end(self, batch, logs=None):
        self.drawn.append(float(np.random.rand() + ops.convert_to_numpy(keras.random.uniform(()))))


def plain_optimizer():
    return kerasllm.training.AdamW(0.02)


def whole_optimizer():
    """One that has all the state that optimizers have."""
    inner = keras.optimizers.AdamW(0.02, gradient_accumulation_steps=4, use_ema=True, ema_momentum=0.9)
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0, dynamic_growth_steps=3)


@functools.cache
def model(optimizer=plain_optimizer, steps_per_execution=1):
    keras.utils.set_random_seed(0)
    made = Tiny()
    made.compile(optimizer(), TokenCrossentropy(), metrics=[TokenAccuracy()], steps_per_execution=steps_per_execution)
    # The first `fit` builds metrics on a batch, and shuffles once more for that.
    made.fit(X, Y, batch_size=BATCH, verbose=0)
    made.start = [np.array(ops.convert_to_numpy(v)) for v in variables(made)]
    return made


def variables(made):
    return [*made.variables, *made.optimizer.variables]


def state(made):
    return [np.array(ops.convert_to_numpy(v)) for v in variables(made)]


def dataset(documents=IDS, **arguments):
    return LanguageModelDataset(
        [list(row) for row in documents], TOKENIZER, **{"batch_size": BATCH, "sequence_length": LENGTH, **arguments}
    )


def by_tokens():
    """Batches of two and of eight rows."""
    words = [["a"] * 4] * 9 + [["b", "c"]] * 4 + [["d"]] * 10
    labels = [[i % 5 for i, _ in enumerate(row)] for row in words]
    given = {"batch_tokens": 16, "multiple": 2, "segments": False}
    return TokenClassificationDataset(words, labels, TOKENIZER, **given)


def generator():
    while True:
        for i in range(STEPS):
            rows = slice(i * BATCH, (i + 1) * BATCH)
            yield {name: x[rows] for name, x in X.items()}, Y[rows]


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        return dataset()[index]


def as_tensorflow():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)


def all_callbacks(folder):
    return [
        keras.callbacks.CSVLogger(folder / "epochs.csv"),
        StepLog(folder / "steps.csv"),
        Draws(),
        keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=0.5, factor=0.5),
        keras.callbacks.ModelCheckpoint(folder / "best.weights.h5", save_best_only=True, save_weights_only=True),
        keras.callbacks.EarlyStopping(patience=1, min_delta=1.0, start_from_epoch=1, restore_best_weights=True),
    ]


# Name -> (options of the model, function that gives the arguments of `fit`).
CASES = {
    "dataset": (
        {},
        lambda: {
            "x": dataset(),
            "epochs": 3,
            "validation_data": dataset(IDS[:9], seed=1),
            "callbacks": all_callbacks,
        },
    ),
    "accumulated": ({"optimizer": whole_optimizer}, lambda: {"x": dataset()}),
    "passes": ({}, lambda: {"x": dataset(shuffle=False), "steps_per_epoch": 5, "epochs": 3}),
    "workers": ({}, lambda: {"x": dataset(workers=2)}),
    "batches by tokens": ({"optimizer": whole_optimizer}, lambda: {"x": by_tokens()}),
    "initial_epoch": ({}, lambda: {"x": dataset(), "initial_epoch": 1, "epochs": 3}),
    "arrays": ({}, lambda: {"x": X, "y": Y, "batch_size": BATCH, "validation_split": 0.2}),
    "plain arrays": ({}, lambda: {"x": X, "y": Y, "batch_size": BATCH, "shuffle": False}),
    "generator": ({}, lambda: {"x": generator(), "steps_per_epoch": STEPS + 2}),
    "PyDataset": ({}, lambda: {"x": Batches()}),
}
if BACKEND != "torch":
    CASES["executions"] = ({"steps_per_execution": 4}, lambda: {"x": dataset(), "validation_data": dataset(IDS[:9])})
if BACKEND == "tensorflow":
    CASES["tf.data"] = ({}, lambda: {"x": as_tensorflow()})
    CASES["unknown length"] = ({}, lambda: {"x": as_tensorflow().filter(lambda x, y: True)})


def session(folder, case, interrupt=None, **changes):
    """What a script does, from a model as it was made; returns what it leaves, or None where it was interrupted."""
    options, arguments = CASES[case]
    made, arguments = model(**options), {"epochs": 2, "verbose": 0, **arguments(), **changes}
    for variable, value in zip(variables(made), made.start, strict=True):
        variable.assign(value)
    keras.utils.set_random_seed(1)
    folder.mkdir(exist_ok=True)
    callbacks = arguments.pop("callbacks", lambda folder: [StepLog(folder / "steps.csv"), Draws()])(folder)
    callbacks = [ResumableTraining(folder / "run", every_steps=2), *callbacks, interrupt or Interrupt()]
    try:
        history = made.fit(**arguments, callbacks=callbacks).history
    except Interrupted:
        return None
    logs = {path.name: path.read_text() for path in folder.glob("*.csv")}
    draws = next(c.drawn for c in callbacks if isinstance(c, Draws))
    return {"history": history, "state": state(made), "logs": logs, "draws": draws, "random": random_state()}


def assert_same(a, b):
    np.testing.assert_equal(a, b)


@functools.cache
def uninterrupted(case, folder):
    return session(folder, case)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("uninterrupted")


@pytest.mark.parametrize("case", ["dataset", pytest.param("accumulated", marks=pytest.mark.slow)])
def test_two_uninterrupted_runs_are_equal(case, place):
    """Or nothing could be asked of a resumed one."""
    assert_same(session(place / f"{case}-again", case), uninterrupted(case, place / case))


STOPS = [("on_train_batch_end", 5), ("on_test_batch_end", 2), ("on_train_end", 1)]
MORE_STOPS = [("on_train_batch_end", n) for n in range(1, 27)] + [("on_train_batch_begin", n) for n in range(1, 27, 5)]
MORE_STOPS += [
    (hook, n) for hook in ("on_test_begin", "on_test_end", "on_epoch_begin", "on_epoch_end") for n in (1, 2, 3)
]
MORE_STOPS = [pytest.param(stop, marks=pytest.mark.slow) for stop in MORE_STOPS if stop not in STOPS]


@pytest.mark.parametrize("stop", [*STOPS, *MORE_STOPS], ids=str)
def test_a_resumed_run_equals_one_that_was_not_interrupted(stop, place, tmp_path):
    assert session(tmp_path, "dataset", Interrupt(*stop)) is None
    assert_same(session(tmp_path, "dataset"), uninterrupted("dataset", place / "dataset"))


PLACES = {
    "early": ("on_train_batch_end", 3),
    "middle": ("on_train_batch_end", 8),
    "last step": ("on_epoch_end", 1),
    "end": ("on_epoch_end", 2),
}
OFTEN = [("accumulated", "middle"), ("passes", "end"), ("arrays", "middle"), ("plain arrays", "last step")]
KINDS = [
    pytest.param(case, stop, marks=() if (case, stop) in OFTEN else pytest.mark.slow)
    for case in CASES
    for stop in PLACES
    if case != "dataset" and not (case == "executions" and stop == "middle")  # of its few calls
]


@pytest.mark.parametrize(("case", "stop"), KINDS)
def test_all_kinds_of_data_and_optimizers_are_resumed(case, stop, place, tmp_path):
    assert session(tmp_path, case, Interrupt(*PLACES[stop])) is None
    assert_same(session(tmp_path, case), uninterrupted(case, place / case))


@pytest.mark.slow
def test_a_run_may_be_interrupted_again_and_again(place, tmp_path):
    times = 0
    while (result := session(tmp_path, "dataset", Interrupt("on_train_batch_end", 3))) is None:
        times += 1
    assert times > 3
    assert_same(result, uninterrupted("dataset", place / "dataset"))


def test_logs_have_each_step_once(place):
    logs = uninterrupted("dataset", place / "dataset")["logs"]
    steps = [line.split(",")[0] for line in logs["steps.csv"].splitlines()]
    epochs = len(logs["epochs.csv"].splitlines()) - 1
    num_steps = len(dataset())
    assert steps == ["epoch", *(f"{i}:{j}" for i in range(epochs) for j in range(num_steps))]


# A run that has come to its end


def test_a_finished_run_trains_nothing_more_and_says_so(tmp_path, capsys):
    first = session(tmp_path, "dataset")
    steps = Interrupt("on_train_batch_end", act=lambda: pytest.fail("a step was taken"))
    second = session(tmp_path, "dataset", steps)
    assert "is finished" in capsys.readouterr().out
    assert_same(second, first)


def test_a_finished_run_goes_on_with_more_epochs(tmp_path, place):
    session(tmp_path, "PyDataset", epochs=1)
    assert_same(session(tmp_path, "PyDataset"), uninterrupted("PyDataset", place / "PyDataset"))


def test_the_next_fit_begins_at_its_own_epoch(tmp_path):
    session(tmp_path, "PyDataset")
    assert len(model().fit(Batches(), epochs=1, verbose=0).history["loss"]) == 1


# A checkpoint of another run

CHANGES = {
    "fit.batch_size": {"batch_size": 2},
    "fit.shuffle": {"shuffle": False},
    "data.x.token_ids.sha256": {"x": X | {"token_ids": X["token_ids"][::-1]}},
    "data.x.token_ids": {"x": dataset(), "y": None, "batch_size": None, "validation_split": 0.0},
    "validation_data.x": {"validation_data": (X, Y), "validation_split": 0.0},
    "fit.validation_split": {"validation_split": 0.5},
    "fit.initial_epoch": {"initial_epoch": 1},
    "callbacks": {"callbacks": lambda folder: [Draws()]},
}
MODELS = {
    "model.config.width": (lambda: Tiny(8), plain_optimizer, "TokenCrossentropy"),
    "optimizer.class": (Tiny, lambda: keras.optimizers.SGD(0.1), "TokenCrossentropy"),
    "optimizer.config.learning_rate": (Tiny, lambda: kerasllm.training.AdamW(0.1), "TokenCrossentropy"),
    "compile.loss": (Tiny, plain_optimizer, "another"),
}
DATASETS = {
    "seed": {"seed": 3},
    "batch_size": {"batch_size": 3},
    "shuffle": {"shuffle": False},
    "lengths": {"documents": IDS[:20]},
    "examples": {"documents": IDS[::-1]},
    "multiple": {"sequence_length": 6},
}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Folders of a run of arrays and one of a dataset."""
    folder = tmp_path_factory.mktemp("other")
    session(folder / "arrays", "arrays", Interrupt("on_train_batch_end", 3))
    session(folder / "dataset", "dataset", Interrupt("on_train_batch_end", 3), callbacks=lambda folder: [Draws()])
    return folder


@pytest.mark.parametrize("name", CHANGES)
def test_changed_arguments_of_fit_are_errors_that_name_them(name, other):
    with pytest.raises(ValueError, match=f"another run: {re.escape(name)}.* was .* and is "):
        session(other / "arrays", "arrays", **CHANGES[name])


@pytest.mark.parametrize("name", DATASETS)
def test_a_changed_dataset_is_an_error_that_names_it(name, other):
    with pytest.raises(ValueError, match=rf"another run: data\.x\.{name}.* was .* and is "):
        session(other / "dataset", "dataset", callbacks=lambda folder: [Draws()], x=dataset(**DATASETS[name]))


@pytest.mark.parametrize("name", MODELS)
def test_a_changed_model_is_an_error_that_names_it(name, other):
    make, optimizer, loss = MODELS[name]
    made = make()
    loss = TokenCrossentropy() if loss == "TokenCrossentropy" else TokenCrossentropy(label_smoothing=0.1)
    made.compile(optimizer(), loss, metrics=[TokenAccuracy()])
    callbacks = [ResumableTraining(other / "arrays/run"), StepLog(other / "x.csv"), Draws(), Interrupt()]
    before = [np.array(ops.convert_to_numpy(w)) for w in made.weights]
    with pytest.raises(ValueError, match=f"another run: {re.escape(name)}.* was .* and is "):
        made.fit(X, Y, batch_size=BATCH, validation_split=0.2, epochs=2, verbose=0, callbacks=callbacks)
    assert_same([ops.convert_to_numpy(w) for w in made.weights], before)


def test_a_log_that_is_gone_is_an_error(tmp_path):
    session(tmp_path, "arrays", Interrupt("on_train_batch_end", 3))
    (tmp_path / "steps.csv").unlink()
    with pytest.raises(ValueError, match=r"steps.csv.* has 0 bytes and had \d+"):
        session(tmp_path, "arrays")


def test_a_spoilt_checkpoint_is_an_error(tmp_path):
    session(tmp_path, "arrays", Interrupt("on_train_batch_end", 3))
    for file in (tmp_path / "run").glob("*/state.json"):
        file.write_text("{")
    with pytest.raises(ValueError, match="is no checkpoint of ResumableTraining"):
        session(tmp_path, "arrays")


# Signals


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


LATER = [pytest.param(hook, marks=pytest.mark.slow) for hook in ("on_train_batch_end", "on_epoch_end")]


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_test_batch_begin", *LATER])
def test_sigterm_saves_and_ends_and_the_run_goes_on_equally(hook, place, tmp_path, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        session(tmp_path, "dataset", Interrupt(hook, 3 if "batch" in hook else 1, terminate))
    assert ended.value.code == 143
    assert re.search(r"SIGTERM: saved after \d steps of epoch \d as ", capsys.readouterr().out)
    assert signal.getsignal(signal.SIGTERM) is handler
    steps = []
    resumed = session(tmp_path, "dataset", Interrupt("on_train_batch_begin", 1, lambda: steps.append(0)))
    assert_same(resumed, uninterrupted("dataset", place / "dataset"))


def test_the_handler_of_a_script_is_called_when_all_is_saved(tmp_path):
    saved = []
    before = signal.signal(signal.SIGTERM, lambda *_: saved.append(Checkpoints(tmp_path / "run", 2).numbers()))
    try:
        with pytest.raises(SystemExit):
            session(tmp_path, "arrays", Interrupt("on_train_batch_begin", 1, terminate))
        assert saved == [[1]]
        session(tmp_path / "end", "arrays", Interrupt("on_train_end", 1, terminate))
        assert saved == [[1], [1]]  # called when `fit` has ended
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_leave_signals_alone(tmp_path):
    handlers = []
    act = Interrupt("on_train_batch_end", 1, lambda: handlers.append(signal.getsignal(signal.SIGTERM)))
    thread = threading.Thread(target=session, args=(tmp_path, "PyDataset", act), kwargs={"epochs": 1})
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


# What is kept


def test_the_last_and_the_best_are_kept(tmp_path):
    losses, weights = iter([3.0, 1.0, 2.0, 2.5, 2.75]), []

    class Losses(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["loss"] = next(losses)
            weights.append(self.model.get_weights())

    made = model()
    resumable = ResumableTraining(tmp_path / "run", keep=2)
    made.fit(X, Y, batch_size=BATCH, epochs=5, verbose=0, callbacks=[Losses(), resumable])
    assert Checkpoints(tmp_path / "run", 2).numbers() == [2, 4, 5, 6]  # the best, two, and the end
    resumable.load(made, "best")
    assert_same(made.get_weights(), weights[1])
    ResumableTraining(tmp_path / "run").load(made, "last")
    assert_same(made.get_weights(), weights[4])
    resumable.load(made, "average")
    assert_same(made.get_weights(), [(a / 2 + b / 2) for a, b in zip(weights[3], weights[4], strict=True)])
    with pytest.raises(ValueError, match=r"another model: model\.config\.width was 4 and is 8"):
        resumable.load(Tiny(8))
    with pytest.raises(ValueError, match="holds no best checkpoint"):
        ResumableTraining(tmp_path / "none").load(made)


def test_the_best_is_known_by_the_value_that_is_named(tmp_path):
    for monitor, mode, match in [("nonsense", None, "must be in the epoch's logs"), ("mae", None, "mode .* 'min' or")]:
        made = model()
        callbacks = [
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(mae=1.0)),
            ResumableTraining(tmp_path / monitor, monitor=monitor, mode=mode),
        ]
        with pytest.raises(ValueError, match=match):
            made.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=callbacks)


def test_checkpoints_are_written_by_time(tmp_path):
    made, numbers = model(), []
    resumable = ResumableTraining(tmp_path / "run", every_minutes=1e-9, keep=1)
    look = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: numbers.append(Checkpoints(tmp_path / "run", 1).numbers())
    )
    made.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[resumable, look])
    assert numbers == [[], *([i] for i in range(1, STEPS))]


def test_what_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match="run.* cannot be written"):
        session(tmp_path, "arrays")


# What is asked of models, data and arguments


def test_models_that_are_not_ours_are_an_error(tmp_path):
    made = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    made.compile("sgd", "mse")
    with pytest.raises(ValueError, match="needs a model of kerasllm.*Sequential is none"):
        made.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[ResumableTraining(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"every_steps": 0}, "every_steps"),
        ({"every_minutes": -1}, "every_minutes"),
        ({"keep": 0}, "keep"),
        ({"mode": "least"}, "mode"),
        ({"monitor": 3}, "monitor"),
        ({"folder": ""}, "folder"),
    ],
)
def test_wrong_arguments_are_errors(arguments, match):
    with pytest.raises(ValueError, match=match):
        ResumableTraining(**{"folder": "run", **arguments})


def test_two_that_set_the_place_are_an_error(tmp_path):
    for other in (ResumableTraining(tmp_path), keras.callbacks.BackupAndRestore(tmp_path)):
        with pytest.raises(ValueError, match="one ResumableTraining does for all"):
            model().fit(X, Y, verbose=0, callbacks=[ResumableTraining(tmp_path), other])
    with pytest.raises(ValueError, match="steps_per_epoch"):
        model().fit(generator(), epochs=2, verbose=0, callbacks=[ResumableTraining(tmp_path)])


def test_a_line_says_what_data_must_bring_along(tmp_path, capsys):
    for case, word in [("generator", "generator is passed over"), ("PyDataset", "on its index"), ("dataset", None)]:
        session(tmp_path / case, case, epochs=1)
        out = capsys.readouterr().out
        assert word in out if word else "equal" not in out


# Its parts


def test_batches_that_were_taken_are_not_made_again():
    data, made = dataset(), []
    make = data.make_batch
    data.make_batch = lambda *arguments: made.append(0) or make(*arguments)
    expected = dataset()[5]
    data.pass_over(3)
    for i in range(3):
        assert keras.tree.flatten(data[i])[0].shape == (BATCH, LENGTH)
    assert len(made) == 1
    assert_same(keras.tree.flatten(data[5]), keras.tree.flatten(expected))
    data.pass_over(3)
    data.on_epoch_end()  # a new epoch begins with its first batch
    data[0]
    assert len(made) == 4


def test_states_come_back_as_they_were(tmp_path):
    nest = {
        "plain": [None, True, 3, 2.5, float("inf"), "text", (1, (2,)), {"a": 1, 2: "b"}],
        "arrays": [np.arange(6, dtype="uint8").reshape(2, 3), np.zeros((0, 2)), np.float32(1.5), np.array(3)],
        "operation": ops.less,
        "tensor": ops.ones((2,)),
    }
    state_files.write(tmp_path, nest | {"half": keras.Variable(np.array([1.5]), dtype="bfloat16")})
    found = state_files.read(tmp_path)
    half = found.pop("half")
    assert half.dtype.name == "bfloat16" and float(half[0]) == 1.5
    assert type(found["arrays"][2]) is np.float32 and found["operation"] is ops.less
    assert_same(found, nest | {"tensor": np.ones(2, "float32")})
    with pytest.raises(TypeError, match="object is neither"):
        state_files.write(tmp_path, {"x": object()})


def test_random_numbers_go_on():
    import random

    def draw():
        return random.random(), np.random.rand(), ops.convert_to_numpy(keras.random.uniform((2,))).tolist()

    draw()
    before = random_state()
    drawn = [draw(), draw()]
    restore_random_state(before)
    assert [draw(), draw()] == drawn
    with pytest.raises(ValueError, match="the backend was 'none'"):
        restore_random_state(before | {"backend": "none"})


# Killed processes

SCRIPT = pathlib.Path(__file__).with_name("resumed_run.py")


def run(folder, kill="", may_end=False):
    """What a process says that trains in a folder and is killed at "write N", "validation N" or "step N"."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
    code = "import resumed_run, sys; resumed_run.main(*sys.argv[1:])"
    process = subprocess.run(python("-c", code, str(folder), kill), env=environment, capture_output=True, text=True)
    killed = process.returncode == -signal.SIGKILL
    assert killed and kill or process.returncode == 0 and (may_end or not kill), process.stderr
    return process.stdout


def leavings(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.once("torch")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows kills otherwise")
def test_killed_processes_leave_what_others_leave(tmp_path):
    with ThreadPoolExecutor() as threads:
        whole = threads.submit(run, tmp_path / "whole")  # which trains twice
        run(tmp_path / "killed", "write 3")
        run(tmp_path / "killed", "validation 2")
        assert "goes on after" in run(tmp_path / "killed")
        assert "\nequal" in whole.result()
    assert_same(leavings(tmp_path / "killed"), leavings(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows kills otherwise")
def test_twenty_kills_anywhere_leave_what_others_leave(tmp_path):
    with ThreadPoolExecutor() as threads:
        whole = threads.submit(run, tmp_path / "whole")
        kills = [("write", 3), ("validation", 2), ("step", 3), ("write", 2), ("step", 4)]
        for i in range(20):
            kind, most = kills[i % len(kills)]
            killed = run(tmp_path / "killed", f"{kind} {np.random.randint(1, most + 1)}", may_end=True)
            if "is finished" in killed:
                whole.result()
                assert_same(leavings(tmp_path / "killed"), leavings(tmp_path / "whole"))
                shutil.rmtree(tmp_path / "killed")
        run(tmp_path / "killed")
        assert "\nequal" in whole.result()
    assert_same(leavings(tmp_path / "killed"), leavings(tmp_path / "whole"))
