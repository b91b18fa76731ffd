# The public names of kerasllm.text, which are imported when they are first used (kerasllm/lazy.py).
from kerasllm.text import batches as batches
from kerasllm.text import tokenizers as tokenizers
from kerasllm.text.tokenizers import Tokenizer as Tokenizer
