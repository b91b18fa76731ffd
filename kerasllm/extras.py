"""Packages that only some of kerasllm needs: imported when they are used, and named where they are missing."""

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")
EXTRAS = {
    "ai_edge_litert": "export",
    "gguf": "gguf",
    "huggingface_hub": "hub",
    "jinja2": "chat",
    "litert_lm_builder": "export",
    "matplotlib": "plot",
    "rouge_score": "metrics",
    "sacrebleu": "metrics",
    "seqeval": "metrics",
    "sklearn": "metrics",
    "tensorboardX": "tensorboard",
    "tensorflow": "export",
    "torch": "torch",
}
"""The extra of kerasllm that brings each package. Others are installed by their own names."""


def needing_keras(module):
    """Import a module that may need Keras; where Keras finds no backend, the error says what to set.

    Raises:
        ImportError: Keras's backend is not installed.
        ValueError: it is none that kerasllm knows.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as error:
        if not sys.modules.get("keras"):
            check_backend(*_chosen_backend(), error)
        raise


def check_backend(name, source="Keras's backend", error=None):
    """Raise unless Keras's backend is one that kerasllm knows, and installed.

    Args:
        name: of the backend.
        source: what says so.
        error: what has come of it.
    """
    there = [backend for backend in BACKENDS if is_installed(backend)]
    if there:
        hint = (
            f"set KERAS_BACKEND={there[0]}{', or another that is there,' * (len(there) > 1)} before Keras is imported"
        )
    else:
        hint = f"`pip install 'kerasllm[{BACKENDS[1]}]'`, and set KERAS_BACKEND={BACKENDS[1]} before Keras is imported"
    if name not in BACKENDS:
        raise ValueError(f"{source} ({name!r:.80}) must be one of {', '.join(map(repr, BACKENDS))}: {hint}.") from error
    if not is_installed(name):
        raise ImportError(f"{source} ({name!r}) is not installed: {hint}.") from error


def _chosen_backend():
    """The backend that Keras takes, and what says so."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name, "KERAS_BACKEND"
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        name = json.loads((home / "keras.json").read_text())["backend"]
    except (OSError, ValueError, LookupError, TypeError):
        name = BACKENDS[0]
    # Keras writes its default into the file by itself.
    return name, "Keras's default backend" if name == BACKENDS[0] else f"Keras's backend in {home / 'keras.json'}"


def required(module, user):
    """Import a module.

    Args:
        module: its full name.
        user: what needs it, for the error.

    Raises:
        ImportError: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(module, user, error) from error


def check_installed(packages, user):
    """Raise `ImportError` as `required` does unless the packages are there, without importing them."""
    for package in packages:
        if not is_installed(package):
            raise missing(package, user)


def is_installed(package):
    """Whether a package can be found."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # what hides packages may refuse, and sys.modules may hold None
        return False


def missing(module, user, error=None):
    """The `ImportError` for a module that `user` needs; where it is there, and broken, with the reason."""
    package = module.partition(".")[0]
    extra = EXTRAS.get(package)
    install = f"'kerasllm[{extra}]'" if extra else package
    found = error is not None and getattr(error, "name", None) not in (None, package, module)
    return ImportError(f"{user} needs {package}: `pip install {install}`.{f' It fails: {error}' if found else ''}")
