"""Marian (Junczys-Dowmunt et al. 2018) as Hugging Face lays it out: `MarianMTModel`, the opus-mt translators."""

import numpy as np

from kerasllm.checkpoints import bart, config_map, weight_map
from kerasllm.checkpoints.config_map import boolean, size
from kerasllm.checkpoints.weight_map import same, transposed

MODEL_TYPE = "marian"
ARCHITECTURES = {"TransformerTranslator": "MarianMTModel"}

FIELDS = [
    ("vocab_size", "source_vocabulary_size", size, 58101),
    ("decoder_vocab_size", "target_vocabulary_size", size, 58101),
    ("tie_word_embeddings", "tie_embeddings", boolean, True),
    ("share_encoder_decoder_embeddings", "share_embeddings", boolean, True),
    *bart.SIZES,
]
FIXED = bart.BLOCKS | {"positions": "split_sinusoidal", "norm_embeddings": False}
SUPPORTED = bart.SUPPORTED | {"normalize_embedding": (False,), "static_position_embeddings": (True,)}
IRRELEVANT = (*bart.IRRELEVANT, "tokenizer_class")
SEPARATE = [
    ("model.encoder.embed_tokens.weight", "encoder/embeddings/token/embeddings", same),
    ("model.decoder.embed_tokens.weight", "decoder/embeddings/token/embeddings", same),
]
HEAD = ("lm_head.weight", "head/kernel", transposed)
POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def read_config(config, class_name, tensor_names):
    """The arguments of a `TransformerTranslator` from config.json."""
    config = config_map.renamed(config, bart.SECOND_NAMES)
    if config.get("decoder_vocab_size") is None:
        config["decoder_vocab_size"] = config.get("vocab_size", 58101)
    arguments = config_map.read(FIELDS, config, SUPPORTED, IRRELEVANT)
    if arguments["share_embeddings"] and not arguments["tie_embeddings"]:
        raise ValueError("config.json: share_encoder_decoder_embeddings (True) needs tie_word_embeddings (False) True.")
    return arguments | FIXED


def write_config(class_name, arguments):
    """config.json for a `TransformerTranslator`; None for one that is no Marian."""
    if arguments["share_embeddings"] and not arguments["tie_embeddings"]:
        return None
    fixed = {name: (value,) for name, value in FIXED.items()}
    config = config_map.write(FIELDS, bart.filled(arguments), fixed | bart.no_buckets(arguments))
    return config and {**config, "is_encoder_decoder": True}


def read_weights(class_name, arguments, tensors, shapes):
    """Values of the variables of a `TransformerTranslator`: dict path -> array."""
    tensors = bart.with_bias(weight_map.renamed(tensors, bart.with_prefix), arguments)
    # Older files carry the sinusoids along.
    for name in POSITIONS:
        _check_sinusoids(name, tensors.pop(name, None))
    tied = {}
    if arguments["share_embeddings"]:
        tied = bart.TIED
    elif arguments["tie_embeddings"]:
        tied = {HEAD[0]: SEPARATE[1][0]}
    return weight_map.read(_rows(arguments), tensors, shapes, bart.IGNORED, tied)


def write_weights(class_name, arguments, arrays):
    """The tensors of a Marian from the values of a `TransformerTranslator`'s variables."""
    return weight_map.write(_rows(arguments), arrays)


def _rows(arguments):
    embeddings = [bart.SHARED] if arguments["share_embeddings"] else SEPARATE
    head = [bart.HEAD_BIAS] if arguments["tie_embeddings"] else [bart.HEAD_BIAS, HEAD]
    blocks = bart.expand_blocks(arguments, bart.ENCODER, bart.DECODER)
    return blocks + weight_map.expand([*embeddings, *head], 1)


def _check_sinusoids(name, tensor):
    if tensor is None:
        return
    positions, width = tensor.shape
    angles = np.arange(positions)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    table = np.concatenate([np.sin(angles), np.cos(angles)[:, : width // 2]], axis=-1)
    if not np.allclose(tensor.astype("float32"), table, atol=2e-3):  # they may be stored in 16 bits
        raise ValueError(f"{name} holds no sinusoids: its positions are learned, a Marian's are not.")
