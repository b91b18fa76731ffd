"""The models: functional `keras.Model`s that train with `fit`, generate, and carry their tokenizers."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
