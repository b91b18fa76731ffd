"""Replay of a function's operations on PyTorch: the useful part of what `torch.compile` does, in a second.

Run eagerly, a decoding step of GPT-2 spends more time in Python (Keras's layer calls, dtype checks, masks) than in
the arithmetic. So its operations are recorded once, by `torch.fx`, and replayed as a straight list of kernel calls:

    recorded      x -> view -> mm(kernel) -> view -> add(bias)          for each layer, and all else that it computes
    replayed      x -> linear(kernel, bias)

with equal operations done once, those on weights alone done before the first step, and caches updated in place.
"""

import operator
import threading
import weakref

import torch
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

aten = torch.ops.aten
VIEWS = {aten.view.default, aten._unsafe_view.default}
TRANSPOSES = {aten.t.default, aten.permute.default, aten.transpose.int}
IN_PLACE = {aten.index_copy.default: aten.index_copy_.default, aten.scatter.src: aten.scatter_.src}
# Activations of 12 bits are 16 times a number of 8 bits and one of 4.
WIDE = 16
# `torch.fx` records for one thread of the process at a time; what is made of weights is shared.
LOCK = threading.RLock()


class Recording:
    """The operations of a function for arguments of certain shapes.

    Args:
        function: takes and returns lists of tensors; what it does depends on their shapes alone.
        arguments: list of tensors.
        num_donated: so many of the first arguments are given away: calls may write into them.
    """

    def __init__(self, function, arguments, num_donated):
        record = make_fx(lambda *arguments: function(list(arguments)))
        # Without a mode to share, torch.fx makes a new one for each operation: a third of the time.
        with LOCK, tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
            graph = record(*[x.clone() for x in arguments]).graph
        _mark_written(graph)
        _merge_equal_operations(graph)
        _put_constants_first(graph)
        _fuse_int8(graph)
        _fuse_linear(graph)
        _write_in_place(graph, num_donated)
        graph.eliminate_dead_code()
        self.prepared, self.run = _without_constants(graph)
        self.weights = [_weight(node) for node in graph.nodes if node.op == "get_attr"]
        self.versions, self.constants = None, ()

    def __call__(self, arguments):
        """The function's results, with the weights as they were at the last `refresh`."""
        return self.run(*arguments, *self.constants)

    def refresh(self):
        """Prepare the weights anew if one has changed.

        Returns:
            The function, with the weights as they are now, whatever another thread makes of them later.
        """
        versions = list(map(_version, self.weights))
        if versions != self.versions:
            with LOCK:
                self.constants, self.versions = _prepare(self.prepared), versions
        constants = self.constants
        return lambda arguments: self.run(*arguments, *constants)


def _weight(node):
    return getattr(node.graph.owning_module, node.target)


def _version(weight):
    """What is equal as long as a weight is: inference tensors count no changes."""
    return object() if weight.is_inference() else (id(weight), weight.data_ptr(), weight._version)


# What has been made of weights, by the expression that made it: recordings of one model share it while they live.
_made = weakref.WeakValueDictionary()


def _prepare(nodes):
    """The values of nodes that depend on weights alone."""
    expressions = {}

    def expression(node):
        if node not in expressions:
            if node.op == "get_attr":
                expressions[node] = str(_version(_weight(node)))
            else:
                expressions[node] = str((node.target, map_arg((node.args, node.kwargs), expression)))
        return expressions[node]

    def value(node):
        if node.op == "get_attr":
            return _weight(node)
        made = _made.get(expression(node))
        if made is None:
            made = node.target(*map_arg(node.args, value), **map_arg(node.kwargs, value))
            if isinstance(made, torch.Tensor):
                _made[expression(node)] = made
        return made

    return [value(node) for node in nodes]


def _mark_written(graph):
    """Mark what operations in place write into: each is a tensor of its own, and changes with time."""
    for node in graph.nodes:
        if node.op == "call_function" and getattr(node.target, "_schema", None) and node.target._schema.is_mutable:
            written = node.args[0]
            while written.op == "call_function":
                written.meta["written"] = True
                returns = written.target._schema.returns
                if not (returns and returns[0].alias_info):
                    break
                written = written.args[0]


def _merge_equal_operations(graph):
    """Compute once what is computed several times from the same inputs."""
    seen = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            key = _constant_key(node)
        elif node.op == "call_function" and _is_pure(node):
            key = (node.target, str(node.args), str(node.kwargs))
        else:
            continue
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _put_constants_first(graph):
    """Move what depends on weights alone before all else, so that any operation may use it."""
    nodes = list(graph.nodes)
    place = [node for node in nodes if node.op == "placeholder"][-1]
    for node in nodes:
        if node.op != "output" and _is_constant(node):
            place.append(node)
            place = node


