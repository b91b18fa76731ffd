"""Meshes of JAX's devices, of which Keras asks where each variable and each batch lies."""

import contextlib
import contextvars
import dataclasses
import math
import os
import re

import keras
import numpy as np
from keras import ops
from keras.backend import backend as name

from kerasllm.arguments import shown
from kerasllm.backend.ranks import check_agreed, is_copied, replicas, seed, start_replicas

AXES = DATA, MODEL = "data", "model"
"""The axes: along the first are the rows of a batch, along the second the parts of the weights."""

VARIABLES = "NUM_PROCESSES", "PROCESS_ID", "JOB_ADDRESSES"
HEARTBEAT_SECONDS = 30  # without a sign of life of a process the others end

_parts = contextvars.ContextVar("parts", default=None)


@contextlib.contextmanager
def in_parts(count):
    """Inside it, an axis that variables are split along has so many parts, heads for one, which stay whole."""
    token = _parts.set(count)
    try:
        yield
    finally:
        _parts.reset(token)


def spread(sizes, devices=None, split_axis=None, shards_weights=False):
    """Spread the models that are built from now on over devices: on JAX a `Mesh`, on others a copy on each.

    Args:
        sizes: dict axis -> number of devices, one of them perhaps -1; None ends it, on JAX.
        devices, split_axis, shards_weights: as for `Mesh`.

    Returns:
        The `Mesh`, or what `start_replicas` returns.
    """
    if name() != "jax":
        if sizes is None or sizes[MODEL] != 1 or shards_weights:
            raise ValueError(
                f"mesh ({shown(sizes)}) must be 'data' on {name()}, until the end of the program: JAX splits weights."
            )
        return start_replicas(sizes[DATA], devices)
    mesh = None
    if sizes is not None:
        _join_processes()
        devices = keras.distribution.list_devices() if devices is None else list(devices)
        mesh = Mesh(_filled(sizes, len(devices)), devices, split_axis, shards_weights)
        if mesh.num_processes > 1:
            check_agreed({"mesh": mesh.sizes, **seed()})
            if mesh.sizes[DATA] % mesh.num_processes:
                raise ValueError(
                    f"mesh: 'data' ({mesh.sizes[DATA]}) must be a multiple of the number of processes, "
                    f"{mesh.num_processes}, each of which has rows of its own."
                )
    keras.distribution.set_distribution(mesh)
    _place_each_batch()
    return mesh


def _join_processes():
    """Join the processes that Keras's environment variables name, before JAX looks for devices.

    As `keras.distribution.initialize`, which waits 100 seconds for a process that is gone.
    """
    import jax
    from keras.src.backend.jax.distribution_lib import initialize_rng

    count, rank, addresses = (os.environ.get(f"KERAS_DISTRIBUTION_{name}") for name in VARIABLES)
    if count in (None, "1") or jax.distributed.is_initialized():
        return
    if not (addresses and count.isdecimal() and rank and rank.isdecimal() and int(rank) < int(count)):
        raise ValueError(
            f"KERAS_DISTRIBUTION_NUM_PROCESSES ({count}), _PROCESS_ID ({rank}) and _JOB_ADDRESSES ({addresses}) must "
            "be a number, one below it, and the first process's host:port."
        )
    jax.distributed.initialize(
        addresses.partition(",")[0], int(count), int(rank), heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )
    initialize_rng()


def _place_each_batch():
    """Let Keras ask where the arrays of each batch lie, where it takes those of the first for all.

    So a last batch whose rows do not divide over the devices is an error (3.15.1,
    https://github.com/keras-team/keras/blob/v3.15.1/keras/src/backend/jax/trainer.py, `_get_distributed_iterator`).
    """
    from keras.src.backend.jax import trainer

    of_keras = trainer._distribute_data
    if getattr(of_keras, "is_ours", False):
        return

    def distribute_data(data, layouts=None):
        mesh = current()
        return of_keras(data, layouts) if mesh is None else keras.tree.map_structure(mesh.place, data)

    distribute_data.is_ours = True
    trainer._distribute_data = distribute_data


