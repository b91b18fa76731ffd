"""Teach an LSTM to translate English into Spanish, with 80,000 pairs of short sentences from Tatoeba.

python examples/train_translator.py
"""

import random

import baselines

import kerasllm
from kerasllm.training import (
    AdamW,
    Perplexity,
    TokenAccuracy,
    TokenCrossentropy,
    TranslationDataset,
    WarmupCosine,
)

MAX_WORDS = 10  # of the English sentences
PAIRS = 80000
VOCABULARY_SIZE = 3000  # of each language
HIDDEN_DIM = 256
BATCH_SIZE = 32
EPOCHS = 1
LEARNING_RATE = 3e-3
TEST_SENTENCES = 1000


def main(tiny=False):
    """Train, use and measure the model; with `tiny` a toy of it, for the tests.

    Returns:
        The model, its validation data, and figures: (name, value, {baseline: its value}).
    """
    vocabulary_size, hidden_dim, epochs = (300, 16, 1) if tiny else (VOCABULARY_SIZE, HIDDEN_DIM, EPOCHS)

    # Data: each split has sentences that the others do not have.
    train, validation, test = kerasllm.datasets.tatoeba(max_words=MAX_WORDS)
    train = random.Random(0).sample(train, min(PAIRS, len(train)))  # the corpus begins with the shortest
    roles = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}
    english = kerasllm.Tokenizer.train_bpe((source for source, _ in train), vocabulary_size, **roles)
    spanish = kerasllm.Tokenizer.train_bpe((target for _, target in train), vocabulary_size, **roles)
    options = {"batch_size": BATCH_SIZE, "max_length": 24, "too_long": "drop", "multiple": 4}
    train_data = TranslationDataset(train, english, spanish, **options)
    validation_data = TranslationDataset(validation, english, spanish, shuffle=False, **options)

    model = kerasllm.LSTMTranslator(
        english.vocabulary_size,
        spanish.vocabulary_size,
        hidden_dim=hidden_dim,
        attention="additive",
        dropout=0.0,  # no sentence is seen twice
        source_tokenizer=english,
        target_tokenizer=spanish,
    )
    total_steps = epochs * len(train_data)
    schedule = WarmupCosine(LEARNING_RATE, total_steps // 10, total_steps)
    model.compile(
        AdamW(schedule, weight_decay=0.01, global_clipnorm=1.0),
        loss=TokenCrossentropy(),
        metrics=[TokenAccuracy(), Perplexity()],
    )
    model.summary()
    model.fit(train_data, validation_data=validation_data, epochs=epochs)

    # Use: translate held-out sentences. The reference is the first translation that Tatoeba has of a sentence.
    references = {}
    for source, target in test:
        references.setdefault(source, target)
    sources = random.Random(0).sample(sorted(references), min(TEST_SENTENCES, len(references)))
    references = [references[source] for source in sources]
    translations = model.translate(sources, max_length=32, batch_size=100)
    for source, translation, reference in list(zip(sources, translations, references, strict=True))[:8]:
        print(f"{source}\n    model      {translation}\n    reference  {reference}")

    bleu, signature = kerasllm.metrics.bleu(translations, references)
    print(f"BLEU {bleu:.1f} on {len(sources)} sentences, {signature}")
    dictionary = baselines.word_dictionary(train)
    usual = baselines.most_frequent(target for _, target in train)
    trivial = {
        "copy": sources,
        "most frequent sentence": [usual] * len(sources),
        "word by word": [baselines.translate_words(source, dictionary) for source in sources],
    }
    trivial = {name: kerasllm.metrics.bleu(lines, references)[0] for name, lines in trivial.items()}
    return model, validation_data, [("BLEU", bleu, trivial)]


if __name__ == "__main__":
    main()
