"""Which backend runs, and how it compiles a function."""

import keras


def name():
    """The backend of this process: "tensorflow", "jax" or "torch"."""
    return keras.backend.backend()


def compiled(function, model):
    """Compile a function of tensors that reads `model`'s variables.

    Args:
        function: takes and returns (nests of) tensors, changes no variable. It is traced once for each set of
            argument shapes and dtypes; torch runs it eagerly.
        model: the `keras.Model` whose variables `function` reads. They are read at every call, so that training,
            `load_weights` or `quantize` between two calls take effect.

    Returns:
        A callable with `function`'s arguments that computes no gradients.
    """
    if name() == "jax":
        import jax

        @jax.jit
        def stateless(values, arguments):
            with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
                return function(*arguments)

        return lambda *arguments: stateless([v.value for v in model.variables], arguments)
    if name() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, reduce_retracing=True, autograph=False)
    if name() == "torch":
        import torch

        return torch.inference_mode()(function)
    raise ValueError(f"backend ({name()!r}) must be one of 'tensorflow', 'jax', 'torch'.")
