"""The random state of a process: Python's, numpy's, that of Keras's calls without a seed and the backend's own."""

import random

import keras
import numpy as np

from kerasllm.backend.compilation import name


def random_state():
    """A nest of plain values and arrays from which `restore_random_state` goes on drawing the same numbers.

    The states of `keras.random.SeedGenerator`s, dropout's among them, are variables of the model and not here. Neither
    JAX nor TensorFlow has another state that can be read.
    """
    version, words, gauss = random.getstate()
    unseeded = _unseeded()
    return {
        "backend": name(),
        "python": {"version": version, "words": np.array(words, "uint32"), "gauss": gauss},
        "numpy": np.random.get_state(legacy=False),
        "keras": None if unseeded is None else np.array(keras.ops.convert_to_numpy(unseeded.state)),
        "devices": _torch_states() if name() == "torch" else [],
    }


def restore_random_state(state):
    """Set what `random_state` has read.

    Raises:
        ValueError: it was read under another backend.
    """
    if state["backend"] != name():
        raise ValueError(f"the backend was {state['backend']!r} and is {name()!r}")
    if state["keras"] is not None:  # made first, for that draws from Python's
        from keras.src.random.seed_generator import global_seed_generator  # which Keras names nowhere else

        global_seed_generator().state.assign(state["keras"])
    if name() == "torch":
        _restore_torch(state["devices"])
    python = state["python"]
    random.setstate((python["version"], tuple(map(int, python["words"])), python["gauss"]))
    np.random.set_state(state["numpy"])


def shuffles_arrays_again():
    """Whether the order in which Keras shuffles arrays is the same in another process with the same random state."""
    from keras.src.utils.rng_utils import get_random_seed

    # In TensorFlow's graphs the order comes from the seed of `keras.utils.set_random_seed` alone.
    return name() != "tensorflow" or get_random_seed() is not None


def _unseeded():
    from keras.src.backend.common import global_state
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

    return global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)


def _torch_states():
    """That of the CPU, then those of the GPUs where they are in use."""
    import torch

    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return [state.numpy() for state in states]


def _restore_torch(states):
    import torch

    first, *others = (torch.from_numpy(np.array(state)) for state in states)
    torch.set_rng_state(first)
    if others:
        torch.cuda.set_rng_state_all(others)
