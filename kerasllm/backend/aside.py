"""Using a model beside its training, from a callback of `fit`, which then goes on as if nothing had been."""

import contextlib
import time

import numpy as np
from keras import ops

from kerasllm.backend.random_state import random_state, restore_random_state


@contextlib.contextmanager
def aside(model):
    """Inside it a callback of `fit` may let the model evaluate, predict and generate.

    Afterwards the sums of the metrics, the random state and PyTorch's mode of training are what they were.
    `seconds_aside` has the time that it took.
    """
    start = time.perf_counter()
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()  # a plain `keras.Model` has no values otherwise while it trains
    metrics = [(v, np.array(ops.convert_to_numpy(v))) for v in model.metrics_variables]
    state, is_training = random_state(), getattr(model, "training", None)
    try:
        yield
    finally:
        for variable, value in metrics:
            variable.assign(value)
        restore_random_state(state)
        if is_training is not None:
            model.train(is_training)
        # Hidden from Keras's tracking.
        object.__setattr__(model, "_seconds_aside", seconds_aside(model) + time.perf_counter() - start)


def seconds_aside(model):
    """The seconds that a model has been used so, since it was made."""
    return getattr(model, "_seconds_aside", 0.0)
