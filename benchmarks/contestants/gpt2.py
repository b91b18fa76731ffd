"""GPT-2 with 124 million weights, 2 x 256 tokens, AdamW, gradients clipped to norm 1, no dropout."""

from turns import imported

from contestants.steps import fit, ids, torch_loop

SYMBOLS, LENGTH, BATCH = 50257, 256, 2
LAYERS, WIDTH, POSITIONS = 12, 768, 1024


def ours(steps, dtype="float32"):
    """Our GPT."""
    from kerasllm import GPT
    from kerasllm.training import AdamW, TokenCrossentropy

    imported()
    model = GPT.from_size("small", vocabulary_size=SYMBOLS, max_sequence_length=POSITIONS, dropout=0.0, dtype=dtype)
    model.compile(AdamW(1e-4, global_clipnorm=1.0), TokenCrossentropy())
    tokens = ids(steps, SYMBOLS, BATCH, LENGTH + 1)
    x = {"token_ids": tokens[:, :-1], "padding_mask": tokens[:, :-1] > 0}
    return fit(model, x, tokens[:, 1:], BATCH)


def ours_bfloat16(steps):
    """The same in mixed bfloat16."""
    return ours(steps, "mixed_bfloat16")


def transformers_loop(steps):
    """The same of transformers, in a PyTorch loop with the fused optimizer."""
    import torch
    import transformers

    imported()
    config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = transformers.GPT2LMHeadModel(config).train()
    batches = torch.tensor(ids(steps, SYMBOLS, BATCH, LENGTH + 1)).long().split(BATCH)

    def loss_of(step):
        batch = batches[step]
        logits = model(batch[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    return torch_loop(model.parameters(), loss_of, optimizer)


def bound():
    """The bytes that a float32 step needs: weights, gradients, two moments, and what a gradient is made of.

    Of a block that is, a token: its input and norm, queries, keys, values, their mix, the second input and norm, and
    what goes into and out of the activation: 16 D numbers, where attention's weights are computed again; then the
    logits.
    """
    weights = SYMBOLS * WIDTH + POSITIONS * WIDTH + LAYERS * (12 * WIDTH**2 + 13 * WIDTH) + 2 * WIDTH
    activations = BATCH * LENGTH * (LAYERS * 16 * WIDTH + SYMBOLS)
    return 4 * (4 * weights + activations)
