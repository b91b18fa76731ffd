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
VOCABULARY_SIZE = 8000
REVIEWS = 10000
MAX_LENGTH = 64
BATCH_SIZE = 32
EPOCHS = 1
LEARNING_RATE = 2e-3
EXAMPLES = [
    "This is the [MASK] movie I have ever seen.",
    "The acting was [MASK] and the story made no sense.",
    "I laughed [MASK] loud, it is a very [MASK] film.",
]


def main(tiny=False):
    vocabulary_size, hidden_dim, epochs = (300, 16, 1) if tiny else (VOCABULARY_SIZE, 128, EPOCHS)

    # Data: long reviews become several rows; every epoch masks other words.
    train, validation, _ = kerasllm.datasets.movie_reviews(source="imdb")
    train, validation = ([text for text, _ in part] for part in (train[:REVIEWS], validation[:500]))
    tokenizer = kerasllm.Tokenizer.train_wordpiece(train, vocabulary_size)
    options = {"batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "too_long": "split"}
    train_data = MaskedLMDataset(train, tokenizer, **options)
    validation_data = MaskedLMDataset(validation, tokenizer, shuffle=False, **options)

    model = kerasllm.BERTMaskedLM.from_size(
        SIZE,
        vocabulary_size=tokenizer.vocabulary_size,
        hidden_dim=hidden_dim,
        max_sequence_length=MAX_LENGTH,
        dropout=0.0,  # no text is seen twice
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
    model.fit(train_data, validation_data=validation_data, epochs=epochs, shuffle=False)

    # Use: fill masks.
    for text in EXAMPLES:
        print(text)
        proposals = model.fill_mask(text, top_k=5)
        for mask in proposals if text.count("[MASK]") > 1 else [proposals]:
            print("   ", ", ".join(f"{p['token_str']} ({p['score']:.2f})" for p in mask))

    # Figures, on one and the same masked tokens.
    results = model.evaluate(validation_data, return_dict=True, verbose=0)
    tokens = np.concatenate(train_data.rows)
    tokens = tokens[~np.isin(tokens, tokenizer.special_ids)]
    labels = np.concatenate([labels[labels >= 0] for _, labels in validation_data])
    usual = baselines.most_frequent(tokens.tolist())
    accuracies = {f"always {tokenizer.id_to_token(usual)!r}": float(np.mean(labels == usual))}
    losses = {"unigram": baselines.unigram_loss(tokens, labels, tokenizer.vocabulary_size)}
    figures = [
        ("masked accuracy", results["accuracy"], accuracies),
        ("masked loss", math.log(results["perplexity"]), losses),
    ]
    return model, validation_data, figures


if __name__ == "__main__":
    main()
