# The public names of kerasllm, which are imported when they are first used (kerasllm/lazy.py).
from kerasllm import checkpoints as checkpoints
from kerasllm import datasets as datasets
from kerasllm import export as export
from kerasllm import generation as generation
from kerasllm import layers as layers
from kerasllm import metrics as metrics
from kerasllm import models as models
from kerasllm import pretrained as pretrained
from kerasllm import text as text
from kerasllm import training as training
from kerasllm.generation import GenerationConfig as GenerationConfig
from kerasllm.models import BERT as BERT
from kerasllm.models import GPT as GPT
from kerasllm.models import BERTClassifier as BERTClassifier
from kerasllm.models import BERTEmbedder as BERTEmbedder
from kerasllm.models import BERTMaskedLM as BERTMaskedLM
from kerasllm.models import BERTQuestionAnswerer as BERTQuestionAnswerer
from kerasllm.models import BERTTokenClassifier as BERTTokenClassifier
from kerasllm.models import EmbeddingIndex as EmbeddingIndex
from kerasllm.models import LSTMTranslator as LSTMTranslator
from kerasllm.models import RNNLanguageModel as RNNLanguageModel
from kerasllm.models import Summarizer as Summarizer
from kerasllm.models import TransformerTranslator as TransformerTranslator
from kerasllm.models import add_lora as add_lora
from kerasllm.models import get_adapter as get_adapter
from kerasllm.models import load as load
from kerasllm.models import load_adapter as load_adapter
from kerasllm.models import merge_lora as merge_lora
from kerasllm.models import read_adapter as read_adapter
from kerasllm.models import save_adapter as save_adapter
from kerasllm.models import set_adapter as set_adapter
from kerasllm.models import unmerge_lora as unmerge_lora
from kerasllm.text import Tokenizer as Tokenizer

__version__: str
