"""A small GPT: 4 layers, 4 heads, 128 wide, 65 symbols, 12 x 64 tokens, AdamW, gradients clipped to norm 1."""

import tempfile
import time

import numpy as np
from turns import imported

from contestants.steps import fit, ids

LAYERS, HEADS, WIDTH, SYMBOLS, LENGTH, BATCH = 4, 4, 128, 65, 64, 12


def ours(steps, make_callbacks=list):
    """Our GPT."""
    from kerasllm import GPT
    from kerasllm.training import AdamW, TokenCrossentropy

    imported()

    model = GPT(SYMBOLS, LAYERS, HEADS, WIDTH, max_sequence_length=LENGTH, dropout=0.0)
    model.compile(AdamW(1e-3, global_clipnorm=1.0), TokenCrossentropy())
    tokens = ids(steps, SYMBOLS, BATCH, LENGTH + 1)
    x = {"token_ids": tokens[:, :-1], "padding_mask": np.ones((len(tokens), LENGTH), bool)}
    return fit(model, x, tokens[:, 1:], BATCH, make_callbacks)


def ours_with_throughput(steps):
    """Ours with `Throughput`."""
    from kerasllm.training import Throughput

    return ours(steps, lambda: [Throughput(peak_flops=1e12)])


def ours_guarded(steps):
    """Ours with `StopOnNaN`."""
    from kerasllm.training import StopOnNaN

    return ours(steps, lambda: [StopOnNaN()])


def ours_with_tensorboard(steps):
    """Ours with `TensorBoardLog`, of each step."""
    from kerasllm.training import TensorBoardLog

    return ours(steps, lambda: [TensorBoardLog(tempfile.mkdtemp(), every=1)])


def ours_resumable(steps):
    """Ours with `ResumableTraining`, which writes a checkpoint a turn."""
    from kerasllm.training import ResumableTraining

    return ours(steps, lambda: [ResumableTraining(tempfile.mkdtemp())])


def ours_looked_at(steps):
    """Ours with a callback that does nothing at each step: what Keras itself takes for it."""
    from keras.callbacks import LambdaCallback

    return ours(steps, lambda: [LambdaCallback(on_train_batch_end=lambda batch, logs: None)])


def plain_keras(steps):
    """The same GPT in plain Keras layers."""
    import keras
    from keras import layers

    imported()

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


def plain_torch(steps):
    """The same GPT in plain PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    imported()

    model = torch_model(SYMBOLS)
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


def torch_model(symbols, bias=True):
    """The GPT as a module of PyTorch, as nanoGPT writes it."""
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias), nn.Linear(WIDTH, WIDTH, bias)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias), nn.Linear(4 * WIDTH, WIDTH, bias)

        def forward(self, x):
            heads = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norm_1(x)).chunk(3, -1))
            mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(symbols, WIDTH), nn.Embedding(LENGTH, WIDTH)
            self.blocks, self.norm = nn.Sequential(*[Block() for _ in range(LAYERS)]), nn.LayerNorm(WIDTH)

        def forward(self, token_ids):
            x = self.blocks(self.tokens(token_ids) + self.positions.weight)
            return self.norm(x) @ self.tokens.weight.T

    return Model()
