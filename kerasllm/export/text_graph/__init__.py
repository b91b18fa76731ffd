"""The parts of a tokenizer as TensorFlow operations; `kerasllm.export.text_ops` puts them together.

Its modules import TensorFlow, so they are imported where a graph is made.
"""

__all__ = []
