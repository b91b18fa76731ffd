"""The products of numbers that a step of training takes, and those that this machine can do in a second."""

import time

import keras
import numpy as np
from keras import ops

SIDES = ("source", "target")  # of translators; others have one side, ""


def real_lengths(inputs):
    """The number of real tokens in each row of a batch: dict of "source" and "target", or "", to (B,) int.

    A row's padding mask says it; where there is none, all positions of the ids count. Of inputs that are no dict with
    `token_ids` it is `None`.
    """
    if not isinstance(inputs, dict):
        return None
    lengths = {}
    for side in ("", *SIDES):
        prefix = f"{side}_" if side else ""
        mask, token_ids = inputs.get(f"{prefix}padding_mask"), inputs.get(f"{prefix}token_ids")
        if mask is not None:
            lengths[side] = (ops.convert_to_numpy(mask) != 0).sum(-1).astype("int64").reshape(-1)
        elif token_ids is not None:
            rows, width = token_ids.shape
            lengths[side] = np.full(rows, width)
    return lengths or None


def step_flops(model, inputs, lengths):
    """The floating-point operations that the products of one step of training take, without what padding adds.

        6 N a token, and 12 L D T for attention

    N is the number of weights but for tables that are looked up, L D the number of layers times the width of all heads
    and T the length of the token's row (Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, appendix B). A head that is
    tied to a table counts. What comes back from frozen weights is no product of theirs: they count 4, not 6. In a
    translator each side's weights count the side's tokens, and cross-attention 12 L D S for each target token. A head
    that reads some positions counts those. The attention of recurrent models, their products with the memory, is left
    out. Recomputation (`remat`) is no useful work and counts nothing.

    Args:
        model: a model of `kerasllm.models`.
        inputs: its inputs, a dict.
        lengths: what `real_lengths` makes of them.

    Returns:
        A float, or `None` for a model whose `arguments` do not say what it is made of.
    """
    arguments = getattr(model, "arguments", None)
    if not isinstance(arguments, dict) or "num_layers" not in arguments or "hidden_dim" not in arguments:
        return None
    tokens = {side: float(n.sum()) for side, n in lengths.items()}
    tokens["head"] = float(np.prod(inputs["masked_positions"].shape)) if "masked_positions" in inputs else None
    total = sum(_weight_flops(v) * _tokens_of(v.path, tokens) for v in model.weights if v.dtype != "uint32")
    total += _tied_head(model) * (
        tokens["head"] if tokens["head"] is not None else tokens.get("target", tokens.get(""))
    )
    total += _shared_encoder(model) * tokens.get("source", 0.0)
    return total + _attention_flops(arguments, lengths)


def _weight_flops(variable):
    """Of one token: none of a table, whose rows are looked up."""
    if variable.path.endswith("/embeddings"):
        return 0.0
    return float(np.prod(variable.shape)) * (6.0 if variable.trainable else 4.0)


def _tokens_of(path, tokens):
    """The tokens that a weight is multiplied with."""
    if "source" in tokens:
        reads_source = (
            path.startswith("encoder/") or "/cross_attention/key/" in path or "/cross_attention/value/" in path
        )
        return tokens["source" if reads_source else "target"]
    is_head = "head" in path.split("/")[0]
    return tokens["head"] if is_head and tokens["head"] is not None else tokens[""]


def _tied_head(model):
    """Operations of one token for logits that are products with a table of embeddings; 0 where they are not."""
    size = model.output.shape[-1] if hasattr(model.output, "shape") else None
    matrices = [v for v in model.weights if len(v.shape) == 2]
    if any(v.shape[-1] == size and "head" in v.path.split("/")[0] for v in matrices):
        return 0.0
    tables = [v for v in matrices if v.path.endswith("/embeddings") and v.shape[0] == size]
    tables = [v for v in tables if v.path.startswith("decoder/")] or tables
    if not tables or len(model.output.shape) != 3:
        return 0.0
    return float(np.prod(tables[0].shape)) * (6.0 if tables[0].trainable else 4.0)


def _shared_encoder(model):
    """Operations of one source token in an encoder that has the decoder's weights, which are listed there alone."""
    if not model.arguments.get("share"):
        return 0.0
    return sum(_weight_flops(v) for v in model.weights if "/block_" in v.path and "cross_attention" not in v.path)


def _attention_flops(arguments, lengths):
    heads = arguments.get("num_heads")
    if not heads:
        return 0.0
    width = heads * (arguments.get("head_dim") or arguments["hidden_dim"] // heads)
    layers = {"source": arguments["num_layers"], "": arguments["num_layers"]}
    layers["target"] = arguments.get("num_decoder_layers") or arguments["num_layers"]
    total = sum(12.0 * layers[side] * width * float((n**2).sum()) for side, n in lengths.items())
    if "source" in lengths and "target" in lengths:
        total += 12.0 * layers["target"] * width * float((lengths["source"] * lengths["target"]).sum())
    return total


def measured_peak(dtype="float32", seconds=0.1):
    """Floating-point operations a second of square products of this machine, by `keras.ops.matmul` on the backend.

    The size is doubled until a product takes long enough to be measured; the best of five is taken, so that other
    programs matter little. It is what products reach, some percent below what a vendor's sheet says.

    Args:
        dtype: of the numbers, such as "bfloat16".
        seconds: the least time that a product takes.
    """
    size = 512
    while True:
        x = ops.cast(keras.random.uniform((size, size), seed=keras.random.SeedGenerator(0)), dtype)
        took = min(_seconds_of_product(x) for _ in range(2))
        if took >= seconds or size >= 16384:
            took = min(took, *(_seconds_of_product(x) for _ in range(3)))
            return 2.0 * size**3 / took
        size *= 2


def _seconds_of_product(x):
    start = time.perf_counter()
    ops.convert_to_numpy(ops.cast(ops.matmul(x, x)[0, 0], "float32"))  # waits for the product
    return time.perf_counter() - start
