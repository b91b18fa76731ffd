"""`fit` and `evaluate` of several processes that train one model: each has its rows, one prints and writes."""

import contextlib
import inspect

import keras

from kerasllm import backend
from kerasllm.arguments import shown
from kerasllm.training.comparing import described_run
from kerasllm.training.losses import MEANS
from kerasllm.training.shards import Shard

WRITERS = (keras.callbacks.CSVLogger, keras.callbacks.TensorBoard, keras.callbacks.RemoteMonitor)


@contextlib.contextmanager
def fitted_together(model, arguments):
    """Inside it, `fit` with these arguments, a dict, is that of all processes.

    Raises:
        ValueError: data, model or settings are others than those of another process, or nothing can tell which rows
            each has; in all processes, and before the first step.
    """
    ranks = backend.ranks()
    _check_losses(model)
    if ranks.count == 1:
        yield
        return
    backend.check_agreed(_facts(model, arguments))
    if ranks.index:
        arguments["verbose"] = 0
        callbacks = keras.tree.flatten(arguments.get("callbacks") or [])
        arguments["callbacks"] = [callback for callback in callbacks if not isinstance(callback, WRITERS)]
    validation, *_ = keras.utils.unpack_x_y_sample_weight(arguments.get("validation_data"))
    with sharded(model, "x", arguments.get("x")), sharded(model, "validation_data", validation):
        if ranks.sees_all:
            yield
            return
        backend.broadcast(model.variables)
        with backend.averaged(model.optimizer):
            yield


def sharded(model, name, data):
    """Inside it, a dataset of ours gives this process's rows of each batch; without several processes all."""
    ranks = backend.ranks()
    _check_losses(model)
    if ranks.count == 1 or data is None:
        return contextlib.nullcontext()
    if not hasattr(data, "sharded"):
        raise ValueError(
            f"{name} ({shown(data)}) must be a dataset of kerasllm.training in a run of {ranks.count} processes: it "
            "knows which rows each has, and what they count."
        )
    if ranks.sees_all:
        return data.sharded(Shard(ranks.index, ranks.count, multiple=backend.rows_multiple()))
    return data.sharded(Shard(ranks.index, ranks.count, num_counted=model.count_of_batch))


def _check_losses(model):
    """Raise `ValueError` for a loss that is not the mean of what processes or replicas have of it."""
    ranks, copies = backend.ranks(), backend.ranks().count * backend.replicas()
    if ranks.sees_all or copies == 1:
        return
    for loss in keras.tree.flatten(model.loss) if model.compiled else ():
        if hasattr(loss, "label_kind"):
            raise ValueError(
                f"loss ({type(loss).__name__}) compares rows of a batch with one another, which go to {copies} copies "
                "of the model: train it on one device, or on JAX."
            )
        if getattr(loss, "reduction", MEANS[0]) not in MEANS:
            raise ValueError(f"loss: reduction ({loss.reduction!r}) must be a mean where {copies} copies are trained.")


def check_batches(x, batch_size=None):
    """Raise `ValueError` where most batches do not divide over the devices of a mesh, each of which would compute all.

    Args:
        x: a dataset of ours, or arrays.
        batch_size: rows of a batch of arrays. Default: Keras's 32.
    """
    over = backend.rows_multiple()
    if over == 1:
        return
    if getattr(x, "batch_tokens", None) is not None:
        raise ValueError(
            f"batch_tokens ({x.batch_tokens}) makes batches of any number of rows, which the {over} devices of 'data' "
            f"do not divide: give the dataset a batch_size, a multiple of {over}."
        )
    rows = getattr(x, "batch_size", None) or batch_size or 32
    if rows % over:
        raise ValueError(f"batch_size ({rows}) must be a multiple of the number of devices of 'data', {over}.")


def _facts(model, arguments):
    """What must be the same in all processes."""
    defaults = {p.name: p.default for p in inspect.signature(keras.Model.fit).parameters.values()}
    run = described_run(model, {**defaults, **arguments}, [])
    names = {"model": "model", "optimizer": "optimizer", "compile": "compile", "data": "x", "fit": "an argument of fit"}
    names["validation_data"] = "validation_data"
    return {name: run[fact] for fact, name in names.items()} | {"epochs": arguments.get("epochs", 1)}
