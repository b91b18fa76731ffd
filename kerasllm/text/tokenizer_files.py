"""Reads the tokenizer files of a folder, by the conventions of the family that wrote them."""

import dataclasses
import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers

from kerasllm import json_files
from kerasllm.arguments import check_text, shown
from kerasllm.text import sentencepiece_model, tokenizer_classes, tokenizer_json, tokenizer_limits, tokenizer_parts
from kerasllm.text.panics import refused

# Entries of tokenizer_config.json that tell how to read the other files, and are wrong about what `save` writes.
READ = ("auto_map", "added_tokens_decoder", "extra_ids", "sp_model_kwargs", "separate_vocabs")
# What a dictionary of an added token holds, beside the name of its type.
FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
# Where transformers 5 keeps the chat templates beside the main one.
TEMPLATE_NAMES = TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
# Bytes of a tokenizer.json, a vocabulary, settings and a template: several times what known ones have.
MOST_TOKENIZER, MOST_VOCABULARY, MOST_SETTINGS, MOST_TEMPLATE = 2**27, 2**26, 2**24, 2**22
# The types of what is obeyed in tokenizer_config.json; None is no entry.
SWITCHES = (
    "do_lower_case strip_accents tokenize_chinese_chars add_prefix_space add_bos_token add_eos_token legacy "
    "keep_accents trim_offsets split_by_punct split_special_tokens legacy_behaviour clean_up_tokenization_spaces"
).split()
TYPES = {
    **dict.fromkeys(SWITCHES, bool),
    **{f"{role}_token": str | dict for role in tokenizer_parts.ROLES},
    **dict.fromkeys(("extra_special_tokens", "additional_special_tokens"), list | dict),
    **{"src_lang": str, "model_input_names": list, "added_tokens_decoder": dict, "chat_template": str | dict | list},
}
MOST_EXTRA_IDS = 10_000


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
        raise ValueError(f"folder ({folder}) holds source.spm and target.spm: prefix ({shown(prefix)}) must name one.")
    known = ", ".join(" with ".join(names) for names, _ in KINDS)
    raise ValueError(
        f"folder ({folder}) must hold {known}, or source.spm with vocab.json, prefix ({shown(prefix)}) before."
    )


def _read_files(paths, conventions, folder, start):
    names = " and ".join(map(str, paths))
    with refused(folder / f"{start}tokenizer_config.json"):
        config, tokens = _read_config(folder, start)
        named = {role: config.pop(f"{role}_token") for role in tokenizer_parts.ROLES if f"{role}_token" in config}
        roles = {role: _content(token) for role, token in named.items()}
    model = read_json(folder / "config.json")
    with refused(names):
        if conventions:
            convention = _convention(paths, conventions, config, model)
            backend, roles = convention(
                paths, config, {role: token for role, token in roles.items() if token is not None}
            )
            _add_tokens(backend, tokens, check=True)
            _check_roles(backend, roles)
        else:
            backend, roles = _read_json(*paths, config, model, roles, tokens)
        _add_new_tokens(backend, [_added_token(named.get(role) or token) for role, token in roles.items()])
        _add_new_tokens(backend, _extra_tokens(config))
        tokenizer_limits.check_use(backend)
    if config.get("tokenizer_class") != "PreTrainedTokenizerFast":  # which `save` writes
        config.pop("tokenizer_class", None)
    return backend, roles, {name: value for name, value in config.items() if name not in READ}


def _read_config(folder, start):
    """The entries of tokenizer_config.json, and dict id -> added token."""
    config = read_json(folder / f"{start}tokenizer_config.json")
    _check_config(config)
    if isinstance(config.get("added_tokens_decoder"), dict):
        tokens = {int(i): _added_token(token, special=False) for i, token in config["added_tokens_decoder"].items()}
    else:
        # What older versions wrote beside it; where it is not whole, these are newer.
        map_path, path = (folder / f"{start}{name}.json" for name in ("special_tokens_map", "added_tokens"))
        config |= read_json(map_path)
        with refused(map_path):
            _check_config(config)
        special = {_content(config.get(f"{role}_token")) for role in tokenizer_parts.ROLES}
        special |= {token.content for token in _extra_tokens(config)}
        ids = read_json(path)
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids.values()):
            raise ValueError(f"{path} must hold the ids of tokens.")
        tokens = {i: tokenizers.AddedToken(token, special=token in special) for token, i in ids.items()}
    if len(tokens) > tokenizer_limits.MOST_ADDED_TOKENS:
        raise ValueError(f"added tokens ({len(tokens)}) must be at most {tokenizer_limits.MOST_ADDED_TOKENS}.")
    templates = {name: _read_template(file) for name, file in template_files(folder, start).items()}
    if templates:
        config["chat_template"] = templates["default"] if list(templates) == ["default"] else templates
    return config, tokens


