"""Evaluation inside an epoch."""

import keras

from kerasllm.arguments import check_positive, read_sequence, shown
from kerasllm.backend.aside import aside
from kerasllm.constructors import reading
from kerasllm.training.steps import EverySteps


class EvaluateEvery(EverySteps):
    """Evaluates the model every so many steps of training, which goes on as if nothing had been.

    Results are in the logs as `val_loss` and so on, of that step and, by one more evaluation where steps have been
    taken since, at the end of the epoch; so `History`, `CSVLogger`, `EarlyStopping` and `ModelCheckpoint` know them by
    the names of `validation_data`, in whose place this stands. kerasllm's models call it before callbacks that read
    the logs; in `fit` of another `keras.Model` it must be listed before them.

    Args:
        n_steps: number of steps, of batches, from one evaluation to the next.
        dataset: what `model.evaluate` is given: a dataset of `kerasllm.training` made with `shuffle=False`, another
            than the one that is trained on, or (x, y) or (x, y, sample_weight).
        callbacks: Keras's callbacks to which each evaluation, not each epoch, is the end of an epoch:
            `EarlyStopping(patience=3)` stops after three evaluations without a better `val_loss`,
            `ModelCheckpoint("best.keras", save_best_only=True)` looks at each.
        **arguments: others of `model.evaluate`, such as `batch_size` and `steps`.

    Attributes:
        history: dict of lists, of each evaluation its results and, as `step`, the number of steps before it in this
            `fit`.

    Raises:
        ValueError: the dataset is shuffled: evaluating it would begin its next epoch.

    Example:
        >>> validation = LanguageModelDataset(held_out, tokenizer, shuffle=False)
        >>> model.fit(dataset, callbacks=[EvaluateEvery(500, validation, callbacks=[EarlyStopping(patience=3)])])
    """

    writes_logs = True

    @reading
    def __init__(self, n_steps, dataset, callbacks=(), **arguments):
        check_positive("n_steps", n_steps)
        super().__init__(n_steps)
        if dataset is None or getattr(dataset, "shuffle", False) is True:
            raise ValueError(f"dataset ({shown(dataset)}) must be data for `evaluate`, a dataset with shuffle=False.")
        for i, callback in enumerate(callbacks := read_sequence("callbacks", callbacks)):
            if not isinstance(callback, keras.callbacks.Callback):
                raise ValueError(f"callbacks[{i}] ({shown(callback)}) must be a keras.callbacks.Callback.")
        own = {"verbose", "return_dict", "callbacks", "x"} & set(arguments)
        if own:
            raise ValueError(
                f"{min(own)} ({shown(arguments[min(own)])}) must be left out: EvaluateEvery says it itself."
            )
        self.dataset, self.callbacks, self.arguments = dataset, callbacks, arguments
        self.history = {}

    def set_model(self, model):
        super().set_model(model)
        for callback in self.callbacks:
            callback.set_model(model)

    def set_params(self, params):
        super().set_params(params)
        for callback in self.callbacks:
            callback.set_params(params)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.history, self._evaluated_at = {}, None
        for callback in self.callbacks:
            callback.on_train_begin()

    def on_train_end(self, logs=None):
        for callback in self.callbacks:
            callback.on_train_end(logs)

    def on_epoch_end(self, epoch, logs=None):
        if any(name.startswith("val_") and name[4:] in logs for name in logs):
            return  # `fit` has validated by itself
        if self._evaluated_at != self.num_steps:
            self.act(epoch, self.num_steps, logs)
        else:
            logs |= self._results

    def act(self, epoch, step, logs):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(self.dataset)
        with aside(self.model):
            results = self.model.evaluate(
                x, y, sample_weight=sample_weight, **self.arguments, verbose=0, return_dict=True
            )
        self._results, self._evaluated_at = {f"val_{name}": value for name, value in results.items()}, step
        logs |= self._results
        for name, value in ({"step": step} | self._results).items():
            self.history.setdefault(name, []).append(value)
        for callback in self.callbacks:
            callback.on_epoch_end(len(self.history["step"]) - 1, dict(logs))
