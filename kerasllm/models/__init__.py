"""The models: functional `keras.Model`s that train with `fit`, generate, and carry their tokenizers."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "lstm_translator": ["LSTMTranslator"],
        "transformer_translator": ["TransformerTranslator"],
        "summarizer": ["Summarizer"],
        "rnn": ["RNNLanguageModel"],
        "bert": ["BERT"],
        "masked_lm": ["BERTMaskedLM"],
        "classifier": ["BERTClassifier"],
        "token_classifier": ["BERTTokenClassifier"],
        "question_answerer": ["BERTQuestionAnswerer"],
        "embedder": ["BERTEmbedder"],
        "embedding_index": ["EmbeddingIndex"],
        "gpt": ["GPT"],
        "loading": ["load"],
    },
)