def _check_config(config):
    for name, kind in TYPES.items():
        if config.get(name) is not None and not isinstance(config[name], kind):
            names = getattr(kind, "__name__", str(kind)).replace("|", "or")
            raise ValueError(f"{name} ({shown(config[name])}) must be {names}.")
    templates = config.get("chat_template")
    parts = templates.values() if isinstance(templates, dict) else templates if isinstance(templates, list) else ()
    for part in parts:
        if not isinstance(part, str) and not (
            isinstance(part, dict) and all(isinstance(part.get(name), str) for name in ("name", "template"))
        ):
            raise ValueError(f"chat_template must be a template, or hold them with their names, not {shown(part)}.")
    if not all(isinstance(name, str) for name in config.get("model_input_names") or ()):
        raise ValueError(f"model_input_names ({shown(config['model_input_names'])}) must be strings.")
    extra_ids = config.get("extra_ids", 0)
    if isinstance(extra_ids, bool) or not isinstance(extra_ids, int) or not 0 <= extra_ids <= MOST_EXTRA_IDS:
        raise ValueError(f"extra_ids ({shown(extra_ids, 40)}) must be a whole number up to {MOST_EXTRA_IDS}.")


def _read_template(path):
    with refused(path):
        if path.stat().st_size > MOST_TEMPLATE:
            raise ValueError(f"it is longer than {MOST_TEMPLATE} bytes.")
        return path.read_text("utf-8")


def template_files(folder, start=""):
    """The files of chat templates in a folder, where transformers 5 writes them, as dict name -> path."""
    default = pathlib.Path(folder) / f"{start}{TEMPLATE}"
    named = sorted((default.parent / f"{start}{TEMPLATES}").glob("*.jinja"))
    return ({"default": default} if default.is_file() else {}) | {file.stem: file for file in named}


def _read_json(path, config, model, roles, tokens):
    """Read a tokenizer.json as transformers does, where the class of the tokenizer has a say in it."""
    with refused(f"{path} cannot be read"):
        spec = json_files.read_json(path, most_bytes=MOST_TOKENIZER)
        tokenizer_limits.check(spec)
        backend = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    backend.no_truncation()  # so that all special tokens around a text are seen
    backend.no_padding()
    _add_tokens(backend, tokens, check=False)
    name = tokenizer_classes.of_json(config, model)
    is_known = name is not None and tokenizer_json.fits(backend, name)
    if is_known:
        if any(not token.special for token in tokens.values()):
            backend = tokenizers.Tokenizer.from_str(backend.to_str())  # which forgets that one was special
        roles = _roles(name, backend.get_vocab()) | roles
        if name == "DistilBertTokenizer":
            config.setdefault("model_input_names", ["input_ids", "attention_mask"])  # It has no segments.
    elif not config and not roles:
        roles = tokenizer_json.evident_roles(backend, model)
    roles = {role: token for role, token in roles.items() if token is not None}
    _check_roles(backend, roles)
    if is_known:
        tokenizer_json.obey(backend, name, config, roles)
    return backend, roles


