"""A guard that stops training at the first loss that is NaN or infinite, and keeps what led to it."""

import math

import keras
import numpy as np
from keras import ops

from kerasllm import writing
from kerasllm.arguments import check_boolean, check_positive, read_path, shown
from kerasllm.backend import feeding
from kerasllm.constructors import reading


class StopOnNaN(keras.callbacks.Callback):
    """Ends training in the step whose loss is NaN or infinite, names its batch and saves it.

    Where `keras.callbacks.TerminateOnNaN` lets `fit` end as if all were well, so that checkpoints of the epoch are
    written with NaN, this raises, which our models' `fit` survives: the last checkpoint is that of sound weights. The
    message says the epoch, the step, and of datasets of `kerasllm.training` the examples. In the file are, as arrays
    `step_37/token_ids`, `step_37/labels` and so on, this batch and the one before, whose update may have spoilt the
    weights; `step_37/examples` are the places of the examples in the dataset. Steps count from 0 in each epoch, as
    Keras counts batches; -1 is the last of the epoch before.

    Where `Throughput` measures the norm of the gradients before it, a norm that is not finite ends training too, a step
    earlier than the loss shows it; not where the loss is scaled (mixed_float16), which lives with such steps.

    Args:
        file: path of the `.npz` file; what is there is replaced. `None` saves nothing.
        raise_error: whether to raise `FloatingPointError`; False stops as Keras's does, after a printed message.
        every: number of steps from one look at the loss to the next. On JAX Keras waits for each step that a callback
            looks at; with more than 1 it waits at these alone, and all batches since the last look are kept, named and
            saved.
        dataset: the one that is trained on, to name examples. kerasllm's models say it themselves.

    Raises:
        FloatingPointError: by `fit`, as said.

    Example:
        >>> model.fit(dataset, callbacks=[kerasllm.training.StopOnNaN("runs/nan.npz")])
    """

    @reading
    def __init__(self, file="nan_batch.npz", raise_error=True, every=1, dataset=None):
        super().__init__()
        if file is not None and read_path("file", file).suffix != ".npz":
            raise ValueError(f"file ({shown(file)}) must end in '.npz', or be None.")
        check_boolean("raise_error", raise_error)
        check_positive("every", every)
        self.file = None if file is None else read_path("file", file)
        self.raise_error, self.every, self.dataset = raise_error, every, dataset
        if every == 1:
            self.on_train_batch_end = self._look_at_logs  # Keras asks whether there is one, and then waits

    def set_dataset(self, dataset):
        """Take the dataset that `fit` was given; kerasllm's models call this."""
        self.dataset = dataset

    def on_train_begin(self, logs=None):
        per_call = max(1, getattr(self.model, "steps_per_execution", 1))
        self._watcher = feeding.Watcher((self.every + 1) * per_call)
        feeding.watch_batches(self.model, self._watcher)
        self._epoch = self._num_steps = self._looked_at = 0

    def on_train_end(self, logs=None):
        feeding.unwatch(self.model, self._watcher)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._num_steps, self._looked_at = epoch, 0, 0

    def on_train_batch_begin(self, batch, logs=None):
        self._num_steps = batch  # those before it are taken
        if self.every > 1 and batch - self._looked_at >= self.every:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()  # a plain `keras.Model` has no values otherwise while it trains
            self._look({"loss": float(ops.convert_to_numpy(self.model.get_metrics_result()["loss"]))})

    def on_epoch_end(self, epoch, logs=None):
        if self.every > 1 and self._watcher.batches:
            self._num_steps = self._num_steps + max(1, getattr(self.model, "steps_per_execution", 1))
            self._look({"loss": logs["loss"]} if "loss" in logs else {})

    def _look_at_logs(self, batch, logs=None):
        self._num_steps = batch + 1
        is_scaled = hasattr(self.model.optimizer, "inner_optimizer")
        self._look({name: logs[name] for name in ("loss", "gradient_norm")[: 1 if is_scaled else 2] if name in logs})

    def _look(self, values):
        num_steps, self._looked_at = self._num_steps - self._looked_at, self._num_steps
        wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
        if not wrong:
            return
        message = self._told(*next(iter(wrong.items())), num_steps)
        if self.raise_error:
            raise FloatingPointError(message)
        print(f"\n{message}", flush=True)
        self.model.stop_training = True

    def _told(self, name, value, num_steps):
        """Save the batches, and say what has happened."""
        last = self._num_steps - 1
        kept = {last - i: self._arrays(batch) for i, batch in enumerate(reversed(self._watcher.batches))}
        named = range(last - num_steps + 1, last + 1)
        steps = f"step {last}" if num_steps == 1 else f"one of the steps {named[0]} to {last}"
        message = f"The {name} is {value} in epoch {self._epoch}, {steps} (both from 0)"
        examples = [kept.get(step, {}).get("examples") for step in named]
        if all(e is not None for e in examples):
            message += f", of examples {shown(np.concatenate(examples).tolist(), 200)}"
        if not kept:
            return f"{message}. The batch is not known: such data cannot be seen."
        if self.file is None:
            return f"{message}. file=... saves it."
        self._save(kept)
        before = ", with the one before, whose update may have spoilt the weights" if len(kept) > num_steps else ""
        return f"{message}. It is saved in {str(self.file)!r}{before}."

    def _save(self, kept):
        arrays = {f"step_{step}/{name}": x for step, batch in kept.items() for name, x in batch.items()}
        with writing.staged(self.file.parent) as new:
            np.savez(new / self.file.name, **arrays)

    def _arrays(self, batch):
        """The arrays of a batch by their names, in numpy."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        named = {"inputs": x, "labels": y, "sample_weight": sample_weight}
        arrays = {key: array for name, values in named.items() for key, array in _on_host(values, name).items()}
        examples = _examples(self.dataset, x)
        return arrays if examples is None else {**arrays, "examples": examples}


def _on_host(values, name):
    """A nest as a dict of arrays in numpy: those of a dict by their own names."""
    if values is None:
        return {}
    if isinstance(values, dict):
        return {key: ops.convert_to_numpy(value) for key, value in values.items()}
    leaves = keras.tree.flatten(values)
    names = [name] if len(leaves) == 1 else [f"{name}_{i}" for i in range(len(leaves))]
    return {key: ops.convert_to_numpy(value) for key, value in zip(names, leaves, strict=True)}


def _examples(dataset, x):
    """The places of a batch's examples in a dataset, which gives the batch again when asked; `None` of other data."""
    if not hasattr(dataset, "examples_of"):
        return None
    x, epoch = _on_host(x, "inputs"), dataset.epoch
    try:
        for e in [epoch, epoch - 1][: 2 if dataset.shuffle else 1]:  # after the last batch it is the next
            dataset.epoch = e
            for index in range(len(dataset)):
                again = _on_host(keras.utils.unpack_x_y_sample_weight(dataset[index])[0], "inputs")
                if all(np.array_equal(again.get(name), x[name]) for name in x):
                    return dataset.examples_of(index)
    finally:
        dataset.epoch = epoch
    return None
