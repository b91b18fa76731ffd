"""The same training step written several times: each function returns `run(steps)`, which trains that many.

`run` returns `time.perf_counter()` at the end of the last step.

GPT: 4 layers, 4 heads, 128 wide, 65 symbols, 12 x 64 tokens, AdamW, gradients clipped to norm 1.
LSTM: an encoder-decoder 256 wide, 8,000 symbols a side, 64 pairs of 20 tokens, Adam
(ours: AdamW without decay, the same update).
"""

import time

import numpy as np

LAYERS, HEADS, WIDTH, SYMBOLS, LENGTH, BATCH = 4, 4, 128, 65, 64, 12
LSTM_WIDTH, LSTM_SYMBOLS, LSTM_LENGTH, LSTM_BATCH = 256, 8000, 20, 64


def ids(steps, symbols, batch, length):
    """Random token ids for a number of steps: (steps * batch, length)."""
    return np.random.default_rng(0).integers(1, symbols, (steps * batch, length)).astype("int32")


def fit(model, x, y, batch_size):
    """`run` through `model.fit`, on the first batches of x and y."""
    from keras.callbacks import LambdaCallback

    def run(steps):
        n = steps * batch_size
        inputs = {name: array[:n] for name, array in x.items()} if isinstance(x, dict) else [a[:n] for a in x]
        # tensorflow's data pipeline may sleep for seconds when `fit` gives it up, for any model: that is not counted.
        ends = []
        clock = LambdaCallback(on_train_end=lambda logs: ends.append(time.perf_counter()))
        model.fit(inputs, y[:n], batch_size=batch_size, shuffle=False, verbose=0, callbacks=[clock])
        return ends[0]

    return run


def gpt_kerasllm(steps):
    """Our GPT."""
    from kerasllm import GPT
    from kerasllm.training import AdamW, TokenCrossentropy

    model = GPT(SYMBOLS, LAYERS, HEADS, WIDTH, max_sequence_length=LENGTH, dropout=0.0)
    model.compile(AdamW(1e-3, global_clipnorm=1.0), TokenCrossentropy())
    tokens = ids(steps, SYMBOLS, BATCH, LENGTH + 1)
    x = {"token_ids": tokens[:, :-1], "padding_mask": np.ones((len(tokens), LENGTH), bool)}
    return fit(model, x, tokens[:, 1:], BATCH)


def gpt_keras(steps):
    """The same GPT in plain Keras layers."""
    import keras
    from keras import layers

    token_ids = keras.Input((LENGTH,), dtype="int32")
    embedding = layers.ReversibleEmbedding(SYMBOLS, WIDTH)
    positions = layers.Embedding(LENGTH, WIDTH)
    x = embedding(token_ids) + positions(keras.ops.cumsum(keras.ops.ones_like(token_ids), axis=1) - 1)
    for _ in range(LAYERS):
        h = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(h, h, use_causal_mask=True)
        h = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, "gelu")(h))
    logits = embedding(layers.LayerNormalization(epsilon=1e-5)(x), reverse=True)
    model = keras.Model([token_ids], logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3, global_clipnorm=1.0), loss)
    tokens = ids(steps, SYMBOLS, BATCH, LENGTH + 1)
    return fit(model, [tokens[:, :-1]], tokens[:, 1:], BATCH)


def gpt_torch(steps):
    """The same GPT in plain PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x):
            q, k, v = (
                t.view(-1, LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2) for t in self.qkv(self.norm_1(x)).chunk(3, -1)
            )
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(-1, LENGTH, WIDTH))
            return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(LENGTH, WIDTH)
            self.blocks, self.norm = nn.Sequential(*[Block() for _ in range(LAYERS)]), nn.LayerNorm(WIDTH)

        def forward(self, token_ids):
            x = self.blocks(self.tokens(token_ids) + self.positions.weight)
            return self.norm(x) @ self.tokens.weight.T

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    tokens = torch.tensor(ids(steps, SYMBOLS, BATCH, LENGTH + 1)).long()

    def run(steps):
        for batch in tokens.split(BATCH)[:steps]:
            loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return time.perf_counter()

    return run


def lstm_kerasllm(steps, shortest=LSTM_LENGTH):
    """Our LSTM translator; sources and targets have `shortest` tokens at least."""
    from kerasllm import LSTMTranslator
    from kerasllm.training import AdamW, TokenCrossentropy

    model = LSTMTranslator(
        LSTM_SYMBOLS, LSTM_SYMBOLS, hidden_dim=LSTM_WIDTH, attention=None, bidirectional=False, dropout=0.0
    )
    model.compile(AdamW(1e-3, weight_decay=0.0), TokenCrossentropy())
    tokens = ids(steps, LSTM_SYMBOLS, LSTM_BATCH, LSTM_LENGTH)
    lengths = np.random.default_rng(1).integers(shortest, LSTM_LENGTH + 1, (len(tokens), 1))
    is_real = np.arange(LSTM_LENGTH) < lengths
    x = {f"{side}_token_ids": tokens for side in ("source", "target")}
    x |= {f"{side}_padding_mask": is_real for side in ("source", "target")}
    return fit(model, x, np.where(is_real, tokens, -1), LSTM_BATCH)


def lstm_kerasllm_padded(steps):
    """The same with padding."""
    return lstm_kerasllm(steps, shortest=LSTM_LENGTH // 2)


def lstm_keras(steps):
    """The same translator in plain Keras layers."""
    import keras
    from keras import layers

    source, target = (keras.Input((LSTM_LENGTH,), dtype="int32") for _ in range(2))
    embed = [layers.Embedding(LSTM_SYMBOLS, LSTM_WIDTH) for _ in range(2)]
    _, *states = layers.LSTM(LSTM_WIDTH, return_state=True)(embed[0](source))
    hidden = layers.LSTM(LSTM_WIDTH, return_sequences=True)(embed[1](target), initial_state=states)
    model = keras.Model([source, target], layers.Dense(LSTM_SYMBOLS)(hidden))
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tokens = ids(steps, LSTM_SYMBOLS, LSTM_BATCH, LSTM_LENGTH)
    return fit(model, [tokens, tokens], tokens, LSTM_BATCH)


def lstm_torch(steps):
    """The same translator in plain PyTorch."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.source, self.target = (nn.Embedding(LSTM_SYMBOLS, LSTM_WIDTH) for _ in range(2))
            self.encoder, self.decoder = (nn.LSTM(LSTM_WIDTH, LSTM_WIDTH, batch_first=True) for _ in range(2))
            self.head = nn.Linear(LSTM_WIDTH, LSTM_SYMBOLS)

        def forward(self, source, target):
            states = self.encoder(self.source(source))[1]
            return self.head(self.decoder(self.target(target), states)[0])

    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    tokens = torch.tensor(ids(steps, LSTM_SYMBOLS, LSTM_BATCH, LSTM_LENGTH)).long()

    def run(steps):
        for batch in tokens.split(LSTM_BATCH)[:steps]:
            loss = nn.functional.cross_entropy(model(batch, batch).flatten(0, 1), batch.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return time.perf_counter()

    return run
