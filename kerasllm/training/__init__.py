"""What `compile` and `fit` are given: datasets, losses, metrics, schedules and optimizers."""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "datasets": [
            "TranslationDataset",
            "MaskedLMDataset",
            "LanguageModelDataset",
        ],
        "labelled_datasets": ["ClassificationDataset", "TokenClassificationDataset", "QuestionAnsweringDataset"],
        "losses": ["TokenCrossentropy"],
        "metrics": ["Perplexity", "TokenAccuracy"],
        "schedules": ["WarmupLinear", "WarmupCosine", "InverseSquareRoot"],
        "optimizers": ["AdamW"],
    },
)
