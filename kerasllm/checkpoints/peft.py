"""Adapters as PEFT lays them out (https://github.com/huggingface/peft): LoRA's factors by themselves.

A folder of `adapter_config.json` and `adapter_model.safetensors`, whose tensors have the names of transformers'
modules:

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight     (rank, in)
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight     (out, rank)
    base_model.model.classifier.weight                                 a module that is trained as a whole

Where a module of theirs is several layers of ours, such as the fused queries, keys and values of GPT-2, theirs has the
factors of ours side by side, and zeros where a product of one would reach into another.
"""

import math
import re
import warnings
from collections import Counter
from typing import NamedTuple

import numpy as np

from kerasllm import writing
from kerasllm.arguments import is_number, is_whole, read_path, shown
from kerasllm.checkpoints import files, weight_map
from kerasllm.checkpoints.presets import errors_name, layout_of
from kerasllm.json_files import read_settings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILE = re.compile(r"adapter_(config\.json|model\.(safetensors|bin))")
PREFIX = "base_model.model."
TENSOR = re.compile(r"(?P<module>.+)\.(lora_(?P<factor>[AB])\.weight|lora_embedding_(?P<table>[AB]))")

# What the fields say that change nothing here: what the adapter was trained on and how, and which layers were chosen,
# which the tensors' names tell too.
IRRELEVANT = {
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out"),
    *("inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "loftq_config", "megatron_core"),
    *("modules_to_save", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules"),
    "task_type",
}
READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights"}
# Others begin with other weights of the model itself.
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
WRITTEN = {
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_dropout": 0.0,
    "peft_type": "LORA",
    "revision": None,
    "task_type": None,
    "use_dora": False,
    "use_rslora": False,
}


class Factors(NamedTuple):
    """What LoRA adds to a layer's kernel or table W (in, out): W + scale A B.

    Args:
        a: A, (in, rank) float32.
        b: B, (rank, out) float32.
        scale: alpha / rank.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float


def read_adapter(folder, class_name, arguments, shapes):
    """What an adapter holds for a model.

    Args:
        folder: path of the folder.
        class_name, arguments: of the model.
        shapes: dict path -> shape of the model's variables.

    Returns:
        (dict path of a variable -> `Factors`, dict path of a variable -> array): those with LoRA, those as a whole.

    Raises:
        ValueError: a file is missing or malformed, says something that is not computed here, or is of another model.
    """
    with errors_name(folder):
        folder = read_path("folder", folder)
        writing.settle(folder)
        config = read_settings(folder / CONFIG)
        tensors = files.read_safetensors(folder / WEIGHTS)
        _check(config)
        rows = {_module(row.name): row for row in _rows(class_name, arguments, shapes) if _is_table(row)}
        factors, others = _pairs(tensors)
        adapted = {}
        for module, pair in factors.items():
            if module not in rows:
                raise ValueError(f"{WEIGHTS}: {class_name} of these sizes has no module {module!r}.")
            adapted |= _ours(rows[module], module, *pair, _scale(config, module, pair), shapes)
        return adapted, _whole(others, class_name, arguments, shapes)


def write_adapter(folder, class_name, arguments, shapes, factors, whole, base=None):
    """Write an adapter: both files or none. Other files in the folder are left alone.

    Args:
        folder: its path, made if need be.
        class_name, arguments, shapes: as for `read_adapter`.
        factors, whole: what it returns.
        base: the name of the model that it is for, or None.

    Raises:
        ValueError: a layer with LoRA is none that PEFT has; the folder cannot be written.
    """
    tensors, ranks, alphas, is_in_first = {}, {}, {}, False
    rows = _rows(class_name, arguments, shapes)
    for row in rows:
        if not any(path in factors for path in row.paths):
            continue
        module, is_embedding = _module(row.name), row.paths[0].endswith("/embeddings")
        if is_embedding and (arguments.get("tie_embeddings") or row.layout is not weight_map.same):
            raise ValueError(f"{row.paths[0]} has LoRA, whose table PEFT adapts where it is looked up alone.")
        a, b, scale = _theirs(row, factors, shapes)
        ranks[module], alphas[module] = a.shape[0], scale * a.shape[0]
        names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{PREFIX}{module}.{name}": array for name, array in zip(names, (a, b), strict=True)}
        is_in_first |= not is_embedding and _is_in_first(row.layout, len(row.paths))
    lost = sorted(set(factors) - {path for row in rows for path in row.paths})
    if lost:
        raise ValueError(f"{lost[0]} has LoRA, and no module of transformers for this model has it.")
    kept = [row for row in rows if set(row.paths) <= set(whole)]
    torn = sorted(set(whole) - {path for row in kept for path in row.paths})
    if torn:
        raise ValueError(f"{torn[0]} is trained as a whole, and is a part of a tensor whose others are not.")
    tensors |= {
        f"{PREFIX}{name}": tensor
        for name, tensor in weight_map.write(kept, {p: whole[p] for row in kept for p in row.paths}).items()
    }
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    config = WRITTEN | {
        "base_model_name_or_path": base,
        "fan_in_fan_out": is_in_first,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "rank_pattern": {re.escape(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(m): _plain(a) for m, a in alphas.items() if a != alpha},
        "target_modules": list(ranks),
        "modules_to_save": sorted({_module(row.name) for row in kept}) or None,
    }
    with files.replaced_folder(read_path("folder", folder), FILE.fullmatch) as staging:
        files.write_json(staging / CONFIG, config)
        files.write_safetensors(staging / WEIGHTS, {name: np.asarray(t) for name, t in tensors.items()})


def _check(config):
    """Raise `ValueError` where adapter_config.json says what is not computed here."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{CONFIG}: peft_type ({shown(config.get('peft_type'))}) must be 'LORA'.")
    for name, value in config.items():
        if name not in IRRELEVANT | READ and value not in (None, False, [], {}):
            raise ValueError(f"{CONFIG}: {name} ({shown(value)}) is not computed here; it must be null or false.")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{CONFIG}: bias ({shown(config['bias'])}) must be 'none'.")
    beginning = config.get("init_lora_weights", True)
    if not any(beginning is known or beginning == known for known in BEGINNINGS):
        raise ValueError(
            f"{CONFIG}: init_lora_weights ({shown(beginning)}) changes the model's own weights, which are others then; "
            "PEFT converts such adapters to plain LoRA."
        )
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(name) or {}, dict):
            raise ValueError(f"{CONFIG}: {name} ({shown(config[name])}) must be an object.")
    if config.get("lora_dropout"):
        warnings.warn(
            f"{CONFIG}: lora_dropout ({shown(config['lora_dropout'])}) is for training, which goes on without it here.",
            stacklevel=4,
        )


