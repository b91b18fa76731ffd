"""Keras's `fit`, `evaluate` and `predict` of every model: data is checked first, and no weights are lost."""

import contextlib
import functools
import inspect
import math
import numbers
from collections.abc import Mapping

import keras
from keras import ops

from kerasllm import backend
from kerasllm.arguments import shown
from kerasllm.generation.sharing import changes_weights, measures
from kerasllm.models.measured import MeasuredModel
from kerasllm.training.limits import Limits
from kerasllm.training.ranked import check_batches, fitted_together, sharded
from kerasllm.training.resuming import running

DATA = ("x", "y", "sample_weight")  # arguments of Keras's methods
NAMES = ("__module__", "__name__", "__qualname__")  # what `functools.wraps` takes over: no docstring


class TrainedModel(MeasuredModel):
    """A Keras model whose methods check the data that they are given; it has `arguments`, which say what may be in it.

    That is done on the host, as `fit` says. A call, `model(inputs)`, and the layers look at shapes and at no value: of
    a wrong id a backend makes an error, NaN or another id's row.

    A Ctrl-C or another exception in `fit` leaves the weights and the optimizer as the last whole step has left them,
    for a step is finished first (a second Ctrl-C does not wait). Only where the compiled step itself fails on JAX,
    which has taken the weights' memory, they are gone: reading them says so until others are loaded. That holds for
    these classes; a `keras.Model` that a user makes of kerasllm's layers is Keras's own.
    """

    @changes_weights
    @functools.wraps(keras.Model.fit, assigned=NAMES)
    def fit(self, *args, **kwargs):
        """Train, as `keras.Model.fit` does, of which all arguments are.

        Before a step is taken, ids, segments, positions, masks, lengths, labels and weights are checked on the host: in
        arrays, those of `validation_data` too, and in the datasets of `kerasllm.training`. What `tf.data`, a
        `DataLoader`, a generator or another `PyDataset` gives is not looked at: of a wrong id backends make an error,
        NaN, or another id's row.

        The datasets of `kerasllm.training` shuffle by themselves: their order is Keras's to change once more only with
        `shuffle=True`. With an optimizer's `gradient_accumulation_steps` they weigh their batches, so that an update
        has the gradient of the mean over all tokens of its batches, as one large batch would have. Of other data, and
        with `shuffle=True` or `steps_per_epoch`, Keras averages the means of the batches.

        Raises:
            ValueError: an id is not in the vocabulary, a label is no class, a row is too long, and so on; the error
                names the entry.
        """
        call = inspect.signature(keras.Model.fit).bind(self, *args, **kwargs)
        self._check_class_weight(call.arguments.get("class_weight"))
        dataset = call.arguments.get("x")
        if not isinstance(call.arguments.get("callbacks"), keras.callbacks.CallbackList):
            call.arguments["callbacks"] = _with_dataset(call.arguments.get("callbacks"), dataset)
        if hasattr(dataset, "epoch_callback"):
            call.arguments.setdefault("shuffle", False)  # they shuffle by themselves
        with fitted_together(self, call.arguments), running(self, call.arguments):
            return self._fit(call, dataset)

    def _fit(self, call, dataset):
        validation = keras.utils.unpack_x_y_sample_weight(call.arguments.get("validation_data"))
        validation = dict(zip(DATA, validation, strict=True))
        needed = () if validation["x"] is None else DATA[:2]
        checked = self._checked(call.arguments, ahead=True), self._checked(validation, ahead=True, needed=needed)
        with checked[0], checked[1], self._accumulated(call.arguments):
            if hasattr(dataset, "epoch_callback") and (dataset.workers > 1 or dataset.use_multiprocessing):
                # Otherwise Keras builds losses and metrics on batches that the workers then hand out once more.
                getattr(self, "_maybe_symbolic_build", self._symbolic_build)(data_batch=dataset[0])
            return super().fit(*call.args[1:], **call.kwargs)

    @measures
    @functools.wraps(keras.Model.evaluate, assigned=NAMES)
    def evaluate(self, *args, **kwargs):
        """Measure, as `keras.Model.evaluate` does, of which all arguments are; data is checked as in `fit`."""
        call = inspect.signature(keras.Model.evaluate).bind(self, *args, **kwargs)
        if call.arguments.get("kwargs", {}).get("_use_cached_eval_dataset"):  # `fit` calls, which has checked
            return super().evaluate(*args, **kwargs)
        with self._checked(call.arguments), sharded(self, "x", call.arguments.get("x")):
            if backend.ranks().index:
                call.arguments["verbose"] = 0
            return super().evaluate(*call.args[1:], **call.kwargs)

    @measures
    @functools.wraps(keras.Model.predict, assigned=NAMES)
    def predict(self, *args, **kwargs):
        """Compute outputs, as `keras.Model.predict` does, of which all arguments are; data is checked as in `fit`."""
        if backend.ranks().sees_all:
            raise ValueError("predict: its outputs lie in several processes; call it in one, or the task's own method.")
        call = inspect.signature(keras.Model.predict).bind(self, *args, **kwargs)
        with self._checked(call.arguments, needed=DATA[:1]):
            return super().predict(*args, **kwargs)

    @changes_weights
    @functools.wraps(keras.Model.train_on_batch, assigned=NAMES)
    def train_on_batch(self, *args, **kwargs):
        """Take one step, as `keras.Model.train_on_batch` does; what is in numpy is checked as in `fit`."""
        call = inspect.signature(keras.Model.train_on_batch).bind(self, *args, **kwargs)
        self._check_class_weight(call.arguments.get("class_weight"))
        with self._checked(call.arguments, tensors=False):
            return super().train_on_batch(*args, **kwargs)

    @measures
    @functools.wraps(keras.Model.test_on_batch, assigned=NAMES)
    def test_on_batch(self, *args, **kwargs):
        """Measure one batch, as `keras.Model.test_on_batch` does; what is in numpy is checked as in `fit`."""
        call = inspect.signature(keras.Model.test_on_batch).bind(self, *args, **kwargs)
        with self._checked(call.arguments, tensors=False):
            return super().test_on_batch(*args, **kwargs)

    @measures
    @functools.wraps(keras.Model.predict_on_batch, assigned=NAMES)
    def predict_on_batch(self, x):
        """The outputs of one batch, as `keras.Model.predict_on_batch`; what is in numpy is checked as in `fit`."""
        with self._checked({"x": x}, tensors=False, needed=DATA[:1]):
            return super().predict_on_batch(x)

    def _accumulated(self, arguments):
        """A context in which a dataset weighs its batches by their shares of an update, where it can know them."""
        dataset, has_own_order = arguments.get("x"), not arguments.get("shuffle")
        if not (hasattr(dataset, "accumulated") and has_own_order and arguments.get("steps_per_epoch") is None):
            return contextlib.nullcontext()
        accumulation = self.accumulation(arguments.get("class_weight"))
        if accumulation is not None:
            arguments.pop("class_weight", None)
        return dataset.accumulated(accumulation)

    @contextlib.contextmanager
    def _checked(self, data, ahead=False, tensors=True, needed=DATA[:2]):
        """Check arrays now, `tensors` too; inside it, a dataset of ours checks its batches, or all of them `ahead`."""
        backend.check_placed(self)
        x, *others = map(data.get, DATA)
        for name in needed:
            if data.get(name) is None and (name == "x" or isinstance(x, Mapping) and self.loss is not None):
                raise ValueError(f"{name} (None) must be given: x a dict of {', '.join(self.input)}, y its labels.")
        if tensors:  # and not one batch
            check_batches(x, data.get("batch_size"))
        if hasattr(x, "kept_to"):
            with x.kept_to(Limits.of(self), ahead):
                yield
            return
        on_device = any(map(ops.is_tensor, keras.tree.flatten([x, *others])))
        if isinstance(x, Mapping) and (tensors or not on_device):
            Limits.of(self).check(*(_on_host(values) if on_device else values for values in (x, *others)))
        yield

    def _check_class_weight(self, class_weight):
        """Keras weighs a row by its one label, and takes the place of the largest where there are more."""
        if class_weight and not self.has_one_label:
            raise ValueError(
                f"class_weight ({shown(class_weight)}) is for rows of one label; where each token has one, weigh "
                "tokens: sample_weight (B, T)."
            )
        if class_weight is not None and not isinstance(class_weight, Mapping):
            raise ValueError(f"class_weight ({shown(class_weight)}) must be a dict of labels' numbers and weights.")
        for label, weight in (class_weight or {}).items():
            count = max(2, self.output.shape[-1])
            if label not in range(count) or not isinstance(weight, numbers.Real) or not 0 <= weight < math.inf:
                raise ValueError(
                    f"class_weight holds {shown(label, 40)}: {shown(weight, 40)}; labels are 0 to {count - 1}, weights "
                    "finite numbers, 0 or more."
                )

    @property
    def has_one_label(self):
        """Whether a row has one label, a class, and no label for each token."""
        return len(getattr(self.output, "shape", ())) == 2


def _with_dataset(callbacks, dataset):
    """The callbacks for `fit`, a list, which know its dataset; those that write into logs go before their readers."""
    callbacks = [] if callbacks is None else keras.tree.flatten(callbacks)
    callbacks = sorted(callbacks, key=lambda callback: not getattr(callback, "writes_logs", False))
    for callback in callbacks:
        if hasattr(callback, "set_dataset"):
            callback.set_dataset(dataset)
    return [*callbacks, dataset.epoch_callback()] if hasattr(dataset, "epoch_callback") else callbacks


def _on_host(values):
    """A nest of arrays with its tensors in numpy."""
    return keras.tree.map_structure(lambda x: ops.convert_to_numpy(x) if ops.is_tensor(x) else x, values)
