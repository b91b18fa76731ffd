"""What a folder of sentence-transformers says beside the encoder: pooling, normalisation, the length to cut at."""

from pathlib import Path

from kerasllm.checkpoints import files

MODULES, SETTINGS, POOLING = "modules.json", "sentence_bert_config.json", "1_Pooling"
# The words of versions before 5.3, which all versions read.
OLD_WORDS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
_OURS = {word: mode for mode, word in OLD_WORDS.items()}
TYPES = ("Transformer", "Pooling", "Normalize")


def read_modules(folder):
    """The arguments of an embedder that a folder's `modules.json` and the files it names say.

    Returns:
        dict with `pooling`, `normalize` and `truncate_at`; an empty one where the folder has no `modules.json`.

    Raises:
        ValueError: names the module, or the setting, that an embedder of ours has not.
    """
    folder = Path(folder)
    if not (folder / MODULES).is_file():
        return {}
    modules = files.read_json(folder / MODULES, list)
    types = [str(module["type"]).rpartition(".")[2] if isinstance(module, dict) else None for module in modules]
    if types not in (list(TYPES), list(TYPES[:2])):
        raise ValueError(f"{folder / MODULES}: modules ({types}) must be {' and '.join(TYPES[:2])}, perhaps Normalize.")
    if modules[0].get("path"):
        raise ValueError(f"{folder / MODULES}: the Transformer's path ({modules[0]['path']!r}) must be empty.")
    arguments = {"pooling": _pooling(folder / str(modules[1].get("path")) / files.CONFIG)}
    arguments["normalize"] = len(modules) == 3
    settings = files.read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if settings.get("do_lower_case"):
        raise ValueError(f"{folder / SETTINGS}: do_lower_case (true) must be false: the tokenizer says it.")
    arguments["truncate_at"] = settings.get("max_seq_length")
    return arguments


def _pooling(path):
    config = files.read_json(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [word for word, value in config.items() if word.startswith("pooling_mode_") and value]
    modes = [_OURS.get(mode, mode) for mode in ([modes] if isinstance(modes, str) else modes)]
    if len(modes) != 1 or modes[0] not in OLD_WORDS:
        raise ValueError(f"{path}: pooling modes ({modes}) must be one of {', '.join(map(repr, OLD_WORDS))}.")
    return modes[0]


def write_modules(folder, pooling, normalize, truncate_at, dimension):
    """Write `modules.json` and the files it names, as sentence-transformers reads them.

    Args:
        folder: path of the folder, which is there.
        pooling, normalize, truncate_at: as `read_modules` says them.
        dimension: width of an embedding.
    """
    folder = Path(folder)
    paths = ["", POOLING, "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, TYPES, strict=True))
    ]
    files.write_json(folder / MODULES, modules if normalize else modules[:2])
    settings = {"max_seq_length": truncate_at, "do_lower_case": False}
    files.write_json(folder / SETTINGS, settings)
    (folder / POOLING).mkdir(exist_ok=True)
    words = {word: mode == pooling for mode, word in OLD_WORDS.items()}
    files.write_json(folder / POOLING / files.CONFIG, {"word_embedding_dimension": dimension, **words})
