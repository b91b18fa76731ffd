"""Lists that are compared entry by entry."""

from kerasllm.arguments import read_strings


def read_pairs(hypotheses, references):
    """Two lists of as many strings, one at least."""
    hypotheses, references = read_strings("hypotheses", hypotheses, 0), read_strings("references", references, 0)
    check_as_many(hypotheses=hypotheses, references=references)
    return hypotheses, references


def check_as_many(**lists):
    """Raise `ValueError` unless two lists, given by their names, are as long, one at least."""
    (first, a), (second, b) = lists.items()
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"{first} ({len(a)} of them) and {second} ({len(b)}) must be as many, at least one.")
