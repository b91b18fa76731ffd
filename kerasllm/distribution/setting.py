"""Saying, before a model is built, over which devices it and its batches are spread."""

from collections.abc import Mapping

from kerasllm import backend
from kerasllm.arguments import check_boolean, is_whole, shown
from kerasllm.distribution.rules import split_axis

AXES = backend.AXES
SHORT = {"data": ({"data": -1}, False), "fsdp": ({"data": -1}, True), "model": ({"model": -1}, False)}


def distribute(mesh="data", shard_weights=False, devices=None):
    """Spread the models that are built from now on, and their batches, over several devices.

    `fit`, `evaluate` and what models do with texts then run as on one device, and compute the same.

    On JAX that is a `keras.distribution` over all devices, those of other processes too: rows of a batch along the axis
    "data"; heads, channels of feed-forwards and the vocabulary along "model". Rules on the names of our layers say what
    is split (`kerasllm.distribution.rules`); what cannot be is printed when a model is built, and in
    `sharding_summary(model)`. Several processes are those that Keras's variables KERAS_DISTRIBUTION_JOB_ADDRESSES,
    _NUM_PROCESSES and _PROCESS_ID name, or that `jax.distributed.initialize()` has joined.

    On TensorFlow there is a copy of a model on each GPU of the machine (`tf.distribute.MirroredStrategy`), on PyTorch
    in each process of `torchrun`: the mesh is "data", and holds until the end of the program.

    Args:
        mesh: dict axis -> number of devices, "data", "model" or both, -1 for all that are left; or for short "data",
            "model", or "fsdp", which is {"data": -1} with `shard_weights`. None ends what an earlier call began.
        shard_weights: whether weights, gradients and the optimizer's state are split over "data" too, in place of a
            copy on each device.
        devices: list of names, such as "gpu:0", in the order of the mesh. Default: all that Keras lists.

    Returns:
        What is set: a `keras.distribution.Distribution`, a strategy of TensorFlow's, or which process this is of how
        many (`index`, `count`).

    Raises:
        ValueError: the mesh has more or fewer places than there are devices; the backend cannot have it; another
            process has another mesh or seed.

    Example:
        >>> kerasllm.distribute({"data": 2, "model": 4})
        >>> model = kerasllm.GPT.from_preset(...)
        >>> model.fit(data)
    """
    if mesh is None:
        return backend.spread(None)
    check_boolean("shard_weights", shard_weights)
    sizes, is_sharded = read_mesh(mesh)
    return backend.spread(sizes, devices, split_axis, is_sharded or bool(shard_weights))


def read_mesh(mesh):
    """A mesh as `distribute` takes it: dict of both axes, one size of them perhaps -1; whether weights are split."""
    if isinstance(mesh, str) and mesh in SHORT:
        sizes, is_sharded = SHORT[mesh]
        return {axis: sizes.get(axis, 1) for axis in AXES}, is_sharded
    is_mesh = isinstance(mesh, Mapping) and mesh and all(axis in AXES for axis in mesh)
    if not is_mesh or not all(is_whole(n) and (n > 0 or n == -1) for n in mesh.values()):
        raise ValueError(
            f"mesh ({shown(mesh)}) must be {', '.join(map(repr, SHORT))} or a dict of the axes "
            f"{' and '.join(map(repr, AXES))} to numbers of devices, such as {{'data': 2, 'model': 4}}."
        )
    if list(mesh.values()).count(-1) > 1:
        raise ValueError(f"mesh ({shown(mesh)}) must have one axis of -1 at most.")
    return {axis: int(mesh.get(axis, 1)) for axis in AXES}, False
