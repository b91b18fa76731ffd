"""Reads the tokenizer files of a folder, by the conventions of the family that wrote them."""

import dataclasses
import json
import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers, processors

from kerasllm.text import families, sentencepiece_model

# The class of the tokenizer by `model_type` of config.json, where tokenizer_config.json does not name it.
CLASSES = {
    "albert": "AlbertTokenizer",
    "bart": "BartTokenizer",
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "gpt2": "GPT2Tokenizer",
    "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "mt5": "T5Tokenizer",
    "roberta": "RobertaTokenizer",
    "t5": "T5Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
# What any family's files may call themselves.
ANY_CLASS = ("PreTrainedTokenizer", "TokenizersBackend")
# Entries of tokenizer_config.json that tell how to read the other files, and are wrong about what `save` writes.
READ = ("tokenizer_class", "added_tokens_decoder", "extra_ids", "sp_model_kwargs", "separate_vocabs")


def read(folder, prefix=""):
    """Read the tokenizer in a folder.

    Returns:
        A `tokenizers.Tokenizer`, dict role -> token, and the other entries of `tokenizer_config.json`.

    Raises:
        ValueError: there is no tokenizer, it is of an unknown class, or a file cannot be read.
    """
    folder = pathlib.Path(folder)
    for start in dict.fromkeys((prefix, "")):
        for names, conventions in KINDS:
            paths = [folder / f"{start}{name}" for name in names]
            if all(path.is_file() for path in paths):
                return _read_files(paths, conventions, folder, start)
    # Marian's: one vocabulary of two languages, or one for each.
    spm = folder / f"{prefix.removesuffix('_')}.spm"
    vocabularies = [path for path in (folder / f"{prefix}vocab.json", folder / "vocab.json") if path.is_file()]
    if spm.is_file() and vocabularies:
        return _read_files([spm, vocabularies[0]], {"MarianTokenizer": _marian}, folder, "")
    if (folder / "source.spm").is_file() and (folder / "target.spm").is_file():
        raise ValueError(f"folder ({folder}) holds source.spm and target.spm: prefix ({prefix!r}) must name one.")
    known = ", ".join(" with ".join(names) for names, _ in KINDS)
    raise ValueError(f"folder ({folder}) must hold {known}, or source.spm with vocab.json, prefix ({prefix!r}) before.")


def _read_files(paths, conventions, folder, start):
    config = read_json(folder / f"{start}special_tokens_map.json")
    config |= read_json(folder / f"{start}tokenizer_config.json")
    template = folder / f"{start}chat_template.jinja"
    if template.is_file():  # where transformers 5 writes it
        config["chat_template"] = template.read_text(encoding="utf-8")
    roles = {role: _content(config.pop(f"{role}_token", None)) for role in families.ROLES}
    roles = {role: token for role, token in roles.items() if token is not None}
    if not conventions:
        return read_with(tokenizers.Tokenizer.from_file, *paths), roles, config
    convention = _convention(paths, conventions, config, folder)
    try:
        backend, roles = convention(paths, config, roles)
        _add_tokens(backend, config, read_json(folder / f"{start}added_tokens.json"))
    except ValueError as error:
        if any(str(path) in str(error) for path in paths):
            raise
        raise ValueError(f"{' and '.join(map(str, paths))}: {error}") from error
    return backend, roles, {name: value for name, value in config.items() if name not in READ}


def _convention(paths, conventions, config, folder):
    """The function that reads the files: by the class of the tokenizer, else of the model, else the first."""
    named = config.get("tokenizer_class")
    if isinstance(named, str) and (name := named.removesuffix("Fast")) not in ANY_CLASS:
        if name not in conventions:
            known = " or ".join(filter(None, conventions))
            raise ValueError(f"{paths[0]}: tokenizer_class ({named!r}) must be {known}, or the files a tokenizer.json.")
        return conventions[name]
    by_model = CLASSES.get(read_json(folder / "config.json").get("model_type"))
    return conventions.get(by_model) or next(iter(conventions.values()))


def _add_tokens(backend, config, ids):
    """Add the tokens of `added_tokens.json` and `tokenizer_config.json`, which must get the ids written there."""
    added = {int(i): {"content": token} for token, i in ids.items()}
    added |= {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
    for i, token in sorted(added.items()):
        flags = {name: value for name, value in token.items() if name not in ("content", "__type")}
        backend.add_tokens([tokenizers.AddedToken(token["content"], **{"normalized": False, **flags})])
        if backend.token_to_id(token["content"]) != i:
            raise ValueError(f"{token['content']!r} has id {backend.token_to_id(token['content'])}, not {i}.")
    backend.add_special_tokens([_content(token) for token in config.get("additional_special_tokens") or []])


def _content(token):
    # Hugging Face writes an added token as a string or as a dictionary.
    return token["content"] if isinstance(token, dict) else token


# Conventions: (paths, config, roles) -> (backend, roles)


def _bert(paths, config, roles):
    vocabulary = read_with(models.WordPiece.read_file, *paths)
    roles = {role: token for role, token in families.BERT_TOKENS.items() if token in vocabulary} | roles
    backend = families.bert(
        models.WordPiece(vocabulary, unk_token=roles.get("unk", families.BERT_TOKENS["unk"])),
        config.get("do_lower_case", True),
        config.get("strip_accents"),
        config.get("tokenize_chinese_chars", True),
    )
    families.add_bert_template(backend, roles)
    return backend, roles


def _distilbert(paths, config, roles):
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])  # It has no segments.
    return _bert(paths, config, roles)


