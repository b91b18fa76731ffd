"""Training and generation on several devices, by the engines that Keras and its backends have."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
