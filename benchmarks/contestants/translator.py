"""A Transformer translator: 4 + 4 layers of 128, 4 heads, 8,000 shared symbols, dropout 0.3, 128 pairs of captions.

A caption has 8 to 24 tokens. Adam, gradients clipped to norm 1; ours takes AdamW without decay, the same update, and
the cross-entropy in chunks.
"""

import math

import numpy as np
from turns import imported

from contestants.steps import fit, ids, torch_loop

LAYERS, HEADS, WIDTH, SYMBOLS, DROPOUT, SHORTEST, LENGTH, BATCH = 4, 4, 128, 8000, 0.3, 8, 24, 128


def data(steps):
    """For sources and targets, token ids (N, T) and which of them are real (N, T)."""
    tokens = ids(2 * steps, SYMBOLS, BATCH, LENGTH + 1)
    lengths = np.random.default_rng(1).integers(SHORTEST, LENGTH + 1, (len(tokens), 1))
    is_real = np.arange(LENGTH) < lengths
    return np.split(tokens, 2), np.split(is_real, 2)


def ours(steps):
    """Our translator."""
    from kerasllm import TransformerTranslator
    from kerasllm.training import AdamW, TokenCrossentropy

    imported()
    sizes = {"num_layers": LAYERS, "num_heads": HEADS, "hidden_dim": WIDTH, "max_sequence_length": LENGTH}
    model = TransformerTranslator(SYMBOLS, SYMBOLS, **sizes, dropout=DROPOUT, share_embeddings=True)
    model.compile(AdamW(1e-3, weight_decay=0.0, global_clipnorm=1.0), TokenCrossentropy(chunk_size=256))
    (source, target), is_real = data(steps)
    x = {"source_token_ids": source[:, :-1], "target_token_ids": target[:, :-1]}
    x |= {f"{side}_padding_mask": mask for side, mask in zip(("source", "target"), is_real, strict=True)}
    return fit(model, x, np.where(is_real[1], target[:, 1:], -1), BATCH)


def plain_torch(steps):
    """The same of PyTorch's own layers."""
    import torch
    from torch import nn

    imported()
    options = {"dim_feedforward": 4 * WIDTH, "dropout": DROPOUT, "batch_first": True}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.dropout = nn.Embedding(SYMBOLS, WIDTH), nn.Dropout(DROPOUT)
            nn.init.normal_(self.tokens.weight, std=WIDTH**-0.5)
            angles = torch.arange(LENGTH)[:, None] / 10000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
            self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], -1).flatten(1))
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, **options), LAYERS)
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, **options), LAYERS)
            self.register_buffer("hidden", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1))

        def embed(self, token_ids):
            return self.dropout(self.tokens(token_ids) * math.sqrt(WIDTH) + self.positions)

        def forward(self, source, source_padding, target, target_padding):
            memory = self.encoder(self.embed(source), src_key_padding_mask=source_padding)
            masks = {"tgt_key_padding_mask": target_padding, "memory_key_padding_mask": source_padding}
            hidden = self.decoder(self.embed(target), memory, tgt_mask=self.hidden, tgt_is_causal=True, **masks)
            return hidden @ self.tokens.weight.T

    model = Model()
    (sources, targets), paddings = ([torch.tensor(array).split(BATCH) for array in pair] for pair in data(steps))

    def loss_of(step):
        source, target = sources[step].long(), targets[step].long()
        source_padding, target_padding = (~padding[step] for padding in paddings)
        logits = model(source[:, :-1], source_padding, target[:, :-1], target_padding)
        labels = target[:, 1:].masked_fill(target_padding, -1)
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1)

    return torch_loop(model.parameters(), loss_of, torch.optim.Adam(model.parameters(), 1e-3))
