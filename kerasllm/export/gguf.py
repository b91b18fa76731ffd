"""GGUF files for llama.cpp, Ollama and LM Studio; the way back is `kerasllm.checkpoints.gguf`.

A file is made of the preset that the model writes, read again and compared with it, so that what GGUF cannot say is an
error and not left out. Where the package xllamacpp is installed, llama.cpp continues texts from it, as the model must.
"""

import json
import math
from pathlib import Path

import numpy as np

from kerasllm import writing
from kerasllm.arguments import check_boolean, check_choice, shown
from kerasllm.checkpoints import files, gguf
from kerasllm.checkpoints.presets import read_preset
from kerasllm.export import llama_cpp
from kerasllm.export.text_graph.hard_texts import HARD_TEXTS
from kerasllm.extras import is_installed, required
from kerasllm.layers.rotary_scaling import llama3
from kerasllm.text.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from kerasllm.text.tokenizers import Tokenizer

OPTIONS = ("quantize", "verify")
# What matrices are kept in: gguf's name, and that of tables of tokens, which have 8 bits at least.
KINDS = {
    None: ("F32", "F32"),
    "float16": ("F16", "F16"),
    "bfloat16": ("BF16", "BF16"),
    "q8_0": ("Q8_0", "Q8_0"),
    **{kind: (kind.upper(), "Q8_0") for kind in ("q4_0", "q4_1", "q5_0", "q5_1")},
}
TABLES = ("token_embd.weight", "output.weight")
FLOATS = {"rope.freq_base", "rope.scaling.factor", "attention.layer_norm_rms_epsilon"}
# Of `gguf.PRE_TOKENIZERS` one name for each way of cutting texts into words.
PRE_NAMES = ("gpt-2", "smollm", "smaug-bpe", "llama-bpe")
# What GGUF does not say, and what only training asks for.
UNSAID = {"dropout", "attention_dropout", "initializer_range", "dtype", "remat"}
PROMPTS = ("The capital of France is", "Once upon a time", "1, 2, 3,")
NUM_TOKENS = 16
CLOSE = 1e-3  # Two logits that are nearer to each other may change places.


def export_model(model, path, verbose=None, input_signature=None, *, quantize=None, verify=True):
    """Write a model with its tokenizer as a GGUF file; `Model.export` says what the arguments are.

    Raises:
        ImportError: the package gguf is not installed.
        ValueError: llama.cpp has no word for something of the model or of its tokenizer.
        RuntimeError: llama.cpp writes another text from the file than the model.
    """
    check_choice("quantize", quantize, tuple(KINDS))
    check_boolean("verify", verify)
    if input_signature is not None:
        raise ValueError(f"input_signature ({shown(input_signature)}) must be None for the format 'gguf'.")
    if not str(path).endswith(".gguf"):
        raise ValueError(f"filepath ({shown(str(path))}) must end in '.gguf' for the format 'gguf'.")
    model.required_tokenizer()
    with writing.replacing(path) as place:
        folder = place.parent.parent / "preset"  # taken away with what is beside `place`
        model.save_to_preset(folder)
        write(place, folder, type(model), quantize)
        said = "read back"
        if verify and is_installed("xllamacpp"):
            said = _compared(model, place, quantize)
    if verbose is None or verbose:
        print(f"Saved gguf at {str(path)!r}: {said}.")


