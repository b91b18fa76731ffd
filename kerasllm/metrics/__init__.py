"""Figures of merit on host: of labels, entities, answers and texts, by libraries where there are any."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
