"""Teach a small GPT to continue articles of Wikipedia, on WikiText-2.

python examples/train_gpt.py
"""

import math

import baselines

import kerasllm
from kerasllm.training import AdamW, LanguageModelDataset, Perplexity, TokenCrossentropy, WarmupCosine

ARTICLES = 200
VOCABULARY_SIZE = 4000
NUM_LAYERS, NUM_HEADS, HIDDEN_DIM = 4, 4, 128
SEQUENCE_LENGTH = 128
BATCH_SIZE = 8
EPOCHS = 1
LEARNING_RATE = 3e-3
PROMPTS = ["The city of", "In 1969 , the band", "He was born in", " = History = \n"]


def main(tiny=False):
    """Train, use and measure the model; with `tiny` a toy of it, for the tests.

    Returns:
        The model, its validation data, and figures: (name, value, {baseline: its value}).
    """
    vocabulary_size, hidden_dim, epochs = (300, 16, 1) if tiny else (VOCABULARY_SIZE, HIDDEN_DIM, EPOCHS)

    # Data: articles, one after another, cut into blocks.
    train, validation, _ = kerasllm.datasets.wikitext2()
    train = train[:ARTICLES]
    tokenizer = kerasllm.Tokenizer.train_bpe(train, vocabulary_size)
    options = {"batch_size": BATCH_SIZE, "sequence_length": SEQUENCE_LENGTH}
    train_data = LanguageModelDataset(train, tokenizer, **options)
    validation_data = LanguageModelDataset(validation, tokenizer, shuffle=False, **options)

    model = kerasllm.GPT(
        tokenizer.vocabulary_size,
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        hidden_dim=hidden_dim,
        max_sequence_length=SEQUENCE_LENGTH,
        dropout=0.0,  # no text is seen twice
        initializer_range=0.05,  # the usual 0.02 suits 768 wide layers
        tokenizer=tokenizer,
    )
    total_steps = epochs * len(train_data)
    model.compile(
        AdamW(WarmupCosine(LEARNING_RATE, total_steps // 10, total_steps), weight_decay=0.1, global_clipnorm=1.0),
        loss=TokenCrossentropy(),
        metrics=[Perplexity()],
    )
    model.summary()
    history = model.fit(train_data, validation_data=validation_data, epochs=epochs)

    # Use: continue texts. The same seed gives the same texts on every backend.
    for text in model.generate(PROMPTS, max_new_tokens=40, temperature=0.8, top_p=0.95, seed=1):
        print("...", text)

    perplexity = history.history["val_perplexity"][-1]
    train_ids, validation_ids = (data.sources[0].tokens.ids.astype(int) for data in (train_data, validation_data))
    losses = {
        "unigram": baselines.unigram_loss(train_ids, validation_ids[1:], tokenizer.vocabulary_size),
        "Kneser-Ney trigram": baselines.trigram_loss(train_ids, validation_ids, tokenizer.vocabulary_size),
    }
    trivial = {name: math.exp(loss) for name, loss in losses.items()}
    print(f"Perplexity of {len(validation_ids) - 1} held-out tokens: {perplexity:.1f}, ", end="")
    print(", ".join(f"{name} {value:.1f}" for name, value in trivial.items()))
    return model, validation_data, [("perplexity", perplexity, trivial)]


if __name__ == "__main__":
    main()
