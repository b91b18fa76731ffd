"""Judging what models write: translations, summaries, continuations of prompts."""

import numpy as np

from kerasllm.arguments import check_boolean
from kerasllm.evaluation.report import Measure
from kerasllm.evaluation.rows import Column, text
from kerasllm.metrics.repetition import distinct_ngrams, repeated_ngrams
from kerasllm.metrics.texts import ROUGE, corpus_score, each_rouge, read_bleu_options, rouge
from kerasllm.text.cutting import cut

OF_TRANSLATION = {"source": Column(text), "target": Column(text)}
OF_SUMMARIES = {"text": Column(text), "summary": Column(text)}
OF_PROMPTS = {"prompt": Column(text), "reference": Column(text, is_needed=False)}
DISTINCT, REPEATED = (1, 2), (2, 3, 4)  # n of the n-grams


def translate(run, *, truncate=False, tokenize=None, lowercase=False, **generation):
    """Judge a translator by BLEU and chrF.

    Args:
        run: a `Run`.
        truncate: whether sources that are too long are cut. Default: they are errors.
        tokenize, lowercase: of `bleu`.
        **generation: fields of `GenerationConfig`.
    """
    options = read_bleu_options(tokenize, lowercase)
    texts = _written(run, run.model.translate, "source", truncate, generation)
    return _bleu_and_chrf(run, texts, run.values("target"), options), {"texts": texts}, ()


def summarize(run, *, truncate=False, use_stemmer=True, **generation):
    """Judge a model that summarises by ROUGE.

    Args:
        run: a `Run`.
        truncate: whether texts that are too long are cut. Default: they are errors.
        use_stemmer: of `rouge`.
        **generation: fields of `GenerationConfig`.
    """
    check_boolean("use_stemmer", use_stemmer)
    texts = _written(run, run.model.summarize, "text", truncate, generation)
    return _rouge(run, texts, run.values("summary"), use_stemmer), {"texts": texts}, ()


def generate(run, *, use_stemmer=True, tokenize=None, lowercase=False, **generation):
    """Judge what a language model writes after prompts: how much it repeats, and ROUGE and BLEU of references.

    Args:
        run: a `Run`.
        use_stemmer: of `rouge`.
        tokenize, lowercase: of `bleu`.
        **generation: fields of `GenerationConfig`.
    """
    check_boolean("use_stemmer", use_stemmer)
    options = read_bleu_options(tokenize, lowercase) if run.has("reference") else {}
    texts = _written(run, run.model.generate, "prompt", False, {**generation, "strip_prompt": True})
    # Draws with repetition are less distinct than the texts are: of these there is no bootstrap.
    measures = {f"distinct_{n}": Measure(distinct_ngrams(texts, n)) for n in DISTINCT}
    repeated = {f"repeated_{n}": repeated_ngrams(texts, n) for n in REPEATED}
    measures |= run.measured(
        {name: float(np.mean(values)) for name, values in repeated.items()},
        lambda sums: dict(zip(repeated, sums.T / len(texts), strict=True)),
        np.array(list(repeated.values())).T,
    )
    if run.has("reference"):
        references = run.values("reference")
        measures |= _rouge(run, texts, references, use_stemmer) | _bleu_and_chrf(run, texts, references, options)
    num_blank = sum(not text.strip() for text in texts)
    return measures, {"texts": texts}, ((f"{num_blank} of the texts are blank.",) if num_blank else ())


def _written(run, method, column, truncate, generation):
    check_boolean("truncate", truncate)
    if generation.get("num_return_sequences", 1) != 1:
        raise ValueError(f"num_return_sequences ({generation['num_return_sequences']}) must be 1: one text is judged.")
    options = {"seed": run.seed, **generation}

    def answer(rows, first):
        texts = [row.values[column] for row in rows]
        if truncate:
            texts = [cut(run.model.source_tokenizer, text, run.model.max_sequence_length) for text in texts]
        return method(texts, batch_size=run.batch_size, first_index=first, **options)

    return run.outputs(answer, chunk=1)


def _rouge(run, texts, references, use_stemmer):
    return run.measured(
        rouge(texts, references, use_stemmer),
        lambda sums: dict(zip(ROUGE, sums.T / len(texts), strict=True)),
        each_rouge(texts, references, use_stemmer),
        dict.fromkeys(ROUGE, f"rouge-score, F-measure{', Porter stems' if use_stemmer else ''}"),
    )


def _bleu_and_chrf(run, texts, references, options):
    resamples = run.resamples if run.has_intervals else None
    measures = {}
    for name, kind, its in (("bleu", "BLEU", options), ("chrf", "CHRF", {})):
        found = corpus_score(kind, texts, references, resamples, run.seed, **its)
        measures[name] = Measure(found.score, *(found.interval or (None, None)), found.signature)
    return measures
