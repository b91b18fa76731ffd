"""Other texts of the same labels, made of those there are: without some words, in another order, with other words.

    texts, seed -> as many texts        drop_words, swap_words, replace_words

The functions draw by their seed alone, a number or a `numpy.random.Generator`, so `ClassificationDataset` may take one
as `augment`, and a resumed run has the texts that it would have had.
"""

import numpy as np

from kerasllm.arguments import check_positive, check_rate, check_seed, read_strings, shown

CONTINUES = "##"  # how WordPiece writes what continues a word


def drop_words(texts, seed=0, rate=0.1):
    """Leave each word out with a probability, but never all of a text ("word dropout", Iyyer et al. 2015).

    Args:
        texts: list of strings; words are parted by white space, and joined by single spaces.
        seed: a non-negative int, or a `numpy.random.Generator`.
        rate: the probability, in [0, 1).

    Returns:
        A list of as many strings.

    Example:
        >>> drop_words(["the cat sat on the mat"], seed=1, rate=0.3)
        ['the cat on the mat']
    """
    generator = _generator(seed)
    check_rate("rate", rate)

    def dropped(words):
        draws = generator.random(len(words))
        kept = [word for word, draw in zip(words, draws, strict=True) if draw >= rate]
        return kept or [words[int(draws.argmax())]] if words else words

    return [" ".join(dropped(text.split())) for text in read_strings("texts", texts)]


def swap_words(texts, seed=0, rate=0.1):
    """Let two words change places, in a text of n words max(1, int(rate n)) times (EDA; Wei and Zou 2019).

    Args:
        texts, seed: as for `drop_words`.
        rate: in [0, 1); with 0 none do.

    Returns:
        A list of as many strings.
    """
    generator = _generator(seed)
    check_rate("rate", rate)

    def swapped(words):
        for _ in range(max(1, int(rate * len(words))) if rate and len(words) > 1 else 0):
            i, j = generator.choice(len(words), 2, replace=False)
            words[i], words[j] = words[j], words[i]
        return words

    return [" ".join(swapped(text.split())) for text in read_strings("texts", texts)]


def replace_words(texts, model, seed=0, rate=0.15, top_k=10, batch_size=32):
    """Put words in the place of some that a masked language model takes for likely there (Kobayashi 2018).

    The model has not seen the label: it may put "bad" for "good". Low rates, and measuring, are in place. It reads each
    text once, so make such texts before `fit` and train on both: `texts + replace_words(texts, lm)`, `labels + labels`.

    Args:
        texts, seed: as for `drop_words`.
        model: a `BERTMaskedLM` with a tokenizer, or what has its `fill_mask`.
        rate: the probability that a word is replaced, in [0, 1).
        top_k: a word is drawn from the likeliest so many tokens that are whole words and not the old one, by their
            probabilities; where there are none, the old one stays.
        batch_size: the most texts that are computed at a time.

    Returns:
        A list of as many strings.

    Raises:
        ValueError: a text holds the mask token, or is longer than the model reads.
    """
    generator = _generator(seed)
    check_rate("rate", rate)
    check_positive("top_k", top_k)
    check_positive("batch_size", batch_size)
    tokenizer = getattr(model, "tokenizer", None)
    if not hasattr(model, "fill_mask") or getattr(tokenizer, "mask_id", None) is None:
        raise ValueError(f"model ({shown(model)}) must be a BERTMaskedLM whose tokenizer has a mask token.")
    mask = tokenizer.id_to_token(tokenizer.mask_id)
    rows = [text.split() for text in read_strings("texts", texts)]
    places = []
    for i, (text, words) in enumerate(zip(texts, rows, strict=True)):
        if mask in text:
            raise ValueError(f"texts[{i}] ({shown(text)}) must not hold {mask!r}.")
        places.append(np.flatnonzero(generator.random(len(words)) < rate))
    chosen = [i for i, its in enumerate(places) if len(its)]
    masked = [" ".join(mask if j in places[i] else word for j, word in enumerate(rows[i])) for i in chosen]
    proposals = model.fill_mask(masked, top_k, batch_size, verbose=False) if masked else []
    for i, found in zip(chosen, proposals, strict=True):
        for place, guesses in zip(places[i], [found] if len(places[i]) == 1 else found, strict=True):
            rows[i][place] = _drawn(guesses, rows[i][place], tokenizer, generator)
    return [" ".join(words) for words in rows]


def _drawn(guesses, old, tokenizer, generator):
    """A word of those that are proposed for a mask."""
    words, scores = [], []
    for guess in guesses:
        word = tokenizer.decode([guess["token"]]).strip()  # special tokens are nothing here
        is_word = any(map(str.isalnum, word)) and not word.startswith(CONTINUES)
        if is_word and word.casefold() != old.casefold():
            words.append(word)
            scores.append(guess["score"])
    draw = generator.random()  # also where it says nothing, so that one text does not change what others are
    if not words or not sum(scores):
        return old
    return words[min(int(np.searchsorted(np.cumsum(scores) / sum(scores), draw)), len(words) - 1)]


def _generator(seed):
    if not isinstance(seed, np.random.Generator):
        check_seed("seed", seed)
    return np.random.default_rng(seed)
