"""Several processes that train one model: on torch by `torch.distributed`, on JAX by its own.

Each process, a rank, takes its share of every batch. On JAX the arrays of all of them are parts of one, and a mean over
it is the mean. On torch each rank has a loss and gradients of its own rows, which are averaged here, as
`torch.nn.parallel.DistributedDataParallel` does. The average of the gradients g_p of P ranks whose rows count n_p
tokens is that of the mean over all tokens where each loss was multiplied by P n_p / (n_1 + ... + n_P):

    1/P sum_p [P n_p / n] g_p  =  sum_p (n_p / n) g_p
"""

import contextlib
import dataclasses
import hashlib
import json
import os

import keras
import numpy as np
from keras.backend import backend as name
from keras.src.utils import rng_utils

from kerasllm.arguments import shown


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        index, count: which this is of how many.
        sees_all: whether a mean over the rows of a batch is that over the rows of all processes, as on JAX.
    """

    index: int = 0
    count: int = 1
    sees_all: bool = False


ALONE = Ranks()


def ranks():
    """The `Ranks` of this run; `ALONE` where it is one process."""
    if name() == "torch" and _is_started():
        import torch.distributed

        return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    distribution = keras.distribution.distribution() if name() == "jax" else None
    if distribution is not None and distribution.num_processes > 1:
        import jax

        return Ranks(jax.process_index(), jax.process_count(), sees_all=True)
    return ALONE


def start_torch():
    """Join the processes that `torchrun` has started, if it has, on the GPU of this one where there are GPUs."""
    import torch

    if _is_started() or "WORLD_SIZE" not in os.environ:
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK ({local}) has no GPU: there are {torch.cuda.device_count()}, and torchrun has started "
                "more processes on this machine."
            )
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    check_agreed(seed())


def _is_started():
    import torch.distributed

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def check_agreed(facts):
    """Raise `ValueError` in all processes unless all have the same facts.

    Args:
        facts: dict name -> what tells one from another by its `repr`.
    """
    mine = {fact: hashlib.sha256(repr(value).encode()).hexdigest() for fact, value in facts.items()}
    for rank, theirs in enumerate(_gathered(mine)):
        for fact in mine:
            if theirs.get(fact) != mine[fact]:
                raise ValueError(f"{fact} of process {rank} is another than that of process {ranks().index}.")


def seed():
    """The seed that `keras.utils.set_random_seed` has set, for `check_agreed`."""
    return {"the seed of keras.utils.set_random_seed": rng_utils.get_random_seed()}


def shared(work, batches, rows):
    """What `work` makes of batches. Of several processes of torch each takes its share of them, and all get all.

    On JAX the rows of each batch are spread over the devices of all processes.

    Args:
        work: function of a batch.
        batches: a list. One alone is the work of each process, which may ask for it without the others.
        rows: what batches are made of, the same in all processes.

    Returns:
        A list, in the order of `batches`.

    Raises:
        ValueError: another process has other rows.
        RuntimeError: in another process `work` has raised an error, which is named.
    """
    here = ranks()
    if here.count == 1 or here.sees_all or len(batches) < 2:
        return [work(batch) for batch in batches]
    check_agreed({"what is read": rows})
    made, failure = [], None
    try:
        made = [work(batch) for batch in batches[here.index :: here.count]]
    except Exception as error:
        failure = error
    found = _gathered((made, failure and f"{type(failure).__name__}: {failure}"))
    if failure:
        raise failure
    for rank, (_, error) in enumerate(found):
        if error:
            raise RuntimeError(f"Process {rank} has failed: {error}")
    return [found[i % here.count][0][i // here.count] for i in range(len(batches))]


def _gathered(value):
    """The values of all ranks, which on JAX JSON holds: a list."""
    if name() == "torch":
        import torch.distributed

        found = [None] * ranks().count
        torch.distributed.all_gather_object(found, value)
        return found
    from jax.experimental import multihost_utils

    written = np.frombuffer(json.dumps(value).encode(), "uint8")
    sizes = multihost_utils.process_allgather(np.array(len(written), "int32"))
    padded = np.zeros(sizes.max(), "uint8")
    padded[: len(written)] = written
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def broadcast(variables):
    """Give variables the values that they have in the first process."""
    if name() != "torch":
        return
    import torch

    for variable in variables:
        torch.distributed.broadcast(variable.value.data, 0)


def wait():
    """Wait for all processes to come here."""
    if name() == "torch":
        import torch

        torch.distributed.barrier()
    else:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("kerasllm")


@contextlib.contextmanager
def averaged(optimizer):
    """Inside it, an optimizer of torch applies the average of all ranks' gradients."""
    import torch

    apply = optimizer.apply

    def apply_average(gradients, variables=None):
        there = [g for g in gradients if g is not None]
        for dtype in {g.dtype for g in there}:
            same = [g for g in there if g.dtype == dtype]
            flat = torch.cat([g.reshape(-1) for g in same])
            torch.distributed.all_reduce(flat)
            flat /= ranks().count
            for g, part in zip(same, flat.split([g.numel() for g in same]), strict=True):
                g.copy_(part.view_as(g))
        return apply(gradients, variables)

    vars(optimizer)["apply"] = apply_average  # past Keras's tracking
    try:
        yield
    finally:
        del vars(optimizer)["apply"]


