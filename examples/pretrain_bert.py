"""Teach a small BERT to fill masks, on reviews of films.

python examples/pretrain_bert.py
"""

import math

import baselines
import numpy as np

import kerasllm
from kerasllm.training import (
    AdamW,
    MaskedLMDataset,
    Perplexity,
    TokenAccuracy,
    TokenCrossentropy,
    WarmupLinear,
)

SIZE = "tiny"  # 2 layers of width 128
VOCABULARY_SIZE = 3000
REVIEWS = 5000
MAX_LENGTH = 32
BATCH_SIZE = 64
MASK_RATE = 0.3  # in training; 15 % as in the paper teach less a step (Wettig et al. 2023, arXiv:2202.08005)
EPOCHS = 2
LEARNING_RATE = 3e-3
EXAMPLES = [
    "This is the [MASK] movie I have ever seen.",
    "The acting was [MASK] and the story made no sense.",
    "One of the [MASK] films of all [MASK].",
]


def main(tiny=False):
    """Train, use and measure the model; with `tiny` a toy of it, for the tests.

    Returns:
        The model, its validation data, and figures: (name, value, {baseline: its value}).
    """
    vocabulary_size, hidden_dim, epochs = (300, 16, 1) if tiny else (VOCABULARY_SIZE, 128, EPOCHS)

    # Data: long reviews become several rows; every epoch masks other words.
    train, validation, _ = kerasllm.datasets.movie_reviews(source="imdb")
    train, validation = ([text for text, _ in part] for part in (train[:REVIEWS], validation[:500]))
    tokenizer = kerasllm.Tokenizer.train_wordpiece(train, vocabulary_size)
    options = {"batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "too_long": "split"}
    train_data = MaskedLMDataset(train, tokenizer, rate=MASK_RATE, **options)
    validation_data = MaskedLMDataset(validation, tokenizer, shuffle=False, **options)

    model = kerasllm.BERTMaskedLM.from_size(
        SIZE,
        vocabulary_size=tokenizer.vocabulary_size,
        hidden_dim=hidden_dim,
        max_sequence_length=MAX_LENGTH,
        dropout=0.0,  # no text is seen twice with the same masks
        initializer_range=0.05,  # the usual 0.02 suits 768 wide layers and learns late at 128
        tokenizer=tokenizer,
    )
    total_steps = epochs * len(train_data)
    model.compile(
        AdamW(
            WarmupLinear(LEARNING_RATE, total_steps // 10, total_steps),
            weight_decay=0.01,
            global_clipnorm=1.0,
        ),
        loss=TokenCrossentropy(),
        metrics=[TokenAccuracy(), Perplexity()],
    )
    model.summary()
    history = model.fit(train_data, validation_data=validation_data, epochs=epochs)

    # Use: fill masks.
    for text, proposals in zip(EXAMPLES, model.fill_mask(EXAMPLES, top_k=5), strict=True):
        print(text)
        for mask in proposals if text.count("[MASK]") > 1 else [proposals]:
            print("   ", ", ".join(f"{p['token_str']} ({p['score']:.2f})" for p in mask))

    # Figures, on one and the same masked tokens.
    results = {name: values[-1] for name, values in history.history.items()}
    tokens = np.concatenate(train_data.rows)
    tokens = tokens[~np.isin(tokens, tokenizer.special_ids)]
    labels = np.concatenate([labels[labels >= 0] for _, labels in validation_data])
    usual = baselines.most_frequent(tokens.tolist())
    accuracies = {f"always {tokenizer.id_to_token(usual)!r}": float(np.mean(labels == usual))}
    losses = {"unigram": baselines.unigram_loss(tokens, labels, tokenizer.vocabulary_size)}
    figures = [
        ("masked accuracy", results["val_accuracy"], accuracies),
        ("masked loss", math.log(results["val_perplexity"]), losses),
    ]
    return model, validation_data, figures


if __name__ == "__main__":
    main()
