"""What the examples compare themselves with: predictions that need no network."""

import collections
import re

import numpy as np


def word_dictionary(pairs, iterations=5):
    """For each word of the sources its likeliest translation, by IBM model 1 (Brown et al., 1993).

        p(target | source) = expected links / expected links of source,  links shared within each sentence pair

    Args:
        pairs: list of `(source, target)` strings.
        iterations: of expectation maximisation.

    Returns:
        A dict from lower-case source words to lower-case target words.
    """
    sources, source_ids = number_words([source for source, _ in pairs])
    targets, target_ids = number_words([target for _, target in pairs])
    # All links, word by word of each pair: which target token, and which (source word, target word).
    tokens, links, count = [], [], 0
    for s, t in zip(source_ids, target_ids, strict=True):
        tokens.append(np.repeat(np.arange(count, count + len(t)), len(s)))
        links.append((s[None, :] * len(targets) + t[:, None]).ravel())
        count += len(t)
    tokens = np.concatenate(tokens)
    entries, links = np.unique(np.concatenate(links), return_inverse=True)
    probability = np.ones(len(entries))
    for _ in range(iterations):
        weights = probability[links]
        weights /= np.bincount(tokens, weights)[tokens]
        expected = np.bincount(links, weights)
        probability = expected / np.bincount(entries // len(targets), expected)[entries // len(targets)]
    order = np.argsort(probability, kind="stable")  # so that the likeliest is written last
    return {sources[e // len(targets)]: targets[e % len(targets)] for e in entries[order]}


def number_words(texts):
    """The different words of texts, and each text as an array of places among them."""
    places = collections.defaultdict(lambda: len(places))
    ids = [np.array([places[word] for word in words(text)], dtype="int64") for text in texts]
    return list(places), ids


def words(text):
    """Lower-case words and punctuation marks: "I'm here." -> ["i'm", "here", "."]."""
    return re.findall(r"\w+(?:'\w+)*|[^\w\s]", text.lower())


def translate_words(text, dictionary):
    """Word-by-word translation; unknown words stay as they are."""
    translation = " ".join(dictionary.get(word, word) for word in words(text))
    translation = re.sub(r" ([.,;:!?])", r"\1", translation)
    translation = re.sub(r"([¿¡]) ", r"\1", translation)
    return translation[:1].upper() + translation[1:]


def most_frequent(values):
    """The most frequent of some values, the first of equals."""
    return collections.Counter(values).most_common(1)[0][0]


def unigram_loss(train, test, vocabulary_size):
    """Mean cross-entropy in nats of tokens under their frequency in the training tokens, each one counted once more."""
    counts = np.bincount(train, minlength=vocabulary_size) + 1
    return float(-np.log(counts / counts.sum())[test].mean())


def trigram_loss(train, test, vocabulary_size):
    """Mean cross-entropy in nats of tokens under an interpolated Kneser-Ney trigram (Ney, Essen & Kneser, 1994).

        p(w | u v) = max(c(u v w) - d, 0) / c(u v) + d n(u v) / c(u v) p(w | v)

    with n(u v) the number of different words seen after u v, and d = n1 / (n1 + 2 n2) from the numbers of n-grams
    seen once and twice. For the shorter histories c counts the different words seen before, not occurrences; below
    the unigram all words are alike.

    Args:
        train, test: 1-d arrays of token ids, running text. The first two of `test` are context only.
        vocabulary_size: number of symbols.
    """
    probability = np.full(len(test) - 2, 1 / vocabulary_size)
    for order in (1, 2, 3):
        # N-grams as numbers: the base-V digits are the tokens, the last one lowest.
        keys, counts = np.unique(n_grams(train, order, vocabulary_size), return_counts=True)
        if order < 3:
            keys = np.unique(n_grams(train, order + 1, vocabulary_size)) % vocabulary_size**order
            keys, counts = np.unique(keys, return_counts=True)
        ones, twos = (counts == 1).sum(), (counts == 2).sum()
        discount = ones / max(ones + 2 * twos, 1)
        histories, place = np.unique(keys // vocabulary_size, return_inverse=True)
        total, different = np.bincount(place, counts), np.bincount(place)

        wanted = n_grams(test, order, vocabulary_size)[3 - order :]
        count = looked_up(wanted, keys, counts)
        history_total = looked_up(wanted // vocabulary_size, histories, total)
        history_different = looked_up(wanted // vocabulary_size, histories, different)
        interpolated = np.maximum(count - discount, 0) + discount * history_different * probability
        probability = np.where(history_total > 0, interpolated / np.maximum(history_total, 1), probability)
    return float(-np.log(probability).mean())


def n_grams(tokens, order, vocabulary_size):
    """The n-grams of a text as numbers: (N,) -> (N - order + 1,) int64."""
    size = len(tokens) - order + 1
    numbers = np.zeros(size, dtype="int64")
    for i in range(order):
        numbers = numbers * vocabulary_size + tokens[i : i + size]
    return numbers


def looked_up(wanted, keys, values):
    """The values of sorted keys, 0 where a key is missing."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
