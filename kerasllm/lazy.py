"""Public names that are imported when they are first used."""

import importlib
import pkgutil
import sys

from kerasllm import extras


def attach(package, modules):
    """Give a package its public names without importing what they stand for.

        __getattr__, __dir__, __all__ = lazy.attach(__name__, {"attention": ["MultiHeadAttention"]})

    So a program that needs one part of kerasllm, a tokenizer say, imports that part only. Inside kerasllm,
    names are imported from the file that defines them; these are for its users.

    Args:
        package: the package's `__name__`.
        modules: the modules that users name, each with the names in it that the package offers as its own.

    Returns:
        The package's `__getattr__` and `__dir__` (PEP 562) and `__all__`.
    """
    homes = {name: module for module, names in modules.items() for name in names}
    public = sorted({*modules, *homes})

    def __getattr__(name):
        if name in homes:
            value = getattr(extras.needing_keras(f"{package}.{homes[name]}"), name)
            register_keras_classes()
        elif name in modules:
            value = extras.needing_keras(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def __dir__():
        return public

    return __getattr__, __dir__, public


def register_keras_classes():
    """Import every layer, model, loss, metric and schedule, if this program uses Keras.

    `keras.models.load_model` finds the classes a file names only where they are registered, that is imported.
    """
    if sys.modules.get("keras"):
        for package in ("kerasllm.layers", "kerasllm.models", "kerasllm.training"):
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
                importlib.import_module(module.name)
