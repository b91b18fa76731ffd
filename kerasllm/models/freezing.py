"""Which variables of a model are trained, by their paths."""

import re

from kerasllm.arguments import read_patterns, shown
from kerasllm.generation.sharing import Changes


def freeze(model, patterns, but=()):
    """Train no longer the variables in whose paths a pattern is found.

    It takes effect with the next `compile`: an optimizer in use is dropped. A `.keras` file keeps it.

    Args:
        model: a built Keras model.
        patterns: regular expression of paths such as "encoder/block_3/attention/query/kernel", or a list of them:
            "encoder/" is an encoder, "embeddings" all tables, "block_[0-5]/" the first six blocks.
        but: patterns of those that are left as they are.

    Returns:
        The paths of the variables that are frozen now and were not.

    Raises:
        ValueError: a pattern is found in no path.

    Example:
        >>> freeze(model, "encoder/", but="block_11/")
    """
    return _set(model, "freeze", patterns, but, False)


def unfreeze(model, patterns=".", but=()):
    """Train the variables in whose paths a pattern is found, all by default, but for weights that LoRA adapts.

    Args: as for `freeze`.

    Returns:
        The paths of the variables that are trained now and were not.

    Raises:
        ValueError: as for `freeze`.
    """
    return _set(model, "unfreeze", patterns, but, True)


def train_only(model, paths):
    """Freeze all variables but the factors of LoRA and those of these paths."""
    for layer in model._flatten_layers():
        layer._trainable = True  # not by Keras's property, which on TensorFlow overhears what it takes for no change
        factors = set(map(id, layer.lora_factors)) if getattr(layer, "lora_enabled", False) else set()
        for variable in layer._trainable_variables:
            variable.trainable = id(variable) in factors or variable.path in paths


def matching(model, name, value):
    """The paths of variables in which a pattern is found; one that is found in none is an error if `name` is given."""
    patterns, paths = read_patterns(name, value), list(variables_of(model))
    idle = [pattern for pattern in patterns if not any(re.search(pattern, path) for path in paths)]
    if idle and name is not None:
        raise ValueError(f"{name}: {shown(idle[0])} is found in no path of a variable, such as {shown(paths[0])}.")
    return {path for path in paths if any(re.search(pattern, path) for pattern in patterns)}


def uncompiled(model):
    """Forget what Keras has made for the variables that were: its functions, and the optimizer's state."""
    model.train_function = model.test_function = model.predict_function = None
    if getattr(model, "optimizer", None) is not None and model.optimizer.built:
        model.optimizer, model.compiled = None, False


def variables_of(model):
    """Dict path -> variable."""
    return {v.path: v for v in model.variables}


def _set(model, what, patterns, but, trained):
    if not getattr(model, "built", False):
        raise ValueError(f"model ({shown(model)}) must be a built Keras model.")
    chosen = matching(model, "patterns", patterns) - (matching(model, "but", but) if but else set())
    changed = []
    with Changes.of(model).made(what):
        for layer in model._flatten_layers():
            inside, layer._trainable = layer._trainable, True  # what follows is said of each variable
            adapted = getattr(layer, f"_{layer.adapted}") if getattr(layer, "lora_enabled", False) else None
            for variable in layer._trainable_variables:
                before = variable.trainable and inside
                variable.trainable = before
                if variable.path in chosen and before != trained and not (trained and variable is adapted):
                    variable.trainable = trained
                    changed.append(variable.path)
        if changed:
            uncompiled(model)
    return changed
