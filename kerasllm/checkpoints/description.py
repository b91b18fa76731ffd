"""What a preset holds, told without reading its weights."""

import math
from dataclasses import dataclass
from pathlib import Path

from kerasllm.checkpoints import hub, sentence_transformers
from kerasllm.checkpoints.presets import errors_name, family_of, opened, read_arguments

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", ".model", ".spm")


@dataclass(frozen=True)
class Description:
    """What `describe` found.

    Args:
        path: of the preset on this machine.
        family: `model_type` of its config.json, such as "llama".
        class_names: names of our classes that can open it, the one that it was made for first.
        arguments: dict, what the constructor of that class takes.
        left_out: names of the tensors that this class has no place for, such as those of another head.
        num_parameters: number of values in its tensors.
        dtypes: dict name of a dtype -> number of values of it, in the files; a GGUF file's count as they are
            dequantised, float32.
        tokenizer_files: names of the tokenizer's files that are there.
    """

    path: Path
    family: str
    class_names: tuple
    arguments: dict
    left_out: tuple
    num_parameters: int
    dtypes: dict
    tokenizer_files: tuple


def describe(source):
    """Tell what a preset holds, without reading its weights.

    Args:
        source: path or name, as `from_preset` takes it.

    Returns:
        A `Description`.

    Raises:
        ValueError: a file is missing or malformed, or the family is unknown.

    Example:
        >>> describe("hf://HuggingFaceTB/SmolLM2-135M").num_parameters
        134515008
    """
    with errors_name(source):
        path = hub.local(source)
        config, read_tensors, texts = opened(path)
        tensors = read_tensors()
        family, names = _classes(path, config, list(tensors))
        arguments, left_out = _read(path, config, family, names[0], tensors)
    sizes = [(tensor.dtype.name, math.prod(tensor.shape)) for tensor in tensors.values()]
    dtypes = {name: sum(size for dtype, size in sizes if dtype == name) for name, _ in sizes}
    present = texts if texts is not None else [file.name for file in path.iterdir()]
    return Description(
        path,
        family.MODEL_TYPE,
        tuple(names),
        arguments,
        tuple(left_out),
        sum(dtypes.values()),
        dtypes,
        tuple(sorted(name for name in present if name.endswith(TOKENIZER_FILES))),
    )


def openers(source):
    """The family of a preset, as config.json names it, and our classes that can open it, as `describe` says them."""
    with errors_name(source):
        path = hub.local(source)
        config, read_tensors, _ = opened(path)
        family, names = _classes(path, config, list(read_tensors()))
    return family.MODEL_TYPE, names


def _classes(path, config, tensor_names):
    """The family of a preset, and the names of our classes that can open it, the one that it was made for first.

    That is an embedder where the folder says how vectors are made, else what `architectures` names, else the class
    whose head is among the tensors.
    """
    family, readers = family_of(config)
    made_for = config.get("architectures") or []
    ours = [name for name in readers if family.ARCHITECTURES.get(name, name) in made_for]
    if "BERTEmbedder" in readers and sentence_transformers.is_embedder(path):
        ours = ["BERTEmbedder", *ours]
    elif not ours and hasattr(family, "made_for"):
        ours = [family.made_for(tensor_names)]
    return family, sorted(readers, key=lambda name: ours.index(name) if name in ours else len(ours))


def _read(path, config, family, class_name, tensors):
    """What the constructor takes, and the names of the tensors that have no place in the model."""
    arguments = read_arguments(family, config, class_name, tensors)
    if class_name == "BERTEmbedder":
        arguments |= sentence_transformers.read_modules(path, arguments)
    return arguments, family.left_out(class_name, arguments, list(tensors)) if hasattr(family, "left_out") else ()
