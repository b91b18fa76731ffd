"""Export: a model as a file that runs without our Python, compared with it before it is put in place."""

import dataclasses
import inspect

import keras

from kerasllm import extras, writing
from kerasllm.arguments import (
    check_boolean,
    check_choice,
    check_part,
    read_path,
    read_sequence,
    read_strings,
    shown,
)
from kerasllm.checkpoints import files
from kerasllm.export import calibration, child, gguf, litert, litertlm, mediapipe, saved_model, verification
from kerasllm.export import description as description_
from kerasllm.export.contents import Contents, Options
from kerasllm.export.contents_by_model import contents_of
from kerasllm.generation.programs import Programs
from kerasllm.models.merged import merged_arrays, merged_config, rounds_activations

# A format is a module: PACKAGES, STATIC, QUANTIZATIONS, check_path(path), assets_folder(path), write(contents, path),
# load(path); and contents_of(model, options), where it holds other functions than contents_by_model.py says.
FORMATS = {"tf_saved_model": saved_model, "litert": litert, "litertlm": litertlm, "mediapipe": mediapipe}
# Keras's own, with what they need on each of its backends, the options that they take and how names of files end.
KERAS_FORMATS = {
    "onnx": ({"tensorflow": ["tf2onnx"], "jax": ["jax2onnx"], "torch": ["onnx", "onnxscript"]}, ["opset_version"], ""),
    "openvino": (dict.fromkeys(("tensorflow", "jax", "torch"), ["openvino"]), [], ".xml"),
    "torch": ({}, ["strict", "dynamic_shapes", "prefer_deferred_runtime_asserts_over_guards"], ".pt2"),
}
ALIASES = {"tflite": "litert", "saved_model": "tf_saved_model", "tf": "tf_saved_model", "litert_lm": "litertlm"}


def export_model(
    model,
    path,
    format="tf_saved_model",
    verbose=None,
    input_signature=None,
    *,
    signatures=None,
    quantize=None,
    min_agreement=0.8,
    calibration_data=None,
    max_length=None,
    prefill_lengths=(16, 64, 256),
    batch_size=1,
    num_beams=4,
    strings=False,
    truncate=False,
    default_signature=None,
    verify=True,
):
    """Write what a model does as a file; `Model.export` says what the arguments are.

    TensorFlow writes it: from the model itself where that is the backend, elsewhere from a copy in another
    process. What is written computes in float32, whatever the model's dtype policy.
    """
    writer = FORMATS[format]
    extras.check_installed(writer.PACKAGES, "Export")
    if default_signature is not None and writer.STATIC:
        raise ValueError(
            f"default_signature ({shown(default_signature)}) must be None for the format {format!r}: all functions of "
            "a file are called by their names."
        )
    if quantize is not None and not writer.QUANTIZATIONS:
        raise ValueError(
            f"quantize ({shown(quantize)}) must be None for the format {format!r}: its weights are float32."
        )
    check_choice("quantize", quantize, (None, *writer.QUANTIZATIONS))
    if writer.STATIC and any(layer.quantization_mode == "float8" for layer in model._flatten_layers()):
        raise ValueError(
            f"format ({shown(format)}) must be 'tf_saved_model' for weights of float8, which TFLite has not."
        )
    check_part("min_agreement", min_agreement)
    for name, value in {"strings": strings, "truncate": truncate, "verify": verify}.items():
        check_boolean(name, value)
    signatures = None if signatures is None else tuple(read_strings("signatures", signatures))
    where, path = f"filepath ({str(path)!r})", read_path("filepath", path).absolute()
    if not writer.STATIC:
        path = writing.resolved(path, where)  # what a link leads to is replaced; a file stands beside its assets
    if not path.parent.is_dir():
        raise ValueError(f"filepath ({str(path)!r}): the folder {str(path.parent)!r} does not exist.")
    writer.check_path(path)
    options = Options(
        static=writer.STATIC,
        signatures=signatures,
        inputs=read_shapes(model, input_signature),
        max_length=max_length,
        prefill_lengths=tuple(read_sequence("prefill_lengths", prefill_lengths)),
        batch_size=batch_size,
        num_beams=num_beams,
        strings=strings,
        truncate=truncate,
        default_signature=default_signature,
        quantize=quantize,
        rounded=rounds_activations(model),
    )
    options = dataclasses.replace(options, calibration_data=calibration.read(model, options, calibration_data))
    model = in_float32(model)
    contents = contents_of(writer, model, options)
    if writer.STATIC:
        litert.check_contents(contents)
    write = child.write_here
    if keras.backend.backend() != "tensorflow":
        child.check_class(type(model))
        write = child.write_in_child
    beside = {place.name for place in (path, writer.assets_folder(path)) if place.parent == path.parent}
    with writing.staged(path.parent, beside.__contains__, where) as new, verification.full_precision():
        staged = new / path.name
        checks = _checks(contents) if verify else []
        described, outputs = write(writer, model, staged, options, [check.calls for check in checks])
        report = verification.compare(checks, outputs, None if options.exact else min_agreement)
        assets = writer.assets_folder(staged)
        assets.mkdir(exist_ok=True)
        model.save_assets(assets)
        description = {"model": type(model).__name__, "settings": contents.settings(), "signatures": described}
        if not writer.STATIC:
            description["default_signature"] = contents.default_signature
        description_.write(assets, staged, description)
        size = sum(p.stat().st_size for p in (staged.rglob("*") if staged.is_dir() else [staged]) if p.is_file())
        parity = {
            "format": format,
            "quantize": quantize,
            "bytes": size,
            "bytes of the weights": 4 * model.count_params(),
        }
        files.write_json(assets / "parity.json", {**parity, **verification.parity(report)})
    if verbose is None or verbose:
        print(f"Saved {format} at {str(path)!r}{verification.summary(report)}.")


