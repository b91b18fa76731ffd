"""What the nodes of a recording's graph are, and which of them depend on weights alone."""

import operator

import torch

aten = torch.ops.aten
TRANSPOSES = {aten.t.default, aten.permute.default, aten.transpose.int}


def is_constant(node):
    """Whether a node depends on weights alone, or on nothing."""
    if "constant" not in node.meta:
        pure = node.op == "call_function" and is_pure(node)
        node.meta["constant"] = node.op == "get_attr" or (pure and all(map(is_constant, node.all_input_nodes)))
    return node.meta["constant"]


def is_pure(node):
    """Whether a call gives the same for the same arguments, and does nothing else."""
    if node.target is operator.getitem:
        return True
    if node.meta.get("written"):
        return False
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags


def tensor_of(node):
    """The tensor that a node is."""
    return getattr(node.graph.owning_module, node.target)


def shape_of(node):
    """The shape of its value."""
    return tuple(node.meta["val"].shape)


def with_bias(product):
    """The last node of a product and the constant vector added to it; the product itself and None without one."""
    user = next(iter(product.users)) if len(product.users) == 1 else None
    if user is not None and user.target is aten.add.Tensor and user.args[0] is product and not user.kwargs:
        if is_constant(user.args[1]) and user.args[1].meta["val"].ndim == 1:
            return user, user.args[1]
    return product, None
