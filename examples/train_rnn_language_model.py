"""Teach a GRU to write short sentences, freely or from a beginning, with the English side of Tatoeba.

python examples/train_rnn_language_model.py
"""

import math

import baselines

import kerasllm
from kerasllm.training import AdamW, LanguageModelDataset, Perplexity, TokenCrossentropy, WarmupCosine

VOCABULARY_SIZE = 3000
HIDDEN_DIM = 256
SEQUENCE_LENGTH = 32
BATCH_SIZE = 64
EPOCHS = 2
LEARNING_RATE = 4e-3
BEGINNINGS = ["I want to", "The doctor", "Where"]


def main(tiny=False):
    """Train, use and measure the model; with `tiny` a toy of it, for the tests.

    Returns:
        The model, its validation data, and figures: (name, value, {baseline: its value}).
    """
    vocabulary_size, hidden_dim, epochs = (300, 16, 1) if tiny else (VOCABULARY_SIZE, HIDDEN_DIM, EPOCHS)

    # Data: sentences one after another, each between a start and an end token.
    train, validation, _ = kerasllm.datasets.tatoeba(max_words=10)
    train, validation = ([english for english, _ in part] for part in (train, validation))
    tokenizer = kerasllm.Tokenizer.train_bpe(train, vocabulary_size, bos="<s>", eos="</s>")
    options = {"batch_size": BATCH_SIZE, "sequence_length": SEQUENCE_LENGTH}
    train_data = LanguageModelDataset(train, tokenizer, **options)
    validation_data = LanguageModelDataset(validation, tokenizer, shuffle=False, **options)

    model = kerasllm.RNNLanguageModel(tokenizer.vocabulary_size, cell="gru", hidden_dim=hidden_dim, tokenizer=tokenizer)
    total_steps = epochs * len(train_data)
    model.compile(
        AdamW(WarmupCosine(LEARNING_RATE, total_steps // 10, total_steps), global_clipnorm=1.0),
        loss=TokenCrossentropy(),
        metrics=[Perplexity()],
    )
    model.summary()
    history = model.fit(train_data, validation_data=validation_data, epochs=epochs)

    # Use: sentences from nothing but the start token, and sentences that begin as told.
    sampling = {"max_new_tokens": 20, "temperature": 0.7, "seed": 1}
    print("\n".join(model.generate("", num_return_sequences=5, **sampling)))
    print("\n".join(model.generate([f"<s>{beginning}" for beginning in BEGINNINGS], **sampling)))

    perplexity = history.history["val_perplexity"][-1]
    tokens = [data.sources[0].tokens.ids[1:].astype(int) for data in (train_data, validation_data)]
    trivial = {"unigram": math.exp(baselines.unigram_loss(*tokens, tokenizer.vocabulary_size))}
    return model, validation_data, [("RNN perplexity", perplexity, trivial)]


if __name__ == "__main__":
    main()
