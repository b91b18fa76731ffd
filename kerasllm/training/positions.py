"""Where `fit` is in its data, and how it begins in the middle of an epoch.

Keras 3.15.1 goes over an epoch with one iterator
(https://github.com/keras-team/keras/blob/v3.15.1/keras/src/trainers/epoch_iterator.py), which gives `(number of the
first step, of the last, iterator over batches)` for each call of the compiled step. Here the first items of a resumed
epoch are taken from it and not handed on, so that numbers of batches, `steps_per_epoch` and the progress bar are those
of an epoch that was not interrupted.
"""

import itertools

import keras
import numpy as np

from kerasllm.backend.random_state import random_state, restore_random_state, shuffles_arrays_again

END = object()


class Position:
    """The place of `fit` in its data.

    With `steps_per_epoch` a pass over the data may take several epochs.

    Args:
        model: one of ours.
        iterator: Keras's over the epochs of `fit`.
        data: the `x` of `fit`.
        mute: function (bool): whether callbacks are told of steps.

    Attributes:
        taken: batches of this pass that were taken in earlier epochs.
        began: the random state at the beginning of the pass.
        ended: that after the last step of an epoch, before Keras begins the next pass, which draws on torch; or None.
    """

    def __init__(self, model, iterator, data, mute):
        self.model, self.iterator, self.data, self.mute = model, iterator, data, mute
        self.taken, self.began, self.ended, self.resumed = 0, None, None, None
        self._enumerate = type(iterator)._enumerate_iterator.__get__(iterator)
        iterator._enumerate_iterator = self.enumerated

    def resume(self, place):
        """Let the next epoch begin at a place: dict `taken`, `batch`, `began`, `now` and `metrics`."""
        self.resumed = place

    def end_epoch(self):
        """Find what was taken of the pass that the next epoch goes on with, if it does."""
        iterator = self.iterator
        goes_on = iterator.steps_per_epoch is not None and iterator._current_iterator is not None
        self.taken = iterator._steps_seen if goes_on else 0

    def enumerated(self):
        """Keras's items of an epoch, from the place that was set."""
        self.ended = None
        for item in self._items():
            yield item
            if self.iterator.num_batches is not None and item[1] + 1 >= self.iterator.num_batches:
                self.ended = random_state()

    def _items(self):
        place, self.resumed = self.resumed, None
        if place is not None and (place["batch"] or place["taken"]):
            yield from self._from(place)
            return
        self.end_epoch()
        if not self.taken:
            self.began = random_state()
        yield from self._enumerate()

    def _from(self, place):
        self.taken, self.began = place["taken"], place["began"]
        restore_random_state(self.began)  # which shuffles as it did
        self._pass_over(place)
        if self.taken:
            self.iterator._current_iterator = iter(self.iterator._get_iterator())
            _take(self.iterator._current_iterator, self.taken)
            self.iterator._steps_seen = self.taken
        items, batch, total = self._enumerate(), None, self.iterator.num_batches
        is_over = False
        for first, last, batches in items if place["batch"] else ():
            batch = _take(batches, last - first + 1)
            is_over = total is not None and last + 1 >= total
            if is_over or last + 1 >= place["batch"]:
                break
        self._restore(place, batch)
        # Where the data ends before the epoch does, Keras begins the next pass when it is asked for more.
        following = None if is_over else next(items, None)
        if following is not None and total is None:
            first, last, batches = following
            batches = _if_any(batches)
            following, items = (None, ()) if batches is None else ((first, last, batches), items)
        if following is None:
            yield from self._last_again(place["batch"])
        else:
            yield following
        yield from items  # at whose end Keras begins the next pass

    def _pass_over(self, place):
        """Let a dataset of ours that is asked in order make none of the batches that are not handed on."""
        data = self.data
        if getattr(data, "accumulation", None):
            data.accumulation.go_on(place["batch"])
        if hasattr(data, "pass_over") and data.workers <= 1 and not data.use_multiprocessing:
            # The last execution of several steps may have had fewer.
            data.pass_over(place["taken"] + min(place["batch"], len(data) - place["taken"]))

    def _restore(self, place, batch):
        """Set what the steps that were taken have left beside the weights."""
        if batch is not None and len(self.model.metrics_variables) < len(place["metrics"]):
            self.model._symbolic_build(data_batch=batch)  # TensorFlow makes metrics in the first step
        if place["batch"]:
            assign("metrics", self.model.metrics_variables, place["metrics"])
        restore_random_state(place["now"])

    def _last_again(self, batch):
        """The last step of an epoch, which was taken: nothing is computed, no one is told, and Keras has its result."""
        model, logs = self.model, self.model.get_metrics_result()
        step = model.train_function

        def repeated(*given):
            model.train_function = step
            return (logs, given[0]) if given[1:] else logs  # JAX gives and takes the state

        model.train_function = repeated
        self.mute(True)
        yield batch - 1, batch - 1, itertools.repeat(None)
        self.mute(False)


def _take(batches, count):
    """The last of so many batches, or of those that are left."""
    batch = END
    for _ in range(count):
        following = next(batches, END)
        if following is END:
            break
        batch = following
    if batch is END:
        raise ValueError("x gives fewer batches than the run had taken when its checkpoint was written.")
    return batch


def _if_any(batches):
    """An iterator over the same batches, or None if there is none."""
    following = next(batches, END)
    return None if following is END else itertools.chain([following], batches)


def assign(name, variables, values):
    """Give variables their values.

    Raises:
        ValueError: their number or shapes are others.
    """
    shapes = [tuple(v.shape) for v in variables], [tuple(np.shape(x)) for x in values]
    if shapes[0] != shapes[1]:
        raise ValueError(f"The checkpoint's {name} variables are of shapes {shapes[1]}, the model's of {shapes[0]}.")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def doubts(arguments):
    """What may differ in a resumed run because of where its data comes from: a sentence, or None.

    Args:
        arguments: dict of all arguments of `fit`.
    """
    data, shuffle = arguments["x"], arguments["shuffle"]
    if hasattr(data, "pass_over"):
        return None
    if isinstance(data, keras.utils.PyDataset):
        return f"a resumed run is equal if a batch of {type(data).__name__} depends on its index alone"
    if hasattr(data, "element_spec"):
        return "tf.data is passed over from its beginning: a resumed run is equal if each pass has the same order"
    if hasattr(data, "__next__"):
        return "a generator is passed over from its beginning: a resumed run is equal if it gives the same again"
    if hasattr(data, "dataset"):  # a DataLoader
        return "a DataLoader is passed over: a resumed run is equal if it draws from torch's own generator alone"
    if shuffle and not shuffles_arrays_again():
        return (
            "arrays are shuffled without a seed: call keras.utils.set_random_seed for an equal order in a resumed run"
        )
    return None
