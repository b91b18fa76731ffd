"""What the callbacks of a run have come to: their best values, counters and logs, to be taken up again."""

import inspect
import os

import keras

from kerasllm.training.state_files import encoded

# What a callback has of the run itself, and not as its own; and how much it says, which may be another.
NOT_OWN = {"model", "_model", "params", "verbose"}


def with_inner(callbacks):
    """A list of callbacks, each followed by those that it keeps in a list of its own."""
    found = []
    for callback in callbacks:
        lists = [value for value in vars(callback).values() if isinstance(value, list | tuple)]
        inner = [x for values in lists for x in values if isinstance(x, keras.callbacks.Callback)]
        found += [callback, *with_inner(inner)]
    return found


def arguments_of(callback):
    """What a callback was constructed with, as far as it keeps that under the names of its constructor's arguments."""
    names = inspect.signature(type(callback).__init__).parameters.keys() - {"self", "verbose"}
    return {name: value for name, value in vars(callback).items() if name in names}


def state_of(callback):
    """The state of a callback: its attributes that are plain values and arrays; of a `CSVLogger` the log's size.

    A class may name others that are to be left out in `not_resumed`.
    """
    if isinstance(callback, keras.callbacks.CSVLogger):
        if callback.csv_file and not callback.csv_file.closed:
            callback.csv_file.flush()
        return {"size": os.path.getsize(callback.filename)}
    if isinstance(callback, keras.callbacks.ProgbarLogger):
        return {}
    left_out = NOT_OWN | set(getattr(callback, "not_resumed", ()))
    return {name: value for name, value in vars(callback).items() if name not in left_out and _is_kept(value)}


def _is_kept(value):
    try:
        encoded(value, arrays := [])
    except TypeError:
        return False
    return not any(isinstance(array, keras.Variable) for array in arrays)


def restore(callback, state):
    """Give a callback, after its `on_train_begin`, the state that it had."""
    if not isinstance(callback, keras.callbacks.CSVLogger):
        for name, value in state.items():
            setattr(callback, name, value)


def cut_log(callback, state):
    """Let the log of a `CSVLogger`, before its `on_train_begin`, end where it ended then; what follows is added.

    Returns:
        a function to be called after `on_train_begin`.

    Raises:
        ValueError: the file is gone or shorter.
    """
    size, append = state["size"], callback.append
    found = os.path.getsize(callback.filename) if os.path.exists(callback.filename) else 0
    if found < size:
        raise ValueError(
            f"callbacks: the log of CSVLogger ({callback.filename!r}) has {found} bytes and had {size} when the "
            "checkpoint was written; put it back, or begin anew in another folder."
        )
    if found:
        os.truncate(callback.filename, size)
    callback.append = True
    return lambda: setattr(callback, "append", append)
