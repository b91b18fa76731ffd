"""GGUF files, as llama.cpp reads them: what stands in one, as the folder that Hugging Face would have of the model.

What a family's metadata and tensors are called, its own file says (`GGUFNames`).
"""

import json
import re
from pathlib import Path

import numpy as np

from kerasllm.arguments import shown
from kerasllm.checkpoints import gguf_reader
from kerasllm.checkpoints.families import FAMILIES
from kerasllm.checkpoints.weight_map import LazyArray
from kerasllm.extras import required
from kerasllm.text.sentencepiece_model import SentencePieceModel, to_tokenizer

BY_ARCHITECTURE = {family.gguf.architecture: family for family in FAMILIES if getattr(family, "gguf", None)}
# What is looked at apart; what tensors, tokens or the width of a head say too; what says nothing of the model.
ELSEWHERE = {"rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "attention.sliding_window", "vocab_size"}
WIDTHS = ("attention.value_length", "rope.dimension_count")
ROPE_BASE = 10000.0
IRRELEVANT = {"rope.scaling.finetuned", "rope.scaling.original_context_length", "tensor_data_layout"}
# What other models have, and the values with which it does nothing.
NEUTRAL = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "use_parallel_residual": (False,),
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# Llama 3's words: at most three digits stand together.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_2_WORDS = {"words": [], "merge_all": True, "bos": False}
SMOLLM_WORDS = GPT_2_WORDS | {"words": [{"type": "Digits", "individual_digits": True}]}
SMAUG_WORDS = GPT_2_WORDS | {
    "words": [{"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False}]
}
LLAMA_3_WORDS = SMAUG_WORDS | {"merge_all": False, "bos": True}
# How texts are cut into words, whether words that are symbols are merged too, whether the start token is added.
PRE_TOKENIZERS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), GPT_2_WORDS),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), SMOLLM_WORDS),
    **dict.fromkeys(("smaug-bpe", "dbrx"), SMAUG_WORDS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), LLAMA_3_WORDS),
}
# Ours and GGUF's names of special tokens.
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of tokens
TOKENIZER = "tokenizer.ggml."
TOKENIZER_FIELDS = {
    "model",
    "pre",
    "tokens",
    "scores",
    "token_type",
    "token_type_count",
    "merges",
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
    "remove_extra_whitespaces",
    "suppress_tokens",
}
# What the lists hold, and what is true or false.
LISTS = {"tokens": str, "merges": str, "scores": float, "token_type": int, "suppress_tokens": int}
SWITCHES = ("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces")
TOKENIZER_NEUTRAL = {"add_sep_token": (False,), "precompiled_charsmap": ([],), "normalizer.lowercase": (False,)}
SENTENCEPIECE_IDS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}  # where a file names none
# Tokens that end a text beside the end token: those that the metadata name, and those of these texts.
ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
END_TEXTS = frozenset(
    """
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|>
    <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[
    <｜end▁of▁sentence｜> <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO>
    <reponame> <|file_sep|>
    """.split()
)


def read(path):
    """Read a GGUF file.

    Returns:
        The content of config.json; the tensors, dict Hugging Face's name -> float32 array, dequantised when numpy
        asks for its values; and the files of the tokenizer and of generation's defaults, dict name -> text.

    Raises:
        ImportError: the package gguf is not installed.
        ValueError: the file is missing or malformed, or holds a model or a tokenizer that we do not know.
    """
    GGML_QUANT_SIZES = required("gguf.constants", "Reading GGUF files").GGML_QUANT_SIZES
    if not Path(path).is_file():
        raise ValueError("there is no such file.")
    block_sizes = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    try:
        metadata, tensors = gguf_reader.read(path, block_sizes, _dequantize)
    except (ValueError, OSError) as error:
        raise ValueError(f"it is not a whole GGUF file: {error}") from error
    try:
        return _folder(metadata, tensors)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # values that do not fit together
        raise ValueError(f"its metadata contradict each other: {error!r}") from error


def _dequantize(rows, kind):
    from gguf import GGMLQuantizationType, quants

    try:
        return quants.dequantize(rows, GGMLQuantizationType(kind))
    except NotImplementedError as error:
        raise ValueError(f"tensors of the kind {GGMLQuantizationType(kind).name} cannot be dequantised.") from error


