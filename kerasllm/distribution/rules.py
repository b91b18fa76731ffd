"""Which axis of a variable goes over the axis "model" of a mesh: said once, on the names that our layers give.

Megatron's way (Shoeybi et al. 2019, arXiv:1909.08053): what widens is split by its columns, what narrows by its rows,
so that a device computes whole heads, and whole channels of the feed-forward, and adds once behind each.
"""

import re

COLUMNS, ROWS, WHOLE = 1, 0, None
"""The axis of a matrix (in, out) that is split: out, in, or neither."""

RULES = (
    (r"(self_|cross_)?attention/(query|key|value)", COLUMNS),
    (r"(self_|cross_)?attention/output", ROWS),
    (r"(self_|cross_)?attention/energy", WHOLE),  # additive attention's vector
    (r"feed_forward/(input|gate)", COLUMNS),
    (r"feed_forward/output", ROWS),
    (r"(token|embedding)", ROWS),  # tables (V, D)
    (r"(position|segment|position_bias|attention_bias)", WHOLE),  # small tables
    (r"(masked_lm_)?head", COLUMNS),  # logits of all symbols
    (
        r"(.*_head/)?(dense|pooler|projection|classifier|answer_span|combine|h_\d+|c_\d+)",
        WHOLE,
    ),  # one or a few for a model
    (r"cell", ROWS),  # kernels of recurrent cells, whose columns are those of several gates
)
"""Pairs: a pattern of the end of a layer's path, and the axis of its matrix."""

_LEAF = re.compile(r"(.*)/(?:lora_)?(?P<name>kernel|recurrent_kernel|embeddings|bias)(?P<rest>_\w+)?")


def split_axis(path, shape):
    """The axis of a variable that goes over "model", None where there is none; KeyError where no rule says.

    Args:
        path: such as "decoder/block_0/attention/query/kernel".
        shape: tuple of ints.
    """
    match = _LEAF.fullmatch(path)
    if match is None or len(shape) == 0:
        if len(shape) > 1:
            raise KeyError(path)
        return None  # norms, seeds, counters
    axis = _of_layer(match[1])
    if axis is WHOLE:
        return None
    rest, is_lora = match["rest"], path.rpartition("/")[2].startswith("lora_")
    if is_lora:  # the factors A (in, rank) and B (rank, out)
        return axis if rest == ("_a" if axis == ROWS else "_b") else None
    if len(shape) == 1:  # a bias, or a scale for each column; of tables for each row
        of_rows = match["name"] == "embeddings"
        return 0 if axis == (ROWS if of_rows else COLUMNS) else None
    return axis


def _of_layer(path):
    for pattern, axis in RULES:
        if re.search(rf"(^|/){pattern}$", path):
            return axis
    raise KeyError(path)
