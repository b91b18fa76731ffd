"""Counting the steps of `fit`, for callbacks that do something every N of them."""

import keras

from kerasllm.arguments import is_whole, shown


class EverySteps(keras.callbacks.Callback):
    """A base class: `act(epoch, step, logs)` is called after every so many steps, or at the end of each epoch.

    Attributes:
        num_steps: the steps that `fit` has taken; those of `steps_per_execution` are taken together.
    """

    def __init__(self, every):
        super().__init__()
        if every != "epoch" and (not is_whole(every) or not 1 <= every < 2**31):
            raise ValueError(f"every ({shown(every)}) must be 'epoch' or a positive whole number of steps.")
        self.every, self.num_steps = every, 0
        if every != "epoch":
            self.on_train_batch_end = self._after_steps  # Keras asks whether there is one; on JAX it then waits

    def act(self, epoch, step, logs):
        """What is done then, given the epoch (from 0), the steps of this `fit` so far, and the logs, to add to."""
        raise NotImplementedError

    def on_train_begin(self, logs=None):
        self.num_steps, self._epoch = 0, 0
        self._per_call = max(1, getattr(self.model, "steps_per_execution", 1))

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.num_steps += self._per_call

    def _after_steps(self, batch, logs=None):
        if self.num_steps // self.every > (self.num_steps - self._per_call) // self.every:
            self.act(self._epoch, self.num_steps, logs)

    def on_epoch_end(self, epoch, logs=None):
        if self.every == "epoch":
            self.act(epoch, self.num_steps, logs)