def _folder(metadata, tensors):
    architectures = tuple(BY_ARCHITECTURE)
    for name, accepted in {"general.architecture": architectures, "general.type": (None, "model")}.items():
        if metadata.get(name) not in accepted:
            known = " or ".join(repr(value) for value in accepted if value)
            raise ValueError(f"{name} ({shown(metadata.get(name))}) must be {known}.")
    if metadata.get("split.count", 1) > 1:
        raise ValueError(
            f"split.count ({shown(metadata['split.count'])}) must be 1: it is one of several files; merge them."
        )
    family = BY_ARCHITECTURE[metadata["general.architecture"]]
    names = family.gguf
    prefix = f"{names.architecture}."
    sizes = {name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)}
    config = {"model_type": family.MODEL_TYPE, **_config(sizes, names), **_rope_scaling(sizes, prefix)}
    config["tie_word_embeddings"] = "output.weight" not in tensors
    tensors = dict(tensors)
    if "rope_freqs.weight" in tensors:
        scaling = _scaling_of(
            np.asarray(tensors.pop("rope_freqs.weight")), head_dim(sizes), sizes.get("rope.freq_base", ROPE_BASE)
        )
        if scaling and "rope_scaling" in config:
            raise ValueError(f"rope_freqs.weight and metadata: {prefix}rope.scaling exclude each other.")
        config |= {"rope_scaling": scaling} if scaling else {}
    embeddings = tensors.get("token_embd.weight")
    config["vocab_size"] = 0 if embeddings is None else embeddings.shape[0]
    size = sizes.get("vocab_size", config["vocab_size"])
    if embeddings is not None and size != config["vocab_size"]:
        raise ValueError(f"metadata: {prefix}vocab_size ({size}) must be that of token_embd, {config['vocab_size']}.")
    tensors = {_name(name, names): _in_halves(name, tensor, sizes, names) for name, tensor in tensors.items()}
    return config, tensors, _tokenizer_files(metadata)


def _config(sizes, names):
    """The fields of config.json that a family's metadata say, and a `ValueError` for what we do not know of them."""
    prefix = f"{names.architecture}."
    _check_known(prefix, sizes, {*names.metadata, *WIDTHS} | ELSEWHERE | IRRELEVANT, NEUTRAL)
    missing = [f"{prefix}{name}" for name in names.required if name not in sizes]
    if missing:
        raise ValueError(f"metadata: {', '.join(missing)} is missing.")
    for name in names.metadata:
        if name in sizes:
            sizes[name] = _same_in_all(f"{prefix}{name}", sizes[name], sizes["block_count"])
    for name in WIDTHS:
        if sizes.get(name, head_dim(sizes)) != head_dim(sizes):
            raise ValueError(
                f"metadata: {prefix}{name} ({sizes[name]!r}) must be the width of a head, {head_dim(sizes)}."
            )
    window = sizes.get("attention.sliding_window", 0)
    if 0 < window < sizes["context_length"]:
        raise ValueError(f"metadata: {prefix}attention.sliding_window ({window}) must be as long as the context.")
    return {field: sizes[name] for name, field in names.metadata.items() if name in sizes}


def head_dim(sizes):
    """The width of a head, from a family's metadata."""
    return sizes.get("attention.key_length") or sizes["embedding_length"] // sizes["attention.head_count"]


def _rope_scaling(sizes, prefix):
    factor = sizes.get("rope.scaling.factor", sizes.get("rope.scale_linear"))
    kind = sizes.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise ValueError(f"metadata: {prefix}rope.scaling.type ({shown(kind)}) must be 'none' or 'linear'.")
    if kind == "none" or factor in (None, 0, 1):
        return {}
    return {"rope_scaling": {"rope_type": "linear", "factor": factor}}


def _check_known(prefix, values, known, neutral):
    """Refuse metadata that would change what is computed, and those that we do not know."""
    unknown = sorted(set(values) - set(known) - set(neutral))
    if unknown:
        raise ValueError(f"metadata: {', '.join(prefix + name for name in unknown)} is unknown.")
    for name in sorted(set(values) & set(neutral)):
        if values[name] not in neutral[name]:
            accepted = " or ".join(map(repr, neutral[name]))
            raise ValueError(f"metadata: {prefix}{name} ({shown(values[name])}) must be {accepted}.")


def _same_in_all(name, value, num_layers):
    """A number that a file may say for each layer."""
    if not isinstance(value, list):
        return value
    if len(value) != num_layers or len(set(value)) != 1:
        raise ValueError(f"metadata: {name} ({shown(value)}) must be the same in all {num_layers} layers.")
    return value[0]