def _filled(sizes, count):
    """The sizes of a mesh whose -1 is the number of devices that are left of `count`, all of which it must take."""
    known = math.prod(n for n in sizes.values() if n != -1)
    full = {axis: count // known if n == -1 else n for axis, n in sizes.items()}
    if math.prod(full.values()) != count or 0 in full.values():
        raise ValueError(
            f"mesh ({shown(sizes)}) must have a place for each of the {count} devices: change it, or name the devices."
        )
    return full


class Whole(np.ndarray):
    """An array of a batch that every process has all rows of, in place of its own."""


class Mesh(keras.distribution.ModelParallel):
    """A distribution of Keras's over a mesh of the axes "data" and "model".

    Args:
        sizes: dict axis -> number of devices along it.
        devices: list of their names, as many as the mesh has places.
        split_axis: function (path of a variable, its shape) -> the axis that goes over "model", None where none does;
            it raises KeyError where it does not know.
        shards_weights: whether matrices are split over "data" too.

    Attributes:
        notes: dict path of a variable -> why it is not split as it was to be.
    """

    def __init__(self, sizes, devices, split_axis, shards_weights):
        mesh = keras.distribution.DeviceMesh((sizes[DATA], sizes[MODEL]), (DATA, MODEL), devices)
        layout_map = keras.distribution.LayoutMap(mesh)
        super().__init__(layout_map=layout_map, batch_dim_name=DATA, auto_shard_dataset=False)
        self.sizes, self.split_axis, self.shards_weights = sizes, split_axis, shards_weights
        self.notes = {}

    def get_variable_layout(self, variable):
        if getattr(variable, "_layout", None) is not None:
            return variable._layout
        return self._layout(self._axes(variable.path, tuple(variable.shape)))

    def get_tensor_layout(self, path):
        return None

    def get_data_layout(self, data_shape):
        if self.divides(data_shape[0]):
            return super().get_data_layout(data_shape)
        return self._layout([None] * len(data_shape))

    def divides(self, rows):
        """Whether a batch of so many rows of this process divides over the devices of "data"."""
        return rows * self.num_processes % self.sizes[DATA] == 0

    def place(self, array):
        """An array of a batch, (B, ...), on the devices: in parts, or where its rows do not divide whole on each."""
        if array is None:
            return None
        import jax

        is_whole = isinstance(array, Whole)
        layout = self._layout([None] * len(array.shape)) if is_whole else self.get_data_layout(array.shape)
        return jax.make_array_from_process_local_data(layout.backend_layout, np.asarray(array))

    def _layout(self, axes):
        return keras.distribution.TensorLayout(axes, self.device_mesh)

    def _axes(self, path, shape):
        """The axis of the mesh, or None, that each axis of a variable goes over."""
        axes = [None] * len(shape)
        if self.sizes[MODEL] > 1:
            axis = self._model_axis(path, shape)
            if axis is not None:
                axes[axis] = MODEL
        if self.shards_weights and self.sizes[DATA] > 1 and len(shape) > 1:
            free = [i for i, n in enumerate(shape) if axes[i] is None and n % self.sizes[DATA] == 0]
            if free:
                axes[max(free, key=lambda i: shape[i])] = DATA
            else:
                self.notes[path] = f"{shape}: no axis divides by the {self.sizes[DATA]} devices of {DATA!r}"
        return axes

    def _model_axis(self, path, shape):
        over, parts = self.sizes[MODEL], _parts.get()
        try:
            axis = self.split_axis(path, shape)
        except KeyError:
            self.notes[path] = f"{shape}: no rule knows it, so that each device of {MODEL!r} has all of it"
            return None
        if axis is None:
            return None
        if parts is not None and parts % over:
            self.notes[path] = f"its {parts} heads do not divide by the {over} devices of {MODEL!r}: each has all"
            return None
        for candidate in (axis, *(i for i in range(len(shape)) if i != axis and parts is None)):
            if shape[candidate] % over == 0:
                if candidate != axis:
                    self.notes[path] = f"{shape}: split along axis {candidate}, for {over} devices do not divide {axis}"
                return candidate
        self.notes[path] = f"{shape}: no axis divides by the {over} devices of {MODEL!r}: each has all"
        return None


def current():
    """The `Mesh` that is set, or None."""
    distribution = keras.distribution.distribution()
    return distribution if isinstance(distribution, Mesh) else None


def check_placed(model):
    """Raise `ValueError` where a mesh, or replicas of TensorFlow's, were set after the model was built, or others."""
    if name() != "jax":
        if replicas() > 1 and not all(map(is_copied, model.variables)):
            raise ValueError(f"{model.name} was built for one device: call `kerasllm.distribute` before building it.")
        return
    mesh = current()
    for variable in model.variables:
        layout = getattr(variable, "_layout", None)
        built_for = layout.device_mesh if isinstance(layout, keras.distribution.TensorLayout) else None
        if built_for is not (None if mesh is None else mesh.device_mesh):
            now = "none is set" if mesh is None else "another is set"
            was = "without a mesh of devices" if built_for is None else "on a mesh of devices"
            raise ValueError(
                f"{model.name} was built {was}, and now {now}: call `kerasllm.distribute` before building or opening "
                "the model."
            )


def notes_of(model):
    """Lines that say which variables of a model are not split as they were to be, those that are alike together."""
    groups = {}
    for variable in model.variables if current() else ():
        if variable.path in current().notes:
            group = re.sub(r"\d+", "*", variable.path), current().notes[variable.path]
            groups[group] = groups.get(group, 0) + 1
    return [f"{path}{f' x {n}' if n > 1 else ''}: {note}" for (path, note), n in groups.items()]


def in_its_parts(array, layout):
    """A numpy array as one of JAX's, of which each device of a layout is given its part alone."""
    import jax

    return jax.make_array_from_callback(
        array.shape, layout.backend_layout, lambda part: np.ascontiguousarray(array[part])
    )


def rows_multiple():
    """What the rows of a batch of all processes must be a multiple of, so that each device has as many."""
    return 1 if current() is None else current().sizes[DATA]


def placed(array):
    """An array of a batch, (B, ...), which all processes have, as a tensor on the devices of the mesh that is set."""
    mesh = current()
    if mesh is None:
        return ops.convert_to_tensor(array)
    array = np.asarray(array)
    return mesh.place(array if mesh.num_processes == 1 else array.view(Whole))


def readable(results):
    """A nest of results inside a compiled function, those that hosts read whole on each of several processes."""
    mesh = current()
    if mesh is None or mesh.num_processes == 1:
        return results
    import jax

    def whole(x):  # caches, (B, N, S, H), stay where they are
        layout = mesh._layout([None] * x.ndim).backend_layout
        return jax.lax.with_sharding_constraint(x, layout) if x.ndim < 4 else x

    return jax.tree.map(whole, results)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a variable lies.

    Attributes:
        split: how, in words.
        bytes: dict name of a device of this process -> bytes on it.
        note: why it is not split as it was to be, or None.
    """

    split: str
    bytes: dict
    note: str | None = None


def placement(variable):
    """The `Placement` of a variable."""
    if name() != "jax":
        size = math.prod(variable.shape) * np.dtype(keras.backend.standardize_dtype(variable.dtype)).itemsize
        return Placement("whole", {str(variable.value.device): size})
    value = variable.value
    held = {}
    for shard in value.addressable_shards:
        device = f"{shard.device.platform}:{shard.device.id}"
        held[device] = held.get(device, 0) + shard.data.nbytes
    axes = getattr(getattr(variable, "_layout", None), "axes", ())
    split = ", ".join(f"axis {i} over {axis!r}" for i, axis in enumerate(axes) if axis)
    note = getattr(current(), "notes", {}).get(variable.path)
    return Placement(f"split: {split}" if split else "whole", held, note)
