"""How much texts repeat: themselves, and each other."""

from kerasllm.arguments import check_positive, read_strings


def distinct_ngrams(texts, n):
    """Distinct-n (Li et al. 2016, arXiv:1510.03055): the share of different ones among all n-grams of the texts.

    Args:
        texts: list of strings, whose words are parted by spaces.
        n: number of words of an n-gram.

    Returns:
        A float in 0 .. 1, small where texts are alike; 0 where no text has so many words. It falls as texts become
        more or longer, so it compares models on the same prompts at the same lengths.
    """
    check_positive("n", n)
    ngrams = [gram for text in read_strings("texts", texts) for gram in _ngrams(text, n)]
    return len(set(ngrams)) / max(len(ngrams), 1)


def repeated_ngrams(texts, n):
    """Seq-rep-n (Welleck et al. 2020, arXiv:1908.04319): the share of n-grams that stood in their text before.

        1 - |different n-grams| / |n-grams|

    Args: as for `distinct_ngrams`.

    Returns:
        A list of floats in 0 .. 1, one for each text; 0 where it has fewer than n words.
    """
    check_positive("n", n)
    ngrams = [_ngrams(text, n) for text in read_strings("texts", texts)]
    return [1 - len(set(row)) / len(row) if row else 0.0 for row in ngrams]


def _ngrams(text, n):
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
