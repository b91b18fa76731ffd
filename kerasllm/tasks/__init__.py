"""What models do with texts, from strings to answers; in numpy, so that exported files do the same without Keras."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
