"""Presets: folders of config.json, model.safetensors and tokenizer files, as the model's family has them.

A family is a `Family`, of tables alone, or what has the same names: `MODEL_TYPE`, `ARCHITECTURES` (our class name ->
its own), and pairs of functions:

    read_config(config, class_name, tensor_names) -> arguments
    write_config(class_name, arguments) -> config, or None for a model that the family cannot say
    read_weights(class_name, arguments, tensors, shapes) -> arrays
    write_weights(class_name, arguments, arrays) -> tensors

One that several of our classes read has `made_for(tensor_names) -> class_name` as well, and `left_out(class_name,
arguments, tensor_names)`, the tensors of other heads. Models that no foreign family can say have our own layout, the
module `ours`. All of them stand in `families`.
"""

import inspect
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kerasllm import writing
from kerasllm.arguments import read_path, shown
from kerasllm.checkpoints import files, gguf, hub, keras_hub, ours, sentence_transformers
from kerasllm.checkpoints.families import FAMILIES, READ_ONLY
from kerasllm.constructors import with_first_names
from kerasllm.json_files import read_settings

ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask", "decoder_start", "forced_bos", "forced_eos")
TOKEN_IDS = {f"{role}_token_id" for role in ROLES}
# Ends of the names of arguments that are sizes of tensors.
SIZES = ("vocabulary_size", "_dim", "_heads", "num_segments", "labels")


@dataclass(frozen=True)
class Preset:
    """What a folder says about a model.

    Args:
        arguments: dict, what the model's constructor takes.
        read_weights: function (dict variable path -> shape) -> dict variable path -> array. The arrays are
            memory-mapped. A `ValueError` names every tensor that is missing, left over or misshaped.
        source: path of the preset on this machine.
        files: the tokenizer's files and others, dict name -> text; None if `source` is a folder that holds them.
        token_ids: the ids of special tokens that config.json names, dict name -> id, list of ids or None.
        parts: dict, what is set on parts of the model (`kerasllm.layers.parts`), where its layout says that.
        num_values: the number of values in its tensors.
    """

    arguments: dict
    read_weights: Callable
    source: str | Path
    files: dict | None = None
    token_ids: dict | None = None
    parts: dict | None = None
    num_values: int = 0

    def check_room(self, num_parameters):
        """Raise `ValueError` where so many weights are not in the tensors, two to a value where they have four bits."""
        if num_parameters > 2 * self.num_values:
            raise ValueError(
                f"config.json: its {num_parameters} weights are more than the {self.num_values} values there."
            )

    def folder(self):
        """A context: the folder with the tokenizer's files and others."""
        return _folder(self.source, self.files)


def tokenizer_folder(source):
    """A context: the folder with the files of a preset's tokenizer, for `Tokenizer.from_folder`.

    Args:
        source: as for `read_preset`; a folder need not hold a model.
    """
    with errors_name(source):
        path = hub.local(source)
        return _folder(path, None if Path(path).is_dir() else opened(path)[2])


@contextmanager
def _folder(path, files):
    if files is None:
        yield path
        return
    with writing.scratch() as folder:
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
        yield folder


def read_preset(source, model_class):
    """Open a preset.

    Args:
        source: path of a folder with config.json and model.safetensors (or its shards and their index), or of a
            `.gguf` file; or the name of such as `hub.local` takes it.
        model_class: the class of the model to be made.

    Returns:
        A `Preset`.

    Raises:
        ValueError: a file is missing or malformed, the folder holds a model of another family or class, or
            config.json says something that `model_class` does not know.

    Example:
        >>> preset = read_preset("presets/tiny", GPT)
        >>> model = GPT(**preset.arguments)
        >>> arrays = preset.read_weights({v.path: v.shape for v in model.weights})
        >>> for v in model.weights:
        ...     v.assign(arrays[v.path])
    """
    class_name = model_class.__name__
    with errors_name(source):
        path = hub.local(source)
        config, read_tensors, texts = opened(path)
        family = _family_read_by(class_name, config)
        tensors = read_tensors()
        arguments = read_arguments(family, config, class_name, tensors)
        if class_name == "BERTEmbedder":
            arguments |= sentence_transformers.read_modules(path, arguments)
        if class_name == "BERTClassifier":
            arguments |= sentence_transformers.read_problem_type(path, config, arguments)
        _check_signature(model_class, arguments)
        held = ours.read_parts(config) if family is ours else None
        token_ids = named_token_ids(config, arguments)

    def read_weights(shapes):
        with errors_name(source):
            return family.read_weights(class_name, arguments, tensors, shapes)

    return Preset(arguments, read_weights, path, texts, token_ids, held, num_values(tensors))


