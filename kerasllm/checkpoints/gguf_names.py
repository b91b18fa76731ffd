"""What llama.cpp's files of a family are called inside."""

from typing import NamedTuple


class GGUFNames(NamedTuple):
    """The names of a family in GGUF files; their source is llama.cpp's convert_hf_to_gguf.py.

    Args:
        architecture: of the family; its metadata begin with it.
        metadata: dict name of a metadata entry -> field of config.json.
        required: names of entries without which llama.cpp has values of its own.
        tensors: dict name of a tensor's layer -> Hugging Face's; layers of blocks without "blk.0.".
        block: what Hugging Face has before the layers of block `{i}`.
        in_pairs: layers of queries and keys whose channels are rotated in pairs of neighbours, not in halves as ours.
    """

    architecture: str
    metadata: dict
    required: tuple
    tensors: dict
    block: str
    in_pairs: tuple = ()
