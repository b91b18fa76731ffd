"""Which contents the file of which model has."""

from kerasllm.export import heads
from kerasllm.export.contents import Contents
from kerasllm.export.language_models import LanguageModelContents
from kerasllm.export.translators import TranslatorContents
from kerasllm.models.classifier import BERTClassifier
from kerasllm.models.embedder import BERTEmbedder
from kerasllm.models.language_model import LanguageModel
from kerasllm.models.masked_lm import BERTMaskedLM
from kerasllm.models.question_answerer import BERTQuestionAnswerer
from kerasllm.models.token_classifier import BERTTokenClassifier
from kerasllm.models.translator import Translator

# The first class that a model is an instance of decides; a model of none has its forward pass alone.
CONTENTS = [
    (LanguageModel, LanguageModelContents),
    (Translator, TranslatorContents),
    (BERTMaskedLM, heads.MaskedLMContents),
    (BERTClassifier, heads.ClassifierContents),
    (BERTTokenClassifier, heads.TokenClassifierContents),
    (BERTQuestionAnswerer, heads.QuestionAnswererContents),
    (BERTEmbedder, heads.EmbedderContents),
]


def contents_of(writer, model, options):
    """The `Contents` of a model's file in a format, which may have its own."""
    if hasattr(writer, "contents_of"):
        return writer.contents_of(model, options)
    return next((contents for cls, contents in CONTENTS if isinstance(model, cls)), Contents)(model, options)
