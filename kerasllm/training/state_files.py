"""A nest of plain values and arrays as two files: `state.json`, and `arrays.bin`, which holds the arrays' bytes.

No pickle: what reads a file runs nothing of it. Tuples, numpy's numbers and functions of `keras.ops` come back as such.
"""

import json
import math
from pathlib import Path

import keras
import ml_dtypes  # noqa: F401  gives numpy the name bfloat16
import numpy as np

STEP = 64  # bytes, to a multiple of which arrays begin


def write(folder, state):
    """Write a nest into a folder that is there.

    Raises:
        TypeError: something in it is neither plain nor an array.
    """
    arrays, places, end = [], [], 0
    text = encoded(state, arrays)
    with open(Path(folder) / "arrays.bin", "wb") as file:
        for array in arrays:
            array = _on_host(array)
            file.write(b"\0" * (-end % STEP))
            start = end + -end % STEP
            file.write(np.ascontiguousarray(array).reshape(-1).view("uint8").data)
            end = start + array.nbytes
            places.append([start, array.dtype.name, list(array.shape)])
    (Path(folder) / "state.json").write_text(json.dumps({"arrays": places, "state": text}))


def read(folder):
    """What `write` has written; arrays are read from the file when they are looked at.

    Raises:
        ValueError: the files are missing or malformed.
    """
    try:
        found = json.loads((Path(folder) / "state.json").read_text())
        path = Path(folder) / "arrays.bin"
        data = np.memmap(path, "uint8", "c") if path.stat().st_size else np.zeros(0, "uint8")
        arrays = [_array(data, *place) for place in found["arrays"]]
        return decoded(found["state"], arrays)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"folder ({str(folder)!r}) is no checkpoint of ResumableTraining: {error}.") from error


def _array(data, start, dtype, shape):
    dtype = np.dtype(dtype)
    return data[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def _on_host(array):
    return keras.ops.convert_to_numpy(array) if isinstance(array, keras.Variable) else array


def encoded(value, arrays):
    """A nest as JSON can hold it; its arrays and variables are put into the list `arrays`.

    Raises:
        TypeError: something in it is neither plain nor an array.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, keras.Variable | np.ndarray) or keras.ops.is_tensor(value):
        return {"array": _added(arrays, value)}
    if isinstance(value, np.generic):
        return {"number": _added(arrays, np.asarray(value))}
    if type(value) is list:
        return [encoded(x, arrays) for x in value]
    if type(value) is tuple:
        return {"tuple": [encoded(x, arrays) for x in value]}
    if isinstance(value, dict):
        return {"dict": [[encoded(k, arrays), encoded(x, arrays)] for k, x in value.items()]}
    name = getattr(value, "__name__", None)
    if isinstance(name, str) and getattr(keras.ops, name, None) is value:
        return {"operation": name}
    raise TypeError(f"{type(value).__name__} is neither a plain value nor an array")


def _added(arrays, value):
    array = value if isinstance(value, keras.Variable | np.ndarray) else keras.ops.convert_to_numpy(value)
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biufcV":
        raise TypeError(f"arrays of {array.dtype} are not kept")
    arrays.append(array)
    return len(arrays) - 1


def decoded(text, arrays):
    """The inverse of `encoded`."""
    if isinstance(text, list):
        return [decoded(x, arrays) for x in text]
    if not isinstance(text, dict):
        return text
    [(kind, value)] = text.items()
    if kind == "array":
        return arrays[value]
    if kind == "number":
        return arrays[value][()]
    if kind == "tuple":
        return tuple(decoded(x, arrays) for x in value)
    if kind == "operation":
        return getattr(keras.ops, value)
    return {decoded(k, arrays): decoded(x, arrays) for k, x in value}
