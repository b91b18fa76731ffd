"""What a folder of sentence-transformers says beside the encoder: what follows it, prompts, the length to cut at."""

import re
from pathlib import Path

from kerasllm.arguments import shown
from kerasllm.checkpoints import files
from kerasllm.checkpoints.config_map import boolean, is_one_of, number, size
from kerasllm.checkpoints.encoder_family import dense_folder
from kerasllm.checkpoints.weight_map import renamed
from kerasllm.json_files import read_settings

MODULES, SETTINGS, CONFIG = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
OLD_SETTINGS = tuple(f"sentence_{name}_config.json" for name in ("roberta", "distilbert", "camembert", "xlm-roberta"))
PACKAGE, POOLING = "sentence_transformers", "1_Pooling"
# Our word, which is that of version 5.3 on, and that of older ones, which all read; joined vectors come in this order.
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "linear",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
LONGEST = 2**30  # Tokenizers say a number beyond it for no limit.

# Of each file the fields that change nothing here, and those that are understood with some values only.
IRRELEVANT = {"word_embedding_dimension", "embedding_dimension", "unpad_inputs", "backend", "cache_dir", "__version__"}
SENTENCE = (None, "sentence_embedding")
SUPPORTED = {
    SETTINGS: {
        "transformer_task": (None, "feature-extraction"),
        "modality_config": (None, {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}),
        "module_output_name": (None, "token_embeddings"),
        **dict.fromkeys(("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"), (None,)),
        **dict.fromkeys(("processing_kwargs", "model_args", "tokenizer_args", "config_args"), (None, {})),
        **dict.fromkeys(("model_kwargs", "processor_kwargs", "config_kwargs"), (None, {})),
    },
    "Dense": {"use_residual": (False,), "module_input_name": SENTENCE, "module_output_name": SENTENCE},
    "Normalize": {"module_input_name": SENTENCE, "module_output_name": SENTENCE},
    CONFIG: {"model_type": (None, "SentenceTransformer"), "truncate_dim": (None,)},
    "CrossEncoder": {"model_type": ("CrossEncoder",), "prompts": (None, {}), "default_prompt_name": (None,)},
}


CROSS_ENCODER = "CrossEncoder"
SCORE = "activation_fn"  # what makes a score of a cross-encoder's logits
IDENTITY = "torch.nn.modules.linear.Identity"
OLD_SCORE = "sbert_ce_default_activation_function"  # the field of config.json before version 4
PROBLEM_TYPES = {
    "torch.nn.modules.activation.Sigmoid": "multi_label",
    "torch.nn.modules.activation.Softmax": "single_label",
}


def read_problem_type(folder, config, arguments):
    """What a cross-encoder's file says that the logits of a classifier mean: dict with `problem_type`, or an empty one.

    Args:
        folder: its path.
        config: dict, the content of its config.json, which says it before version 6.
        arguments: dict, those of the classifier.

    Raises:
        ValueError: the scores are another function of logits than a classifier of ours has.
    """
    path, name = Path(folder) / CONFIG, SCORE
    own = read_settings(path) if path.is_file() else {}
    activation = config.get(OLD_SCORE)
    if isinstance(config.get(PACKAGE), dict):
        path, activation = f"{folder}/{files.CONFIG}: {PACKAGE}", config[PACKAGE].get(SCORE, activation)
    if own.get("model_type") == CROSS_ENCODER:
        _read(Path(folder) / CONFIG, (SCORE,), CROSS_ENCODER)
        path, activation = Path(folder) / CONFIG, own.get(SCORE, activation)
    if activation is None:
        return {}
    if activation == IDENTITY:  # of several labels, what a softmax is made of
        return {"problem_type": "regression"} if len(arguments["labels"]) == 1 else {}
    if activation not in list(PROBLEM_TYPES):
        accepted = ", ".join([*PROBLEM_TYPES, IDENTITY])
        raise ValueError(f"{path}: {name} ({shown(activation)}) must be one of {accepted}.")
    return {"problem_type": PROBLEM_TYPES[activation]}


def is_embedder(folder):
    """Whether a folder says how the vectors of tokens become one; that of a cross-encoder says nothing of it."""
    path = Path(folder) / CONFIG
    is_other = path.is_file() and read_settings(path).get("model_type") == CROSS_ENCODER
    return (Path(folder) / MODULES).is_file() and not is_other


