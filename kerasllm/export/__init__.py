"""Models as files that run without our Python: SavedModel and TFLite."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
