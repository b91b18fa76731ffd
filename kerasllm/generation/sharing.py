"""One model in several threads: all may compute with its weights at once, and one may change them.

    thread 1    generate  generate  ----------------  generate
    thread 2    --------  classify  fit               classify      what thread 1 asks for beside `fit` is an error

Nobody waits for that: `fit` may take hours. Only Keras's `evaluate` and `predict` are waited for: the sums of the one,
in the model's metrics, would be those of several, and both keep their state on the model (on JAX, Keras 3.15.1). What
is computed while another thread changes the weights would be of old ones and new ones, so it ends with an error instead
of a result.
"""

import contextlib
import functools
import threading

_MAKING = threading.Lock()


class Changes:
    """The changes of one model's weights."""

    def __init__(self, model):
        self.name, self.lock = model.name, threading.Lock()
        self.measuring = (
            threading.RLock()
        )  # for one thread at a time, as Keras keeps its sums and its state on the model
        self.thread, self.what, self.count = None, None, 0

    @classmethod
    def of(cls, model):
        """The model's, kept on it."""
        with _MAKING:
            if "_weight_changes" not in vars(model):
                object.__setattr__(model, "_weight_changes", cls(model))  # hidden from Keras's tracking
        return model._weight_changes

    @contextlib.contextmanager
    def made(self, what):
        """Inside it this thread changes the weights.

        Args:
            what: the name of the method that does.

        Raises:
            RuntimeError: another thread changes them.
        """
        me = threading.get_ident()
        outer = self.thread == me and self.what  # a callback of `fit` may load weights
        try:
            with self.lock:
                self._check_thread(f"{what} must wait")
                self.thread, self.what, self.count = me, what, self.count + 1
            with self.measuring:
                yield
        finally:
            with self.lock:
                if self.thread == me:
                    self.thread, self.what, self.count = me if outer else None, outer or what, self.count + 1

    @contextlib.contextmanager
    def none_while_measured(self):
        """Inside it this thread's batches alone go into the model's metrics, and others' changes of the weights wait.

        Raises:
            RuntimeError: another thread changes the weights.
        """
        self.seen()
        while not self.measuring.acquire(timeout=0.1):
            self.seen()
        try:
            yield
        finally:
            self.measuring.release()

    def seen(self):
        """How many changes there have been.

        Raises:
            RuntimeError: another thread changes the weights.
        """
        with self.lock:
            self._check_thread("nothing can be computed with it")
            return self.count

    @contextlib.contextmanager
    def none_since(self, count):
        """Raise `RuntimeError` for what is computed inside, unless the weights are still those of `seen`."""
        self._check(count)
        try:
            yield
        except Exception:
            self._check(count)  # such as of arrays that `fit` has given away
            raise
        self._check(count)

    def _check(self, count):
        if self.count != count:
            raise RuntimeError(
                f"model ({self.name!r}): {self.what} has changed its weights in the meantime, and the result would be "
                "of old and new ones. Begin anew."
            )

    def _check_thread(self, consequence):
        if self.thread not in (None, threading.get_ident()):
            raise RuntimeError(
                f"model ({self.name!r}): {self.what} changes its weights in another thread; until that has ended "
                f"{consequence}."
            )


def with_same_weights(method):
    """Make a method of a model one whose parts, such as batches, are all computed with the same weights."""

    @functools.wraps(method)
    def call(model, *args, **kwargs):
        changes = Changes.of(model)
        with changes.none_since(changes.seen()):
            return method(model, *args, **kwargs)

    return call


def measures(method):
    """Make a method of a model, a loop of Keras's, one that threads call in turns, with the same weights."""

    @functools.wraps(method)
    def call(model, *args, **kwargs):
        with Changes.of(model).none_while_measured():
            return method(model, *args, **kwargs)

    return call


def changes_weights(method):
    """Make a method of a model one beside which no other thread computes with the model, nor changes it."""

    @functools.wraps(method)
    def call(model, *args, **kwargs):
        with Changes.of(model).made(method.__name__):
            return method(model, *args, **kwargs)

    return call