def sums(variables):
    """The values of a run's variables of metrics, those of all ranks together: a list of numpy arrays."""
    if name() != "torch" or ranks().count == 1:
        return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
    with summed(variables):
        return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def summands(values):
    """What this rank begins with, so that the `sums` are these values: the first has them all."""
    return values if name() != "torch" or ranks().index == 0 else [np.zeros_like(value) for value in values]


@contextlib.contextmanager
def one_writer(model):
    """Inside it, the weights of a model are there as a whole for the one process that writes; the others wait.

    All processes must enter it. It gives whether this one writes.
    """
    here = ranks()
    if here.count == 1:
        yield True
        return
    split = [v for v in _all_variables(model) if name() == "jax" and not v.value.is_fully_replicated]
    values = [v.value for v in split]
    try:
        for variable in split:
            whole = _whole(variable.value)
            variable._value = whole if here.index == 0 else variable._value
        yield here.index == 0
    finally:
        for variable, value in zip(split, values, strict=True):
            variable._value = value
    wait()


def _whole(array):
    """An array of JAX's, of which this process has a part, in numpy."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _all_variables(model):
    optimizer = getattr(model, "optimizer", None)
    return [*model.variables, *(optimizer.variables if getattr(optimizer, "built", False) else [])]


@contextlib.contextmanager
def summed(variables):
    """Inside it, variables of metrics have the sums over all ranks."""
    import torch

    before = [v.value.clone() for v in variables]
    try:
        with torch.no_grad():
            for variable in variables:
                total = variable.value.clone()
                torch.distributed.all_reduce(total)
                variable.assign(total)
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def replicas():
    """How many replicas of TensorFlow's take a step together, of whose losses Keras's are the share 1 / replicas."""
    if name() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def is_copied(variable):
    """Whether each of TensorFlow's replicas has a variable of its own."""
    import tensorflow as tf

    return isinstance(variable._value, tf.distribute.DistributedValues)


def share_of_replica(count):
    """What a replica's mean loss is times in the mean of all, of which it counts `count`: None where it is all.

    TensorFlow adds the gradients of R replicas, each of 1 / R of its mean. So this is R n_r / (n_1 + ... + n_R).
    """
    if replicas() == 1:
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None:  # nothing is computed: Keras looks at shapes
        return None
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, count)
    return replicas() * count / tf.maximum(total, 1e-30)


def sum_gradients_first(optimizer):
    """Let an optimizer of TensorFlow's replicas add their gradients before it clips and measures them.

    Keras clips those of each replica, and adds what is left (3.15.1,
    https://github.com/keras-team/keras/blob/v3.15.1/keras/src/backend/tensorflow/optimizer.py, `_backend_update_step`).

    Raises:
        ValueError: it accumulates gradients, whose update TensorFlow cannot begin in the branch of a graph.
    """
    import tensorflow as tf

    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if "apply" in vars(optimizer):
        return
    if getattr(optimizer, "gradient_accumulation_steps", None):
        raise ValueError(
            f"gradient_accumulation_steps ({optimizer.gradient_accumulation_steps}) does not go with several replicas "
            "of TensorFlow: give the dataset a larger batch_size."
        )
    apply = optimizer.apply

    def apply_sum(gradients, variables=None):
        context, there = tf.distribute.get_replica_context(), [g for g in gradients if g is not None]
        if context is not None and there:
            sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, there))
            gradients = [None if g is None else next(sums) for g in gradients]
        return apply(gradients, variables)

    # Past Keras's tracking, which would count them among what is saved.
    vars(optimizer).update(apply=apply_sum, _all_reduce_sum_gradients=list)


def start_replicas(count, devices=None):
    """Begin to train copies of a model, one on each device: on torch a process for each, on TensorFlow in this one.

    Args:
        count: how many, -1 for as many as there are.
        devices: names of them, on TensorFlow.

    Raises:
        ValueError: there are others than `count`.
    """
    if name() == "torch":
        if devices is not None:
            raise ValueError(f"devices ({shown(devices)}) must be None on torch: torchrun says which each process has.")
        start_torch()
        there, how = ranks().count, "; `torchrun --nproc-per-node N script.py` starts N"
    else:
        import tensorflow as tf

        devices = devices or [device.name for kind in ("GPU", "CPU") for device in tf.config.list_logical_devices(kind)]
        devices = [device for device in devices if "GPU" in device.upper()] or devices
        there, how = len(devices), ""
    if count not in (-1, there):
        raise ValueError(f"mesh: 'data' ({count}) must be the number of devices, {there}{how}.")
    if name() == "torch":
        return ranks()
    strategy = tf.distribute.MirroredStrategy(devices) if there > 1 else None
    tf.distribute.experimental_set_strategy(strategy)
    return tf.distribute.get_strategy()
