"""Writing a file with TensorFlow: in this process where it is the backend, else in one started for it.

The child gets a folder with the model's config, weights and tokenizers, and calls to make; it writes the file, and
what the file gives for the calls. It sees no GPU.
"""

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import operator
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from kerasllm import processes
from kerasllm.checkpoints import files
from kerasllm.export import verification
from kerasllm.export.contents import Options
from kerasllm.export.contents_by_model import contents_of
from kerasllm.models.merged import merged_arrays, merged_config

REQUEST, ASSETS, CALLS, OUTPUTS, REFUSAL = "request.json", "assets", "calls", "outputs", "refusal.json"


def write_here(writer, model, path, options, calls):
    """Write a file with the module `writer` and make calls of it.

    Args:
        writer: a module with `write(contents, path)` and `load(path)`.
        model: a model under the tensorflow backend.
        path: of the file or folder.
        options: `Options`.
        calls: list of lists of (signature, dict of arrays), see `Check`.

    Returns:
        What the file's functions take and give, and for each list of calls the outputs of the last, a dict of arrays.
    """
    described = writer.write(contents_of(writer, model, options), path)
    return described, _called(writer, path, described, calls)


def check_class(cls):
    """Raise `ValueError` unless another process can import a model's class."""
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise ValueError(
            f"the model's class, {cls.__module__}.{cls.__qualname__}, must stand in a module that can be "
            "imported: another process writes the file."
        )


def write_in_child(writer, model, path, options, calls):
    """Do as `write_here` in a process with the tensorflow backend, from a model of any backend.

    Raises:
        ValueError: what the process raises as such: the model cannot be in such a file.
        RuntimeError: the process fails otherwise; the message ends with what it said.
    """
    cls = type(model)
    request = {
        "module": cls.__module__,
        "class": cls.__qualname__,
        "config": merged_config(model),
        "writer": writer.__name__,
        "path": str(path),
        "options": dataclasses.asdict(options),
    }
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        folder = Path(folder)
        files.write_json(folder / REQUEST, request)
        files.write_tensors(folder, merged_arrays(model))
        (folder / ASSETS).mkdir()
        model.save_assets(folder / ASSETS)
        _write_arrays(folder / CALLS, calls)
        environment = {
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_PLATFORMS": "cpu",  # Keras imports jax where it is installed.
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TMPDIR": str(folder),  # what TensorFlow leaves there when it is killed goes with the rest
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        }
        command = processes.python("-m", __name__, str(folder))
        _free_memory()
        result = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if result.returncode:
            failure = RuntimeError(
                f"the TensorFlow process that exports {model.name} failed ({result.returncode}):\n"
                f"{result.stderr[-4000:]}"
            )
            if (folder / REFUSAL).exists():
                raise ValueError(files.read_json(folder / REFUSAL)["message"]) from failure
            raise failure
        return _read_arrays(folder / OUTPUTS)


def main(folder):
    """Do what the request in a folder says."""
    folder = Path(folder)
    request = files.read_json(folder / REQUEST)
    writer, options = importlib.import_module(request["writer"]), Options(**request["options"])
    path, calls = Path(request["path"]), _read_arrays(folder / CALLS)
    described = writer.write(contents_of(writer, _read_model(request, folder), options), path)
    _free_memory()  # The model makes room for the file.
    _write_arrays(folder / OUTPUTS, (described, _called(writer, path, described, calls)))


def _read_model(request, folder):
    """The model that a request describes, with the weights and assets in its folder."""
    cls = operator.attrgetter(request["class"])(importlib.import_module(request["module"]))
    model = cls.from_config(request["config"])
    arrays = files.read_tensors(folder)
    differing = sorted({variable.path for variable in model.weights} ^ set(arrays))
    if differing:
        raise ValueError(f"the model's config does not account for the variables {', '.join(differing[:12])}.")
    for variable in model.weights:
        variable.assign(arrays[variable.path])
    model.load_assets(folder / ASSETS)
    return model


def _called(writer, path, described, calls):
    """What a file gives for calls."""
    return verification.results(writer.load(path), described, calls) if calls else []


def _free_memory():
    """Give what is no longer used back to the system, for another process needs as much."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # Of C libraries, glibc keeps it.
        ctypes.CDLL(None).malloc_trim(0)


def _write_arrays(path, nest):
    """Write a nest of lists, dicts, strings and arrays: a .json file of its structure, an .npz file of the arrays."""
    arrays = []

    def structure(value):
        if isinstance(value, np.ndarray):
            # Strings are not numpy's own type; npz files would pickle them.
            arrays.append(np.array(value.tolist(), "S") if value.dtype == object else value)
            return {"array": len(arrays) - 1, "dtype": str(value.dtype)}
        if isinstance(value, dict):
            return {"items": [[key, structure(entry)] for key, entry in value.items()]}
        if isinstance(value, list | tuple):
            return [structure(entry) for entry in value]
        return value

    files.write_json(path.with_suffix(".json"), {"nest": structure(nest)})
    np.savez(path.with_suffix(".npz"), *arrays)


def _read_arrays(path):
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:

        def built(value):
            if isinstance(value, list):
                return [built(entry) for entry in value]
            if isinstance(value, dict) and "items" in value:
                return {key: built(entry) for key, entry in value["items"]}
            if isinstance(value, dict):
                return arrays[f"arr_{value['array']}"].astype(value["dtype"])
            return value

        return built(files.read_json(path.with_suffix(".json"))["nest"])


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except ValueError as error:
        files.write_json(Path(sys.argv[1]) / REFUSAL, {"message": str(error)})
        raise
