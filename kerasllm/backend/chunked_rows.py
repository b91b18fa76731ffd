"""Calls of layers by chunks of rows, each computed once more on the way back: large batches in little memory.

As GradCache does it (Gao et al. 2021, arXiv:2101.06983): where a loss needs the results of all rows, and little else,
the results are kept, and what the gradient needs of a chunk is made anew when it is the chunk's turn.
"""

from keras import ops, tree

from kerasllm.backend.compilation import name
from kerasllm.backend.recurrence import over_steps, pull_back
from kerasllm.backend.rematerialization import call_with, rematerialized, seed_states, values_of, with_gradient


def by_chunks(layer, inputs, chunk_size, **arguments):
    """The result of a layer for so many rows at a time, with its gradient.

    Result and gradients are the layer's own, for a result of a row that is of its row alone; dropout has other masks
    than in one call, and the same ones on the way back. There is no gradient of the inputs.

    Args:
        layer: a built layer whose result is one tensor (B, D), and whose state is that of its seed generators.
        inputs: nest of tensors (B, ...).
        chunk_size: rows of a chunk. The last one may be smaller.
        **arguments: of the layer's call: plain values.

    Returns:
        The result (B, D).
    """
    return (_on_torch if name() == "torch" else _in_loops)(layer, inputs, chunk_size, arguments)


def _on_torch(layer, inputs, chunk_size, arguments):
    call = rematerialized(layer)
    rows = tree.flatten(inputs)[0].shape[0]
    chunks = [
        tree.map_structure(lambda x, start=start: x[start : start + chunk_size], inputs)
        for start in range(0, rows, chunk_size)
    ]
    return ops.concatenate([call(chunk, **arguments) for chunk in chunks])


def _in_loops(layer, inputs, chunk_size, arguments):
    """On jax and tensorflow: a loop over chunks, whose gradient is another one."""
    variables, seeds = layer.variables, seed_states(layer)
    values, starts = values_of(variables), values_of(seeds)
    trained = {id(v) for v in layer.trainable_variables}
    wanted = [i for i, v in enumerate(variables) if id(v) in trained]
    flat = tree.flatten(inputs)
    rows = ops.shape(flat[0])[0]
    chunk_size = min(chunk_size, rows) if isinstance(rows, int) else chunk_size
    num_chunks = -(-rows // chunk_size)
    places = ops.minimum(ops.arange(num_chunks * chunk_size), rows - 1)  # the last row fills the last chunk up
    like = ops.zeros((chunk_size, layer.output.shape[-1]), layer.output.dtype)

    def parted(x):
        return ops.reshape(x, (num_chunks, chunk_size, *x.shape[1:]))

    def run(values, states, chunk):
        """The result of a chunk, and the states of the seeds after it."""
        given = {id(v): x for v, x in zip(variables, values, strict=True)}
        given |= {id(seed): x for seed, x in zip(seeds, states, strict=True)}
        both = {id(v): v for v in (*variables, *seeds)}
        return call_with(
            layer,
            list(both.values()),
            [given[i] for i in both],
            seeds,
            (tree.pack_sequence_as(inputs, chunk),),
            arguments,
        )

    def call(*tensors):
        values, (starts, flat) = tensors[: len(variables)], _split(tensors[len(variables) :], len(seeds))
        chunks = [parted(ops.take(x, places, axis=0)) for x in flat]

        def forward(states, chunk):
            y, *after = run(values, states, chunk)
            return tuple(after), (y, *states)

        states, (y, *before) = over_steps(forward, tuple(starts), chunks, (like, *starts), False)

        def gradient(*d_results):
            d_y = tree.flatten(d_results)[0]  # the others are the seeds'
            filling = ops.zeros((num_chunks * chunk_size - rows, d_y.shape[-1]), d_y.dtype)

            def backward(sums, step):
                d_y, chunk, states = step

                def again(*some):
                    given = dict(zip(wanted, some, strict=True))
                    return run([given.get(i, x) for i, x in enumerate(values)], states, chunk)[0]

                found = pull_back(again, [values[i] for i in wanted], d_y)
                return tuple(a + ops.cast(g, a.dtype) for a, g in zip(sums, found, strict=True)), ()

            zeros = tuple(ops.zeros(values[i].shape, "float32") for i in wanted)
            steps = (parted(ops.concatenate([d_y, filling])), chunks, list(before))
            sums, _ = over_steps(backward, zeros, steps, (), False)
            found = {i: ops.cast(g, values[i].dtype) for i, g in zip(wanted, sums, strict=True)}
            return tuple(found.get(i) for i in range(len(tensors)))

        return (ops.reshape(y, (-1, y.shape[-1]))[:rows], *states), gradient

    return with_gradient(call, [*values, *starts, *flat], seeds)


def _split(tensors, count):
    return tensors[:count], tensors[count:]
