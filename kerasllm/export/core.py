"""Export: a model as a file that runs without our Python, compared with it before it is put in place."""

import contextlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import keras

from kerasllm.arguments import check_choice
from kerasllm.export import child, litert, saved_model, verification

# A format is a module: PACKAGES, check_path(path), write(model, path, signature), run(path, examples).
FORMATS = {"tf_saved_model": saved_model, "litert": litert}


def export_model(model, path, format="tf_saved_model", verbose=None, input_signature=None, verify=True):
    """Write a model's forward pass as a SavedModel or a TFLite file.

    TensorFlow writes it: from the model itself where that is the backend, elsewhere from a copy in another
    process. What is written computes in float32, whatever the model's dtype policy.

    Args:
        model: a `kerasllm` model. It is not changed.
        path: of a SavedModel folder or a `.tflite` file, in a folder that exists. An earlier one there is
            replaced when all has gone well.
        format: "tf_saved_model" or "litert".
        verbose: whether to print a line at the end. Default: yes.
        input_signature: dict input name -> `keras.InputSpec`, or anything with a `shape`, to fix sizes.
            Default: any batch size and length.
        verify: whether to run the file on inputs of several sizes and compare with the model.

    Raises:
        ImportError: TensorFlow or LiteRT is not installed.
        ValueError: an argument is out of range; `path` cannot be written; the model's class cannot be
            imported elsewhere; its outputs are not finite.
        RuntimeError: TensorFlow cannot write the model, or what it wrote differs from the model by more than
            1e-5 of the largest output. What was at `path` before is whole.
    """
    check_choice("format", format, FORMATS)
    writer = FORMATS[format]
    _check_installed(writer.PACKAGES)
    path = Path(path).absolute()
    if not path.parent.is_dir():
        raise ValueError(f"filepath ({str(path)!r}): the folder {str(path.parent)!r} does not exist.")
    writer.check_path(path)
    signature = read_signature(model, input_signature)
    model = in_float32(model)
    examples = verification.example_inputs(model, signature) if verify else []
    expected = verification.model_outputs(model, examples)
    write = child.write_here if keras.backend.backend() == "tensorflow" else child.write_in_child
    with replacing(path) as staged, verification.full_precision():
        outputs = write(writer, model, staged, signature, examples)
        difference = verification.largest_difference(expected, outputs)
    if verbose is None or verbose:
        proof = f", within {difference:.0e} of the model's largest output" if verify else ""
        print(f"Saved {format} at {str(path)!r}{proof}.")


def read_signature(model, given=None):
    """Shapes and dtypes of a model's inputs, with the sizes that the user fixes: dict name -> (shape, dtype).

    Raises:
        ValueError: `given` does not name the model's inputs, or contradicts one.
    """
    signature = {name: (tuple(x.shape), x.dtype) for name, x in model.input.items()}
    if given is None:
        return signature
    if isinstance(given, list | tuple) and len(given) == 1:  # as Keras writes it: the arguments of a call
        given = given[0]
    if not isinstance(given, dict) or set(given) != set(signature):
        raise ValueError(f"input_signature ({given!r}) must be a dict with the keys {', '.join(signature)}.")
    for name, (shape, dtype) in signature.items():
        fixed = tuple(given[name].shape)
        if len(fixed) != len(shape) or any(b not in (None, a) for a, b in zip(fixed, shape, strict=True)):
            raise ValueError(f"input_signature[{name!r}] has the shape {fixed}, the model takes {shape}.")
        given_dtype = getattr(given[name], "dtype", None)
        if given_dtype is not None and keras.backend.standardize_dtype(given_dtype) != dtype:
            raise ValueError(f"input_signature[{name!r}] has the dtype {given_dtype}, the model takes {dtype}.")
        signature[name] = (fixed, dtype)
    return signature


def in_float32(model):
    """The model itself if it computes in float32, else a copy of it that does."""
    if model.arguments["dtype"] == "float32":
        return model
    copy = type(model).from_config({**model.get_config(), "dtype": "float32"})
    for ours, theirs in zip(copy.weights, model.weights, strict=True):
        ours.assign(theirs)
    return copy


@contextlib.contextmanager
def replacing(path):
    """A path beside `path` for the block to write to; what is there at its end takes `path`'s place.

    If the block fails or is interrupted, `path` stays as it was and nothing is left beside it.

    Raises:
        ValueError: `path` cannot be written.
    """
    try:
        # On the same disk as the target, so that moving is renaming.
        folder = Path(tempfile.mkdtemp(prefix=".exporting-", dir=path.parent))
    except OSError as error:
        raise ValueError(f"filepath ({str(path)!r}) cannot be written: {error}") from error
    try:
        yield folder / path.name
        _put_in_place(folder / path.name, path, folder / "earlier")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(new, path, earlier):
    if not path.is_dir():
        os.replace(new, path)
        return
    os.replace(path, earlier)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(earlier, path)
        raise


def _check_installed(packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"Export needs {package}: `pip install 'kerasllm[export]'`.")
