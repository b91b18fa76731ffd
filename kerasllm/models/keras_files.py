"""Where Keras writes our models: beside what is there, which it then replaces as a whole."""

import contextlib
import math
import os
import pathlib
import re

import keras
import numpy as np

from kerasllm import writing
from kerasllm.arguments import read_path

FOLDER = {"metadata.json", "config.json", "model.weights.h5", "assets"}  # what Keras writes into one


def may_write(filepath, overwrite):
    """Whether Keras may write to a path; where something is there that it shall not replace, it asks the user."""
    read_path("filepath", filepath)
    if overwrite or "://" in str(filepath) or not os.path.exists(filepath):
        return True
    from keras.src.utils import io_utils  # Keras's own words

    return io_utils.ask_to_proceed_with_overwrite(str(filepath))


@contextlib.contextmanager
def replacing(filepath, is_folder=False):
    """A path for Keras to write to, whose content takes the place of `filepath` as a whole.

    It is `filepath` itself where Keras refuses or goes elsewhere.
    """
    name = str(filepath)
    known = is_folder != name.endswith((".keras", ".h5", ".weights.json"))
    if "://" in name or not known:
        yield filepath
    elif name.endswith(".json"):  # with shards beside it
        shard = re.compile(re.escape(pathlib.Path(name).stem.removesuffix(".weights")) + r"_\d{5}\.weights\.h5")
        with writing.staged(pathlib.Path(name).parent, shard.fullmatch, f"filepath ({name!r})") as new:
            yield new / pathlib.Path(name).name
    elif is_folder and os.path.isdir(filepath) and set(os.listdir(filepath)) - FOLDER:
        with writing.staged(filepath, described=f"filepath ({name!r})") as new:
            yield new
    else:
        with writing.replacing(filepath) as place:
            yield place


def check_room(place, model, max_shard_size=None):
    """Raise `OSError` where there is no room for the weights: on a full disk HDF5 may crash the process."""
    folder, optimizer = pathlib.Path(place).parent, getattr(model, "optimizer", None)
    if "://" in str(place) or not folder.is_dir():
        return
    variables = [*model.variables, *(optimizer.variables if optimizer else [])]
    sizes = [math.prod(v.shape) * np.dtype(keras.backend.standardize_dtype(v.dtype)).itemsize for v in variables]
    limit = max_shard_size * 2**30 if isinstance(max_shard_size, int | float) else sum(sizes)
    size_of_file = max(min(limit, sum(sizes)), *sizes, 1)
    described = 2**14 + 2**11 * len(variables)  # what HDF5 says of each, at most
    writing.check_room(folder, [int(size_of_file) + described] * math.ceil(sum(sizes) / size_of_file))
