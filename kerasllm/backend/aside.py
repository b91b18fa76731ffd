"""Using a model beside its training, from a callback of `fit`, which then goes on as if nothing had been."""

import contextlib
import random
import time

import numpy as np
from keras import ops

from kerasllm.backend.compilation import name


@contextlib.contextmanager
def aside(model):
    """Inside it a callback of `fit` may let the model evaluate, predict and generate.

    Afterwards the sums of the metrics, the random states of Python, numpy and PyTorch, and PyTorch's mode of training
    are what they were. `seconds_aside` has the time that it took.
    """
    start = time.perf_counter()
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()  # a plain `keras.Model` has no values otherwise while it trains
    metrics = [(v, np.array(ops.convert_to_numpy(v))) for v in model.metrics_variables]
    states = random.getstate(), np.random.get_state()
    restore = _torch_state(model) if name() == "torch" else lambda: None
    try:
        yield
    finally:
        for variable, value in metrics:
            variable.assign(value)
        random.setstate(states[0])
        np.random.set_state(states[1])
        restore()
        # Hidden from Keras's tracking.
        object.__setattr__(model, "_seconds_aside", seconds_aside(model) + time.perf_counter() - start)


def seconds_aside(model):
    """The seconds that a model has been used so, since it was made."""
    return getattr(model, "_seconds_aside", 0.0)


def _torch_state(model):
    import torch

    cpu, is_training = torch.get_rng_state(), model.training
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore():
        torch.set_rng_state(cpu)
        for i, state in enumerate(gpus):
            torch.cuda.set_rng_state(state, i)
        model.train(is_training)

    return restore
