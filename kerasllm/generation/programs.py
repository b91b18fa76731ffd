"""The compiled functions of a model: how they are kept, and the steps that all ways of generating share."""

import contextlib
import functools
import operator
import threading

import keras
import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.generation.sharing import Changes

# Attention over 64 slots is a small part of a step: a smaller capacity is not worth its compilation.
MIN_CAPACITY = 64
_MAKING = threading.Lock()


class Programs:
    """The compiled functions of one model, for one use of its weights, such as a text or a batch."""

    def __init__(self, model, kept):
        self.model, self.kept, self.changes = model, kept, Changes.of(model)
        self.count = self.changes.seen()

    @classmethod
    def of(cls, model):
        """The model's programs, kept on it so that they live as long as it does, and shared by all threads.

        They read the values of its variables at each call, and are made anew when it has other variables, as
        after `quantize` or `enable_lora`.

        Raises:
            RuntimeError: another thread changes the weights, in `fit` for example.
        """
        backend.check_placed(model)
        kept, variables = getattr(model, "_generation_programs", None), model.variables
        if kept is None or not kept.are_for(variables):
            with _MAKING:
                kept = getattr(model, "_generation_programs", None)
                if kept is None or not kept.are_for(variables):
                    # A plain object, because Keras and TensorFlow track, and so save, lists, dicts and layers.
                    kept = model._generation_programs = _Kept(variables)
        return cls(model, kept)

    @staticmethod
    @contextlib.contextmanager
    def forgotten(model):
        """Forget, at the end, what is compiled for a model inside: its machine code, and torch's copies of weights."""
        kept, model._generation_programs = getattr(model, "_generation_programs", None), None
        try:
            yield
        finally:
            model._generation_programs = kept

    @property
    def functions(self):
        """What is compiled: dict (function, static arguments, shapes) -> callable."""
        return self.kept.functions

    def run(self, function, *arguments, **static):
        """Call `function(model, *arguments, **static)`, compiled once for its shapes and static arguments.

        Each is a function of its own: `tf.function` would trace the second shape with unknown sizes.

        Raises:
            RuntimeError: the weights have changed since `of`.
        """

        def make():
            return backend.compiled(functools.partial(function, self.model, **static), self.model)

        return self._run((function, *static.items()), make, arguments)

    def outputs(self, inputs, function=None):
        """The model's outputs for arrays, its inputs, in numpy, as `predict` computes them.

        Args:
            inputs: dict of arrays.
            function: what is computed in their place, a function (model, inputs) -> nest of tensors.

        Raises:
            RuntimeError: the weights have changed since `of`.
        """

        def make():
            if function not in self.kept.passes:
                self.kept.passes[function] = backend.compiled_pass(functools.partial(function, self.model), self.model)
            return self.kept.passes[function]

        function = function or _outputs
        return keras.tree.map_structure(ops.convert_to_numpy, self._run((function,), make, batch_tensors((inputs,))))

    def _run(self, what, make, arguments):
        """Call what `make` compiles for the shapes of arguments."""
        shapes = tuple((path, tuple(np.shape(leaf))) for path, leaf in keras.tree.flatten_with_path(arguments))
        key = (*what, shapes)
        if key not in self.functions:
            with _MAKING:
                if key not in self.functions:
                    self.functions[key] = _Program(make())
        with self.changes.none_since(self.count):
            return self.functions[key](*arguments)


class _Kept:
    """What is kept on a model: its compiled functions, those of whole passes, and the variables they are for."""

    def __init__(self, variables):
        self.variables, self.functions, self.passes = list(variables), {}, {}

    def are_for(self, variables):
        return len(variables) == len(self.variables) and all(map(operator.is_, variables, self.variables))


class _Program:
    """A compiled function whose first call, which compiles it, one thread makes while others wait."""

    def __init__(self, function):
        self.function, self.lock, self.is_ready = function, threading.RLock(), False

    def __call__(self, *arguments):
        if not self.is_ready:
            with self.lock:
                if not self.is_ready:
                    results = self.function(*arguments)
                    self.is_ready = True
                    return results
        return self.function(*arguments)


def _outputs(model, inputs):
    return model(inputs, training=False)


def prefill(model, inputs, prompt, capacity, num_copies, has_history):
    """Read each prompt once, and copy its state for each of its sequences.

    Returns:
        `(state, history)`: the model's state; and what stands in each slot, (R, capacity) int32, -1 where there is no
        token. Without a history that is ().
    """
    state, history = model.start_decoding(inputs, prompt, capacity), ()
    if has_history:
        history = ops.where(ops.cast(prompt["padding_mask"], "bool"), prompt["token_ids"], -1)
        history = _pad(history, capacity)
    if num_copies == 1:
        return state, history
    return keras.tree.map_structure(lambda x: ops.repeat(x, num_copies, axis=0), (state, history))


def copied(model, state, rows):
    """What `prefill` returns, of the rows (R,) int32, each of which may come several times."""
    return keras.tree.map_structure(lambda x: ops.take(x, rows, axis=0), state)


def grow(model, state, capacity):
    """What `prefill` returns, with room for `capacity` slots."""
    state, history = state
    return model.grow(state, capacity), history if isinstance(history, tuple) else _pad(history, capacity)


def feed(model, state, token, slot):
    """Feed a token to each row: logits (R, V) of the next one in float32, and the new state.

    Args:
        model: has `decode_step`.
        state: what `prefill` returns.
        token: (R,) int32. -1, where the row before has gone wrong, counts as 0.
        slot: scalar int.
    """
    state, history = state
    token = ops.maximum(token, 0)[:, None]
    logits, state = model.decode_step(token, state, slot)
    if not isinstance(history, tuple):
        history = ops.slice_update(history, (0, slot), token)
    return ops.cast(logits[:, -1], "float32"), (state, history)


def first_capacity(prompt_slots, total):
    """The slots to begin with, for prompts in the first `prompt_slots` and at most `total` more tokens."""
    power_of_two = 1 << (prompt_slots + total - 2).bit_length()
    return max(MIN_CAPACITY, min(2 * prompt_slots, power_of_two))


def tensors(arrays):
    """A nest of arrays as one of tensors."""
    return keras.tree.map_structure(ops.convert_to_tensor, arrays)


def batch_tensors(arrays):
    """As `tensors`, of arrays with the rows of a batch, which are spread over the devices that are set."""
    return keras.tree.map_structure(backend.placed, arrays)


def _pad(history, capacity):
    return ops.pad(history, [[0, 0], [0, capacity - ops.shape(history)[1]]], constant_values=-1)