def _scaling_of(divisors, head_dim, base):
    """`rope_scaling` of Llama 3.1, from the numbers (H/2,) by which llama.cpp divides the rotary frequencies.

    Of a share s, which grows with the frequency from 0 to 1, they are 1 / ((1 - s) / factor + s).
    """
    divisors, factor = divisors.astype("float64"), round(float(divisors.max()), 6)
    if (divisors == 1).all():
        return None
    turns = base ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    if divisors.shape == turns.shape and factor > 1:
        shares = (1 / divisors - 1 / factor) / (1 - 1 / factor)
        between = (shares > 1e-4) & (shares < 1 - 1e-4)
        bounds = [(1.0, 4.0, 8192)] + [(1.0, 4.0, 2**i) for i in range(21)]
        if between.sum() > 1:  # a line, which says the bounds but for what they have in common
            slope, start = np.polyfit(turns[between], shares[between], 1)
            bounds += [(1.0, float(1 - 1 / start), float(-slope / start))] if start < 0 else []
        for low, high, length in bounds:
            share = np.clip((length * turns - low) / (high - low), 0, 1)
            if np.allclose(divisors, 1 / ((1 - share) / factor + share), rtol=2e-5, atol=0):
                names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
                return {"rope_type": "llama3", "factor": factor} | dict(zip(names, (low, high, length), strict=True))
    raise ValueError(
        "rope_freqs.weight must be Llama 3.1's scaling of rotary positions (rope_type 'llama3'); it is no such for "
        f"heads of {head_dim} and rope.freq_base {base}."
    )


