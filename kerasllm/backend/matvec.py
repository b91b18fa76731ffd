"""Products of one row with a kernel on JAX, with the kernels laid out as a CPU reads them fastest.

Decoding one sequence is bound by the reading of the weights, and XLA's CPU code for x (1, in) @ kernel (in, out)
reads a kernel kept (out, in) 1.5 times as fast. Its compiler folds no transposition into a product, so the loop's
operations are traced, and the products written anew on transposed copies of the kernels.
"""

import contextvars
import threading
import weakref

import jax
import keras
from jax.extend import core

from kerasllm.backend.meshes import readable

# Smaller kernels stay in a cache, whatever their layout.
MIN_KERNEL_SIZE = 1 << 16


class _Kernels:
    """The model's variables in a trace.

    Args:
        values: their traced values, in order.
        transposed: dict from the place of a value to its traced transposition.
    """

    def __init__(self, values, transposed):
        self.places = {id(value): i for i, value in enumerate(values)}
        self.transposed = transposed
        self.wanted = set()  # places of kernels that meet one row in a loop


_kernels = contextvars.ContextVar("kernels", default=None)


def jitted(function, model):
    """`jax.jit` of a function that reads `model`'s variables, with one-row products in its loops written anew.

    Which kernels those are, the first call finds out: later ones are for arguments of the same shapes.
    """
    wanted, on_cpu = None, jax.default_backend() == "cpu"

    def stateless(values, transposed, arguments):
        nonlocal wanted
        kernels = _Kernels(values, transposed)
        token = _kernels.set(kernels if on_cpu else None)
        try:
            with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
                results = function(*arguments)
        finally:
            _kernels.reset(token)
        wanted = kernels.wanted
        return readable(results)

    program = jax.jit(stateless)

    def run(*arguments):
        values = [v.value for v in model.variables]
        if wanted is None:
            program.trace(values, {}, arguments)
        return program(values, {i: _transposed_copy(values[i]) for i in wanted}, arguments)

    return run


# By the `id` of what was copied. An entry goes when the original does: no copy outlives a training step.
_copies = {}
_COPYING = threading.Lock()


def _transposed_copy(array):
    key = id(array)
    if key not in _copies:
        with _COPYING:
            if key not in _copies:
                _copies[key] = array.T, weakref.ref(array, lambda _: _copies.pop(key))
    return _copies[key][0]


def with_transposed_kernels(step):
    """The body of a loop, with products of one row on the transposed copies inside `jitted`."""
    kernels = _kernels.get()
    if kernels is None:
        return step

    def written_anew(*carry):
        closed, results = jax.make_jaxpr(step, return_shape=True)(*carry)
        leaves = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(carry), kernels)
        return jax.tree.unflatten(jax.tree.structure(results), leaves)

    return written_anew


def _evaluate(jaxpr, consts, arguments, kernels):
    """The results of a jaxpr's operations, in order."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(variable):
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for operation in jaxpr.eqns:
        inputs = list(map(read, operation.invars))
        transposed = _transposed_kernel(operation, inputs, kernels)
        if operation.primitive.name in ("jit", "pjit"):
            inner = operation.params["jaxpr"]
            results = _evaluate(inner.jaxpr, inner.consts, inputs, kernels)
        elif transposed is not None:
            results = [_product(operation, inputs[0], transposed)]
        else:
            results = _run(operation, inputs, jaxpr)
        values.update(zip(operation.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def _run(operation, inputs, jaxpr):
    """The results of an operation of a jaxpr on inputs."""
    named = {v: x for v, x in zip(operation.invars, inputs, strict=True) if not isinstance(v, core.Literal)}
    alone = jaxpr.replace(constvars=[], invars=list(named), outvars=operation.outvars, eqns=[operation])
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*named.values())


def _transposed_kernel(operation, inputs, kernels):
    """The transposed copy for a product of one row with a large kernel; else, and while there is none, None."""
    if operation.primitive.name != "dot_general" or id(inputs[1]) not in kernels.places:
        return None
    x, kernel = inputs
    (summed, summed_in_kernel), (batch, _) = operation.params["dimension_numbers"]
    is_one_row = len(summed) == 1 and not batch and x.size == x.shape[summed[0]]
    if not is_one_row or kernel.ndim != 2 or summed_in_kernel != (0,) or kernel.size < MIN_KERNEL_SIZE:
        return None
    place = kernels.places[id(kernel)]
    kernels.wanted.add(place)
    return kernels.transposed.get(place)


def _product(operation, x, transposed):
    params = dict(operation.params)
    (summed, _), batch = params.pop("dimension_numbers")
    return jax.lax.dot_general(x, transposed, ((summed, (1,)), batch), **params)
