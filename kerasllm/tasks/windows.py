"""Texts that are longer than a model, read in windows that share tokens."""

import pickle
from typing import NamedTuple

import numpy as np

from kerasllm.arguments import check_from_zero, shown


class Windows(NamedTuple):
    """A text in windows.

    Args:
        encodings: of each window, special tokens included.
        starts: the place of each window's first token in the text.
        lengths: the number of its tokens in each window, special ones and the prompt left out.
        whole: encoding of the whole text without special tokens and without the prompt.
    """

    encodings: list
    starts: list
    lengths: list
    whole: object


def in_windows(model, texts, stride, name="texts", limit=None, prompt=""):
    """`Windows` of each text: one where it fits, and then with the encoding that it has without windows.

    Args:
        model: as for `encode_texts`.
        texts: list of strings, each with the `prompt` before it, which is repeated in every window.
        stride: tokens that two windows share.
        name: of the argument, for errors.
        limit: the most tokens of a window. Default: the model's `max_sequence_length`.
        prompt: what all texts begin with.

    Raises:
        ValueError: a window has no room for `stride` + 1 tokens of a text that does not fit.
    """
    check_from_zero("stride", stride)
    limit, tokenizer = limit or model.arguments["max_sequence_length"], model.required_tokenizer()
    whole = tokenizer.encodings(texts, special_tokens=False)
    results = []
    for i, (encoding, text) in enumerate(zip(tokenizer.encodings(texts), whole, strict=True)):
        # Special tokens in a text, which are its own, are no limit of it.
        num_prompt = sum(start < len(prompt) for start, _ in text.offsets)
        before, body = _parted(text, num_prompt)
        if len(encoding) <= limit:
            results.append(Windows([encoding], [0], [len(body)], body))
            continue
        room = limit - num_prompt - tokenizer.backend.num_special_tokens_to_add(False)
        if room <= stride:
            raise ValueError(
                f"stride ({stride}) must be less than the {max(room, 0)} tokens of {name}[{i}] ({shown(texts[i], 60)}) "
                f"that a window of {limit} has room for."
            )
        windows = _copy(body)
        windows.truncate(room, stride=stride)
        windows = (windows, *windows.overflowing)
        merged = windows if before is None else [type(body).merge([before, w], growing_offsets=False) for w in windows]
        encodings = [tokenizer.backend.post_process(w) for w in merged]
        starts = [k * (room - stride) for k in range(len(windows))]
        results.append(Windows(encodings, starts, [len(w) for w in windows], body))
    return results


def each_text(windows, outputs):
    """The outputs of each text's windows, in lists, from those of all windows one after the other."""
    outputs = iter(outputs)
    return [[next(outputs) for _ in its.encodings] for its in windows]


def of_tokens(windows, outputs):
    """For each token of a text the output of the window where it has most context on its shorter side, (n, L).

    The beginning and the end of the text are no sides: what stands there has all the context that there is.

    Args:
        windows: a text's `Windows`.
        outputs: for each the model's output (T, L).
    """
    length = len(windows.whole)
    results, best = [None] * length, np.full(length, -1.0)
    for encoding, start, rows in zip(windows.encodings, windows.starts, outputs, strict=True):
        own = [i for i, side in enumerate(encoding.sequence_ids) if side is not None]
        end = start + len(own)
        for place, i in enumerate(own, start):
            left = place - start if start else np.inf
            right = end - 1 - place if end < length else np.inf
            if min(left, right) > best[place]:
                best[place], results[place] = min(left, right), rows[i]
    return np.array(results)


def _parted(encoding, count):
    """The first `count` tokens of an encoding, or None, and the others."""
    if not count:
        return None, encoding
    before, after = _copy(encoding), _copy(encoding)
    before.truncate(count)
    after.truncate(len(encoding) - count, direction="left")
    return before, after


def _copy(encoding):
    return pickle.loads(pickle.dumps(encoding))
