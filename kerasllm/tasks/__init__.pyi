# The public names of kerasllm.tasks, which are imported when they are first used (kerasllm/lazy.py).
from kerasllm.tasks import answering as answering
from kerasllm.tasks import classification as classification
from kerasllm.tasks import completing as completing
from kerasllm.tasks import embedding as embedding
from kerasllm.tasks import mask_filling as mask_filling
from kerasllm.tasks import predicting as predicting
from kerasllm.tasks import tagging as tagging
from kerasllm.tasks.answering import Answering as Answering
from kerasllm.tasks.classification import Classification as Classification
from kerasllm.tasks.embedding import Embedding as Embedding
from kerasllm.tasks.mask_filling import MaskFilling as MaskFilling
from kerasllm.tasks.tagging import Tagging as Tagging
