"""What a preset holds, told without reading its weights."""

import math
from dataclasses import dataclass
from pathlib import Path

from kerasllm.checkpoints import hub
from kerasllm.checkpoints.presets import errors_name, family_of, opened

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", ".model", ".spm")


@dataclass(frozen=True)
class Description:
    """What `describe` found.

    Args:
        path: of the preset on this machine.
        family: `model_type` of its config.json, such as "llama".
        class_names: names of our classes that can open it, the one that it was made for first.
        arguments: dict, what the constructor of that class takes.
        num_parameters: number of values in its tensors.
        dtypes: dict name of a dtype -> number of values of it, in the files; a GGUF file's count as they are
            dequantised, float32.
        tokenizer_files: names of the tokenizer's files that are there.
    """

    path: Path
    family: str
    class_names: tuple
    arguments: dict
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
        family, readers = family_of(config)
        tensors = read_tensors()
        made_for = config.get("architectures")
        made_for = made_for if isinstance(made_for, list) else []
        names = sorted(readers, key=lambda name: family.ARCHITECTURES.get(name, name) not in made_for)
        arguments = family.read_config(config, names[0], list(tensors))
    sizes = [(tensor.dtype.name, math.prod(tensor.shape)) for tensor in tensors.values()]
    dtypes = {name: sum(size for dtype, size in sizes if dtype == name) for name, _ in sizes}
    present = texts if texts is not None else [file.name for file in path.iterdir()]
    tokenizer_files = tuple(sorted(name for name in present if name.endswith(TOKENIZER_FILES)))
    return Description(path, family.MODEL_TYPE, tuple(names), arguments, sum(dtypes.values()), dtypes, tokenizer_files)