def _gpt2_or_roberta(paths, config, roles):
    vocabulary, _ = read_with(models.BPE.read_file, *paths)
    return (_roberta if "cls" in roles or "<mask>" in vocabulary else _gpt2)(paths, config, roles)


def _gpt2(paths, config, roles):
    vocabulary, merges = read_with(models.BPE.read_file, *paths)
    roles = {role: token for role, token in families.GPT2_TOKENS.items() if token in vocabulary} | roles
    backend = families.byte_level(models.BPE(vocabulary, merges), config.get("add_prefix_space", False))
    _add_ends(backend, config, roles, bos=False)
    return backend, roles


def _roberta(paths, config, roles):
    vocabulary, merges = read_with(models.BPE.read_file, *paths)
    roles = families.ROBERTA_TOKENS | roles
    prefix = config.get("add_prefix_space", False)
    backend = families.byte_level(models.BPE(vocabulary, merges), prefix)
    _check_roles(backend, roles)
    ends = [(roles[role], backend.token_to_id(roles[role])) for role in ("sep", "cls")]
    backend.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=prefix)
    # The space before the mask belongs to it: what is filled in begins with one.
    backend.add_special_tokens([tokenizers.AddedToken(roles["mask"], lstrip=True, normalized=False)])
    return backend, roles


def _t5(paths, config, roles):
    backend = sentencepiece_model.to_tokenizer(_sentencepiece(*paths, config))
    roles = families.T5_TOKENS | roles
    _check_roles(backend, roles)
    # The first sentinel is the last token.
    backend.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(config.get("extra_ids", 100)))])
    families.add_template(backend, "$A {eos}", "$A {eos} $B {eos}", roles)
    return backend, roles


def _albert(paths, config, roles):
    model = _sentencepiece(*paths, config)
    normalizer = [normalizers.Replace(quotes, '"') for quotes in ("``", "''")]
    if not config.get("keep_accents", False):
        normalizer += [normalizers.NFKD(), normalizers.StripAccents()]
    if config.get("do_lower_case", True):
        normalizer.append(normalizers.Lowercase())
    for i, piece in enumerate(model.pieces):
        if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
            model.scores[i] -= 100  # ALBERT cuts the comma from a number.
    backend = sentencepiece_model.to_tokenizer(model, normalizer=normalizers.Sequence(normalizer))
    roles = families.ALBERT_TOKENS | roles
    _check_roles(backend, roles)
    families.add_bert_template(backend, roles)
    return backend, roles