def _constant_key(node):
    """What makes two constants equal: their name, or the value of a plain number."""
    constant = getattr(node.graph.owning_module, node.target)
    if constant.numel() == 1 and not isinstance(constant, torch.nn.Parameter):
        return ("number", constant.dtype, tuple(constant.shape), constant.item())
    return ("get_attr", node.target)


def _fuse_linear(graph):
    """Make one operation of a product with a weight, the reshapes around it, and the bias after it."""
    for node in list(graph.nodes):
        if node.target is not aten.mm.default or not _is_constant(node.args[1]):
            continue
        x, kernel = node.args
        last = node
        if x.target in VIEWS and [user.target for user in node.users] == [aten._unsafe_view.default]:
            back = next(iter(node.users))
            if _shape(back)[:-1] + _shape(x)[1:] == _shape(x.args[0]):  # the last axis is the one that is summed
                x, last = x.args[0], back
        last, bias = _with_bias(last)
        with graph.inserting_before(last):
            new = _linear(graph, x, kernel, bias, node.meta["val"])
        new.meta["val"] = last.meta["val"]
        last.replace_all_uses_with(new)
    graph.eliminate_dead_code()


def _linear(graph, x, kernel, bias, product):
    """The node of x @ kernel + bias: in float32 on a CPU by oneDNN, with a copy of the weights in its own layout.

    On an AMD EPYC a step of GPT-2 takes 1/1.3 of the time with one row, 1/1.7 with eight.
    """
    rows, on_cpu = product.shape[0], product.device.type == "cpu" and torch.backends.mkldnn.is_available()
    # (out, in) is what the kernels want: of a transposed embedding, the embedding.
    is_transposed = kernel.target in TRANSPOSES
    weight = kernel.args[0] if is_transposed else graph.call_function(aten.t.default, (kernel,))
    if product.dtype == torch.float32 and on_cpu:
        packed = graph.call_function(torch.ops.mkldnn._reorder_linear_weight.default, (weight, rows))
        arguments = (x, packed, bias, "none", [], "")
        return graph.call_function(torch.ops.mkldnn._linear_pointwise.default, arguments)
    return graph.call_function(aten.linear.default, (x, weight, bias))


def _fuse_int8(graph):
    """Do Keras's int8 products, which on a CPU are int32 products of widened numbers, by oneDNN's int8 kernel.

    Keras's `Dense`:    q = int8(clamp(round(x * scale))),  y = (int32(q) @ int32(kernel)) / (kernel_scale * scale) + b
    oneDNN:             u = uint8(x * scale + 128.5),       y = (u - 128) @ kernel / kernel_scale / scale + b

    Products of one x, as those to queries, keys and values, become one: a call costs as much as a small product.
    Activations of 12 bits (`kerasllm.models.base.Model.quantize`) are two rows of int8, 16 a + b: the kernel is read
    once for both.
    """
    products = {}
    for node in graph.nodes:
        if parts := _int8_parts(node):
            products.setdefault(parts[0], []).append((node, *parts[1:]))
    for scaled, parallel in products.items():
        with graph.inserting_before(scaled.next):
            is_wide = parallel[0][-1]
            rows = _two_rows(graph, scaled) if is_wide else scaled
            moved = graph.call_function(aten.add.Tensor, (rows, 128.5))
            unsigned = graph.call_function(aten._to_copy.default, (moved,), {"dtype": torch.uint8})
            joined = _int8_product(graph, unsigned, parallel)
        start = 0
        for node, kernel, *_ in parallel:
            last, _ = _with_bias(node)
            size, new = kernel.meta["val"].shape[1], joined
            if len(parallel) > 1:
                with graph.inserting_before(last):
                    new = graph.call_function(aten.slice.Tensor, (joined, -1, start, start + size))
            new.meta["val"], start = last.meta["val"], start + size
            last.replace_all_uses_with(new)
    graph.eliminate_dead_code()


