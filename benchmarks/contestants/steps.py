"""What the contestants share: their data, and steps through `model.fit`."""

import time

import numpy as np


def ids(steps, symbols, batch, length):
    """Random token ids for a number of steps: (steps * batch, length)."""
    return np.random.default_rng(0).integers(1, symbols, (steps * batch, length)).astype("int32")


def fit(model, x, y, batch_size, make_callbacks=list):
    """`run` through `model.fit`, on the first batches of x and y, each time with what `make_callbacks()` lists."""
    from keras.callbacks import LambdaCallback

    def run(steps):
        n = steps * batch_size
        inputs = {name: array[:n] for name, array in x.items()} if isinstance(x, dict) else [a[:n] for a in x]
        # tensorflow's data pipeline may sleep for seconds when `fit` gives it up, for any model: that is not counted.
        ends = []
        clock = LambdaCallback(on_train_end=lambda logs: ends.append(time.perf_counter()))
        callbacks = [clock, *make_callbacks()]
        model.fit(inputs, y[:n], batch_size=batch_size, shuffle=False, verbose=0, callbacks=callbacks)
        return ends[0]

    return run


def torch_loop(parameters, loss_of, optimizer):
    """`run` of a loop in PyTorch that clips gradients to norm 1: `loss_of(step)` is the loss of a batch."""
    import torch

    parameters = list(parameters)

    def run(steps):
        for step in range(steps):
            loss = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        return time.perf_counter()

    return run
