"""Judging a language model by how probable texts are, however long."""

import math
from typing import NamedTuple

import numpy as np

from kerasllm.arguments import check_positive, shown
from kerasllm.evaluation.rows import Column, text

OF_TEXTS = {"text": Column(text)}
DEFAULT_WINDOW = 1024  # tokens, of models without a longest sequence
UNITS = ("token", "word", "character")


class Counts(NamedTuple):
    """Of a text: the negative log-probability of what is scored, in nats, and how much that is."""

    nats: float
    tokens: int
    words: int
    characters: int


def language_model(run, *, window=None, stride=None):
    """Judge a language model by its perplexity for each token, word and character.

        exp(-sum log p(token) / n),   n the number of tokens, of words parted by spaces, of characters

    A text begins with the tokenizer's start token, where there is one; else its first token is not scored, and what is
    counted begins behind it. A text longer than the window is read in windows, each token scored once, in the first
    that holds it: all but those of the first window have `stride` tokens before them, at least.

    Args:
        run: a `Run`.
        window: the most tokens that are read at a time. Default: the model's `max_sequence_length`, else 1024.
        stride: tokens that two windows share. More make the figure smaller and the work longer. Default: half of
            `window`.
    """
    model, tokenizer = run.model, run.model.required_tokenizer()
    most = model.max_sequence_length
    window = (most or DEFAULT_WINDOW) if window is None else window
    check_positive("window", window)
    if window < 2 or most is not None and window > most:
        raise ValueError(f"window ({window}) must be 2 or more, at most max_sequence_length ({most}).")
    stride = window // 2 if stride is None else stride
    check_positive("stride", stride)
    if stride >= window:
        raise ValueError(f"stride ({stride}) must be less than window ({window}).")

    def answer(rows, first):
        texts = [row.values["text"] for row in rows]
        return text_counts(model, tokenizer, texts, window, stride, run.batch_size)

    counts = np.array(run.outputs(answer, chunk=4), "float64")  # (N, 4)
    totals = dict(zip(Counts._fields, counts.sum(0).tolist(), strict=True))

    def measure(sums):
        nats = {unit: sums[:, 0] / np.maximum(sums[:, i], 1) for i, unit in enumerate(UNITS, 1)}
        found = {f"{unit}_perplexity": np.exp(np.minimum(x, 700.0)) for unit, x in nats.items()}
        return found | {"bits_per_character": nats["character"] / math.log(2)}

    values = {name: float(x[0]) for name, x in measure(counts.sum(0, keepdims=True)).items()}
    note = f"windows of {window} tokens that share {stride}"
    details = {f"num_{name}": int(totals[name]) for name in Counts._fields[1:]}
    notes = (
        ()
        if tokenizer.bos_id is not None
        else ("The first token of each text, which has no start token, is left out.",)
    )
    return run.measured(values, measure, counts, {"token_perplexity": note}), details, notes


def text_counts(model, tokenizer, texts, window, stride, batch_size):
    """The `Counts` of texts."""
    rows, scored = [], []
    for i, given in enumerate(texts):
        encoding = tokenizer.backend.encode(given, add_special_tokens=False)
        ids, bos = list(encoding.ids), tokenizer.bos_id
        if len(ids) + (bos is not None) < 2:
            raise ValueError(f"texts[{i}] ({shown(given)}) has {len(ids)} tokens, of which none is scored.")
        scored.append(given if bos is not None else given[encoding.offsets[0][1] :])
        rows.append(ids if bos is None else [bos, *ids])
    windows = [(i, *place) for i, row in enumerate(rows) for place in windows_of(len(row), window, stride)]
    windows.sort(key=lambda place: place[1] - place[2])  # the longest first: what is padded together is alike
    scores = model.score([rows[i][start:end] for i, start, end, _ in windows], batch_size=batch_size)
    nats = np.zeros(len(texts))
    for (i, start, _, first), score in zip(windows, scores, strict=True):
        # log_probs[j] is that of the token at start + j + 1.
        nats[i] -= np.sum(score.log_probs[first - start - 1 :], dtype="float64")
    return [
        Counts(float(x), len(row) - 1, len(part.split()), len(part))
        for x, row, part in zip(nats, rows, scored, strict=True)
    ]


def windows_of(length, window, stride):
    """`(start, end, first)` of the windows of so many tokens; those from `first` on are scored in it."""
    places, start, first = [], 0, 1
    while True:
        end = min(start + window, length)
        places.append((start, end, first))
        if end == length:
            return places
        start, first = end - stride, end
