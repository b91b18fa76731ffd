"""Replay of a function's operations on PyTorch: the useful part of what `torch.compile` does, in a second.

Run eagerly, a decoding step of GPT-2 spends more time in Python (Keras's layer calls, dtype checks, masks) than in
the arithmetic. So its operations are recorded once, by `torch.fx`, and replayed as a straight list of kernel calls:

    recorded      x -> view -> mm(kernel) -> view -> add(bias)          for each layer, and all else that it computes
    replayed      x -> linear(kernel, bias)

with equal operations done once, those on weights alone done before the first step, and caches updated in place.
"""

import operator

import torch
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
# So many rows repay a copy of the weights in oneDNN's own layout: 1.7 times as fast for 8 rows, slower for one.
MIN_PACKED_ROWS = 3
VIEWS = {aten.view.default, aten._unsafe_view.default}
TRANSPOSES = {aten.t.default, aten.permute.default, aten.transpose.int}


class Recording:
    """The operations of a function for arguments of certain shapes.

    Args:
        function: takes and returns lists of tensors; what it does depends on their shapes alone.
        arguments: list of tensors.
        num_donated: so many of the first arguments are given away: calls may write into them.
    """

    def __init__(self, function, arguments, num_donated):
        graph = make_fx(lambda *arguments: function(list(arguments)))(*[x.clone() for x in arguments]).graph
        _mark_written(graph)
        _merge_equal_operations(graph)
        _fuse_linear(graph)
        _write_in_place(graph, num_donated)
        graph.eliminate_dead_code()
        self.weights, self.prepare, self.run = _without_constants(graph)
        self.versions, self.constants = None, ()

    def __call__(self, arguments):
        """The function's results, with the weights as they were at the last `refresh`."""
        return self.run(*arguments, *self.constants)

    def refresh(self):
        """Prepare the weights anew if one has changed."""
        versions = [(weight.data_ptr(), weight._version) for weight in self.weights]
        if versions != self.versions:
            self.constants, self.versions = self.prepare(), versions


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
        last, bias = node, None
        if x.target in VIEWS and [user.target for user in node.users] == [aten._unsafe_view.default]:
            x, last = x.args[0], next(iter(node.users))
        user = next(iter(last.users)) if len(last.users) == 1 else None
        if user is not None and user.target is aten.add.Tensor and user.args[0] is last and not user.kwargs:
            if _is_constant(user.args[1]) and user.args[1].meta["val"].ndim == 1:
                last, bias = user, user.args[1]
        with graph.inserting_before(last):
            new = _linear(graph, x, kernel, bias, node.meta["val"])
        new.meta["val"] = last.meta["val"]
        last.replace_all_uses_with(new)
    graph.eliminate_dead_code()


def _linear(graph, x, kernel, bias, product):
    """The node of x @ kernel + bias, by the kernel that suits the dtype and the rows of the product."""
    rows, on_cpu = product.shape[0], product.device.type == "cpu" and torch.backends.mkldnn.is_available()
    # (out, in) is what the kernels want: of a transposed embedding, the embedding.
    is_transposed = kernel.target in TRANSPOSES
    weight = kernel.args[0] if is_transposed else graph.call_function(aten.t.default, (kernel,))
    if product.dtype == torch.int32 and on_cpu and (x8 := _int8_source(x)) and (w8 := _int8_source(weight, kernel)):
        # Keras's int8 product, in int32 on a CPU. oneDNN is fast with unsigned activations.
        if not is_transposed:
            w8 = graph.call_function(aten.t.default, (w8,))
        w8 = graph.call_function(aten.contiguous.default, (w8,))
        x8 = graph.call_function(aten.view.dtype, (x8, torch.uint8))
        x8 = graph.call_function(aten.bitwise_xor.Scalar, (x8, 128))
        packed = graph.call_function(torch.ops.onednn.qlinear_prepack.default, (w8, [rows, x.meta["val"].shape[-1]]))
        ones = graph.call_function(aten.ones.default, ([product.shape[1]],))
        zeros = graph.call_function(aten.zeros.default, ([product.shape[1]],), {"dtype": torch.int32})
        arguments = (x8, 1.0, 128, packed, ones, zeros, bias, 1.0, 0, torch.float32, "none", [], "")
        return graph.call_function(torch.ops.onednn.qlinear_pointwise.default, arguments)
    if product.dtype == torch.float32 and on_cpu and rows >= MIN_PACKED_ROWS:
        packed = graph.call_function(torch.ops.mkldnn._reorder_linear_weight.default, (weight, rows))
        arguments = (x, packed, bias, "none", [], "")
        return graph.call_function(torch.ops.mkldnn._linear_pointwise.default, arguments)
    return graph.call_function(aten.linear.default, (x, weight, bias))


def _int8_source(*nodes):
    """The int8 tensor that one of the nodes widens, or None."""
    for node in nodes:
        if node.target is aten._to_copy.default and node.args[0].meta["val"].dtype == torch.int8:
            return node.args[0]
    return None


def _write_in_place(graph, num_donated):
    """Let `index_copy` write into arguments that are given away and not looked at again."""
    donated = [node for node in graph.nodes if node.op == "placeholder"][:num_donated]
    for node in donated:
        if [user.target for user in node.users] == [aten.index_copy.default]:
            user = next(iter(node.users))
            if user.args[0] is node:
                user.target = aten.index_copy_.default


def _without_constants(graph):
    """Part a graph into what depends on weights alone and the rest.

    Returns:
        The weights; the function () -> constants; the function (*arguments, *constants) -> results.
    """
    owner = graph.owning_module
    before, rest, copies = torch.fx.Graph(), torch.fx.Graph(), {}
    constants, placeholders = [], {}
    nodes = list(graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            placeholders[node] = rest.placeholder(node.name)
        elif node.op != "output" and _is_constant(node):
            copies[node] = before.node_copy(node, copies.__getitem__)
            if any(not _is_constant(user) for user in node.users):
                constants.append(node)
    for node in constants:
        placeholders[node] = rest.placeholder(node.name)
    for node in nodes:
        if node not in placeholders and node not in copies:
            placeholders[node] = rest.node_copy(node, placeholders.__getitem__)
    before.output(tuple(copies[node] for node in constants))
    weights = [getattr(owner, node.target) for node in nodes if node.op == "get_attr"]
    return weights, torch.fx.GraphModule(owner, before).forward, torch.fx.GraphModule(owner, rest).forward


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
