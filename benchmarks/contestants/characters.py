"""Character models of nanoGPT's configuration for CPUs, and LSTMs of about as many weights beside them.

4 layers, 4 heads, 128 wide, blocks of 64, 12 a batch, 2,000 steps (https://github.com/karpathy/nanoGPT, README, "I only
have a macbook"): AdamW with beta_2 0.99 and a decay of 0.1 of matrices, 1e-3 down to 1e-4 in a cosine after 100 steps,
gradients clipped to norm 1, no dropout, no biases. The LSTMs have two layers of 224. All are given the same batches;
the loss is that of the whole validation text, the last tenth, in blocks.
"""

import math
import time
from pathlib import Path

import numpy as np

from contestants.small_gpt import BATCH, HEADS, LAYERS, LENGTH, WIDTH, torch_model

LSTM_LAYERS, LSTM_WIDTH = 2, 224
STEPS, WARMUP, PEAK, LAST = 2000, 100, 1e-3, 1e-4
FIGURES = ("validation loss",)


def read(path):
    """The text: of a file, or a million characters of WikiText-2."""
    if path:
        return Path(path).read_text(encoding="utf-8")

    import kerasllm

    return "\n".join(kerasllm.datasets.wikitext2().train)[:1_000_000]


def blocks(text):
    """The number of symbols, and the blocks (N, T + 1) of training and validation."""
    symbols, ids = np.unique(np.array(list(text)), return_inverse=True)
    ids = ids.astype("int32")
    parts = np.split(ids, [len(ids) * 9 // 10])
    return len(symbols), [
        np.stack([part[i : i + LENGTH + 1] for i in range(0, len(part) - LENGTH, LENGTH)]) for part in parts
    ]


def batches(train, steps):
    """Batches (B, T + 1) for so many steps, all blocks in a new order each time round."""
    generator, order = np.random.default_rng(0), np.zeros(0, int)
    while len(order) < steps * BATCH:
        order = np.concatenate([order, generator.permutation(len(train))])
    return train[order[: steps * BATCH]]


def ours(kind, text, steps):
    """Ours: (validation loss in nats, weights, seconds of training)."""
    import keras

    import kerasllm
    from kerasllm.training import AdamW, TokenCrossentropy, WarmupCosine

    keras.utils.set_random_seed(0)
    count, (train, validation) = blocks(text)
    if kind == "gpt":
        model = kerasllm.GPT(
            count, LAYERS, HEADS, WIDTH, max_sequence_length=LENGTH, dropout=0.0, use_bias=False, initializer_range=0.02
        )
    else:
        model = kerasllm.RNNLanguageModel(
            count, num_layers=LSTM_LAYERS, hidden_dim=LSTM_WIDTH, dropout=0.0, tie_embeddings=True
        )
    schedule = WarmupCosine(PEAK, min(WARMUP, steps // 2), steps, final_learning_rate=LAST)
    model.compile(AdamW(schedule, beta_2=0.99, weight_decay=0.1, global_clipnorm=1.0), TokenCrossentropy())
    tokens = batches(train, steps)
    start = time.perf_counter()
    model.fit(inputs_of(tokens), tokens[:, 1:], batch_size=BATCH, shuffle=False, verbose=0)
    seconds = time.perf_counter() - start
    loss = model.evaluate(inputs_of(validation), validation[:, 1:], batch_size=64, verbose=0)
    return loss, model.count_params(), seconds


def inputs_of(tokens):
    """Blocks as a language model reads them."""
    return {"token_ids": tokens[:, :-1], "padding_mask": np.ones_like(tokens[:, :-1], bool)}


def plain_torch(kind, text, steps):
    """The same in plain PyTorch: (validation loss in nats, weights, seconds of training)."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    count, (train, validation) = blocks(text)

    class LSTM(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(count, LSTM_WIDTH)
            self.layers = nn.LSTM(LSTM_WIDTH, LSTM_WIDTH, LSTM_LAYERS, batch_first=True)
            nn.init.normal_(self.tokens.weight, std=LSTM_WIDTH**-0.5)

        def forward(self, token_ids):
            return self.layers(self.tokens(token_ids))[0] @ self.tokens.weight.T

    if kind == "gpt":
        model = torch_model(count, bias=False)
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                scale = math.sqrt(2 * LAYERS) if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(weight, std=0.02 / scale)
    else:
        model = LSTM()
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, PEAK, betas=(0.9, 0.99))

    warmup = min(WARMUP, steps // 2)

    def rate(step):
        if step < warmup:
            return step / warmup
        share = (step - warmup) / (steps - warmup)
        return (LAST + (PEAK - LAST) * (1 + math.cos(math.pi * share)) / 2) / PEAK

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step + 1))

    def loss_of(tokens):
        tokens = torch.from_numpy(tokens).long()
        return functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    start = time.perf_counter()
    for tokens in np.split(batches(train, steps), steps):
        optimizer.zero_grad(set_to_none=True)
        loss_of(tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        losses = [loss_of(rows).item() * len(rows) for rows in np.split(validation, range(64, len(validation), 64))]
    return sum(losses) / len(validation), sum(p.numel() for p in model.parameters()), seconds