def _convention(paths, conventions, config, model):
    """The function that reads the files: by the class of the tokenizer, else of the model, else the first."""
    named, model_type = tokenizer_classes.named_in(config, model), tokenizer_classes.model_type_in(model)
    known = " or ".join(filter(None, conventions))
    if named is not None and tokenizer_classes.canonical(named) not in tokenizer_classes.ANY and model_type != "qwen2":
        if tokenizer_classes.canonical(named) not in conventions:
            raise ValueError(
                f"{paths[0]}: tokenizer_class ({shown(named)}) must be {known}, or the files a tokenizer.json."
            )
        return conventions[tokenizer_classes.canonical(named)]
    if model_type in (None, "kerasllm"):
        return next(iter(conventions.values()))
    by_model = (tokenizer_classes.OF_MODEL | tokenizer_classes.OF_OLDER_FILES).get(model_type)
    if by_model is None or by_model not in conventions:
        raise ValueError(
            f"{paths[0]}: model_type ({shown(model_type)}) in config.json must be of a model with {known}, "
            "or tokenizer_config.json name one of these as tokenizer_class, or the files be a tokenizer.json."
        )
    return conventions[by_model]


def _add_tokens(backend, tokens, check):
    """Add the tokens of tokenizer_config.json or added_tokens.json, or change their flags.

    Args:
        backend: a `tokenizers.Tokenizer`.
        tokens: dict id -> `tokenizers.AddedToken`.
        check: whether the ids must be these. A tokenizer.json has its own.
    """
    known = backend.get_added_tokens_decoder()
    backend.add_tokens([token for i, token in sorted(tokens.items()) if repr(known.get(i)) != repr(token)])
    for i, token in tokens.items() if check else ():
        if backend.token_to_id(token.content) != i:
            raise ValueError(f"{token.content!r} has id {backend.token_to_id(token.content)}, not {i}.")


def _add_new_tokens(backend, tokens):
    """Add special tokens that are none yet."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for token in tokens if token.content not in known])


def _extra_tokens(config):
    """The special tokens without a role: in a list, or each under a name of its own."""
    named = [token for name, token in config.items() if name.endswith("_token") and isinstance(token, str | dict)]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    return [_added_token(t) for t in [*named, *(extra.values() if isinstance(extra, dict) else extra)]]


def _added_token(token, special=True):
    """A string or a dictionary of Hugging Face's as a `tokenizers.AddedToken`."""
    if isinstance(token, str):
        return tokenizers.AddedToken(token, special=special)
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise ValueError(f"added token {shown(token)} must be a string, or a dict with content.")
    try:
        added = tokenizers.AddedToken(**{name: token[name] for name in FLAGS if name in token})
    except TypeError as error:
        raise ValueError(f"added token {shown(token)} is not understood: {error}") from error
    added.special = added.special or special
    return added


def _content(token):
    # Hugging Face writes an added token as a string or as a dictionary.
    return _added_token(token).content if isinstance(token, dict) else token


# Conventions: (paths, config, roles) -> (backend, roles)


def _bert(paths, config, roles):
    vocabulary = read_with(models.WordPiece.read_file, *paths)
    roles = {role: token for role, token in tokenizer_parts.BERT_TOKENS.items() if token in vocabulary} | roles
    backend = tokenizer_parts.bert(
        models.WordPiece(vocabulary, unk_token=roles.get("unk", tokenizer_parts.BERT_TOKENS["unk"])),
        config.get("do_lower_case", True),
        config.get("strip_accents"),
        config.get("tokenize_chinese_chars", True),
    )
    tokenizer_parts.add_bert_template(backend, roles)
    return backend, roles


def _distilbert(paths, config, roles):
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])  # It has no segments.
    return _bert(paths, config, roles)


def _mpnet(paths, config, roles):
    vocabulary = read_with(models.WordPiece.read_file, *paths)
    roles = _roles("MPNetTokenizer", vocabulary) | roles
    backend, _ = _bert(paths, config, roles)
    _check_roles(backend, roles)
    _add_mask(backend, roles)
    tokenizer_parts.add_roberta_ends(backend, roles, {})
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])  # It has no segments.
    return backend, roles


def _gpt2_or_roberta(paths, config, roles):
    vocabulary, _ = _read_pairs(paths)
    return (_roberta if "cls" in roles or "<mask>" in vocabulary else _gpt2)(paths, config, roles)


