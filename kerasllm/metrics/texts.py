"""How near written texts are to references: BLEU and chrF by sacrebleu, ROUGE by rouge-score."""

import contextlib
import os
from typing import NamedTuple

import numpy as np

from kerasllm.arguments import check_boolean, check_choice
from kerasllm.extras import required
from kerasllm.metrics.pairs import read_pairs

ROUGE = ("rouge1", "rouge2", "rougeL")


def bleu(hypotheses, references, tokenize=None, lowercase=False):
    """BLEU of a corpus by sacrebleu, with one reference for each text (Papineni et al. 2002; Post 2018).

    Args:
        hypotheses, references: lists of N strings.
        tokenize: sacrebleu's name of how words are told apart: "none" for texts whose tokens stand apart already, "zh",
            "ja-mecab", "char", and so on. Default: "13a", that of WMT.
        lowercase: whether cases are alike.

    Returns:
        A float in 0 .. 100, and the string that says how it was computed.

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
        ValueError: sacrebleu has no such `tokenize`.
    """
    return corpus_score("BLEU", hypotheses, references, **read_bleu_options(tokenize, lowercase))[:2]


def read_bleu_options(tokenize=None, lowercase=False):
    """The options of `bleu` as sacrebleu's, checked."""
    check_boolean("lowercase", lowercase)
    if tokenize is not None:
        check_choice("tokenize", tokenize, required("sacrebleu", "bleu").BLEU.TOKENIZERS)
    return {"tokenize": tokenize, "lowercase": lowercase}


def chrf(hypotheses, references):
    """Corpus chrF, an F-score of pieces of words, by sacrebleu, with one reference for each text (Popović 2015).

    Args:
        hypotheses, references: lists of N strings.

    Returns:
        A float in 0 .. 100, and the string that says how it was computed.

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
    """
    return corpus_score("CHRF", hypotheses, references)[:2]


def rouge(hypotheses, references, use_stemmer=True):
    """Mean ROUGE F-measures by rouge-score (Lin 2004).

    Args:
        hypotheses, references: lists of N strings.
        use_stemmer: whether words are compared by their Porter stems.

    Returns:
        A dict: `rouge1`, `rouge2`, `rougeL`, each a float in 0 .. 1.

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
    """
    return dict(zip(ROUGE, each_rouge(hypotheses, references, use_stemmer).mean(axis=0).tolist(), strict=True))


def each_rouge(hypotheses, references, use_stemmer=True):
    """The F-measures of each text, (N, 3) in the order of `ROUGE`; arguments as for `rouge`."""
    hypotheses, references = read_pairs(hypotheses, references)
    check_boolean("use_stemmer", use_stemmer)
    rouge_scorer = required("rouge_score.rouge_scorer", "rouge")
    scorer = rouge_scorer.RougeScorer(ROUGE, use_stemmer=use_stemmer)
    scores = [scorer.score(r, h) for h, r in zip(hypotheses, references, strict=True)]
    return np.array([[score[name].fmeasure for name in ROUGE] for score in scores])


class CorpusScore(NamedTuple):
    """A score of sacrebleu, the string that says how it was computed, and its interval (low, high) or None."""

    score: float
    signature: str
    interval: tuple | None


def corpus_score(kind, hypotheses, references, resamples=None, seed=0, **options):
    """A `CorpusScore`.

    Args:
        kind: "BLEU" or "CHRF".
        hypotheses, references: lists of N strings.
        resamples: number of draws for sacrebleu's bootstrap. Default: there is no interval.
        seed: of the draws.
        **options: of sacrebleu's class.
    """
    hypotheses, references = read_pairs(hypotheses, references)
    metric = getattr(required("sacrebleu", kind.lower()), kind)(**options)
    if not resamples:
        return CorpusScore(metric.corpus_score(hypotheses, [references]).score, str(metric.get_signature()), None)
    with _seeded(seed):
        found = metric.corpus_score(hypotheses, [references], n_bootstrap=resamples)
    middle, half = found._mean, found._ci
    return CorpusScore(found.score, str(metric.get_signature()), (middle - half, middle + half))


@contextlib.contextmanager
def _seeded(seed):
    """A context in which the environment tells sacrebleu its seed, for which it has no argument."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        os.environ.pop("SACREBLEU_SEED")
        if before is not None:
            os.environ["SACREBLEU_SEED"] = before
