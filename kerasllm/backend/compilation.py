"""Which backend runs, and how it compiles a function and a loop."""

import contextvars

import keras
from keras import ops


def name():
    """The backend of this process: "tensorflow", "jax" or "torch"."""
    return keras.backend.backend()


def compiled(function, model):
    """Compile a function of tensors that reads `model`'s variables.

    Args:
        function: takes and returns (nests of) tensors, changes no variable. It is traced once for each set of
            argument shapes and dtypes, and by XLA on TensorFlow too; torch records its loops.
        model: the `keras.Model` whose variables `function` reads. They are read at every call, so that training,
            `load_weights` or `quantize` between two calls take effect.

    Returns:
        A callable with `function`'s arguments that computes no gradients.
    """
    if name() == "jax":
        from kerasllm.backend import matvec

        return matvec.jitted(function, model)
    if name() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    if name() == "torch":
        return _recorded(function, model)
    raise ValueError(f"backend ({name()!r}) must be one of 'tensorflow', 'jax', 'torch'.")


def compiled_pass(function, model):
    """Compile a function without loops as Keras compiles `model.predict`: once for all shapes, on torch not at all.

    Args:
        function, model: as for `compiled`.

    Returns:
        A callable with `function`'s arguments that computes no gradients.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        # Without XLA on a CPU, where a graph takes half the time to make, and one serves all shapes.
        return tf.function(function, jit_compile=model.jit_compile or None, reduce_retracing=True, autograph=False)
    if name() == "torch":
        import torch

        return torch.no_grad()(function)
    return compiled(function, model)


def without_gradient(function):
    """What a function of nothing gives, a nest of tensors, as constants: torch keeps nothing for a gradient."""
    if name() == "torch":
        import torch

        with torch.no_grad():
            return function()
    return keras.tree.map_structure(ops.stop_gradient, function())


def while_loop(keep_going, step, carry, constants):
    """`while keep_going(carry, constants): carry = step(carry, constants)`, inside a compiled function.

    Args:
        keep_going: returns a boolean scalar.
        step: returns a nest like `carry`, of the same shapes and dtypes.
        carry: tuple of nests of tensors. It is given away: torch writes into it.
        constants: nest of tensors.

    Returns:
        The last `carry`.
    """
    if name() == "torch":
        return _replay(keep_going, step, carry, constants)

    def body(*carry):
        return step(carry, constants)

    if name() == "jax":
        from kerasllm.backend import matvec

        body = matvec.with_transposed_kernels(body)
    elif name() == "tensorflow":
        body = _keeping_shapes(body)
    return ops.while_loop(lambda *carry: keep_going(carry, constants), body, carry)


def _keeping_shapes(body):
    """The body of a loop whose results have the static shapes of what goes in, as TensorFlow and TFLite ask for."""
    import tensorflow as tf

    def kept(old, new):
        old, new = tf.convert_to_tensor(old), tf.convert_to_tensor(new)
        if old.shape.as_list() == new.shape.as_list():
            return new
        # TFLite has no EnsureShape.
        return tf.reshape(new, [tf.shape(new)[i] if n is None else n for i, n in enumerate(old.shape)])

    return lambda *carry: tf.nest.map_structure(kept, carry, body(*carry))


def _replay(keep_going, step, carry, constants):
    """`while_loop` on torch."""
    from kerasllm.backend.recording import LOCK, Recording

    nest = keras.tree.map_structure(ops.convert_to_tensor, (carry, constants))
    if not keep_going(*nest):
        return carry
    places = set()  # Two tensors at one place, as in `(zeros,) * 2`, would be written into as one.
    carry = [
        x.clone() if x.data_ptr() in places or places.add(x.data_ptr()) else x.contiguous()
        for x in keras.tree.flatten(nest[0])
    ]
    constants = keras.tree.flatten(nest[1])

    def flat_step(leaves):
        carry, constants = keras.tree.pack_sequence_as(nest, leaves)
        carry = step(carry, constants)
        return [*keras.tree.flatten(carry), keep_going(carry, constants)]

    recordings = _recordings.get()
    if step.__code__ not in recordings:
        with LOCK:
            if step.__code__ not in recordings:
                recordings[step.__code__] = Recording(flat_step, carry + constants, num_donated=len(carry))
    advance, goes_on = recordings[step.__code__].refresh(), True
    while goes_on:
        *carry, goes_on = advance(carry + constants)
    return keras.tree.pack_sequence_as(nest[0], carry)


_recordings = contextvars.ContextVar("recordings")


def _recorded(function, model):
    """Run a function on torch with recorded loops: eagerly outside of them, or wholly recorded if it has none.

    The latter takes a second, which pays for int8 weights alone: Keras's own products of them are slow.
    """
    import torch

    recordings, wholes = {}, {}  # the latter by the shapes of the arguments

    def run(*arguments):
        shapes = tuple(tuple(x.shape) for x in keras.tree.flatten(arguments))
        token = _recordings.set(recordings)
        try:
            with torch.no_grad():
                if wholes.get(shapes):
                    return wholes[shapes](arguments)
                results = function(*arguments)
                if shapes not in wholes and not recordings and any(v.dtype == "int8" for v in model.variables):
                    wholes[shapes] = _whole(function, arguments, results)
                return results
        finally:
            _recordings.reset(token)

    return run


def _whole(function, arguments, results):
    try:
        return _Whole(function, arguments, results)
    except RuntimeError:  # recurrences look at the values of a padding mask, which a recording cannot
        return None


class _Whole:
    """A recording of a function of nests of tensors."""

    def __init__(self, function, arguments, results):
        from kerasllm.backend.recording import Recording

        def flat_function(leaves):
            return keras.tree.flatten(function(*keras.tree.pack_sequence_as(arguments, leaves)))

        self.results = results
        self.recording = Recording(flat_function, self.leaves(arguments), num_donated=0)

    @staticmethod
    def leaves(arguments):
        """The tensors of a nest, also those that are numbers in it."""
        return [ops.convert_to_tensor(x) for x in keras.tree.flatten(arguments)]

    def __call__(self, arguments):
        self.recording.refresh()
        # What depends on nothing, such as zeros, the recording makes once; a loop may write into what it is given.
        kept = set(map(id, self.recording.constants))
        leaves = [x.clone() if id(x) in kept else x for x in self.recording(self.leaves(arguments))]
        return keras.tree.pack_sequence_as(self.results, leaves)
