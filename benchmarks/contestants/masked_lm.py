"""BERT-base, masked-LM, 8 x 128 tokens of which 19 are masked, AdamW, gradients clipped to norm 1, dropout 0.1.

Ours scores the masked positions; transformers' model scores all, and its loss leaves out those that are not masked.
"""

import numpy as np
from turns import imported

from contestants.steps import fit, ids, torch_loop

SYMBOLS, LENGTH, BATCH, MASKED, MASK = 30522, 128, 8, 19, 103


def data(steps):
    """Token ids with masks (N, T), the masked positions (N, P) and the symbols there (N, P)."""
    tokens = ids(steps, SYMBOLS, BATCH, LENGTH)
    positions = np.sort(np.random.default_rng(1).random(tokens.shape).argsort(1)[:, :MASKED], 1).astype("int32")
    labels = np.take_along_axis(tokens, positions, 1)
    np.put_along_axis(tokens, positions, MASK, 1)
    return tokens, positions, labels


def ours(steps):
    """Our BERT."""
    from kerasllm import BERTMaskedLM
    from kerasllm.training import AdamW, TokenCrossentropy

    imported()
    model = BERTMaskedLM.from_size("base", vocabulary_size=SYMBOLS)
    model.compile(AdamW(1e-4, global_clipnorm=1.0), TokenCrossentropy())
    tokens, positions, labels = data(steps)
    x = {"token_ids": tokens, "segment_ids": np.zeros_like(tokens), "padding_mask": np.ones(tokens.shape, bool)}
    return fit(model, {**x, "masked_positions": positions}, labels, BATCH)


def transformers_loop(steps):
    """The same of transformers, in a PyTorch loop with the fused optimizer."""
    import torch
    import transformers

    imported()
    model = transformers.BertForMaskedLM(transformers.BertConfig()).train()
    tokens, positions, symbols = data(steps)
    labels = np.full(tokens.shape, -100)
    np.put_along_axis(labels, positions, symbols, 1)
    batches = [torch.tensor(array).long().split(BATCH) for array in (tokens, labels)]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def loss_of(step):
        token_ids, labels = (batch[step] for batch in batches)
        return model(token_ids, attention_mask=torch.ones_like(token_ids), labels=labels).loss

    return torch_loop(model.parameters(), loss_of, optimizer)
