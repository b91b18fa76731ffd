"""Seeing the batches that `fit` trains on, whatever they come from: what a step was given, after it was taken."""

import weakref

from kerasllm.backend.compilation import name


def watch_batches(model, watcher):
    """Let `watcher.see(batch)` be called with each batch that a step of the running `fit` is given, until it is gone.

    A batch is what Keras hands its `train_step`, (x, y) or (x, y, sample_weight), as arrays of numpy or of the backend.
    Of data that TensorFlow spreads over several devices nothing is seen.

    Args:
        model: a `keras.Model` whose function of training is made, as in a callback's `on_train_begin`.
        watcher: a `Watcher`; it is kept no longer than by others.
    """
    if not isinstance(model.train_function, _Watched):
        model.train_function = {"torch": _Watched, "jax": _WatchedIterator}.get(name(), _WatchedTensors)(
            model.train_function
        )
    model.train_function.watchers.add(watcher)


def unwatch(model, watcher):
    """End what `watch_batches` began."""
    if isinstance(model.train_function, _Watched):
        model.train_function.watchers.discard(watcher)
        if not model.train_function.watchers:
            model.train_function = model.train_function.function


def retrace(model):
    """Let the next step be compiled anew, after something that it depends on was set; the watchers stay."""
    before = model.train_function
    model.make_train_function(force=True)
    if isinstance(before, _Watched):
        before.function, model.train_function = model.train_function, before


class Watcher:
    """The last batches that were trained on, the newest last."""

    def __init__(self, size):
        self.size, self.batches = size, []

    def see(self, batch):
        """Keep a batch."""
        self.batches = [*self.batches, batch][-self.size :]


class _Watched:
    """A function of training that shows its watchers what it is given: on PyTorch, the batches themselves."""

    def __init__(self, function):
        self.function, self.watchers = function, weakref.WeakSet()

    def show(self, batch):
        for watcher in self.watchers:
            watcher.see(batch)

    def __call__(self, batches):
        for batch in batches:
            self.show(batch)
        return self.function(batches)


class _WatchedIterator(_Watched):
    """On JAX, the state and an iterator over batches, which the function asks for one or several."""

    def __call__(self, state, iterator):
        return self.function(state, self.shown(iterator))

    def shown(self, iterator):
        for batch in iterator:
            self.show(batch)
            yield batch


class _WatchedTensors(_WatchedIterator):
    """On TensorFlow, an iterator that the graph asks: it is given one of equal type that shows its batches."""

    seen = shown_iterator = shown_dataset = None

    def __call__(self, iterator):
        import tensorflow as tf

        if isinstance(iterator, tf.data.Iterator) and self.seen is not iterator and _holds_tensors(iterator):
            self.seen = iterator
            if self.shown_dataset is None or self.shown_dataset.element_spec != iterator.element_spec:
                self.shown_dataset = self.dataset(iterator.element_spec)
            self.shown_iterator = iter(self.shown_dataset)
        return self.function(self.shown_iterator if self.seen is iterator else iterator)

    def dataset(self, element_spec):
        """What gives the batches of the iterator of then, and is made once: that takes longer than a step."""
        import tensorflow as tf

        options = tf.data.Options()
        # Without prefetching, so that what is shown is what the step is given.
        options.experimental_optimization.inject_prefetch = False
        dataset = tf.data.Dataset.from_generator(lambda: self.shown(self.seen), output_signature=element_spec)
        return dataset.with_options(options)


def _holds_tensors(iterator):
    import tensorflow as tf

    return all(isinstance(spec, tf.TensorSpec) for spec in tf.nest.flatten(iterator.element_spec))
