"""One `fit` that is resumed: what is saved of it, when, and how it begins again."""

import contextlib
import inspect
import os
import signal
import threading
import time

import keras

from kerasllm import backend
from kerasllm.backend.random_state import random_state, restore_random_state
from kerasllm.training import callback_states
from kerasllm.training.checkpoints import Checkpoints
from kerasllm.training.comparing import described_run, difference
from kerasllm.training.positions import Position, assign, doubts

VERSION = 1
STATUS = 128 + signal.SIGTERM  # the exit status by which shells tell of the signal


class Run(keras.callbacks.CallbackList):
    """A `fit` that is resumed: Keras's list of its callbacks, which saves and restores them with all else."""

    def __init__(self, callback, model, arguments, callbacks):
        defaults = {p.name: p.default for p in inspect.signature(keras.Model.fit).parameters.values()}
        self.arguments = {**defaults, **arguments}
        verbose = self.arguments["verbose"]
        super().__init__(callbacks, add_history=True, add_progbar=verbose != 0)
        self.callbacks.remove(callback)
        self.others = callback_states.with_inner(self.callbacks)
        self.callbacks.append(callback)  # last, when the others have done what they do
        self._async_train = self._async_test = False
        self.run_params = {"verbose": verbose, "epochs": self.arguments["epochs"]}
        self.settings, self.trained, self.position = callback, model, None
        self.checkpoints = Checkpoints(callback.folder, callback.keep)
        self.place = {"epoch": self.arguments["initial_epoch"], "batch": 0, "steps": 0, "stopped": False}
        self.place |= {"finished": False, "epochs": {}}
        self.best = self.final = self.validating = None
        self.number = self.saved_steps = self.first_step = 0
        self.saved_time = time.monotonic()
        self.is_muted, self.signals = False, []

    @contextlib.contextmanager
    def begun(self):
        """What holds for the time of `fit`: SIGTERM waits for the end of a step, and Keras's iterator is known."""
        model = self.trained
        self.settings._run = self
        object.__setattr__(model, "hears_iterator", self._heard)
        try:
            with self._handling():
                yield
        finally:
            self.settings._run = None
            object.__delattr__(model, "hears_iterator")
            model._initial_epoch = None  # or the next `fit` would begin there

    @contextlib.contextmanager
    def _handling(self):
        self.handler = handler = signal.getsignal(signal.SIGTERM)
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or handler in (None, signal.SIG_IGN):
            yield
            return

        def wait(*signal_and_frame):
            self.signals.append(signal_and_frame)
            if len(self.signals) > 1:
                signal.signal(signal.SIGTERM, handler)
                os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, wait)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)
            if len(self.signals) == 1:  # and `fit` has ended before
                os.kill(os.getpid(), signal.SIGTERM)

    def _heard(self, iterator):
        if self.position is None:
            self.position = Position(self.trained, iterator, self.arguments["x"], self._mute)

    def _mute(self, is_muted):
        self.is_muted = is_muted

    # Keras calls what follows.

    def on_train_begin(self, logs=None):
        self.set_model(self.trained)
        self.set_params(self.run_params | {"steps": self.position.iterator.num_batches})
        model = self.trained
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self.compared = described_run(model, self.arguments, self.others)
        if self.settings._optimizer[0] is model.optimizer:  # whose rate callbacks have changed in an earlier `fit`
            self.compared["optimizer"] = self.settings._optimizer[1]
        self.settings._optimizer = model.optimizer, self.compared["optimizer"]
        state = self._found()
        if state is None:
            super().on_train_begin(logs)
        else:
            self._restore_callbacks(state, lambda: super(Run, self).on_train_begin(logs))
            self._restore(state)
        doubt = doubts(self.arguments)
        if doubt and not self.place["finished"]:
            say(f"{doubt}.")

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self.place["epoch"] = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if not self.is_muted:
            self.first_step = batch
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        if self.is_muted:
            return
        super().on_train_batch_end(batch, logs)
        self.place["batch"] = batch + 1
        self.place["steps"] += batch + 1 - self.first_step
        self.place["epochs"] = self._epochs()
        if self.trained.stop_training:
            return  # the epoch ends here, and is saved then
        if self.signals:
            self._leave()
        elif self._is_due():
            self._save()

    def on_test_begin(self, logs=None):
        self.validating = self._passing(self.position.ended)
        super().on_test_begin(logs)

    def on_test_batch_end(self, batch, logs=None):
        super().on_test_batch_end(batch, logs)
        if self.signals:
            self._leave(self.validating)

    def on_test_end(self, logs=None):
        super().on_test_end(logs)
        self.validating = None

    def end_epoch(self, epoch, logs):
        """Save the end of an epoch, with the logs as the other callbacks have left them."""
        is_stopped = bool(self.trained.stop_training)
        self.place |= {"epoch": epoch + 1, "batch": 0, "stopped": is_stopped}
        self.place["epochs"] = self._epochs()
        self.position.end_epoch()
        self._compare_best(logs)
        if self.signals and not is_stopped and epoch + 1 < self.arguments["epochs"]:
            self._leave()
        self._save()

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        if self.place["finished"]:
            self._assign(self.final)  # what Keras and callbacks do at an end was done
            self._set_epochs(self.place["epochs"], "training", "validation")
            restore_random_state(self.final["random"]["now"])
        else:
            self.place["finished"] = True
            self._save()

    # Saving.

    def _passing(self, now=None):
        """What validation changes: all but the weights and the optimizer."""
        return {
            "random": {"began": self.position.began, "now": now or random_state()},
            "metrics": backend.sums(self.trained.metrics_variables),
            "callbacks": [callback_states.state_of(callback) for callback in self.others],
        }

    def _save(self, passing=None):
        passing = passing or self._passing()
        model = self.trained
        state = {
            "version": VERSION,
            "compared": self.compared,
            "place": {**self.place, "taken": self.position.taken},
            "random": passing["random"],
            "variables": {
                "model": list(model.variables),
                "optimizer": list(model.optimizer.variables),
                "metrics": passing["metrics"],
            },
            "callbacks": passing["callbacks"],
            "best": self.best,
        }
        self.number += 1
        also = {self.best["number"]} if self.best else set()
        if self.place["finished"]:
            also |= set(self.checkpoints.numbers()[-self.settings.keep :])
        self.checkpoints.write(self.number, state, also)
        self.saved_steps, self.saved_time = self.place["steps"], time.monotonic()

    def _is_due(self):
        steps, minutes = self.settings.every_steps, self.settings.every_minutes
        by_steps = steps is not None and self.place["steps"] - self.saved_steps >= steps
        return by_steps or minutes is not None and time.monotonic() - self.saved_time >= 60 * minutes

    def _compare_best(self, logs):
        before = self.best["name"] if self.best else None
        name = self.settings.monitor or ("val_loss" if "val_loss" in (before, *logs) else "loss")
        if name not in logs:
            if self.settings.monitor is None or name.startswith("val_"):  # not each epoch is validated
                return
            raise ValueError(f"monitor ({name!r}) must be in the epoch's logs: {', '.join(logs)}.")
        value, is_least = float(logs[name]), self._is_least(name)
        if name != before or (value < self.best["value"] if is_least else value > self.best["value"]):
            self.best = {"name": name, "value": value, "number": self.number + 1}

    def _is_least(self, name):
        if self.settings.mode is not None:
            return self.settings.mode == "min"
        if name.endswith(("loss", "perplexity", "error")):
            return True
        if name.endswith(("accuracy", "auc", "bleu", "f1")):
            return False
        raise ValueError(f"mode (None) must be 'min' or 'max' for monitor ({name!r}), whose name does not tell.")

    def _leave(self, passing=None):
        """Save, say so and end the process, as the signal asks for."""
        self._save(passing)
        say(f"SIGTERM: saved after {self._described()} as {self.checkpoints.path(self.number)}.")
        asked = self.signals.pop()
        self.signals.clear()
        if callable(self.handler):  # the script's own
            self.handler(*asked)
        raise SystemExit(STATUS)

    def _described(self):
        return f"{self.place['batch']} steps of epoch {self.place['epoch'] + 1}"

    # Restoring.

    def _found(self):
        """The state to go on from, or None."""
        numbers = self.checkpoints.numbers()
        if not numbers:
            return None
        self.number = numbers[-1]
        state = self.checkpoints.read(self.number)
        if state.get("version") != VERSION:
            raise ValueError(f"folder ({str(self.settings.folder)!r}) was written by another kerasllm.")
        place, epochs = state["place"], self.arguments["epochs"]
        if place["finished"] and not place["stopped"] and epochs > place["epoch"]:
            state = self.checkpoints.read(numbers[-2])  # before what ends a run
        if backend.ranks().index:
            state = self._with_own_callbacks(state)
        self._check(state)
        return state

    def _with_own_callbacks(self, state):
        """A state that the first of several processes has written, with the callbacks of this one, which has fewer."""
        saved, places = list(state["compared"]["callbacks"].items()), []
        names, own = (
            [name.partition(" ")[2] for name, _ in saved],
            [type(callback).__name__ for callback in self.others],
        )
        for name in own:
            start = places[-1] + 1 if places else 0
            if name not in names[start:]:
                raise ValueError(f"callbacks: the first process has no {name} there: it has {', '.join(names)}.")
            places.append(names.index(name, start))
        described = {f"{i} {names[place]}": saved[place][1] for i, place in enumerate(places)}
        callbacks = [state["callbacks"][place] for place in places]
        return {**state, "compared": {**state["compared"], "callbacks": described}, "callbacks": callbacks}

    def _check(self, state):
        """Raise `ValueError` where a checkpoint is of another run, with the difference."""
        found = difference(state["compared"], self.compared)
        if found:
            raise ValueError(
                f"folder ({str(self.settings.folder)!r}) holds a checkpoint of another run: {found}. Start this one "
                "in another folder, or with what it was."
            )

    def _restore_callbacks(self, state, begin):
        """Let the callbacks begin, and then have the state they had."""
        pairs = list(zip(self.others, state["callbacks"], strict=True))
        undo = [
            callback_states.cut_log(callback, kept)
            for callback, kept in pairs
            if isinstance(callback, keras.callbacks.CSVLogger)
        ]
        begin()
        for function in undo:
            function()
        for callback, kept in pairs:
            callback_states.restore(callback, kept)

    def _restore(self, state):
        model, place = self.trained, state["place"]
        self._assign(state)
        taken = place.pop("taken")
        self.place, self.best, self.saved_steps = place, state["best"], place["steps"]
        epochs = self.arguments["epochs"]
        is_over = place["finished"] or place["stopped"] or place["epoch"] >= epochs
        model._initial_epoch = max(place["epoch"], epochs) if is_over else place["epoch"]
        if place["finished"]:
            self.final = state
            say(f"the run of {self.settings.folder} is finished, after epoch {place['epoch']}; nothing is trained.")
            return
        self._set_epochs(place["epochs"], "validation")
        restore_random_state(state["random"]["now"])
        metrics = backend.summands(state["variables"]["metrics"])
        self.position.resume({"taken": taken, "batch": place["batch"], "metrics": metrics, **state["random"]})
        say(f"goes on after {self._described()} ({self.checkpoints.path(self.number)}).")

    def _assign(self, state):
        assign("model", self.trained.variables, state["variables"]["model"])
        assign("optimizer", self.trained.optimizer.variables, state["variables"]["optimizer"])

    def _datasets(self):
        validation = keras.utils.unpack_x_y_sample_weight(self.arguments["validation_data"])[0]
        datasets = {"training": self.arguments["x"], "validation": validation}
        return {name: dataset for name, dataset in datasets.items() if hasattr(dataset, "pass_over")}

    def _epochs(self):
        """Those that our datasets count."""
        return {name: dataset.epoch for name, dataset in self._datasets().items()}

    def _set_epochs(self, epochs, *names):
        for name, dataset in self._datasets().items():
            if name in names:
                dataset.epoch = epochs[name]


def say(text):
    """Print a line of the callback's."""
    print(f"\nResumableTraining: {text}", flush=True)
