"""Marian (Junczys-Dowmunt et al. 2018) as Hugging Face lays it out: `MarianMTModel`, the opus-mt translators."""

import numpy as np

from kerasllm.checkpoints import bart
from kerasllm.checkpoints.config_map import boolean, size
from kerasllm.checkpoints.encoder_decoder_family import both, encoder_decoder_family
from kerasllm.checkpoints.weight_map import same, transposed

FIELDS = [
    ("vocab_size", "source_vocabulary_size", size, 58101),
    ("decoder_vocab_size", "target_vocabulary_size", size, 58101),
    ("tie_word_embeddings", "tie_embeddings", boolean, True),
    ("share_encoder_decoder_embeddings", "share_embeddings", boolean, True),
    *bart.SIZES,
]
SEPARATE = [
    ("model.encoder.embed_tokens.weight", "encoder/embeddings/token/embeddings", same),
    ("model.decoder.embed_tokens.weight", "decoder/embeddings/token/embeddings", same),
]
HEAD = ("lm_head.weight", "head/kernel", transposed)
POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def _rows(arguments):
    embeddings = [bart.SHARED] if arguments["share_embeddings"] else SEPARATE
    head = [bart.HEAD_BIAS] if arguments["tie_embeddings"] else [bart.HEAD_BIAS, HEAD]
    return [*both(bart.block), *embeddings, *head]


def _tied(arguments):
    if arguments["share_embeddings"]:
        return bart.TIED
    return {HEAD[0]: SEPARATE[1][0]} if arguments["tie_embeddings"] else {}


def _prepare(config):
    shares, ties = (config.get(name, True) for name in ("share_encoder_decoder_embeddings", "tie_word_embeddings"))
    if shares is True and ties is False:
        raise ValueError("config.json: share_encoder_decoder_embeddings (True) needs tie_word_embeddings (False) True.")
    if config.get("decoder_vocab_size") is None:
        config = {**config, "decoder_vocab_size": config.get("vocab_size", 58101)}
    return config


def _complete(tensors, arguments):
    # Older files carry the sinusoids along.
    for name in POSITIONS:
        _check_sinusoids(name, tensors.pop(name, None))
    return bart.with_bias(tensors, arguments)


def _check_sinusoids(name, tensor):
    if tensor is None:
        return
    positions, width = tensor.shape
    angles = np.arange(positions)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    table = np.concatenate([np.sin(angles), np.cos(angles)[:, : width // 2]], axis=-1)
    if not np.allclose(tensor.astype("float32"), table, atol=2e-3):  # they may be stored in 16 bits
        raise ValueError(f"{name} holds no sinusoids: its positions are learned, a Marian's are not.")


MARIAN = encoder_decoder_family(
    "marian",
    "MarianMTModel",
    FIELDS,
    _rows,
    fixed=bart.FIXED | {"positions": "split_sinusoidal"},
    second_names=bart.SECOND_NAMES,
    supported={**bart.SUPPORTED, "normalize_embedding": (False,), "static_position_embeddings": (True,)},
    irrelevant=bart.IRRELEVANT,
    prepare=_prepare,
    rename=bart.with_full_names,
    complete=_complete,
    tied=_tied,
    ignored=bart.IGNORED,
)