OPTIONS = [p.name for p in inspect.signature(export_model).parameters.values() if p.kind == p.KEYWORD_ONLY]


def check_request(path, format, options):
    """Raise unless a format is known, knows the options and finds what it needs; a format of Keras knows the path too.

    Raises:
        ValueError: the format, or an option of it, is unknown, or the path is none of its.
        ImportError: a package is not installed.
    """
    if not isinstance(format, str) or format not in (*FORMATS, "gguf", *KERAS_FORMATS):
        hint = f" Do you mean {ALIASES[format]!r}?" if isinstance(format, str) and format in ALIASES else ""
        raise ValueError(
            f"Unrecognized format={format!s:.80}.{hint} Supported formats are: "
            f"{', '.join(map(repr, (*FORMATS, 'gguf', *KERAS_FORMATS)))}."
        )
    accepted = OPTIONS if format in FORMATS else gguf.OPTIONS if format == "gguf" else KERAS_FORMATS[format][1]
    for name, value in options.items():
        if name not in accepted:
            raise ValueError(
                f"{name} ({shown(value)}) is no option of the format {shown(format)}, which has "
                f"{', '.join(accepted) or 'none'}."
            )
    if format in KERAS_FORMATS:
        backend = keras.backend.backend()
        extras.check_installed(
            KERAS_FORMATS[format][0].get(backend, []), f"Keras's format {format!r} on the backend {backend}"
        )
        ending = KERAS_FORMATS[format][2]
        if not str(read_path("filepath", path)).endswith(ending):
            raise ValueError(f"filepath ({shown(str(path))}) must end in {ending!r} for the format {format!r}.")


def call_once(model):
    """Call a model that was never called, which Keras's own formats refuse."""
    if not model._called:
        verification.model_outputs(
            model, verification.example_inputs(model, Contents(model, Options()).forward_inputs())
        )


def _checks(contents):
    try:
        with Programs.forgotten(contents.model):
            return contents.checks()
    except FloatingPointError as error:
        raise ValueError(f"the model's logits are not finite: nothing to compare an export with. {error}") from error


def read_shapes(model, given=None):
    """The sizes of a model's inputs that the user fixes: dict name -> shape, or None.

    Raises:
        ValueError: `given` does not name the model's inputs, or contradicts one.
    """
    if given is None:
        return None
    if isinstance(given, list | tuple) and len(given) == 1:  # as Keras writes it: the arguments of a call
        given = given[0]
    is_named = isinstance(given, dict) and set(given) == set(model.input)
    if not is_named or not all(hasattr(x, "shape") for x in given.values()):
        raise ValueError(
            f"input_signature ({shown(given)}) must have a `keras.InputSpec` for each of {', '.join(model.input)}."
        )
    for name, x in model.input.items():
        fixed = tuple(given[name].shape)
        if len(fixed) != len(x.shape) or any(b not in (None, a) for a, b in zip(fixed, x.shape, strict=True)):
            raise ValueError(f"input_signature[{name!r}] has the shape {fixed}, the model takes {tuple(x.shape)}.")
        dtype = getattr(given[name], "dtype", None)
        if dtype is not None and keras.backend.standardize_dtype(dtype) != x.dtype:
            raise ValueError(f"input_signature[{name!r}] has the dtype {dtype}, the model takes {x.dtype}.")
    return {name: tuple(x.shape) for name, x in given.items()}


def in_float32(model):
    """The model itself if it computes in float32 and without LoRA to merge, else a copy of it that does."""
    arrays = merged_arrays(model)
    if model.arguments["dtype"] == "float32" and len(arrays) == len(model.weights):
        return model
    copy = type(model).from_config({**merged_config(model), "dtype": "float32"})
    for variable in copy.weights:
        variable.assign(arrays[variable.path])
    with writing.scratch() as folder:
        model.save_assets(folder)
        copy.load_assets(folder)
    return copy
