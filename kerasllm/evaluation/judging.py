"""From a model and a file of examples to a report."""

import importlib
import inspect
import os
from collections.abc import Callable
from typing import NamedTuple

from kerasllm.arguments import check_choice, check_from_zero, check_function, check_positive, check_seed, shown
from kerasllm.evaluation import answering, labelling, perplexity, written
from kerasllm.evaluation.report import Report
from kerasllm.evaluation.rows import read_rows
from kerasllm.evaluation.running import Run
from kerasllm.extras import check_installed
from kerasllm.generation.config import OPTIONS

LEAST_RESAMPLES = 40  # of which the 2.5th percentile is one


class Task(NamedTuple):
    """What can be judged.

    Args:
        judge: function (`Run`, **options) -> measures, details, notes.
        opens: the task that `kerasllm.load` opens a model for.
        method: what a model must have.
        columns: what is read of a row, dict name -> `Column`.
        packages: what the measures are computed by.
        plain: how else data may be given, as for `read_rows`.
    """

    judge: Callable
    opens: str
    method: str
    columns: dict
    packages: tuple = ()
    plain: str | None = None


TASKS = {
    "classify": Task(labelling.classify, "classify", "classify", labelling.OF_TEXTS, ("sklearn",)),
    "tag": Task(labelling.tag, "tag", "tag_words", labelling.OF_WORDS, ("sklearn", "seqeval")),
    "answer": Task(answering.answer, "answer", "answer", answering.OF_QUESTIONS),
    "summarize": Task(written.summarize, "summarize", "summarize", written.OF_SUMMARIES, ("rouge_score",)),
    "translate": Task(written.translate, "translate", "translate", written.OF_TRANSLATION, ("sacrebleu",), "pair"),
    "language-model": Task(perplexity.language_model, "generate", "chat", perplexity.OF_TEXTS, (), "text"),
    "generate": Task(written.generate, "generate", "chat", written.OF_PROMPTS),
}


def evaluate(
    model,
    data,
    task,
    *,
    columns=None,
    limit=None,
    batch_size=32,
    resamples=1000,
    seed=0,
    progress=None,
    **options,
):
    """Judge a model by a file of examples.

    | task | columns | measures |
    | --- | --- | --- |
    | "classify" | text, label; perhaps pair | accuracy, macro and micro precision, recall, F1, MCC, calibration error |
    | "tag" | words, labels | precision, recall, F1 of whole entities (seqeval, strict); those of words |
    | "answer" | question, context, answers | exact match, F1, as SQuAD counts them |
    | "summarize" | text, summary | ROUGE-1, -2, -L |
    | "translate" | source, target; or two text files | BLEU, chrF, with sacrebleu's signatures |
    | "language-model" | text; or a text file, which is one text | perplexity by token, word, character |
    | "generate" | prompt; perhaps reference | distinct-n, repeated-n; with references ROUGE, BLEU, chrF |

    Args:
        model: a model of kerasllm, or what `kerasllm.load` opens.
        data: path of a .jsonl, .csv or .tsv file (UTF-8; columns of TSV are parted by tabs, without quotes); or a list
            of dicts; or, for some tasks, what the table says. `words` and `labels` are lists, or parted by spaces;
            `answers` is a string, a list, or SQuAD's dict, an empty list where there is none.
        task: one of the table.
        columns: dict name of the table -> name in the data, where that is another.
        limit: the most rows that are read. Default: all.
        batch_size: the most rows that are computed at a time.
        resamples: number of draws for the 95 % intervals, by the bootstrap over rows; 0 for no intervals.
        seed: of these draws, and of what a model draws as it writes.
        progress: function (rows that are done, all of them), called after some.
        **options: "classify": `label_ids`, whether labels are numbers, `truncate` and `stride`; "tag":
            `scheme`, of `kerasllm.metrics.entity_scores`, and `stride`; "answer": `stride`, `max_answer_length`,
            `allow_no_answer`; "language-model": `window`, the most tokens at a time, and `stride`, how many of them two
            windows share; "translate", "summarize": `truncate`; for BLEU `tokenize` and `lowercase`, for ROUGE
            `use_stemmer`; and where a model writes, the fields of `GenerationConfig`.

    Returns:
        A `Report`: `print` shows a table, `report["accuracy"]` is a figure, `report.save(path)` writes JSON.

    Raises:
        ImportError: `kerasllm[metrics]` is not installed.
        ValueError: the model cannot do the task; a row is wrong, a label is none of the model's, a text is too long:
            the error names the file and line; there are no rows; an option is unknown.

    Example:
        >>> report = kerasllm.evaluate("sentiment", "reviews.csv", "classify", columns={"text": "review"})
        >>> report["macro_f1"]
        0.91
    """
    check_choice("task", task, TASKS)
    check_positive("batch_size", batch_size)
    check_seed("seed", seed)
    check_from_zero("resamples", resamples)
    if 0 < resamples < LEAST_RESAMPLES:
        raise ValueError(f"resamples ({resamples}) must be 0 or at least {LEAST_RESAMPLES}.")
    if progress is not None:
        check_function("progress", progress)
    its = TASKS[task]
    _check_options(task, options)
    check_installed(its.packages, f"evaluate {task}")  # now, and not when the model has done its work
    rows = read_rows(data, its.columns, columns, limit, its.plain)
    if "reference" in rows[0].values:
        check_installed(("rouge_score", "sacrebleu"), f"evaluate {task} with references")
    if isinstance(model, str | os.PathLike):
        # When it is called: opening a model needs Keras, reading what to judge it by does not.
        model = importlib.import_module("kerasllm").load(its.opens, model)
    if not hasattr(model, its.method):
        raise ValueError(f"model ({type(model).__name__}) cannot {task}: it has no method {its.method!r}.")
    run = Run(model, rows, batch_size, resamples, seed, progress or (lambda done, total: None))
    measures, details, notes = its.judge(run, **options)
    return Report(task, len(rows), measures, details, tuple(notes))


def options_of(task):
    """The names of a task's own options, and whether it takes those of `GenerationConfig`."""
    parameters = inspect.signature(TASKS[task].judge).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY], any(p.kind is p.VAR_KEYWORD for p in parameters)


def _check_options(task, options):
    names, writes = options_of(task)
    for name in options:
        if name not in names and not (writes and name in OPTIONS):
            more = " and fields of GenerationConfig" if writes else ""
            raise ValueError(f"{name} ({shown(options[name])}) is no option of {task!r}: {', '.join(names)}{more} are.")