def write(path, folder, model_class, quantize=None):
    """Write the model and the tokenizer of a preset's folder as a GGUF file, and read it again.

    Args:
        path: of the file.
        folder: of a preset.
        model_class: the class that opens it.
        quantize: a key of `KINDS`, of the matrices; vectors are float32.
    """
    library, quants = required("gguf", "Writing GGUF files"), required("gguf.quants", "Writing GGUF files")
    config = files.read_json(Path(folder) / "config.json")
    names = _family(config).gguf
    sizes, divisors = _sizes(config, names)
    tensors = {_name(name, names): array for name, array in files.read_tensors(folder).items()}
    if divisors is not None:
        tensors["rope_freqs.weight"] = divisors.astype("float32")
    metadata = {f"{names.architecture}.{name}": value for name, value in sizes.items()}
    writer = library.GGUFWriter(path, names.architecture)
    for name, value in (metadata | _tokenizer_metadata(folder, config["vocab_size"])).items():
        _add(writer, name, value)
    kinds = {}
    for name, array in tensors.items():
        kind = library.GGMLQuantizationType[KINDS[quantize][name in TABLES] if len(array.shape) == 2 else "F32"]
        values, size = library.GGML_QUANT_SIZES[kind]
        if array.shape[-1] % values:
            raise ValueError(
                f"quantize ({quantize!r}) must be one whose blocks, here of {values} values, divide the rows of all "
                f"matrices: {name} is {array.shape}."
            )
        writer.add_tensor_info(name, array.shape, np.dtype("float32"), math.prod(array.shape) // values * size, kind)
        kinds[name] = kind
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, array in tensors.items():
        array = _in_pairs(name, np.asarray(array, "float32"), sizes, names)
        writer.write_tensor_data(quants.quantize(np.ascontiguousarray(array), kinds[name]))
    writer.close()
    _check_read(path, folder, model_class)


def _family(config):
    """The family of a folder's model, if GGUF is written of it."""
    known = {family.MODEL_TYPE: family for family in gguf.BY_ARCHITECTURE.values()}
    if config.get("model_type") not in known:
        raise ValueError(
            f"format ('gguf') is written of models of these families: {', '.join(known)}; this one is saved as "
            f"{shown(config.get('model_type'))}."
        )
    return known[config["model_type"]]


def _sizes(config, names):
    """The metadata of a family, without its name before them; and `rope_freqs.weight`, or None."""
    sizes = {name: config[field] for name, field in names.metadata.items() if config.get(field) is not None}
    head_dim = gguf.head_dim(sizes)
    sizes |= {"vocab_size": config["vocab_size"], "rope.dimension_count": head_dim}
    if "attention.key_length" in sizes:
        sizes["attention.value_length"] = head_dim
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        return sizes | {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}, None
    if kind == "llama3":
        frequencies = sizes["rope.freq_base"] ** (-np.arange(0, head_dim, 2) / head_dim)
        return sizes, frequencies / llama3(frequencies, scaling, None)[0]
    if kind != "default":
        raise ValueError(f"rope_type ({shown(kind)}) must be 'default', 'linear' or 'llama3' for the format 'gguf'.")
    return sizes, None


def _name(name, names):
    """llama.cpp's name of a tensor."""
    theirs = {layer: short for short, layer in names.tensors.items()}
    layer, _, kind = name.rpartition(".")
    before, after = names.block.split("{i}")
    if layer.startswith(before):
        number, _, layer = layer.removeprefix(before).partition(after)
        block = f"blk.{number}."
    else:
        block = ""
    if layer not in theirs or kind not in ("weight", "bias"):
        raise ValueError(f"the tensor {name} has no name in GGUF files of the family {names.architecture!r}.")
    return f"{block}{theirs[layer]}.{kind}"


def _in_pairs(name, array, sizes, names):
    """Channels of queries and keys in pairs of neighbours, as llama.cpp rotates them, where ours are in halves."""
    layer = next((layer for layer in names.in_pairs if f".{layer}." in name), None)
    if layer is None:
        return array
    heads = sizes["attention.head_count" if layer.endswith("_q") else "attention.head_count_kv"]
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _add(writer, name, value):
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, float) or name.partition(".")[2] in FLOATS:
        writer.add_float32(name, value)
    else:
        writer.add_uint32(name, value)


def _tokenizer_metadata(folder, vocabulary_size):
    """What a file says of the tokenizer."""
    tokenizer = Tokenizer.from_folder(folder)
    spec = json.loads(tokenizer.backend.to_str())
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.vocabulary_size)]
    types = [NORMAL] * len(tokens)
    for token in spec["added_tokens"]:
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    tokens += [f"[PAD{i}]" for i in range(len(tokens), vocabulary_size)]
    types += [UNUSED] * (vocabulary_size - len(types))
    plain, framed = (tokenizer.encode("a", special_tokens=special) for special in (False, True))
    values = {"add_bos_token": framed[0] != plain[0], "add_eos_token": framed[-1] != plain[-1]}
    roles = {"bos": tokenizer.bos_id, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id, "eos": tokenizer.eos_id}
    values |= {f"{gguf.ROLES[role]}_token_id": i for role, i in roles.items() if i is not None}
    values |= _ends(folder, tokens, values.get("eos_token_id"))
    if spec["model"].get("byte_fallback"):
        values |= _sentencepiece(spec, tokens, types)
    else:
        values |= _byte_level(spec)
    values |= {"tokens": tokens, "token_type": types}
    template = (tokenizer.config or {}).get("chat_template")
    if isinstance(template, list):
        raise ValueError("chat_template: several are there, of which GGUF has one.")
    chat = {"tokenizer.chat_template": template} if template else {}
    return {gguf.TOKENIZER + name: value for name, value in values.items()} | chat


def _ends(folder, tokens, eos):
    """The tokens at which generation ends, of which GGUF names three, and llama.cpp knows some by their texts."""
    defaults = Path(folder) / "generation_config.json"
    ends = (files.read_json(defaults) if defaults.is_file() else {}).get("eos_token_id")
    ends = [i for i in ([ends] if isinstance(ends, int) else ends or []) if i != eos]
    named = dict(zip(("eot_token_id", "eom_token_id"), ends, strict=False)) if eos is not None else {}
    left = [tokens[i] for i in ends if i not in named.values() and tokens[i] not in gguf.END_TEXTS]
    if left:
        raise ValueError(f"eos_token_id: GGUF has no name for {', '.join(map(repr, left))}, which end a text as well.")
    return named