def _name(name, names):
    """Hugging Face's name of a tensor, or its own if we do not know it."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in names.tensors:
        return name
    block = "" if match[1] is None else names.block.replace("{i}", match[1])
    return f"{block}{names.tensors[match[2]]}.{match[3]}"


def _in_halves(name, tensor, sizes, names):
    """Kernels of queries and keys in halves of channels, as ours, where the file has pairs of neighbours."""
    layer = next((layer for layer in names.in_pairs if name.endswith(f".{layer}.weight")), None)
    if layer is None:
        return tensor
    heads = sizes["attention.head_count"]
    heads = heads if layer.endswith("_q") else sizes.get("attention.head_count_kv", heads)
    if len(tensor.shape) != 2 or tensor.shape[0] % (2 * heads):
        raise ValueError(f"{name} {tensor.shape} does not divide into {heads} heads.")

    def in_halves():
        array = np.asarray(tensor)
        return array.reshape(heads, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)

    return LazyArray(tensor.shape, tensor.dtype, in_halves)


def _tokenizer_files(metadata):
    values = {name.removeprefix(TOKENIZER): value for name, value in metadata.items() if name.startswith(TOKENIZER)}
    ids = {name for name in values if name.endswith("_token_id")}
    _check_known(TOKENIZER, values, TOKENIZER_FIELDS | ids, TOKENIZER_NEUTRAL)
    for name in {*LISTS, *SWITCHES, *ids} & set(values):
        value, kind = values[name], LISTS.get(name)
        if kind and not (isinstance(value, list) and all(type(entry) is kind for entry in value)):
            raise ValueError(f"metadata: {TOKENIZER}{name} ({shown(value)}) must be a list of {kind.__name__}.")
        if not kind and type(value) is not (bool if name in SWITCHES else int):
            raise ValueError(f"metadata: {TOKENIZER}{name} ({shown(value)}) must be a token id, or true or false.")
    kind, pre = values.get("model", "none"), values.get("pre")
    if kind in ("none", "no_vocab"):
        return _written({"generation_config.json": _defaults(values, [])})
    if kind != "llama" and (kind != "gpt2" or pre not in PRE_TOKENIZERS):
        raise ValueError(
            f"tokenizer.ggml.model ({shown(kind)}) and tokenizer.ggml.pre ({shown(pre)}) must be "
            f"'llama', or 'gpt2' and one of {', '.join(map(repr, PRE_TOKENIZERS))}."
        )
    lists = ("tokens", "scores", "token_type") if kind == "llama" else ("tokens", "merges")
    missing = [TOKENIZER + name for name in lists if name not in values]
    if missing:
        raise ValueError(f"metadata: {', '.join(missing)} is missing.")
    values["tokens"] = tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(values["tokens"])]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"tokenizer.ggml.tokens has {len(tokens) - len(set(tokens))} tokens twice.")
    values = (SENTENCEPIECE_IDS if kind == "llama" else {}) | values
    for name in sorted(ids):
        if not 0 <= values[name] < len(tokens):
            raise ValueError(
                f"tokenizer.ggml.{name} ({values[name]}) must be below the number of tokens, {len(tokens)}."
            )
    types = list(values.get("token_type", [NORMAL] * len(tokens)))
    if len(types) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens.")
    ends = [i for i, token in enumerate(tokens) if token in END_TEXTS]
    for i in ends:
        types[i] = CONTROL  # whatever the file says, as in llama.cpp
    tokenizer = _sentencepiece(values, types) if kind == "llama" else _byte_level(values, types)
    if any(name in str(metadata.get("general.name", "")).lower() for name in ("phi-3", "phi3")):
        for token in tokenizer["added_tokens"]:  # which take the spaces after them
            token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    starts = kind == "llama" or PRE_TOKENIZERS[pre]["bos"]
    _add_ends(tokenizer, values, values.get("add_bos_token", starts), values.get("add_eos_token", False))
    roles = {role: values.get(f"{name}_token_id") for role, name in ROLES.items()}
    template = metadata.get("tokenizer.chat_template")
    config = {f"{role}_token": tokens[i] for role, i in roles.items() if i is not None}
    config |= {"chat_template": template} if template else {}
    defaults = _defaults(values, ends)
    return _written({"tokenizer.json": tokenizer, "tokenizer_config.json": config, "generation_config.json": defaults})


def _written(files):
    return {name: json.dumps(value, ensure_ascii=False) for name, value in files.items() if value}


def _defaults(values, ends):
    """generation_config.json, of which `ends` are further tokens that end a text."""
    named = {role: values.get(f"{ROLES[role]}_token_id") for role in ("bos", "pad")}
    ids = [values[f"{name}_token_id"] for name in ENDS if f"{name}_token_id" in values]
    defaults = {f"{role}_token_id": i for role, i in named.items() if i is not None}
    ids = list(dict.fromkeys([*ids, *ends]))
    defaults |= {"eos_token_id": ids if len(ids) > 1 else ids[0]} if ids else {}
    suppressed = values.get("suppress_tokens")
    return defaults | ({"suppress_tokens": suppressed} if suppressed else {})


def _add_ends(tokenizer, values, bos, eos):
    """Let the tokenizer write the start token before a text and the end token after it."""
    used = {"bos": bos, "eos": eos}
    for role in used:
        if used[role] and f"{role}_token_id" not in values:
            raise ValueError(f"tokenizer.ggml.add_{role}_token (true) needs tokenizer.ggml.{role}_token_id.")
    if not any(used.values()):
        return
    ids = {role: values[f"{role}_token_id"] for role in used if used[role]}
    tokens = {role: values["tokens"][i] for role, i in ids.items()}

    def around(sequence, segment):
        parts = [tokens.get("bos"), None, tokens.get("eos")]
        return [
            {"Sequence": {"id": sequence, "type_id": segment}}
            if place == 1
            else {"SpecialToken": {"id": token, "type_id": segment}}
            for place, token in enumerate(parts)
            if place == 1 or token is not None
        ]

    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {t: {"id": t, "ids": [ids[role]], "tokens": [t]} for role, t in tokens.items()},
    }


def _byte_level(values, types):
    """tokenizer.json of GPT-2's byte-level pairs."""
    tokens, pre = values["tokens"], PRE_TOKENIZERS[values["pre"]]
    added = [
        {"id": i, "content": tokens[i], "special": kind != USER_DEFINED}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, kind in enumerate(types)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    pairs = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": values["merges"]}
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": pre_tokenizer(pre),
        "decoder": BYTE_LEVEL,
        "model": pairs | {"ignore_merges": not pre["merge_all"]},
    }


def pre_tokenizer(pre):
    """What cuts a text into words, of one of `PRE_TOKENIZERS`, as tokenizer.json has it."""
    # Words that a pattern has cut are cut no further.
    by_pattern = any(word["type"] == "Split" for word in pre["words"])
    words = [*pre["words"], BYTE_LEVEL | {"use_regex": not by_pattern}]
    return {"type": "Sequence", "pretokenizers": words}


def _sentencepiece(values, types):
    """tokenizer.json of SentencePiece's pairs, as Llama 2 and Mistral have them."""
    model = SentencePieceModel(
        values["tokens"],
        values["scores"],
        types,
        "bpe",
        add_dummy_prefix=values.get("add_space_prefix", True),
        remove_extra_whitespaces=values.get("remove_extra_whitespaces", False),
    )
    return json.loads(to_tokenizer(model).to_str())
