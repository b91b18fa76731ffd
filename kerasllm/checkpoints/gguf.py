"""GGUF files, as llama.cpp reads them: what stands in one, as the folder that Hugging Face would have of the model.

Source of the names and layouts: llama.cpp's convert_hf_to_gguf.py.
"""

import json
import re
from pathlib import Path

import numpy as np

from kerasllm.checkpoints import gguf_reader
from kerasllm.checkpoints.weight_map import LazyArray
from kerasllm.text.sentencepiece_model import SentencePieceModel, to_tokenizer

# The metadata of a Llama, without "llama.", and the fields of config.json; None where tensors or tokens say it too.
METADATA = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "attention.value_length": None,
    "rope.dimension_count": None,
    "vocab_size": None,
}
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# Llama 3's words: at most three digits stand together.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "gpt-2": [],
    "smollm": [{"type": "Digits", "individual_digits": True}],
    "llama-bpe": [{"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False}],
}
# Ours and GGUF's names of special tokens.
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens


def read(path):
    """Read a GGUF file.

    Returns:
        The content of config.json; the tensors, dict Hugging Face's name -> float32 array, dequantised when numpy
        asks for its values; and the files of the tokenizer and of generation's defaults, dict name -> text.

    Raises:
        ImportError: the package gguf is not installed.
        ValueError: the file is missing or malformed, or holds a model or a tokenizer that we do not know.
    """
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise ImportError("Reading GGUF files needs gguf: `pip install 'kerasllm[gguf]'`.") from error
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
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"general.architecture ({architecture!r}) must be 'llama'.")
    config = _config(metadata, set(tensors))
    tensors = {_name(name): _rotated_by_halves(name, tensor, config) for name, tensor in tensors.items()}
    embeddings = tensors.get("model.embed_tokens.weight")
    config["vocab_size"] = 0 if embeddings is None else embeddings.shape[0]
    return config, tensors, _tokenizer_files(metadata)


def _config(metadata, tensor_names):
    ours = {name.removeprefix("llama."): value for name, value in metadata.items() if name.startswith("llama.")}
    unknown = sorted(set(ours) - set(METADATA))
    if unknown:
        raise ValueError(f"metadata: {', '.join(f'llama.{name}' for name in unknown)} is unknown.")
    config = {METADATA[name]: value for name, value in ours.items() if METADATA[name]}
    missing = {"num_attention_heads", "hidden_size", "num_hidden_layers"} - set(config)
    if missing:
        raise ValueError(f"metadata: {', '.join(sorted(missing))} is missing.")
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    for name in ("attention.value_length", "rope.dimension_count"):
        if ours.get(name, head_dim) != head_dim:
            raise ValueError(f"metadata: llama.{name} ({ours[name]!r}) must be the width of a head, {head_dim}.")
    return {"model_type": "llama", "tie_word_embeddings": "output.weight" not in tensor_names, **config}


def _name(name):
    """Hugging Face's name of a tensor, or its own if we do not know it."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in TENSORS:
        return name
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{TENSORS[match[2]]}.{match[3]}"


def _rotated_by_halves(name, tensor, config):
    """Kernels of queries and keys, whose channels llama.cpp rotates in pairs of neighbours and we in two halves."""
    if not name.endswith((".attn_q.weight", ".attn_k.weight")):
        return tensor
    heads = config["num_attention_heads"]
    heads = heads if name.endswith(".attn_q.weight") else config.get("num_key_value_heads", heads)
    if len(tensor.shape) != 2 or tensor.shape[0] % (2 * heads):
        raise ValueError(f"{name} {tensor.shape} does not divide into {heads} heads.")

    def by_halves():
        array = np.asarray(tensor)
        return array.reshape(heads, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)

    return LazyArray(tensor.shape, tensor.dtype, by_halves)


def _tokenizer_files(metadata):
    values = {name.removeprefix("tokenizer.ggml."): value for name, value in metadata.items()}
    if "model" not in values:
        return {}
    ids = {role: values.get(f"{name}_token_id") for role, name in ROLES.items()}
    roles = {f"{role}_token": values["tokens"][i] for role, i in ids.items() if i is not None}
    if values["model"] == "llama":
        tokenizer, starts = _sentencepiece(values), True
    elif values["model"] == "gpt2" and values.get("pre") in PRE_TOKENIZERS:
        tokenizer, starts = _byte_level(values), False
    else:
        raise ValueError(
            f"tokenizer.ggml.model ({values['model']!r}) and tokenizer.ggml.pre ({values.get('pre')!r}) must be "
            f"'llama', or 'gpt2' and one of {', '.join(map(repr, PRE_TOKENIZERS))}."
        )
    if values.get("add_bos_token", starts):
        bos = roles["bos_token"]
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [ids["bos"]], "tokens": [bos]}},
        }
    template = metadata.get("tokenizer.chat_template")
    config = roles | ({"chat_template": template} if template else {})
    defaults = {f"{role}_token_id": ids[role] for role in ("bos", "eos", "pad") if ids[role] is not None}
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": config, "generation_config.json": defaults}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in files.items()}


def _byte_level(values):
    """tokenizer.json of GPT-2's byte-level pairs."""
    tokens = values["tokens"]
    added = [
        {"id": i, "content": tokens[i], "special": kind == CONTROL}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, kind in enumerate(values.get("token_type", []))
        if kind in (CONTROL, USER_DEFINED)
    ]
    words, is_llama_3 = PRE_TOKENIZERS[values["pre"]], values["pre"] == "llama-bpe"
    pairs = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": values["merges"]}
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*words, BYTE_LEVEL | {"use_regex": not is_llama_3}]},
        "decoder": BYTE_LEVEL,
        "model": pairs | {"ignore_merges": is_llama_3},
    }


def _sentencepiece(values):
    """tokenizer.json of SentencePiece's pairs, as Llama 2 and Mistral have them."""
    model = SentencePieceModel(
        values["tokens"],
        values["scores"],
        values["token_type"],
        "bpe",
        add_dummy_prefix=values.get("add_space_prefix", True),
        remove_extra_whitespaces=values.get("remove_extra_whitespaces", False),
    )
    return json.loads(to_tokenizer(model).to_str())
