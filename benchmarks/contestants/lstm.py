"""An LSTM encoder-decoder 256 wide, 8,000 symbols a side, 64 pairs of 20 tokens, Adam.

Ours takes AdamW without decay, the same update, and the cross-entropy in chunks.
"""

import time

import numpy as np
from turns import imported

from contestants.steps import fit, ids

WIDTH, SYMBOLS, LENGTH, BATCH = 256, 8000, 20, 64


def ours(steps, shortest=LENGTH):
    """Our LSTM translator; sources and targets have `shortest` tokens at least."""
    from kerasllm import LSTMTranslator
    from kerasllm.training import AdamW, TokenCrossentropy

    imported()

    model = LSTMTranslator(SYMBOLS, SYMBOLS, hidden_dim=WIDTH, attention=None, bidirectional=False, dropout=0.0)
    model.compile(AdamW(1e-3, weight_decay=0.0), TokenCrossentropy(chunk_size=256))
    tokens = ids(steps, SYMBOLS, BATCH, LENGTH)
    lengths = np.random.default_rng(1).integers(shortest, LENGTH + 1, (len(tokens), 1))
    is_real = np.arange(LENGTH) < lengths
    x = {f"{side}_token_ids": tokens for side in ("source", "target")}
    x |= {f"{side}_padding_mask": is_real for side in ("source", "target")}
    return fit(model, x, np.where(is_real, tokens, -1), BATCH)


def ours_padded(steps):
    """The same with padding."""
    return ours(steps, shortest=LENGTH // 2)


def plain_keras(steps):
    """The same translator in plain Keras layers."""
    import keras
    from keras import layers

    imported()

    source, target = (keras.Input((LENGTH,), dtype="int32") for _ in range(2))
    embed = [layers.Embedding(SYMBOLS, WIDTH) for _ in range(2)]
    _, *states = layers.LSTM(WIDTH, return_state=True)(embed[0](source))
    hidden = layers.LSTM(WIDTH, return_sequences=True)(embed[1](target), initial_state=states)
    model = keras.Model([source, target], layers.Dense(SYMBOLS)(hidden))
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tokens = ids(steps, SYMBOLS, BATCH, LENGTH)
    return fit(model, [tokens, tokens], tokens, BATCH)


def plain_torch(steps):
    """The same translator in plain PyTorch."""
    import torch
    from torch import nn

    imported()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.source, self.target = (nn.Embedding(SYMBOLS, WIDTH) for _ in range(2))
            self.encoder, self.decoder = (nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(2))
            self.head = nn.Linear(WIDTH, SYMBOLS)

        def forward(self, source, target):
            states = self.encoder(self.source(source))[1]
            return self.head(self.decoder(self.target(target), states)[0])

    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    tokens = torch.tensor(ids(steps, SYMBOLS, BATCH, LENGTH)).long()

    def run(steps):
        for batch in tokens.split(BATCH)[:steps]:
            loss = nn.functional.cross_entropy(model(batch, batch).flatten(0, 1), batch.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return time.perf_counter()

    return run