def write_preset(
    folder, class_name, arguments, arrays, special_token_ids=None, write_files=None, max_shard_size=None, parts=None
):
    """Write a preset, in the first layout that can say the model; the whole folder is written or nothing is.

    Args:
        folder: path of the folder, made if need be.
        class_name: name of the model's class.
        arguments: dict of plain values, what the model's constructor takes. `dtype` and `remat` are left out: what a
            model computes in, and what its training keeps, is for those to say who load it, as with transformers.
        arrays: dict variable path -> array or `LazyArray`, all of the model's.
        special_token_ids: dict, "bos_token_id", "eos_token_id" and others as config.json has them. transformers stops
            generating at the second.
        write_files: function of a folder that writes what else belongs to the preset, such as the tokenizer.
        max_shard_size: the most bytes of weights in a file, as for `files.write_tensors`.
        parts: dict, what is set on parts of the model. Our own layout alone can say it.

    Raises:
        ValueError: the folder cannot be written; what was there before is whole.
    """
    folder = read_path("folder", folder)
    arguments = {name: value for name, value in arguments.items() if name not in ("dtype", "remat")}
    family, config = layout_of(class_name, arguments, parts)
    if family is not ours:
        config = (special_token_ids or {}) | config  # RoBERTa's layout rests on its padding token
        config["dtype"] = next(iter(arrays.values())).dtype.name
    with files.replaced_folder(folder) as staging:
        files.write_json(staging / files.CONFIG, config)
        tensors = family.write_weights(class_name, arguments, arrays)
        if family is not ours:
            tensors = sentence_transformers.write_dense(staging, tensors)
        files.write_tensors(staging, tensors, max_shard_size)
        if write_files:
            write_files(staging)


def opened(path):
    """The content of config.json, a function that reads the tensors, and the texts of other files or None."""
    if path.suffix == ".gguf":
        config, tensors, texts = gguf.read(path)
        return config, lambda: tensors, texts
    writing.settle(path)
    config = read_settings(path / files.CONFIG)
    if keras_hub.is_config(config):
        return keras_hub.read(path, config)
    if config.get("model_type") == ours.MODEL_TYPE:
        return config, lambda: files.read_tensors(path), None
    return config, lambda: files.read_tensors(path) | sentence_transformers.read_dense(path), None


def family_of(config):
    """The family that config.json names, and the names of our classes that read it."""
    model_type, made_for = config.get("model_type"), config.get("architectures")
    if made_for is not None and not (isinstance(made_for, list) and all(isinstance(name, str) for name in made_for)):
        raise ValueError(f"config.json: architectures ({shown(made_for)}) must be a list of names.")
    families = (*FAMILIES, *READ_ONLY)
    family = next((family for family in families if model_type == family.MODEL_TYPE), None)
    if family is None:
        names = ", ".join(repr(family.MODEL_TYPE) for family in families)
        raise ValueError(f"config.json: model_type ({shown(model_type)}) must be one of {names}.")
    readers = list(family.ARCHITECTURES) or made_for
    if not readers:
        raise ValueError(f"config.json: architectures ({shown(made_for)}) must be a list of names.")
    return family, readers


def read_arguments(family, config, class_name, tensors):
    """The arguments of a model from config.json, none of which is larger than what the tensors can fill."""
    arguments = family.read_config(config, class_name, list(tensors))
    # Before a loop goes over as many blocks as a config has made up, or a product of sizes is beyond all numbers.
    most = num_values(tensors)
    for name, value in arguments.items():
        if isinstance(value, int) and name.endswith("_layers") and value > len(tensors):
            raise ValueError(f"config.json: {name} ({value}) must be at most the number of tensors, {len(tensors)}.")
        if isinstance(value, int) and name.endswith(SIZES) and value > most:
            raise ValueError(f"config.json: {name} ({value}) must be at most the number of values, {most}.")
    return arguments


def num_values(tensors):
    """The number of values in tensors."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def _family_read_by(class_name, config):
    family, readers = family_of(config)
    if class_name not in readers:
        raise ValueError(f"it holds a {family.MODEL_TYPE!r} model, which {readers} can read, not {class_name!r}.")
    return family


def named_token_ids(config, arguments):
    """The ids of special tokens that a config names, those of the vocabulary."""
    size = max((n for name, n in arguments.items() if name.endswith("vocabulary_size") and type(n) is int), default=0)
    kept = {}
    if not isinstance(config, dict):
        raise ValueError(f"config: the ids of tokens ({shown(config)}) must be an object.")
    for name in TOKEN_IDS & set(config):
        value = config[name]
        if not all(i is None or type(i) is int for i in (value if isinstance(value, list) else [value])):
            raise ValueError(f"config.json: {name} ({shown(value)}) must be a token id, a list of token ids, or null.")
        ids = [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int) and 0 <= i < size]
        kept[name] = (ids or None) if isinstance(value, list) else (ids or [None])[0]
    return kept


def layout_of(class_name, arguments, parts=None):
    """The first family that can say a model, and its config.json; our own layout for one with `parts`."""
    for family in [ours] if parts else FAMILIES:
        if class_name in family.ARCHITECTURES or family is ours:
            config = family.write_config(class_name, arguments)
            if config is not None:
                architecture = family.ARCHITECTURES.get(class_name, class_name)
                return family, {
                    "model_type": family.MODEL_TYPE,
                    "architectures": [architecture],
                    **config,
                    **({"parts": parts} if parts else {}),
                }


def _check_signature(model_class, arguments):
    signature = inspect.signature(model_class.__init__)
    named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    try:
        signature.replace(parameters=named).bind(None, **with_first_names(signature.parameters, arguments))
    except TypeError as error:
        raise ValueError(f"config.json: {model_class.__name__} {error}.") from None


@contextmanager
def errors_name(source):
    """Let the errors of a block begin with the preset's name."""
    try:
        yield
    except ValueError as error:
        name = f"preset ({shown(source if isinstance(source, str) else str(source), 200)}): "
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name}{error}") from error
