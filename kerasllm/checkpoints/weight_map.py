"""Tables of reversible rows between the tensors of a checkpoint and our variables.

A table is a list of rows `(foreign name, our variable path or paths, layout)`, in which `{i}` stands for the
number of a block. The same table reads and writes:

    ("h.{i}.ln_1.weight", "decoder/block_{i}/attention_norm/gamma", same)
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import ml_dtypes
import numpy as np

FLOATS = {np.dtype(dtype) for dtype in ("float16", ml_dtypes.bfloat16, "float32", "float64")}


@dataclass(frozen=True)
class Layout:
    """How one foreign tensor lies in one or more of our variables: two functions, each the other's inverse.

    Args:
        to_ours: (tensor, shapes of the variables) -> list of an array for each variable.
        to_foreign: list of an array for each variable -> tensor.
        foreign_shape: shapes of the variables -> shape of the tensor.
    """

    to_ours: Callable
    to_foreign: Callable
    foreign_shape: Callable


@dataclass(frozen=True)
class LazyArray:
    """What numpy takes for an array, whose values are read or computed each time it asks for them.

    Args:
        shape: tuple.
        dtype: numpy dtype.
        compute: function of nothing -> array.
    """

    shape: tuple
    dtype: np.dtype
    compute: Callable

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.compute(), dtype)


def _split(tensor, shapes):
    return np.split(tensor, np.cumsum([shape[-1] for shape in shapes])[:-1], axis=-1)


# Embeddings, norms and biases; kernels that are stored (in, out), such as GPT-2's Conv1D.
same = Layout(lambda tensor, shapes: [tensor], lambda arrays: arrays[0], lambda shapes: shapes[0])
# torch.nn.Linear stores (out, in), we (in, out).
transposed = Layout(lambda tensor, shapes: [tensor.T], lambda arrays: arrays[0].T, lambda shapes: shapes[0][::-1])
# A vector that is stored as a matrix of one row.
row = Layout(lambda tensor, shapes: [tensor[0]], lambda arrays: arrays[0][None], lambda shapes: (1, *shapes[0]))
# Several (in, out) kernels, or several biases, side by side in the last axis.
fused = Layout(
    _split,
    lambda arrays: np.concatenate(arrays, axis=-1),
    lambda shapes: (*shapes[0][:-1], sum(shape[-1] for shape in shapes)),
)


def after(count):
    """The `Layout` of a table whose first `count` rows nothing looks up: we leave them out, and write zeros."""
    return Layout(
        lambda tensor, shapes: [tensor[count:]],
        lambda arrays: np.concatenate([np.zeros_like(arrays[0], shape=(count, *arrays[0].shape[1:])), arrays[0]]),
        lambda shapes: (shapes[0][0] + count, *shapes[0][1:]),
    )


def linear(theirs, ours, kernel=transposed, bias=same):
    """The rows of a `torch.nn.Linear` and our dense layer.

    Args:
        theirs, ours: name and path of the layers; several paths where several of ours are one of theirs.
        kernel, bias: their `Layout`s; None for no bias.
    """
    paths = [ours] if isinstance(ours, str) else ours
    rows = [(f"{theirs}.weight", [f"{path}/kernel" for path in paths], kernel)]
    return rows if bias is None else [*rows, (f"{theirs}.bias", [f"{path}/bias" for path in paths], bias)]


def norm(theirs, ours):
    """The rows of a layer norm."""
    return [(f"{theirs}.weight", f"{ours}/gamma", same), (f"{theirs}.bias", f"{ours}/beta", same)]


def rms_norm(theirs, ours):
    """The row of an RMS norm."""
    return [(f"{theirs}.weight", f"{ours}/scale", same)]


class Row(NamedTuple):
    """A row of a table for one block."""

    name: str
    paths: tuple
    layout: Layout


def expand(table, num_layers):
    """The `Row`s of a table, those with an `{i}` once for each block."""
    rows = []
    for name, paths, layout in table:
        paths = (paths,) if isinstance(paths, str) else paths
        for i in range(num_layers if "{i}" in name else 1):
            rows.append(Row(name.replace("{i}", str(i)), tuple(p.replace("{i}", str(i)) for p in paths), layout))
    return rows


def read(rows, tensors, shapes, ignored=(), tied=None, dtypes=FLOATS):
    """Values for our variables from the tensors of a checkpoint.

    Args:
        rows: `Row`s that cover all variables.
        tensors: dict foreign name -> array, or anything with `shape`, `dtype` and `__array__`, such as a `LazyArray`.
        shapes: dict variable path -> shape.
        ignored: patterns (`fnmatch`) of foreign names that hold nothing a model of ours has.
        tied: dict of foreign names, duplicate -> original. A duplicate must equal its original; it stands in
            for an original that is absent.
        dtypes: numpy dtypes that tensors may have.

    Returns:
        dict variable path -> array, a view of the tensor where the layout allows it; or `LazyArray` for tensors
        that are no arrays.

    Raises:
        ValueError: names every tensor that is missing, left over, misshaped, of a wrong dtype or unequal to
            the one it is tied to, and every variable without a row.
    """
    tensors, problems = _untied(tensors, tied or {})
    problems += _name_problems(rows, tensors, shapes, ignored)
    arrays, misshaped, mistyped = {}, [], []
    for name, paths, layout in rows:
        if name not in tensors or any(path not in shapes for path in paths):
            continue
        tensor, path_shapes = tensors[name], [tuple(shapes[path]) for path in paths]
        expected = tuple(layout.foreign_shape(path_shapes))
        if tuple(tensor.shape) != expected:
            misshaped.append(f"{name} {tensor.shape} instead of {expected}")
        elif tensor.dtype not in dtypes:
            mistyped.append(f"{name} {tensor.dtype}")
        else:
            arrays.update(zip(paths, _to_ours(layout, tensor, path_shapes), strict=True))
    problems += _problem("misshaped tensors", misshaped)
    problems += _problem("tensors of no floating point type", mistyped)
    if problems:
        raise ValueError("; ".join(problems) + ".")
    return arrays


def write(rows, arrays):
    """The tensors of a checkpoint from the values of our variables: the inverse of `read`.

    Args:
        rows: `Row`s that cover all variables.
        arrays: dict variable path -> array, or `LazyArray`.

    Returns:
        dict foreign name -> array, or `LazyArray` where the arrays are none.

    Raises:
        ValueError: names the variables that have no row and the rows that have no variable.
    """
    paths = [path for row in rows for path in row.paths]
    problems = _problem("variables without a row", sorted(set(arrays) - set(paths)))
    problems += _problem("rows without a variable", [path for path in paths if path not in arrays])
    if problems:
        raise ValueError("; ".join(problems) + ".")
    return {row.name: _to_foreign(row.layout, [arrays[path] for path in row.paths]) for row in rows}


def renamed(tensors, rename):
    """The same tensors under the names `rename(name)`, for families whose files differ in a prefix."""
    names = {name: rename(name) for name in tensors}
    if len(set(names.values())) < len(names):
        twice = sorted(name for name, new in names.items() if list(names.values()).count(new) > 1)
        raise ValueError(f"tensors of the same meaning: {', '.join(twice)}.")
    return {names[name]: tensor for name, tensor in tensors.items()}


def _to_ours(layout, tensor, shapes):
    if isinstance(tensor, np.ndarray):
        return layout.to_ours(tensor, shapes)
    return [
        LazyArray(shape, tensor.dtype, lambda i=i: layout.to_ours(np.asarray(tensor), shapes)[i])
        for i, shape in enumerate(shapes)
    ]


def _to_foreign(layout, arrays):
    if all(isinstance(array, np.ndarray) for array in arrays):
        return layout.to_foreign(arrays)
    shape = tuple(layout.foreign_shape([tuple(array.shape) for array in arrays]))
    return LazyArray(shape, arrays[0].dtype, lambda: layout.to_foreign([np.asarray(array) for array in arrays]))


def _untied(tensors, tied):
    tensors, differing = dict(tensors), []
    for duplicate, original in tied.items():
        if duplicate in tensors:
            copy = tensors.pop(duplicate)
            if not np.array_equal(copy, tensors.setdefault(original, copy)):
                differing.append(f"{duplicate} (tied to {original})")
    return tensors, _problem("tensors that differ from the one they are tied to", differing)


def _name_problems(rows, tensors, shapes, ignored):
    names = {row.name for row in rows}
    paths = {path for row in rows for path in row.paths}
    extra = [name for name in tensors if name not in names and not any(fnmatchcase(name, p) for p in ignored)]
    return (
        _problem("missing tensors", [row.name for row in rows if row.name not in tensors])
        + _problem("extra tensors", extra)
        + _problem("variables without a row", [path for path in shapes if path not in paths])
        + _problem("rows without a variable", sorted(paths - set(shapes)))
    )


def _problem(kind, names, most=12):
    rest = [f"and {len(names) - most} more"] if len(names) > most else []
    return [f"{kind}: {', '.join([*names[:most], *rest])}"] if names else []
