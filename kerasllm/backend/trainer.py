"""What our models add to Keras's trainer: interrupting `fit`, `evaluate` or `predict` loses and breaks nothing."""

import contextlib
import functools

import keras
from keras import ops

from kerasllm.backend.compilation import name
from kerasllm.backend.interruption import whole
from kerasllm.backend.ranks import ranks, replicas, sum_gradients_first, summed
from kerasllm.backend.steps import marked


def trainer_class():
    """The class to derive a model from, before `keras.Model`."""
    if name() == "jax" and not keras.config.is_nnx_enabled():
        from kerasllm.backend.donation import Keeping

        return type("KeepingTrainer", (Keeping, Trainer), {})
    return {"tensorflow": OrderedTrainer, "torch": RankedTrainer}.get(name(), Trainer)


class Trainer:
    """A step of training is taken wholly or not at all, and an optimizer is built so.

    Attributes:
        hears_iterator: function that is told of the iterator over the data of `fit`, or None.
    """

    hears_iterator = None

    def _symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and self.hears_iterator:
            self.hears_iterator(iterator)
        super()._symbolic_build(iterator=iterator, data_batch=data_batch)

    def make_train_function(self, force=False):
        made = self.train_function
        super().make_train_function(force)
        if self.train_function is not made and name() == "torch":
            self.train_function = marked(self, self.train_function)
        # TensorFlow takes a compiled step wholly by itself, and waits for data in the same call.
        if self.train_function is not made and (name() == "torch" or self.run_eagerly):
            self.train_function = functools.partial(whole, self.train_function)

    def make_test_function(self, force=False):
        made = self.test_function
        super().make_test_function(force)
        if self.test_function is not made and name() == "torch":
            self.test_function = marked(self, self.test_function)

    def fit(self, *args, **kwargs):
        with self._mended():
            return super().fit(*args, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        with self._mended():
            return super().train_on_batch(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        with self._mended():
            return super().evaluate(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        with self._mended():
            return super().test_on_batch(*args, **kwargs)

    @contextlib.contextmanager
    def _mended(self):
        """Call `mend` after an exception inside, whatever it is."""
        is_built = getattr(getattr(self, "optimizer", None), "built", True)
        functions = self.train_function, self.test_function
        try:
            yield
        except BaseException:
            self.mend(is_built, functions)
            raise

    def mend(self, is_built, functions):
        """Put right what an exception has left.

        Args:
            is_built: whether the optimizer was built before.
            functions: those that train and test, as they were before.
        """
        optimizer = getattr(self, "optimizer", None)
        # Keras says that an optimizer is built, and then makes its variables: half of them may be missing (3.15.1,
        # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/optimizers/adam.py, `build`).
        if not is_built and optimizer.built and not ops.convert_to_numpy(optimizer.iterations):
            self.optimizer = type(optimizer).from_config(optimizer.get_config())
            self.train_function = None


class RankedTrainer(Trainer):
    """As `Trainer`, on torch: metrics are those of all processes that train the model."""

    def get_metrics_result(self):
        if ranks().count == 1:
            return super().get_metrics_result()
        with summed(self.metrics_variables):
            return {metric: float(value) for metric, value in super().get_metrics_result().items()}


class OrderedTrainer(Trainer):
    """As `Trainer`, on TensorFlow: a step begins when its data is there.

    Keras (3.15.1, https://github.com/keras-team/keras/blob/v3.15.1/keras/src/backend/tensorflow/trainer.py) reads a
    batch in the graph of the step, and where there is none, or reading fails, TensorFlow has counted the iteration and
    let the weights decay meanwhile.
    """

    def make_train_function(self, force=False):
        # Variables that are made where a step is traced have it traced once more, with a branch for each of them.
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        if self.optimizer is not None and replicas() > 1:
            sum_gradients_first(self.optimizer)
        super().make_train_function(force)

    def _make_function(self, step_function):
        import tensorflow as tf

        def ordered(data):
            tensors = [x for x in tf.nest.flatten(data, expand_composites=True) if x is not None]
            with tf.control_dependencies(tensors):
                return step_function(data)

        return super()._make_function(marked(self, ordered))

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and self.hears_iterator:
            self.hears_iterator(iterator)
        if iterator is not None and self._distribute_strategy is not None:
            # Keras averages the batches of the replicas to see their shapes, which masks of truth values have no
            # average for (3.15.1, https://github.com/keras-team/keras/blob/v3.15.1/keras/src/backend/tensorflow/trainer.py).
            _, _, batches = next(iter(iterator))
            local = self.distribute_strategy.experimental_local_results(next(batches))
            iterator, data_batch = None, local[0]
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def mend(self, is_built, functions):
        # A function that makes variables, such as those of metrics, may do so when it is traced first, and not again.
        self.train_function, self.test_function = functions
        super().mend(is_built, functions)
