"""The families that `GPT` reads: GPT-2, Llama and their like."""

from kerasllm.checkpoints.family import Family
from kerasllm.checkpoints.weight_map import same, transposed
from kerasllm.stack import OFF


def decoder_family(model_type, architecture, fields, rows, embeddings, head, **more):
    """A family that `GPT` reads.

    Args:
        model_type, architecture: its names in config.json.
        fields, rows, **more: as for `Family`; `rows` have neither token embeddings nor head.
        embeddings, head: names of the token embeddings, and of the output layer where that is not tied to them.
    """
    tokens = (embeddings, "decoder/embeddings/token/embeddings", same)
    untied = (head, "head/kernel", transposed)

    def all_rows(arguments):
        own = rows(arguments) if callable(rows) else rows
        return [tokens, *own] if arguments["tie_embeddings"] else [tokens, *own, untied]

    return Family(
        model_type,
        {"GPT": architecture},
        OFF | {"tie_embeddings": False, "logit_softcap": None},
        fields,
        all_rows,
        tied=lambda arguments: {head: embeddings} if arguments["tie_embeddings"] else {},
        **more,
    )