def read_modules(folder, arguments=None):
    """The arguments of an embedder that a folder's `modules.json` and the files it names say.

    Args:
        folder: its path.
        arguments: dict, those of the encoder. Texts are not cut beyond its `max_sequence_length`: the files of a
            RoBERTa may count positions that it does not use.

    Returns:
        dict with `pooling`, `include_prompt`, `dense`, `normalize`, `truncate_at`, `prompts`, `default_prompt_name` and
        `similarity`; an empty one where the folder has no `modules.json`.

    Raises:
        ValueError: names the module, or the setting, that an embedder of ours has not.
    """
    folder = Path(folder)
    if not is_embedder(folder):
        return {}
    modules = _modules(folder)
    dense = [path for kind, path in modules if kind == "Dense"]
    normalize = [path for kind, path in modules if kind == "Normalize"]
    for path in normalize:
        if (path / files.CONFIG).is_file():
            _read(path / files.CONFIG, (), "Normalize")
    settings = _read(_settings(folder), ("max_seq_length", "do_lower_case"), SETTINGS, optional=True)
    reads_lowercase(folder)  # or it says now what is wrong
    longest = settings.get("max_seq_length")
    if longest is not None and not size.accepts(longest):
        raise ValueError(f"{_settings(folder)}: max_seq_length ({shown(longest)}) must be {size.accepted}.")
    longest = _longest(folder) if longest is None else longest
    config = _read(folder / CONFIG, ("prompts", "default_prompt_name", "similarity_fn_name"), CONFIG, optional=True)
    similarity = config.get("similarity_fn_name")
    pooling = _pooling(modules[1][1] / files.CONFIG)
    # What a config says of both is not checked yet.
    width, limit = ((arguments or {}).get(name) for name in ("hidden_dim", "max_sequence_length"))
    width = (width if size.accepts(width) else 0) * (
        1 if isinstance(pooling["pooling"], str) else len(pooling["pooling"])
    )
    layers = []
    for path in dense:
        layers.append(_dense(path / files.CONFIG, width))
        width = layers[-1]["units"]
    return {
        **pooling,
        "dense": layers,
        "normalize": bool(normalize),
        "truncate_at": min(longest, limit) if longest and size.accepts(limit) else longest,
        "prompts": _prompts(folder / CONFIG, config),
        "default_prompt_name": config.get("default_prompt_name"),
        "similarity": "cosine" if similarity is None else similarity,
    }


def reads_lowercase(folder):
    """Whether a folder says that texts are read in small letters, whatever its tokenizer does."""
    path = _settings(Path(folder))
    lowers = read_settings(path).get("do_lower_case", False) if path.is_file() else False
    if not boolean.accepts(lowers):
        raise ValueError(f"{path}: do_lower_case ({shown(lowers)}) must be {boolean.accepted}.")
    return lowers


def read_dense(folder):
    """The tensors of a folder's dense modules: dict such as "2_Dense/linear.weight" -> array."""
    if not is_embedder(folder):
        return {}
    paths = [path for kind, path in _modules(Path(folder)) if kind == "Dense"]
    return {
        name: tensor
        for i, path in enumerate(paths)
        for name, tensor in renamed(files.read_tensors(path), lambda name, i=i: f"{dense_folder(i)}/{name}").items()
    }


def write_dense(folder, tensors):
    """Write the tensors of dense modules into their folders, and return the others."""
    parts = {}
    for name, tensor in tensors.items():
        part, _, rest = name.rpartition("/")
        parts.setdefault(part, {})[rest] = tensor
    rest = parts.pop("", {})
    for part, own in parts.items():
        (Path(folder) / part).mkdir()
        files.write_tensors(Path(folder) / part, own)
    return rest


def write_modules(folder, arguments, dimension):
    """Write `modules.json` and the files it names, as sentence-transformers reads them, but for the weights.

    Args:
        folder: path of the folder, which is there.
        arguments: dict, as `read_modules` says them.
        dimension: width of a token's vector.
    """
    folder, dense = Path(folder), arguments["dense"]
    modules = [("Transformer", ""), ("Pooling", POOLING)] + [("Dense", dense_folder(i)) for i in range(len(dense))]
    modules += [("Normalize", f"{len(modules)}_Normalize")] * arguments["normalize"]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"{PACKAGE}.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    files.write_json(folder / MODULES, entries)
    files.write_json(folder / SETTINGS, {"max_seq_length": arguments["truncate_at"], "do_lower_case": False})
    config = {"prompts": arguments["prompts"], "default_prompt_name": arguments["default_prompt_name"]}
    files.write_json(folder / CONFIG, config | {"similarity_fn_name": arguments["similarity"]})
    pooling = arguments["pooling"]
    modes = [pooling] if isinstance(pooling, str) else pooling
    words = {word: mode in modes for mode, word in POOLINGS.items()}
    if list(modes) != [mode for mode in POOLINGS if mode in modes]:
        words = {"pooling_mode": list(modes)}  # an order that only newer versions know
    words |= {} if arguments["include_prompt"] else {"include_prompt": False}
    _write(folder / POOLING, {"word_embedding_dimension": dimension, **words})
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    width = dimension * len(modes)
    for i, layer in enumerate(dense):
        sizes = {"in_features": width, "out_features": layer["units"], "bias": layer["use_bias"]}
        _write(folder / dense_folder(i), sizes | {"activation_function": names[layer["activation"]]})
        width = layer["units"]


