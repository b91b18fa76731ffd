# The public names of kerasllm.metrics, which are imported when they are first used (kerasllm/lazy.py).
from kerasllm.metrics import answers as answers
from kerasllm.metrics import entities as entities
from kerasllm.metrics import intervals as intervals
from kerasllm.metrics import labels as labels
from kerasllm.metrics import repetition as repetition
from kerasllm.metrics import texts as texts
from kerasllm.metrics.answers import answer_scores as answer_scores
from kerasllm.metrics.entities import entity_scores as entity_scores
from kerasllm.metrics.intervals import bootstrap_interval as bootstrap_interval
from kerasllm.metrics.labels import calibration_error as calibration_error
from kerasllm.metrics.labels import classification_scores as classification_scores
from kerasllm.metrics.labels import confusion_matrix as confusion_matrix
from kerasllm.metrics.repetition import distinct_ngrams as distinct_ngrams
from kerasllm.metrics.repetition import repeated_ngrams as repeated_ngrams
from kerasllm.metrics.texts import bleu as bleu
from kerasllm.metrics.texts import chrf as chrf
from kerasllm.metrics.texts import rouge as rouge