def _pairs(tensors):
    """Dict module -> (A, B, whether it is a table of embeddings), and the other tensors, without PEFT's prefix."""
    pairs, others = {}, {}
    for full, tensor in tensors.items():
        if not full.startswith(PREFIX):
            raise ValueError(f"{WEIGHTS}: {shown(full)} does not begin with {PREFIX!r}.")
        name = full.removeprefix(PREFIX)
        match = TENSOR.fullmatch(name)
        if match is None:
            if "lora_" in name:
                raise ValueError(f"{WEIGHTS}: {shown(full)} is not computed here.")
            others[name] = tensor
            continue
        if tensor.ndim != 2 or tensor.dtype not in weight_map.FLOATS:
            raise ValueError(f"{WEIGHTS}: {shown(full)} {tensor.shape} must be a matrix of floats.")
        factor = match["factor"] or match["table"]
        pairs.setdefault((match["module"], match["table"] is not None), {})[factor] = np.asarray(tensor, "float32")
    for (module, _), pair in pairs.items():
        if len(pair) < 2:
            raise ValueError(f"{WEIGHTS}: {module} has one of LoRA's factors, not both.")
    return {module: (pair["A"], pair["B"], table) for (module, table), pair in pairs.items()}, others


def _scale(config, module, pair):
    """Alpha / rank, or with rsLoRA alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732), of a module."""
    said = {}
    for name, field, is_right in (("rank_pattern", "r", is_whole), ("alpha_pattern", "lora_alpha", is_number)):
        patterns = config.get(name) or {}
        try:
            key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
        except re.error as error:
            raise ValueError(f"{CONFIG}: {name}: {error}") from None
        said[field] = config.get(field, 8) if key is None else patterns[key]
        if not is_right(said[field]) or said[field] <= 0:
            raise ValueError(f"{CONFIG}: {field} ({shown(said[field])}) must be a positive number.")
    rank = pair[0].shape[0]
    if rank != said["r"] or pair[1].shape[1] != rank:
        raise ValueError(
            f"{WEIGHTS}: the factors of {module}, {pair[0].shape} and {pair[1].shape}, are not of rank {said['r']}, as "
            f"{CONFIG} has it."
        )
    return said["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _ours(row, module, a, b, is_embedding, scale, shapes):
    """`Factors` of our variables from the factors of a module."""
    ours = [tuple(shapes[path]) for path in row.paths]
    if is_embedding != row.paths[0].endswith("/embeddings") or (is_embedding and row.layout is not weight_map.same):
        raise ValueError(f"{WEIGHTS}: LoRA of {module} is of another kind of layer.")
    width = sum(shape[1] for shape in ours)
    if a.shape[1] != ours[0][0] or b.shape[0] != width:
        raise ValueError(
            f"{WEIGHTS}: the factors of {module}, {a.shape} and {b.shape}, are for a matrix of {b.shape[0]} x "
            f"{a.shape[1]}, not of {width} x {ours[0][0]}."
        )
    b = b if not is_embedding and not _is_in_first(row.layout, len(ours)) else b.T
    parts = row.layout.to_ours(b, [(a.shape[0], shape[1]) for shape in ours])
    factors = {}
    for path, part in zip(row.paths, parts, strict=True):
        used = part.any(axis=1)
        if used.any() and len(ours) > 1:  # what is zero is for the others
            factors[path] = Factors(np.ascontiguousarray(a[used].T), np.ascontiguousarray(part[used]), scale)
        elif used.any() or not b.any():
            factors[path] = Factors(np.ascontiguousarray(a.T), np.ascontiguousarray(part), scale)
    return factors


def _theirs(row, factors, shapes):
    """The factors (rank, in) and (out, rank) of a module, and their scale, from those of our variables."""
    there = {path: factors[path] for path in row.paths if path in factors}
    scale = next(iter(there.values())).scale
    rank, start, columns = sum(f.a.shape[1] for f in there.values()), 0, []
    for path in row.paths:
        b = np.zeros((rank, shapes[path][1]), "float32")
        if path in there:
            size = there[path].a.shape[1]
            b[start : start + size] = there[path].b * (there[path].scale / scale)
            start += size
        columns.append(b)
    a = np.concatenate([f.a for f in there.values()], axis=1).T
    b = np.asarray(row.layout.to_foreign(columns))
    return a, b.T if _is_in_first(row.layout, len(columns)) else b, scale


def _whole(tensors, class_name, arguments, shapes):
    """Values of the variables that an adapter holds as a whole."""
    rows = {row.name: row for row in _rows(class_name, arguments, shapes)}
    unknown = sorted(set(tensors) - set(rows))
    if unknown:
        raise ValueError(f"{WEIGHTS}: {class_name} of these sizes has no tensor {', '.join(map(shown, unknown[:4]))}.")
    kept = [rows[name] for name in tensors]
    return weight_map.read(kept, tensors, {path: shapes[path] for row in kept for path in row.paths})


def _rows(class_name, arguments, shapes):
    """The rows of the tensors that transformers has for a model; of one that it has not, our own names with dots."""
    family, _ = layout_of(class_name, {n: value for n, value in arguments.items() if n not in ("dtype", "remat")})
    if family.ARCHITECTURES:
        return [row for row in family.rows_of(class_name, arguments) if all(path in shapes for path in row.paths)]
    names = {path: path.replace("/", ".") for path in shapes}
    endings = {".kernel": ".weight", ".embeddings": ".weight"}
    for path, name in names.items():
        for ours, theirs in endings.items():
            if name.endswith(ours):
                names[path] = name.removesuffix(ours) + theirs
    return [
        weight_map.Row(name, (path,), weight_map.transposed if path.endswith("/kernel") else weight_map.same)
        for path, name in names.items()
    ]


def _is_table(row):
    return all(path.endswith(("/kernel", "/embeddings")) for path in row.paths)


def _is_in_first(layout, count):
    """Whether a module keeps its matrix (in, out), as GPT-2's do."""
    return tuple(layout.foreign_shape([(1, 2)] * count))[0] == 1


def _module(name):
    return name.removesuffix(".weight").removesuffix(".bias")


def _commonest(values):
    return Counter(values).most_common(1)[0][0]


def _plain(number):
    return int(number) if float(number).is_integer() else float(number)
