"""Judging answers to questions."""

from kerasllm.arguments import check_boolean
from kerasllm.evaluation.rows import Column, answers, text
from kerasllm.metrics.answers import answer_scores, each_answer

OF_QUESTIONS = {"question": Column(text), "context": Column(text), "answers": Column(answers)}


def answer(run, *, stride=128, max_answer_length=30, allow_no_answer=False):
    """Judge a model that answers questions, as SQuAD does: exact match and F1, of the best of a row's answers.

    Args:
        run: a `Run`.
        stride, max_answer_length, allow_no_answer: as for `answer` of the model. Rows without an answer need
            `allow_no_answer`.
    """
    check_boolean("allow_no_answer", allow_no_answer)
    references = run.values("answers")
    for row, reference in zip(run.rows, references, strict=True):
        if not reference and not allow_no_answer:
            raise ValueError(f"{row.place} has no answer; allow_no_answer=True judges such rows too.")

    def answered(rows, first):
        questions, contexts = ([row.values[name] for row in rows] for name in ("question", "context"))
        return run.model.answer(
            questions,
            contexts,
            max_answer_length=max_answer_length,
            stride=stride,
            allow_no_answer=allow_no_answer,
            batch_size=run.batch_size,
            verbose=False,
        )

    found = [row["answer"] for row in run.outputs(answered)]
    references = [reference or [""] for reference in references]
    measures = run.measured(
        answer_scores(found, references),
        lambda sums: dict(zip(("exact_match", "f1"), sums.T / len(found), strict=True)),
        each_answer(found, references),
    )
    return measures, {"answers": found}, ()
