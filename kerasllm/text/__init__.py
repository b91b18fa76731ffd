"""From strings to arrays of token ids and back."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
