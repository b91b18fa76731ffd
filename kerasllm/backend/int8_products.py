"""Keras's int8 products, which on a CPU are int32 products of widened numbers, by oneDNN's int8 kernel.

    Keras's `Dense`:    q = int8(clamp(round(x * scale))),  y = (int32(q) @ int32(kernel)) / (kernel_scale * scale) + b
    oneDNN:             u = uint8(x * scale + 128.5),       y = (u - 128) @ kernel / kernel_scale / scale + b

Products of one x, as those to queries, keys and values, become one: a call costs as much as a small product.
Activations of 12 bits (`kerasllm.models.base.Model.quantize`) are two rows of small numbers, 64 a + b: the kernel is
read once for both. So are those of 8 bits where the processor adds pairs of products in 16 bits, which 2 * 255 * 127
overflow: those without VNNI (https://oneapi-src.github.io/oneDNN/dev_guide_int8_computations.html).
"""

import functools

import torch

from kerasllm.backend.graph_nodes import TRANSPOSES, aten, is_constant, shape_of, tensor_of, with_bias

# Activations of 12 bits, up to WIDEST, are BASE times a number and another, both between -BASE / 2 and BASE / 2.
BASE, WIDEST = 64, 127 * 16
# What oneDNN's product ends with: the scale and zero of its result, the type, and nothing after it.
TO_FLOAT = (1.0, 0, torch.float32, "none", [], "")


@functools.cache
def _saturates():
    """Whether oneDNN's kernel overflows at the largest numbers of 8 bits."""
    kernel = torch.full((32, 32), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(kernel, [1, 32])
    factors, zeros = torch.ones(32), torch.zeros(32, dtype=torch.int32)
    x = torch.full((1, 32), 255, dtype=torch.uint8)
    product = torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, packed, factors, zeros, None, *TO_FLOAT)
    return bool((product != 32 * 255 * 127).any())


def fuse_int8(graph):
    """Put oneDNN's products in the place of Keras's in a graph of a recording."""
    products = {}
    for node in graph.nodes:
        if parts := _parts(node):
            products.setdefault(parts[0], []).append((node, *parts[1:]))
    for scaled, parallel in products.items():
        with graph.inserting_before(scaled.next):
            in_two = parallel[0][-1] or _saturates()
            zero = BASE // 2 if in_two else 128
            rows = _two_rows(graph, scaled) if in_two else scaled
            moved = graph.call_function(aten.add.Tensor, (rows, zero + 0.5))
            unsigned = graph.call_function(aten._to_copy.default, (moved,), {"dtype": torch.uint8})
            joined = _joined(graph, unsigned, zero, parallel, in_two)
        start = 0
        for node, kernel, *_ in parallel:
            last, _ = with_bias(node)
            size, new = kernel.meta["val"].shape[1], joined
            if len(parallel) > 1:
                with graph.inserting_before(last):
                    new = graph.call_function(aten.slice.Tensor, (joined, -1, start, start + size))
            new.meta["val"], start = last.meta["val"], start + size
            last.replace_all_uses_with(new)
    graph.eliminate_dead_code()


def _joined(graph, unsigned, zero, parallel, in_two):
    """The node of the products of x with several kernels side by side, their biases added."""
    *_, scale, rows, _ = parallel[0]
    weights, scales, biases = [], [], []
    for node, kernel, kernel_scale, *_ in parallel:
        size, width = kernel.meta["val"].shape[1], kernel.meta["val"].shape[0]
        is_transposed = kernel.target in TRANSPOSES
        weights.append(kernel.args[0] if is_transposed else graph.call_function(aten.t.default, (kernel,)))
        scales.append(graph.call_function(aten.view.default, (kernel_scale, [size])))
        bias = with_bias(node)[1]
        biases.append(graph.call_function(aten.zeros.default, ([size],)) if bias is None else bias)
    weight, scales, bias = (graph.call_function(aten.cat.default, (parts,)) for parts in (weights, scales, biases))
    packed = graph.call_function(torch.ops.onednn.qlinear_prepack.default, (weight, [rows * (1 + in_two), width]))
    factors = graph.call_function(aten.reciprocal.default, (scales,))
    zeros = graph.call_function(aten.zeros_like.default, (scales,), {"dtype": torch.int32})
    arguments = (unsigned, 1.0, zero, packed, factors, zeros, None, *TO_FLOAT)
    product = graph.call_function(torch.ops.onednn.qlinear_pointwise.default, arguments)
    if in_two:
        high, low = (graph.call_function(aten.select.int, (product, 0, i)) for i in (0, 1))
        product = graph.call_function(aten.add.Tensor, (low, high), {"alpha": BASE})
    return graph.call_function(aten.addcdiv.default, (bias, product, scale))


def _two_rows(graph, scaled):
    """The node of whole numbers a, b of at most BASE / 2 with BASE a + b = round(scaled), stacked."""
    whole = graph.call_function(aten.round.default, (scaled,))
    high = graph.call_function(aten.round.default, (graph.call_function(aten.mul.Tensor, (whole, 1 / BASE)),))
    low = graph.call_function(aten.sub.Tensor, (whole, high), {"alpha": BASE})
    return graph.call_function(aten.stack.default, ([high, low],))


def _parts(node):
    """What an int8 product of Keras is made of, if the node is the division at its end; else None.

    Returns:
        x * scale (..., D) float32; the int8 kernel (D, F), a constant; its scale (F,); scale (..., 1); number of rows;
        whether x * scale has 12 bits and not 8.
    """
    product = _argument(node, aten.div.Tensor, 0)
    product = _argument(product, aten._to_copy.default, 0)
    product = _argument(product, aten._unsafe_view.default, 0) or product
    x, kernel = _argument(product, aten.mm.default, 0), _argument(product, aten.mm.default, 1)
    x = _argument(x, aten.view.default, 0) or x
    kernel = _argument(kernel, aten._to_copy.default, 0)
    is_wide = _argument(_argument(x, aten._to_copy.default, 0), aten.clamp.Tensor, 2) is not None
    x = x if is_wide else _argument(x, aten._to_copy.default, 0)
    clamped = _argument(x, aten._to_copy.default, 0)
    scaled = _argument(_argument(clamped, aten.clamp.Tensor, 0), aten.round.decimals, 0)
    scales = [_argument(node.args[1], aten.mul.Tensor, i) for i in (0, 1)] if scaled and kernel else [None]
    on_cpu = None not in scales and kernel.meta["val"].device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not on_cpu or kernel.meta["val"].dtype != torch.int8 or not is_constant(kernel):
        return None
    if x.meta["val"].dtype != (torch.int32 if is_wide else torch.int8):
        return None
    if is_wide and _number(clamped.args[2]) != WIDEST:
        return None
    kernel_scale, scale = scales if is_constant(scales[0]) else reversed(scales)
    if scale not in scaled.args or not is_constant(kernel_scale) or shape_of(scaled)[:-1] != shape_of(node)[:-1]:
        return None
    return scaled, kernel, kernel_scale, scale, product.meta["val"].shape[0], is_wide


def _number(node):
    """The value of a constant of one number; None for other nodes."""
    while node.op == "call_function" and node.target is aten.lift_fresh_copy.default:
        node = node.args[0]
    return tensor_of(node).item() if node.op == "get_attr" and tensor_of(node).numel() == 1 else None


def _argument(node, target, index):
    """An argument of a node, if it is a call of `target`; else None."""
    return node.args[index] if getattr(node, "target", None) is target else None
