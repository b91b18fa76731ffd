"""Public names that are imported when they are first used."""

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

from kerasllm import extras


def attach(package, file):
    """Give a package its public names, which its `__init__.pyi` lists, without importing what they stand for.

        __getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)

    So a program that needs one part of kerasllm, a tokenizer say, imports that part only, and an editor, which reads
    the stub file, knows them all. Inside kerasllm names are imported from the file that defines them; these are for its
    users.

    Args:
        package: the package's `__name__`.
        file: its `__file__`.

    Returns:
        The package's `__getattr__` and `__dir__` (PEP 562) and `__all__`.
    """
    stub = ast.parse(Path(file).with_name("__init__.pyi").read_text())
    homes = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    public = sorted(homes)

    def __getattr__(name):
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if homes[name] == package:
            value = extras.needing_keras(f"{package}.{name}")
        else:
            value = getattr(extras.needing_keras(homes[name]), name)
            register_keras_classes()
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
