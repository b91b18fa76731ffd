"""kerasllm: LSTM translators, BERT and GPT for Keras 3, on TensorFlow, JAX and PyTorch."""

from kerasllm import lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)

lazy.register_keras_classes()