def _byte_level(spec):
    """The name of a byte-level tokenizer's way to cut texts into words."""
    if spec["model"]["type"] != "BPE" or spec["normalizer"]:
        raise ValueError(
            f"the tokenizer ({spec['model']['type']}, normalizer {shown(spec['normalizer'])}) must be of byte-level "
            "pairs without a normalizer, or of SentencePiece's pairs, for the format 'gguf'."
        )
    found = _words(spec["pre_tokenizer"]), not spec["model"].get("ignore_merges", False)
    for name in PRE_NAMES:
        known = gguf.PRE_TOKENIZERS[name]
        if found == (_words(gguf.pre_tokenizer(known)), known["merge_all"]):
            merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in spec["model"]["merges"]]
            return {"model": "gpt2", "pre": name, "merges": merges}
    raise ValueError(
        f"the tokenizer's pre_tokenizer ({shown(json.dumps(spec['pre_tokenizer']), 200)}) must be that of one that "
        f"llama.cpp knows: {', '.join(PRE_NAMES)}."
    )


def _words(pre_tokenizer):
    """The steps of a pre-tokenizer, without what only offsets depend on."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    return [{name: value for name, value in (step or {}).items() if name != "trim_offsets"} for step in steps]


def _sentencepiece(spec, tokens, types):
    """The scores of a SentencePiece model of pairs: the later a piece is merged, the smaller."""
    ranks = {}
    for rank, pair in enumerate(spec["model"]["merges"]):
        pair = pair if isinstance(pair, list) else pair.split(" ")
        ranks.setdefault("".join(pair), rank)
    for i, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = BYTE
        elif token == spec["model"]["unk_token"]:
            types[i] = UNKNOWN
    scores = [-float(ranks.get(token, len(ranks))) if types[i] == NORMAL else 0.0 for i, token in enumerate(tokens)]
    normalizer, words = json.dumps(spec["normalizer"]), json.dumps(spec["pre_tokenizer"])
    prefix = '"Prepend"' in normalizer or '"prepend_scheme": "always"' in words or '"prepend_scheme": "first"' in words
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}


def _check_read(path, folder, model_class):
    """Raise `ValueError` where the file says something else than the folder."""
    written, read = (read_preset(source, model_class) for source in (folder, path))
    for name, value in written.arguments.items():
        if name not in UNSAID and not _is_same(value, read.arguments.get(name)):
            raise ValueError(
                f"{name} ({shown(value)}): llama.cpp has no word for it in a file of this family, and would take "
                f"{shown(read.arguments.get(name))}."
            )
    with read.folder() as texts:
        ours, theirs = (Tokenizer.from_folder(place) for place in (folder, texts))
    if ours.config.get("chat_template") != theirs.config.get("chat_template"):
        raise ValueError("the tokenizer: its chat_template cannot be kept.")
    for text in [*HARD_TEXTS, *(f"a{ours.id_to_token(i)} b" for i in ours.special_ids)]:
        if ours.encode(text) != theirs.encode(text):
            raise ValueError(f"the tokenizer: llama.cpp would have other ids for {shown(text)}.")


def _is_same(value, other):
    if isinstance(value, float) and isinstance(other, float | int):
        return math.isclose(value, other, rel_tol=1e-6)
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_is_same(value[key], other[key]) for key in value)
    return value == other


def _compared(model, path, quantize):
    """What llama.cpp writes from a file, compared with what the model writes: a sentence."""
    texts = [text for text in HARD_TEXTS if text.strip()]
    found = llama_cpp.run(path, texts, PROMPTS, NUM_TOKENS)
    for text, ids in zip(texts, found["ids"], strict=True):
        if ids != model.tokenizer.encode(text):
            raise RuntimeError(f"{path}: llama.cpp has other ids than the model's tokenizer for {shown(text)}.")
    agreed = total = 0
    for prompt, ids in zip(PROMPTS, found["texts"], strict=True):
        start = model.tokenizer.encode(prompt)
        token_ids = np.array([[*start, *ids]], "int32")
        logits = model.predict_on_batch({"token_ids": token_ids, "padding_mask": token_ids >= 0})[0]
        for i, token_id in enumerate(ids):
            row = logits[len(start) + i - 1]
            is_close = row.max() - row[token_id] <= CLOSE
            total, agreed = total + 1, agreed + is_close
            if quantize is None and not is_close:
                raise RuntimeError(
                    f"{path}: after {shown(prompt)} and {i} tokens llama.cpp takes {token_id}, which the model gives "
                    f"{row[token_id]:.4f}, and not {int(row.argmax())}, {row.max():.4f}."
                )
    return f"llama.cpp has the same ids for {len(texts)} texts, and the model's choice at {agreed} of {total} tokens"
