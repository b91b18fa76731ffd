"""Training that goes on where it was stopped, as if nothing had been in between."""

import contextlib

import keras

from kerasllm.arguments import check_choice, check_positive, check_positive_number, check_text, read_path
from kerasllm.constructors import reading
from kerasllm.training.averaging import mean_of
from kerasllm.training.checkpoints import Checkpoints
from kerasllm.training.comparing import described_model, difference
from kerasllm.training.runs import Run


class ResumableTraining(keras.callbacks.Callback):
    """Saves a run of `fit` as it goes, and goes on from there when the same script is started again.

    Kept are the weights, the optimizer (its moments, accumulated gradients, averages, the scale of the loss), epoch and
    batch, the place in the data and its order, the random state of Python, numpy, Keras, dropout and the backend, the
    running means of loss and metrics, `History` and what other callbacks have come to: `EarlyStopping`,
    `ModelCheckpoint`, `ReduceLROnPlateau`, and all others by those of their attributes that are plain values and
    arrays. The log of a `CSVLogger` goes on where the checkpoint was written.

    A run that was killed and started again equals one that was not, bit for bit where two such runs equal each other:
    on CPUs with `keras.utils.set_random_seed`, on GPUs with deterministic operations. That holds for the datasets of
    `kerasllm.training` and for arrays; what other data must bring along is said in a line when `fit` begins. A kill at
    any time leaves a whole checkpoint. SIGTERM, by which clusters tell of a preemption, lets the step that runs come to
    its end, saves, and ends the process with the status 143; a second one ends it at once.

    A finished run trains nothing more and gives its weights and its history; with more `epochs` it goes on, unless
    it was stopped early. All else of the model, `compile`, the data and `fit` must be as it was.

    Args:
        folder: of the run, made if need be; each `fit` of a script needs its own.
        every_steps: save after so many steps of training. Default: not by steps.
        every_minutes: save after so many minutes; None: not by time. The end of an epoch is always saved.
        keep: how many of the last checkpoints are kept, beside the best and the final one; so many are averaged by
            `load(model, "average")`. Each takes about three times
            the bytes of the weights with Adam, twice while it is written.
        monitor: the value in the epochs' logs by which the best is known. Default: `val_loss`, or `loss` without
            validation.
        mode: "min" or "max", whether the best is the least or the most. Default: as the name says, where it says so.

    Raises:
        ValueError: an argument is none of these; at `fit`: the folder holds a checkpoint of another run, which the
            error tells from this one, or is no folder to write to; the model is not kerasllm's.

    Example:
        >>> model.fit(dataset, epochs=10, callbacks=[ResumableTraining("run", every_steps=500)])
        >>> ResumableTraining("run").load(model, "best")
    """

    @reading
    def __init__(self, folder, every_steps=None, every_minutes=15.0, keep=2, monitor=None, mode=None):
        super().__init__()
        self.folder = read_path("folder", folder)
        if every_steps is not None:
            check_positive("every_steps", every_steps)
        if every_minutes is not None:
            check_positive_number("every_minutes", every_minutes)
        check_positive("keep", keep)
        if monitor is not None:
            check_text("monitor", monitor)
        if mode is not None:
            check_choice("mode", mode, ("min", "max"))
        self.every_steps, self.every_minutes, self.keep = every_steps, every_minutes, keep
        self.monitor, self.mode = monitor, mode
        self._run, self._optimizer = None, (None, None)

    def on_train_begin(self, logs=None):
        if self._run is None:
            raise ValueError(
                f"ResumableTraining needs a model of kerasllm, whose `fit` tells it of data and callbacks; "
                f"{type(self.model).__name__} is none."
            )

    def on_epoch_end(self, epoch, logs=None):
        self._run.end_epoch(epoch, logs or {})

    def load(self, model, which="best"):
        """Give a model the weights of a checkpoint.

        Args:
            model: built as the one that was trained.
            which: "best"; "last"; or "average", the mean of the `keep` last, as of `average_weights`.

        Raises:
            ValueError: there is no such checkpoint, or it is of another model.
        """
        check_choice("which", which, ("best", "last", "average"))
        checkpoints = Checkpoints(self.folder, self.keep)
        numbers = checkpoints.numbers()
        states = list(map(checkpoints.read, numbers[-1:]))
        if which == "best" and states:
            states = [checkpoints.read(states[0]["best"]["number"])] if states[0]["best"] else []
        elif which == "average":
            # What ends a run may have changed the weights after the last step, which has its own checkpoint before.
            by_step = {state["place"]["steps"]: state for state in map(checkpoints.read, reversed(numbers))}
            states = [by_step[step] for step in sorted(by_step)[-self.keep :]]
        if not states:
            raise ValueError(f"folder ({str(self.folder)!r}) holds no {which} checkpoint.")
        for state in states:
            found = difference(state["compared"]["model"], described_model(model), "model")
            if found:
                raise ValueError(f"folder ({str(self.folder)!r}) holds a checkpoint of another model: {found}.")
        values = mean_of(state["variables"]["model"] for state in states)
        values = dict(zip(map(id, model.variables), values, strict=True))
        model.set_weights([values[id(v)] for v in model.weights])


@contextlib.contextmanager
def running(model, arguments):
    """Inside it, `fit` of a model with these arguments, dict, is resumable if one of its callbacks says so."""
    callbacks = arguments.get("callbacks")
    listed = [] if callbacks is None else keras.tree.flatten(callbacks)
    if isinstance(callbacks, keras.callbacks.CallbackList):
        listed = callbacks.callbacks
    found = [callback for callback in listed if isinstance(callback, ResumableTraining)]
    if not found:
        yield
        return
    if len(found) > 1 or any(isinstance(callback, keras.callbacks.BackupAndRestore) for callback in listed):
        raise ValueError("callbacks: one ResumableTraining does for all; BackupAndRestore besides sets another place.")
    if isinstance(callbacks, keras.callbacks.CallbackList):
        raise ValueError("callbacks must be a list with ResumableTraining in it, and no CallbackList.")
    if hasattr(arguments.get("x"), "__next__") and arguments.get("steps_per_epoch") is None:
        if arguments.get("epochs", 1) > 1:
            raise ValueError("steps_per_epoch (None) must be given for a generator: its end would end all epochs.")
    run = Run(found[0], model, arguments, listed)
    arguments["callbacks"] = run
    with run.begun():
        yield
