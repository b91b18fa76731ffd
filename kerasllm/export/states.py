"""The state of decoding by names, as functions of files take it and give it back."""

import itertools

import keras

# The tensors of the models' states by the beginnings of their paths, and the axes that are as long as the source.
NAMES = {
    "cache": "kv_cache_{part}_0",
    "caches": "kv_cache_{part}_{layer}",
    "memories": "memory_{part}_{layer}",
    "states": "state_{number}",
    "memory": "memory",
    "keys": "keys",
    "memory_mask": "source_padding_mask",
    "padding_mask": "source_padding_mask",
}
SOURCE_AXES = {"memories": 2, "memory": 1, "keys": 1, "memory_mask": 1, "padding_mask": 1}


def named(state):
    """The tensors of a state by their names; what has none is left out."""
    return {name: x for name, x in zip(_names(state), keras.tree.flatten(state), strict=True) if name}


def nested(tensors, like):
    """The inverse of `named`: a state; what has no name is as in the state `like`."""
    leaves = zip(_names(like), keras.tree.flatten(like), strict=True)
    return keras.tree.pack_sequence_as(like, [tensors.get(name, x) for name, x in leaves])


def sizes(state):
    """The sizes of each tensor in the order of `keras.tree.flatten`, None for the length of the source."""
    found = []
    for path, x in keras.tree.flatten_with_path(state):
        axis = SOURCE_AXES.get(path[0])
        found.append(tuple(None if i == axis else size for i, size in enumerate(x.shape)))
    return found


def inputs(state):
    """What a function that reads a state takes: dict name -> (shape, dtype)."""
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in keras.tree.flatten(state)]
    return {
        name: (shape, dtype) for name, shape, dtype in zip(_names(state), sizes(state), dtypes, strict=True) if name
    }


def _names(state):
    """The name of each tensor in the order of `keras.tree.flatten`; None for the number of padded slots."""
    names, number = [], itertools.count()
    for (kind, *place), _ in keras.tree.flatten_with_path(state):
        fields = {"number": next(number)} if kind == "states" else {}
        if kind in ("cache", "caches", "memories"):
            *layer, part = place
            fields = {"layer": layer[0] if layer else 0, "part": "kv"[part]}
        names.append(NAMES[kind].format(**fields) if kind in NAMES else None)
    return names
