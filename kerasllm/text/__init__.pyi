# The public names of kerasllm.text, which are imported when they are first used (kerasllm/lazy.py).
from kerasllm.text import augmentation as augmentation
from kerasllm.text import batches as batches
from kerasllm.text import tokenizers as tokenizers
from kerasllm.text import vocabularies as vocabularies
from kerasllm.text.augmentation import drop_words as drop_words
from kerasllm.text.augmentation import replace_words as replace_words
from kerasllm.text.augmentation import swap_words as swap_words
from kerasllm.text.tokenizers import Tokenizer as Tokenizer
