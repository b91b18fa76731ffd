"""kerasllm: LSTM translators, BERT and GPT for Keras 3, on TensorFlow, JAX and PyTorch."""

from kerasllm import lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "models": [
            "LSTMTranslator",
            "TransformerTranslator",
            "Summarizer",
            "RNNLanguageModel",
            "BERT",
            "BERTMaskedLM",
            "BERTClassifier",
            "BERTTokenClassifier",
            "BERTQuestionAnswerer",
            "BERTEmbedder",
            "EmbeddingIndex",
            "GPT",
            "load",
        ],
        "generation": ["GenerationConfig"],
        "text": ["Tokenizer"],
        "layers": [],
        "training": [],
        "datasets": [],
        "pretrained": [],
        "metrics": [],
        "checkpoints": [],
        "export": [],
    },
)

lazy.register_keras_classes()
