"""Judging a model by a file of examples: one table of measures, with intervals, for each task."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