def _gpt2(paths, config, roles):
    vocabulary, merges = _read_pairs(paths)
    roles = {role: token for role, token in tokenizer_parts.GPT2_TOKENS.items() if token in vocabulary} | roles
    backend = tokenizer_parts.byte_level(models.BPE(vocabulary, merges), config.get("add_prefix_space", False))
    _add_ends(backend, config, roles, bos=False)
    return backend, roles


def _named_gpt2(paths, config, roles):
    vocabulary, _ = _read_pairs(paths)
    return _gpt2(paths, config, _roles("GPT2Tokenizer", vocabulary) | roles)


def _qwen2(paths, config, roles):
    vocabulary, merges = _read_pairs(paths)
    backend = tokenizer_parts.qwen2(models.BPE(vocabulary, merges), bool(config.get("add_prefix_space", False)))
    roles = _roles("Qwen2Tokenizer", backend.get_vocab()) | roles
    _add_ends(backend, config, roles, bos=False)
    return backend, roles


def _gpt_neox(paths, config, roles):
    vocabulary, _ = _read_pairs(paths)
    backend, roles = _gpt2(paths, config, _roles("GPTNeoXTokenizer", vocabulary) | roles)
    backend.normalizer = normalizers.NFC()
    return backend, roles


def _roberta(paths, config, roles):
    vocabulary, merges = _read_pairs(paths)
    roles = tokenizer_parts.ROBERTA_TOKENS | roles
    prefix = config.get("add_prefix_space", False)
    backend = tokenizer_parts.byte_level(models.BPE(vocabulary, merges), prefix)
    _check_roles(backend, roles)
    tokenizer_parts.add_roberta_ends(backend, roles, config)
    _add_mask(backend, roles)
    return backend, roles


def _add_mask(backend, roles):
    # The space before the mask belongs to it: what is filled in begins with one.
    backend.add_special_tokens([tokenizers.AddedToken(roles["mask"], lstrip=True, normalized=False)])


def _t5(paths, config, roles):
    backend = sentencepiece_model.to_tokenizer(_sentencepiece(*paths, config))
    roles = tokenizer_parts.T5_TOKENS | roles
    _check_roles(backend, roles)
    # The first sentinel is the last token.
    backend.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(config.get("extra_ids", 100)))])
    tokenizer_parts.add_template(backend, "$A {eos}", "$A {eos} $B {eos}", roles)
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
    roles = tokenizer_parts.ALBERT_TOKENS | roles
    _check_roles(backend, roles)
    tokenizer_parts.add_bert_template(backend, roles)
    return backend, roles


def _xlm_roberta(paths, config, roles):
    model = sentencepiece_model.with_fairseq_ids(_sentencepiece(*paths, config))
    roles = tokenizer_parts.ROBERTA_TOKENS | roles
    backend = sentencepiece_model.to_tokenizer(model)
    backend.add_special_tokens([roles["mask"]])
    _check_roles(backend, roles)
    tokenizer_parts.add_template(backend, "{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}", roles)
    return backend, roles


def _camembert(paths, config, roles):
    model = sentencepiece_model.with_camembert_ids(_sentencepiece(*paths, config))
    roles = tokenizer_parts.ROBERTA_TOKENS | roles
    backend = sentencepiece_model.to_tokenizer(model)
    _check_roles(backend, roles)
    _add_mask(backend, roles)
    tokenizer_parts.add_template(backend, "{bos} $A {eos}", "{bos} $A {eos} {eos} $B {eos}", roles)
    return backend, roles


def _gemma(paths, config, roles):
    model = sentencepiece_model.read(*paths)
    backend = sentencepiece_model.to_tokenizer(dataclasses.replace(model, add_dummy_prefix=False))
    roles = _roles("GemmaTokenizer", backend.get_vocab()) | roles
    _add_ends(backend, config, roles, bos=False)
    return backend, roles


def _llama(paths, config, roles):
    model = _sentencepiece(*paths, config)
    # transformers up to 4 took None for True.
    backend = sentencepiece_model.to_tokenizer(model, prefix_after_special_tokens=config.get("legacy") is not False)
    roles = {role: token for role, token in tokenizer_parts.LLAMA_TOKENS.items() if token in model.pieces} | roles
    _add_ends(backend, config, roles, bos=True)
    return backend, roles