def _modules(folder):
    """The kind and the folder of each module."""
    path, modules = folder / MODULES, []
    for module in read_settings(path, list):
        if not isinstance(module, dict):
            raise ValueError(f"{path}: modules ({shown(module)}) must be objects.")
        kind, inner = str(module.get("type")), module.get("path")
        if not isinstance(inner, str | None):
            raise ValueError(f"{path}: the path ({shown(inner)}) of {kind:.80} must be a string.")
        package, _, name = kind.rpartition(".")
        modules.append((name if package.partition(".")[0] == PACKAGE else kind, inner or ""))
        if not is_one_of(module.get("kwargs"), (None, [], {})):
            raise ValueError(f"{path}: kwargs ({shown(module['kwargs'])}) of {kind:.80} must be empty.")
    kinds = [kind for kind, _ in modules]
    between = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(between) - {"Dense"}:
        raise ValueError(
            f"{path}: modules ({str(kinds):.200}) must be Transformer and Pooling, perhaps Dense, perhaps Normalize."
        )
    if modules[0][1]:
        raise ValueError(f"{path}: the Transformer's path ({shown(modules[0][1])}) must be empty.")
    for kind, name in modules[1:]:
        link = name and (folder / name).resolve().parent != folder.resolve()
        if not re.fullmatch(r"([\w-][\w. -]*)?", name) or link:
            raise ValueError(f"{path}: the path ({shown(name)}) of {kind} must be a folder in this one.")
    return [(kind, folder / name) for kind, name in modules]


def _settings(folder):
    return next((folder / name for name in OLD_SETTINGS if (folder / name).is_file()), folder / SETTINGS)


def _read(path, fields, kind, optional=False):
    """The content of a file whose every field is understood."""
    if optional and not path.is_file():
        return {}
    config, supported = read_settings(path), SUPPORTED.get(kind, {})
    for name, value in config.items():
        if name in supported and not is_one_of(value, supported[name]):
            accepted = " or ".join(map(repr, supported[name]))
            raise ValueError(f"{path}: {name} ({shown(value)}) must be {accepted}.")
        if name not in supported and name not in fields and name not in IRRELEVANT:
            raise ValueError(f"{path}: {name} ({shown(value)}) is unknown.")
    return config


def _prompts(path, config):
    prompts = config.get("prompts")
    prompts = {} if prompts is None else prompts
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str | None) for prompt in prompts.values()):
        raise ValueError(f"{path}: prompts ({shown(prompts)}) must be an object of strings.")
    return {name: prompt or "" for name, prompt in prompts.items()}


def _pooling(path):
    config = _read(path, ("pooling_mode", "include_prompt", *POOLINGS.values()), "Pooling")
    modes = config.get("pooling_mode")
    for name in (*POOLINGS.values(), "include_prompt"):
        if not boolean.accepts(config.get(name, True)):
            raise ValueError(f"{path}: {name} ({shown(config[name])}) must be {boolean.accepted}.")
    if modes is None:
        modes = [mode for mode, word in POOLINGS.items() if config.get(word)]
    modes = modes if isinstance(modes, list) else [modes]
    if not modes or not all(mode in list(POOLINGS) for mode in modes):
        raise ValueError(f"{path}: pooling modes ({str(modes):.80}) must be of {', '.join(map(repr, POOLINGS))}.")
    return {"pooling": modes[0] if len(modes) == 1 else modes, "include_prompt": config.get("include_prompt", True)}


def _dense(path, width):
    """A dense layer over vectors of a width, where that is known."""
    config = _read(path, ("in_features", "out_features", "bias", "activation_function"), "Dense")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in list(ACTIVATIONS):
        raise ValueError(f"{path}: activation_function ({shown(activation)}) must be one of {', '.join(ACTIVATIONS)}.")
    units, bias = config.get("out_features"), config.get("bias", True)
    if width and config.get("in_features", width) != width:
        raise ValueError(f"{path}: in_features ({shown(config['in_features'])}) must be {width}.")
    if not size.accepts(units) or not boolean.accepts(bias):
        raise ValueError(
            f"{path}: out_features ({shown(units)}) must be {size.accepted}, bias ({shown(bias)}) {boolean.accepted}."
        )
    return {"units": units, "activation": ACTIVATIONS[activation], "use_bias": bias}


def _longest(folder):
    """The length that the tokenizer names, by which newer versions cut; None if there is none."""
    path = folder / "tokenizer_config.json"
    longest = read_settings(path).get("model_max_length") if path.is_file() else None
    if longest is not None and not (number.accepts(longest) and longest >= 1):
        raise ValueError(f"{path}: model_max_length ({shown(longest)}) must be a positive number.")
    return int(longest) if longest is not None and longest < LONGEST else None


def _write(folder, config):
    folder.mkdir(exist_ok=True)
    files.write_json(folder / files.CONFIG, config)
