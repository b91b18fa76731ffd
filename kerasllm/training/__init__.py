"""What `compile` and `fit` are given: datasets, losses, metrics, schedules, optimizers and callbacks."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
