"""What is done in a step of training or evaluation, as Keras takes or traces it, and what outside of one."""

import contextvars
import functools

_in_step = contextvars.ContextVar("in_step", default=None)


def is_in_step(model):
    """Whether a step of the training or evaluation of a model is taken, or traced, and it is asked from within."""
    return _in_step.get() is model


def is_in_any_step():
    """Whether that is so of some model."""
    return _in_step.get() is not None


def marked(model, step):
    """A step of training or evaluation, inside which `is_in_step`."""

    @functools.wraps(step)
    def run(*args):
        token = _in_step.set(model)
        try:
            return step(*args)
        finally:
            _in_step.reset(token)

    return run
