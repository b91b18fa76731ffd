"""What the tasks of BERT's heads share: texts to encodings, and one pass over many of them, by length.

A model, or an exported file that stands for one, is here what has `arguments`; `input`, a collection of names;
`tokenizer` and `required_tokenizer()`; `outputs_function()`, for the batches of one call the function from arrays, its
inputs, to its outputs; `progress_bar(num_batches)`, a function to call after each batch; and `each_batch(work, batches,
rows)`, what a function makes of each of them.
"""

import itertools

import numpy as np

from kerasllm.arguments import check_numbers, check_positive, check_sequence, read_texts, shown
from kerasllm.text import batches
from kerasllm.text.limits import InputLimits

CHUNK = 1024  # Texts of a stream that are looked at together, to batch them by length.
LONG = 10  # Batches from which on a progress bar is shown.


def answer_each(name, texts, answer, verbose):
    """What `answer` says of texts, in the form they came in.

    Args:
        name: of the argument, for errors.
        texts: a string; a list of strings; or an iterable of strings, such as a generator or a file.
        answer: function (list of strings, verbose) -> list of as many answers.
        verbose: whether a long list has a progress bar; a stream has none.

    Returns:
        One answer; a list of answers; or an iterator of answers, which reads the stream as it goes.
    """
    if isinstance(texts, str | bytes | list | tuple) or not hasattr(texts, "__iter__"):
        texts, unlist = read_texts(name, texts)
        return unlist(answer(texts, verbose))
    check_sequence(name, texts)
    stream = iter(texts)
    chunks = iter(lambda: list(itertools.islice(stream, CHUNK)), [])
    return (result for chunk in chunks for result in answer(read_texts(name, chunk)[0], False))


def encode_texts(model, texts, pairs=None, name="texts", limit=None, truncate=False, hint=""):
    """The encodings of texts that fit into the model.

    Args:
        model: a `BERTModel` with a tokenizer.
        texts, pairs: as for `Tokenizer.encodings`.
        name: of the argument, for errors.
        limit: the most tokens. Default: the model's `max_sequence_length`.
        truncate: whether longer texts are cut; otherwise they are errors.
        hint: what an error says further.
    """
    limit = limit or model.arguments["max_sequence_length"]
    encodings = model.required_tokenizer().encodings(texts, pairs, limit if truncate else None)
    for i, encoding in enumerate(encodings):
        if len(encoding) > limit:
            raise ValueError(
                f"{name}[{i}] ({shown(texts[i], 60)}) has {len(encoding)} tokens, max_sequence_length is {limit}{hint}."
            )
    return encodings


def predict(model, encodings, batch_size, verbose=False, extra=None):
    """The model's outputs for each encoding, in numpy.

    Encodings of like length share a batch; lengths are powers of two, and batches are filled up to few sizes, so that
    few programs are compiled.

    Args:
        model: a `BERTModel`.
        encodings: list of `tokenizers.Encoding`.
        batch_size: the most of them in a batch.
        verbose: whether a long list has a progress bar, on stderr.
        extra: dict of further inputs: name -> list of ids for each encoding.

    Returns:
        A list in the order of `encodings`: the model's output for each, float32, without the batch axis; an output
        of (B, T, ...) still has the batch's padding.

    Raises:
        FloatingPointError: an output is NaN or infinite.
    """
    check_positive("batch_size", batch_size)
    rows = {"token_ids": [e.ids for e in encodings], **(extra or {})}
    if "segment_ids" in model.input:
        rows["segment_ids"] = [e.type_ids for e in encodings]
    lengths = np.array([len(ids) for ids in rows["token_ids"]])
    order = np.argsort(-lengths, kind="stable")
    starts = list(range(0, len(order), batch_size))
    advance = model.progress_bar(len(starts)) if verbose and len(starts) > LONG else lambda: None
    results, outputs_of = [None] * len(encodings), model.outputs_function()

    def of_batch(start):
        places = order[start : start + batch_size].tolist()
        filled = places + places[-1:] * (batches.bucket_rows(len(places)) - len(places))
        outputs = outputs_of(_inputs(model, rows, filled))
        found = {place: _row(outputs, row) for row, place in enumerate(places)}
        for place, answer in found.items():
            for array in answer.values() if isinstance(outputs, dict) else [answer]:
                check_numbers("outputs", array, f"for text {place}")
        advance()
        return found

    for found in model.each_batch(of_batch, starts, rows):
        for place, answer in found.items():
            results[place] = answer
    return results


def _row(outputs, row):
    if isinstance(outputs, dict):
        return {name: _row(x, row) for name, x in outputs.items()}
    return np.asarray(outputs[row], "float32")


def _inputs(model, rows, places):
    inputs = {}
    for name, lists in rows.items():
        lists = [lists[i] for i in places]
        limit = None if name == "masked_positions" else model.arguments["max_sequence_length"]
        inputs[name], padding_mask = batches.pad(lists, batches.bucket_length(max(map(len, lists)), limit))
        if name == "token_ids":
            inputs["padding_mask"] = padding_mask
    InputLimits.of(model.arguments).check(inputs, places)
    return inputs


def softmax(logits):
    """Probabilities over the last axis, in float64."""
    exponents = np.exp(np.asarray(logits, "float64") - np.max(logits, axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def sigmoid(logits):
    """Probabilities of their own, in float64."""
    return 1 / (1 + np.exp(-np.asarray(logits, "float64")))
