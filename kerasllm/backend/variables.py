"""Models whose variables begin with given values, without initial values made in vain."""

import functools
import mmap

import keras
import numpy as np
from keras.src.backend.common import global_state

from kerasllm.backend import meshes
from kerasllm.backend.compilation import name

UNINITIALIZED = "uninitialized_variables"  # where Keras keeps those that a stateless scope has made


def built_with(build, read):
    """Build a model whose variables get their values from `read`.

    No initial values are drawn, not even where Keras asks for a layer's shape, and nothing is allocated before `read`
    has agreed to the model's shapes. Then each array is read, converted to its variable's dtype and dropped, so that
    the memory taken is that of the variables and little more.

    Args:
        build: function of nothing -> model.
        read: function (dict variable path -> shape) -> dict variable path -> array, or what numpy takes for one.

    Returns:
        The model.

    Raises:
        What `build` and `read` raise, and what the arrays raise when they are read.
    """
    values = []
    # Variables made in a stateless scope get their values when it ends, from what is then their initializer.
    with keras.StatelessScope():
        made = _Waiting()
        global_state.set_global_attribute(UNINITIALIZED, made)
        try:
            model = build()
            arrays = read({v.path: tuple(v.shape) for v in model.weights})
        except BaseException:
            made.clear()  # they are never asked for
            raise
        for variable in made:
            variable._initializer = variable._initializer.initializer
        for variable in model.weights:
            values.append(_Value(arrays[variable.path]))
            variable._initializer = values[-1]
            if meshes.current():
                # Keras makes the whole first, on one device or as a constant of a compiled function.
                vars(variable)["_initialize_with_initializer"] = functools.partial(_initialize_in_parts, variable)
    for value in values:
        if value.error:
            raise value.error
    return model


def _initialize_in_parts(variable, value):
    """Give a variable its value on the devices of the mesh, each of which is given its part alone."""
    del vars(variable)["_initialize_with_initializer"]
    variable._initialize_layout()
    array = value.host_array(variable._shape, variable.dtype)
    variable._value = meshes.in_its_parts(array, variable._layout)
    _forget_pages(array)


def _forget_pages(array):
    """Let the system take back the memory of a file's pages that were read for an array, if it is mapped."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    if array is not None and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)


class _Waiting(list):
    """Variables without values, whose initializers are not called while shapes are inferred."""

    def append(self, variable):
        variable._initializer = _Placeholder(variable._initializer)
        super().append(variable)


class _Placeholder:
    """In place of an initializer, one that takes neither time nor memory."""

    def __init__(self, initializer):
        self.initializer = initializer

    def __call__(self, shape, dtype=None):
        return keras.ops.broadcast_to(keras.ops.zeros((), dtype), shape)


class _Value:
    """An initializer that hands out the values of one array, once; Keras needs one that never fails."""

    def __init__(self, array):
        self.array, self.error = array, None

    def host_array(self, shape, dtype):
        """The array as it lies in a file, where it may, for parts of it to be read."""
        try:
            array = np.asarray(self.array)
        except Exception as error:
            array, self.error = np.zeros(shape, "int8"), error
        self.array = None
        return array.astype(keras.backend.standardize_dtype(dtype), copy=False)

    def __call__(self, shape, dtype=None):
        dtype = np.dtype(keras.backend.standardize_dtype(dtype))
        try:
            array = np.array(self.array, dtype, order="C")
        except Exception as error:
            array, self.error = np.zeros((), dtype), error
        _forget_pages(self.array)
        self.array = None
        if name() != "torch":
            return keras.ops.convert_to_tensor(array)
        import torch

        # Over the array's memory, which Keras would copy; bfloat16, which torch does not take from numpy, by its bits.
        if dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