def _xlm_roberta(paths, config, roles):
    model = sentencepiece_model.with_fairseq_ids(_sentencepiece(*paths, config))
    roles = families.ROBERTA_TOKENS | roles
    backend = sentencepiece_model.to_tokenizer(model)
    backend.add_special_tokens([roles["mask"]])
    _check_roles(backend, roles)
    families.add_template(backend, "{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}", roles)
    return backend, roles


def _llama(paths, config, roles):
    model = _sentencepiece(*paths, config)
    # transformers up to 4 took None for True.
    backend = sentencepiece_model.to_tokenizer(model, prefix_after_special_tokens=config.get("legacy") is not False)
    roles = {role: token for role, token in families.LLAMA_TOKENS.items() if token in model.pieces} | roles
    _add_ends(backend, config, roles, bos=True)
    return backend, roles


def _marian(paths, config, roles):
    spm, path = paths
    vocabulary = read_json(path)
    roles = families.T5_TOKENS | roles
    special = [token for role, token in roles.items() if role != "unk"]
    languages = [token for token in vocabulary if token.startswith(">>") and token.endswith("<<")]
    model = _sentencepiece(spm, config)
    model = sentencepiece_model.with_vocabulary(model, vocabulary, roles["unk"], special, languages)
    backend = sentencepiece_model.to_tokenizer(model)
    _check_roles(backend, roles)
    backend.add_tokens([tokenizers.AddedToken(language, normalized=False) for language in languages])
    # decoders.Strip panics on a text of spaces.
    backend.decoder = decoders.Sequence([backend.decoder, decoders.Replace(tokenizers.Regex("^ +| +$"), "")])
    families.add_template(backend, "$A {eos}", "$A $B {eos}", roles)
    return backend, roles


def _sentencepiece(path, config):
    model = sentencepiece_model.read(path)
    return dataclasses.replace(model, add_dummy_prefix=False) if config.get("add_prefix_space") is False else model


def _add_ends(backend, config, roles, bos):
    """Let `encode` write the tokens that `add_bos_token` and `add_eos_token` name; `bos` is the former's default."""
    bos = bool(config.get("add_bos_token", bos)) and "bos" in roles
    eos = bool(config.get("add_eos_token", False)) and "eos" in roles
    if bos or eos:
        single = "{bos} " * bos + "$A" + " {eos}" * eos
        families.add_template(backend, single, f"{single}{' {bos}:1' * bos} $B:1{' {eos}:1' * eos}", roles)


def _check_roles(backend, roles):
    for role, token in roles.items():
        if backend.token_to_id(token) is None:
            raise ValueError(f"{role} ({token!r}) must be a token of the vocabulary.")


KINDS = (
    (("tokenizer.json",), {}),
    (
        ("vocab.txt",),
        {"BertTokenizer": _bert, "DistilBertTokenizer": _distilbert, "ElectraTokenizer": _bert},
    ),
    (
        ("vocab.json", "merges.txt"),
        {None: _gpt2_or_roberta, "GPT2Tokenizer": _gpt2, "RobertaTokenizer": _roberta, "BartTokenizer": _roberta},
    ),
    (("spiece.model",), {"T5Tokenizer": _t5, "MT5Tokenizer": _t5, "AlbertTokenizer": _albert}),
    (("sentencepiece.bpe.model",), {"XLMRobertaTokenizer": _xlm_roberta}),
    (("tokenizer.model",), {"LlamaTokenizer": _llama}),
)
"""Files that make a tokenizer, and the classes of tokenizers that write them; without a class, the first reads them."""


# Files


def read_with(function, *paths):
    """`function(*paths)`, whose bare exceptions become a `ValueError` that names the files."""
    try:
        return function(*map(str, paths))
    except Exception as error:  # The tokenizers package raises bare exceptions.
        raise ValueError(f"{' and '.join(map(str, paths))} cannot be read: {error}") from error


def read_json(path):
    """The dictionary in a file; an empty one if there is no file."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a dictionary.")
    return config
