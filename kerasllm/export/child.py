"""Writing a file with TensorFlow: in this process where it is the backend, else in one started for it.

The child gets a folder with the model's config and weights, and example inputs; it writes the file, and the
outputs that the file gives for the examples. It sees no GPU.
"""

import importlib
import operator
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from kerasllm.checkpoints import files

REQUEST, EXAMPLES, OUTPUTS = "request.json", "examples.npz", "outputs.npz"


def write_here(writer, model, path, signature, examples):
    """Write a file with the module `writer` and run it on examples.

    Args:
        writer: a module with `write(model, path, signature)` and `run(path, examples)`.
        model: a model under the tensorflow backend.
        path: of the file or folder.
        signature: dict input name -> (shape, dtype).
        examples: list of dicts of arrays.

    Returns:
        For each example the outputs, a dict of arrays.
    """
    writer.write(model, path, signature)
    return writer.run(path, examples) if examples else []


def write_in_child(writer, model, path, signature, examples):
    """Do as `write_here` in a process with the tensorflow backend, from a model of any backend.

    Raises:
        ValueError: the model's class cannot be imported elsewhere.
        RuntimeError: the process fails; the message ends with what it said.
    """
    cls = type(model)
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise ValueError(
            f"the model's class, {cls.__module__}.{cls.__qualname__}, must stand in a module that can be "
            "imported: another process writes the file."
        )
    request = {
        "module": cls.__module__,
        "class": cls.__qualname__,
        "config": model.get_config(),
        "writer": writer.__name__,
        "path": str(path),
        "signature": signature,
    }
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        files.write_json(Path(folder) / REQUEST, request)
        files.write_tensors(folder, {v.path: keras.ops.convert_to_numpy(v) for v in model.weights})
        _write_rows(Path(folder) / EXAMPLES, examples)
        environment = {
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_PLATFORMS": "cpu",  # Keras imports jax where it is installed.
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        }
        command = [sys.executable, "-m", __name__, folder]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if result.returncode:
            raise RuntimeError(
                f"the TensorFlow process that exports {model.name} failed ({result.returncode}):\n"
                f"{result.stderr[-4000:]}"
            )
        return _read_rows(Path(folder) / OUTPUTS)


def main(folder):
    """Do what the request in a folder says."""
    folder = Path(folder)
    request = files.read_json(folder / REQUEST)
    cls = operator.attrgetter(request["class"])(importlib.import_module(request["module"]))
    model = cls.from_config(request["config"])
    arrays = files.read_tensors(folder)
    differing = sorted({variable.path for variable in model.weights} ^ set(arrays))
    if differing:
        raise ValueError(f"the model's config does not account for the variables {', '.join(differing[:12])}.")
    for variable in model.weights:
        variable.assign(arrays[variable.path])
    writer = importlib.import_module(request["writer"])
    examples = _read_rows(folder / EXAMPLES)
    outputs = write_here(writer, model, Path(request["path"]), request["signature"], examples)
    _write_rows(folder / OUTPUTS, outputs)


def _write_rows(path, rows):
    np.savez(path, **{f"{i}/{name}": array for i, row in enumerate(rows) for name, array in row.items()})


def _read_rows(path):
    rows = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key, array in arrays.items():
            i, name = key.split("/")
            rows.setdefault(int(i), {})[name] = array
    return list(rows.values())


if __name__ == "__main__":
    main(sys.argv[1])