def _marian(paths, config, roles):
    spm, path = paths
    vocabulary = json_files.read_json(path, most_bytes=MOST_VOCABULARY)
    with refused(path):
        tokenizer_limits.check_ids(list(vocabulary.values()))
    roles = tokenizer_parts.T5_TOKENS | roles
    special = [token for role, token in roles.items() if role != "unk"]
    languages = [token for token in vocabulary if token.startswith(">>") and token.endswith("<<")]
    model = _sentencepiece(spm, config)
    model = sentencepiece_model.with_vocabulary(model, vocabulary, roles["unk"], special, languages)
    backend = sentencepiece_model.to_tokenizer(model)
    _check_roles(backend, roles)
    backend.add_tokens([tokenizers.AddedToken(language, normalized=False) for language in languages])
    # decoders.Strip panics on a text of spaces.
    backend.decoder = decoders.Sequence([backend.decoder, decoders.Replace(tokenizers.Regex("^ +| +$"), "")])
    tokenizer_parts.add_template(backend, "$A {eos}", "$A $B {eos}", roles)
    return backend, roles


def _read_pairs(paths):
    """The vocabulary and the merges in vocab.json and merges.txt."""
    tokenizer_limits.check_ids(list(json_files.read_json(paths[0], most_bytes=MOST_VOCABULARY).values()))
    return read_with(models.BPE.read_file, *paths)


def _sentencepiece(path, config):
    model = sentencepiece_model.read(path)
    return dataclasses.replace(model, add_dummy_prefix=False) if config.get("add_prefix_space") is False else model


def _add_ends(backend, config, roles, bos):
    """Let `encode` write the tokens that `add_bos_token` and `add_eos_token` name; `bos` is the former's default."""
    bos = bool(config.get("add_bos_token", bos)) and "bos" in roles
    eos = bool(config.get("add_eos_token", False)) and "eos" in roles
    if bos or eos:
        single = "{bos} " * bos + "$A" + " {eos}" * eos
        tokenizer_parts.add_template(backend, single, f"{single}{' {bos}:1' * bos} $B:1{' {eos}:1' * eos}", roles)


def _roles(name, vocabulary):
    """The roles that a class begins with, as far as the vocabulary has their tokens."""
    return {role: token for role, token in tokenizer_classes.ROLES[name].items() if token in vocabulary}


def _check_roles(backend, roles):
    for role, token in roles.items():
        if isinstance(token, str):
            check_text(role, token)
        if not isinstance(token, str) or backend.token_to_id(token) is None:
            raise ValueError(f"{role} ({shown(token)}) must be a token of the vocabulary.")


KINDS = (
    (("tokenizer.json",), {}),
    (
        ("vocab.txt",),
        {"BertTokenizer": _bert, "DistilBertTokenizer": _distilbert, "MPNetTokenizer": _mpnet},
    ),
    (
        ("vocab.json", "merges.txt"),
        {
            **{None: _gpt2_or_roberta, "GPT2Tokenizer": _named_gpt2, "RobertaTokenizer": _roberta},
            **{"CodeGenTokenizer": _named_gpt2, "GPTNeoXTokenizer": _gpt_neox, "Qwen2Tokenizer": _qwen2},
        },
    ),
    (("spiece.model",), {"T5Tokenizer": _t5, "AlbertTokenizer": _albert}),
    (
        ("sentencepiece.bpe.model",),
        {"XLMRobertaTokenizer": _xlm_roberta, "CamembertTokenizer": _camembert},
    ),
    (("tokenizer.model",), {"LlamaTokenizer": _llama, "GemmaTokenizer": _gemma}),
)
"""Files that make a tokenizer, and the classes of tokenizers that write them; without a class, the first reads them."""


# Files


def read_with(function, *paths):
    """`function(*paths)`, whose bare exceptions become a `ValueError` that names the files."""
    with refused(f"{' and '.join(map(str, paths))} cannot be read"):
        return function(*map(str, paths))


def read_json(path):
    """The dictionary in a file; an empty one if there is no file."""
    if not path.is_file():
        return {}
    with refused(f"{path} cannot be read"):
        return json_files.read_json(path, most_bytes=MOST_SETTINGS)
