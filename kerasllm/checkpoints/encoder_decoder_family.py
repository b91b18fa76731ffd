"""The families that `TransformerTranslator` reads: Marian, BART and T5."""

from operator import itemgetter

from kerasllm.checkpoints.family import Family
from kerasllm.stack import OFF, STANDS_FOR

# What a translator has beside its stacks, and the decoder's sizes, which None makes the encoder's.
OWN = {"tie_embeddings": False, "share_embeddings": False, "use_head_bias": False, "scale_head": False}
DECODER = {
    "num_decoder_layers": "num_layers",
    "num_decoder_heads": "num_heads",
    "decoder_intermediate_dim": "intermediate_dim",
}


def _where_heads_are_as_many(stands_for):
    # A number is that of both stacks; None is of each what its own heads make it.
    return lambda a: stands_for(a) if a["num_heads"] == a["num_decoder_heads"] else None


TRANSLATORS_STAND_FOR = {
    "intermediate_dim": STANDS_FOR["intermediate_dim"],
    **{name: itemgetter(encoders) for name, encoders in DECODER.items()},
    **STANDS_FOR,
    **{name: _where_heads_are_as_many(STANDS_FOR[name]) for name in ("num_key_value_heads", "head_dim")},
}


def encoder_decoder_family(model_type, architecture, fields, rows, supported=None, written=None, **more):
    """A family that `TransformerTranslator` reads.

    Args:
        model_type, architecture: its names in config.json.
        fields, rows, supported, written, **more: as for `Family`.
    """
    return Family(
        model_type,
        {"TransformerTranslator": architecture},
        OFF | OWN | dict.fromkeys(DECODER),
        fields,
        rows,
        supported={"is_encoder_decoder": (True,), **(supported or {})},
        written={"is_encoder_decoder": True, **(written or {})},
        stands_for=TRANSLATORS_STAND_FOR,
        **more,
    )


def both(rows_of):
    """The rows of encoder and decoder: `rows_of` is a function from a stack's name to its rows."""
    return [*rows_of("encoder"), *rows_of("decoder")]
