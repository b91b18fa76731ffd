"""Replay of a function's operations on PyTorch: the useful part of what `torch.compile` does, in a second.

Run eagerly, a decoding step of GPT-2 spends more time in Python (Keras's layer calls, dtype checks, masks) than in
the arithmetic. So its operations are recorded once, by `torch.fx`, and replayed as a straight list of kernel calls:

    recorded      x -> view -> mm(kernel) -> view -> add(bias)          for each layer, and all else that it computes
    replayed      x -> linear(kernel, bias)

with equal operations done once, those on weights alone done before the first step, and caches updated in place.
"""

import threading
import weakref

import torch
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.optim.optimizer import register_optimizer_step_post_hook

from kerasllm.backend.graph_nodes import TRANSPOSES, aten, is_constant, is_pure, shape_of, tensor_of, with_bias
from kerasllm.backend.int8_products import fuse_int8

VIEWS = {aten.view.default, aten._unsafe_view.default}
IN_PLACE = {aten.index_copy.default: aten.index_copy_.default, aten.scatter.src: aten.scatter_.src}
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
        fuse_int8(graph)
        _fuse_linear(graph)
        _write_in_place(graph, num_donated)
        graph.eliminate_dead_code()
        self.prepared, self.run = _without_constants(graph)
        self.weights = [tensor_of(node) for node in graph.nodes if node.op == "get_attr"]
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


def _count(optimizer, *_):
    """Count a step of an optimizer of torch's, whose fused kernels do not: a loop of a user's own may have one."""
    torch.autograd.graph.increment_version([p for group in optimizer.param_groups for p in group["params"]])


register_optimizer_step_post_hook(_count)


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
                expressions[node] = str(_version(tensor_of(node)))
            else:
                expressions[node] = str((node.target, map_arg((node.args, node.kwargs), expression)))
        return expressions[node]

    def value(node):
        if node.op == "get_attr":
            return tensor_of(node)
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
        elif node.op == "call_function" and is_pure(node):
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
        if node.op != "output" and is_constant(node):
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
        if node.target is not aten.mm.default or not is_constant(node.args[1]):
            continue
        x, kernel = node.args
        last = node
        if x.target in VIEWS and [user.target for user in node.users] == [aten._unsafe_view.default]:
            back = next(iter(node.users))
            if shape_of(back)[:-1] + shape_of(x)[1:] == shape_of(x.args[0]):  # the last axis is the one that is summed
                x, last = x.args[0], back
        last, bias = with_bias(last)
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
        elif node.op != "output" and is_constant(node) and not all(map(is_constant, node.users)):
            constants.append(node)
    for node in constants:
        copies[node] = rest.placeholder(node.name)
    for node in nodes:
        if node not in copies and not is_constant(node):
            copies[node] = rest.node_copy(node, copies.__getitem__)
    return constants, torch.fx.GraphModule(graph.owning_module, rest).forward