def _int8_product(graph, unsigned, parallel):
    """The node of the products of x with several kernels side by side, their biases added."""
    *_, scale, rows, is_wide = parallel[0]
    weights, scales, biases = [], [], []
    for node, kernel, kernel_scale, *_ in parallel:
        size, width = kernel.meta["val"].shape[1], kernel.meta["val"].shape[0]
        is_transposed = kernel.target in TRANSPOSES
        weights.append(kernel.args[0] if is_transposed else graph.call_function(aten.t.default, (kernel,)))
        scales.append(graph.call_function(aten.view.default, (kernel_scale, [size])))
        bias = _with_bias(node)[1]
        biases.append(graph.call_function(aten.zeros.default, ([size],)) if bias is None else bias)
    weight, scales, bias = (graph.call_function(aten.cat.default, (parts,)) for parts in (weights, scales, biases))
    packed = graph.call_function(torch.ops.onednn.qlinear_prepack.default, (weight, [rows * (1 + is_wide), width]))
    factors = graph.call_function(aten.reciprocal.default, (scales,))
    zeros = graph.call_function(aten.zeros_like.default, (scales,), {"dtype": torch.int32})
    to_float = (1.0, 0, torch.float32, "none", [], "")
    arguments = (unsigned, 1.0, 128, packed, factors, zeros, None, *to_float)
    product = graph.call_function(torch.ops.onednn.qlinear_pointwise.default, arguments)
    if is_wide:
        high, low = (graph.call_function(aten.select.int, (product, 0, i)) for i in (0, 1))
        product = graph.call_function(aten.add.Tensor, (low, high), {"alpha": WIDE})
    return graph.call_function(aten.addcdiv.default, (bias, product, scale))


def _two_rows(graph, scaled):
    """The node of whole numbers a, b of at most 127 with 16 a + b = round(scaled), stacked."""
    whole = graph.call_function(aten.round.default, (scaled,))
    high = graph.call_function(aten.round.default, (graph.call_function(aten.mul.Tensor, (whole, 1 / WIDE)),))
    low = graph.call_function(aten.sub.Tensor, (whole, high), {"alpha": WIDE})
    return graph.call_function(aten.stack.default, ([high, low],))


def _with_bias(product):
    """The last node of a product and the constant vector added to it; the product itself and None without one."""
    user = next(iter(product.users)) if len(product.users) == 1 else None
    if user is not None and user.target is aten.add.Tensor and user.args[0] is product and not user.kwargs:
        if _is_constant(user.args[1]) and user.args[1].meta["val"].ndim == 1:
            return user, user.args[1]
    return product, None


def _int8_parts(node):
    """What an int8 product of Keras is made of, if the node is the division at its end; else None.

    Returns:
        x * scale (..., K) float32; the int8 kernel (K, N), a constant; its scale (N,); scale (..., 1); number of rows;
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
    if not on_cpu or kernel.meta["val"].dtype != torch.int8 or not _is_constant(kernel):
        return None
    if x.meta["val"].dtype != (torch.int32 if is_wide else torch.int8):
        return None
    if is_wide and _number(clamped.args[2]) != 127 * WIDE:
        return None
    kernel_scale, scale = scales if _is_constant(scales[0]) else reversed(scales)
    if scale not in scaled.args or not _is_constant(kernel_scale) or _shape(scaled)[:-1] != _shape(node)[:-1]:
        return None
    return scaled, kernel, kernel_scale, scale, product.meta["val"].shape[0], is_wide


def _number(node):
    """The value of a constant of one number; None for other nodes."""
    while node.op == "call_function" and node.target is aten.lift_fresh_copy.default:
        node = node.args[0]
    return _weight(node).item() if node.op == "get_attr" and _weight(node).numel() == 1 else None


def _shape(node):
    return tuple(node.meta["val"].shape)


def _argument(node, target, index):
    """An argument of a node, if it is a call of `target`; else None."""
    return node.args[index] if getattr(node, "target", None) is target else None


def _write_in_place(graph, num_donated):
    """Let `index_copy` and `scatter` write into arguments that are given away and not looked at again."""
    donated = [node for node in graph.nodes if node.op == "placeholder"][:num_donated]
    for node in donated:
        user = next(iter(node.users), None)
        if len(node.users) == 1 and user.target in IN_PLACE and user.args[0] is node:
            user.target = IN_PLACE[user.target]


def _without_constants(graph):
    """Part a graph into what depends on weights alone and the rest.

    Returns:
        The nodes whose values the rest needs of the weights; the function (*arguments, *values) -> results.
    """
    rest, copies, constants = torch.fx.Graph(), {}, []
    nodes = list(graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            copies[node] = rest.placeholder(node.name)
        elif node.op != "output" and _is_constant(node) and not all(map(_is_constant, node.users)):
            constants.append(node)
    for node in constants:
        copies[node] = rest.placeholder(node.name)
    for node in nodes:
        if node not in copies and not _is_constant(node):
            copies[node] = rest.node_copy(node, copies.__getitem__)
    return constants, torch.fx.GraphModule(graph.owning_module, rest).forward


def _is_constant(node):
    """Whether a node depends on weights alone, or on nothing."""
    if "constant" not in node.meta:
        pure = node.op == "call_function" and _is_pure(node)
        node.meta["constant"] = node.op == "get_attr" or (pure and all(map(_is_constant, node.all_input_nodes)))
    return node.meta["constant"]


def _is_pure(node):
    if node.target is operator.getitem:
        return True
    if node.meta.get("written"):
        return False
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags
