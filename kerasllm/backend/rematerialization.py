"""Calls of layers that keep nothing for the gradient but what goes in, and are computed once more on the way back."""

import functools

import keras
from keras import ops
from keras.src.backend.common.variables import AutocastScope

from kerasllm.backend.compilation import name
from kerasllm.backend.recurrence import pull_back
from kerasllm.backend.tape import on_tape


def rematerialized(layer):
    """The call of a layer that takes more time and less memory in training (Chen et al. 2016, arXiv:1604.06174).

    What the layer computes inside is dropped when it has run, and made anew from the same random numbers when the
    gradient is taken. Result and gradients are the layer's own. There is no forward-mode differentiation of it on jax.

    Args:
        layer: a built layer whose result is one tensor, and whose state is that of its seed generators.

    Returns:
        A function with the layer's arguments: tensors, nests of them, and plain values.
    """
    return functools.partial(_on_torch if name() == "torch" else _by_gradient, layer)


def _by_gradient(layer, *args, **kwargs):
    """On jax and tensorflow: the layer is a function of all its values, whose gradient is that of a second call.

    `jax.checkpoint` and `tf.recompute_grad` are not used: XLA drops the barriers of the one on a CPU, merges the second
    call with the first and keeps everything; neither takes back what a seed generator gave.
    """
    variables, seeds = layer.variables, seed_states(layer)
    values = values_of(variables)
    nest = (args, kwargs)
    flat = keras.tree.flatten(nest)
    places = [i for i, x in enumerate(flat) if ops.is_tensor(x)]
    tensors = [*values, *(flat[i] for i in places)]
    trained = {id(v) for v in layer.trainable_variables}
    is_float = [keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)) for x in tensors]
    wanted = [i for i, x in enumerate(is_float) if x and (i >= len(values) or id(variables[i]) in trained)]

    def run(tensors):
        given = flat.copy()
        for place, x in zip(places, tensors[len(values) :], strict=True):
            given[place] = x
        args, kwargs = keras.tree.pack_sequence_as(nest, given)
        return call_with(layer, variables, tensors[: len(values)], seeds, args, kwargs)

    def call(*tensors):
        def gradient(*d_results):
            d_y = keras.tree.flatten(d_results)[0]  # the others are the seeds'
            late = [_not_before(d_y, x) if i >= len(values) or not is_float[i] else x for i, x in enumerate(tensors)]

            def again(*some):
                given = dict(zip(wanted, some, strict=True))
                return run([given.get(i, x) for i, x in enumerate(late)])[0]

            found = dict(zip(wanted, pull_back(again, [late[i] for i in wanted], d_y), strict=True))
            return tuple(found.get(i) for i in range(len(tensors)))

        return run(tensors), gradient

    return with_gradient(call, tensors, seeds)


def _on_torch(layer, *args, **kwargs):
    from torch.utils.checkpoint import checkpoint

    seeds = seed_states(layer)
    before, after = [seed.value.clone() for seed in seeds], []

    def run(args, kwargs):
        y, *after[:] = call_with(layer, seeds, before, seeds, args, kwargs)
        return y

    y = checkpoint(run, args, kwargs, use_reentrant=False)  # which takes back torch's own random numbers
    for seed, state in zip(seeds, after, strict=True):
        seed.assign(state)
    return y


def with_gradient(call, tensors, seeds):
    """On jax and tensorflow: what a function with a gradient of its own gives, whose seeds then have their new states.

    Args:
        call: function (*tensors) -> ((y, *states of the seeds), function of their gradients -> those of the tensors).
        tensors: list.
        seeds: variables.
    """
    y, *states = _on_tensorflow(call, tensors) if name() == "tensorflow" else ops.custom_gradient(call)(*tensors)
    for seed, state in zip(seeds, states, strict=True):
        seed.assign(state)
    return y


def _on_tensorflow(call, tensors):
    import tensorflow as tf

    def forward(*tensors):
        (y, *states), gradient = call(*tensors)
        return [tf.identity(y)], gradient, states

    (y,), states = on_tape(forward, tensors)
    return y, *states


def call_with(layer, variables, values, seeds, args, kwargs):
    """The layer's result where `variables` have `values`, and the states of its seeds after it."""
    with keras.StatelessScope(zip(variables, values, strict=True), collect_losses=True) as scope:
        y = layer(*args, **kwargs)
    if scope.losses:
        raise ValueError(
            f"remat (True) does not go with losses that layers add, as {layer.path!r} or a part of it, nor does a "
            "loss's chunk_size of rows."
        )
    return y, *(scope.get_current_value(seed) for seed in seeds)


def values_of(variables):
    """The values of variables as they are now."""
    with AutocastScope(None):  # or a copy of each weight in the dtype of the computation would be kept
        values = [v.value for v in variables]
    if name() != "tensorflow":
        return values
    import tensorflow as tf

    return [tf.convert_to_tensor(x) for x in values]  # a `tf.Variable` would have another value later


def seed_states(layer):
    """The states of the seed generators of a layer and its parts."""
    return [seeds.state for part in layer._flatten_layers() for seeds in part._seed_generators]


def _not_before(moment, x):
    """x, which a compiler can compute when `moment` is there and not earlier, where it would find it to be x.

    A gradient that is NaN makes it NaN; then all is lost anyway.
    """
    first = ops.sum(ops.reshape(moment, (-1,))[:1])
    dtype = keras.backend.standardize_dtype(x.dtype)
    if dtype == "bool":
        return x
    if not keras.backend.is_float_dtype(dtype):
        return x + ops.cast(ops.isnan(first), dtype)
    return x + ops.cast(ops.where(ops.isnan(first), first, ops.zeros_like(first)), dtype)
