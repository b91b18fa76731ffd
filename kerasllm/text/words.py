"""Where the words of a text are among its tokens."""

import numpy as np


def first_tokens(encoding, words):
    """The place of the first token of each word of a text, which is their join by spaces; None where it has no token.

    Args:
        encoding: the text's `tokenizers.Encoding`.
        words: its words, a list of strings.
    """
    ends, places = np.cumsum([len(word) + 1 for word in words]), [None] * len(words)
    for place, ((start, end), special) in enumerate(zip(encoding.offsets, encoding.special_tokens_mask, strict=True)):
        if not special and start < end:
            # The word in which the token ends: some tokenizers count the space before a word as its token's own.
            word = int(np.searchsorted(ends, end))
            places[word] = place if places[word] is None else places[word]
    return places
