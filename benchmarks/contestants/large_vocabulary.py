"""A GPT whose vocabulary is most of its memory: 50,257 symbols, 2 layers, 4 heads, 256 wide, 8 x 256 tokens, AdamW."""

from turns import imported

from contestants.steps import fit, ids

SYMBOLS, FEW_SYMBOLS, LAYERS, HEADS, WIDTH, LENGTH, BATCH = 50257, 512, 2, 4, 256, 256, 8


def ours(steps, symbols=SYMBOLS, **loss):
    """Our GPT; `loss` are arguments of its loss."""
    from kerasllm import GPT
    from kerasllm.training import AdamW, TokenCrossentropy

    imported()
    model = GPT(symbols, LAYERS, HEADS, WIDTH, max_sequence_length=LENGTH, dropout=0.0)
    model.compile(AdamW(1e-3), TokenCrossentropy(**loss))
    tokens = ids(steps, symbols, BATCH, LENGTH + 1)
    x = {"token_ids": tokens[:, :-1], "padding_mask": tokens[:, :-1] > 0}
    return fit(model, x, tokens[:, 1:], BATCH)


def ours_in_chunks(steps):
    """With a loss that makes no logits of the whole batch."""
    return ours(steps, chunk_size=256)


def ours_of_few_symbols(steps):
    """The same GPT with 512 symbols: what of the memory is not the vocabulary's."""
    return ours(steps, FEW_SYMBOLS)


def vocabulary_bytes():
    """The bytes of the vocabulary's matrix, its gradient and its two moments."""
    return 4 * 4 * (SYMBOLS - FEW_SYMBOLS) * WIDTH
