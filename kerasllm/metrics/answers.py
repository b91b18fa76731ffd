"""How well answers agree with references, as SQuAD counts it."""

import re
import string
from collections import Counter

import numpy as np

from kerasllm.arguments import read_sequence, read_strings
from kerasllm.metrics.pairs import check_as_many


def answer_scores(answers, references):
    """How well answers agree with references, as SQuAD counts it (Rajpurkar et al. 2016, arXiv:1606.05250).

    Case, punctuation, articles and spaces do not count.

    Args:
        answers: list of N strings.
        references: for each a string, or a list of strings, of which the best counts.

    Returns:
        A dict: `exact_match`, the share of answers equal to a reference; `f1`, the mean F1 of their words.
    """
    exact_match, f1 = each_answer(answers, references).mean(axis=0).tolist()
    return {"exact_match": exact_match, "f1": f1}


def each_answer(answers, references):
    """The exact match and the F1 of each answer, (N, 2); arguments as for `answer_scores`."""
    answers, references = read_strings("answers", answers, 0), read_sequence("references", references)
    check_as_many(answers=answers, references=references)
    rows = [read_strings(f"references[{i}]", [r] if isinstance(r, str) else r) for i, r in enumerate(references)]
    exact = [any(_words(a) == _words(r) for r in row) for a, row in zip(answers, rows, strict=True)]
    f1 = [max(_word_f1(_words(a), _words(r)) for r in row) for a, row in zip(answers, rows, strict=True)]
    return np.array([exact, f1], "float64").T


def _words(text):
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _word_f1(answer, reference):
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))
