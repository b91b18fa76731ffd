"""Weights in other people's formats, read and written by the same tables of names."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
