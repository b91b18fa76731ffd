"""Batches for `fit` of BERT's heads: labels of texts, of tokens, and answers in contexts."""

import numbers
from collections.abc import Hashable

import numpy as np

from kerasllm.arguments import (
    check_boolean,
    check_choice,
    check_function,
    check_positive,
    check_text,
    read_sequence,
    shown,
)
from kerasllm.text import batches
from kerasllm.text.limits import as_array, check_finite
from kerasllm.text.words import first_tokens
from kerasllm.training.datasets import BucketedDataset, fitting


class EncodingsDataset(BucketedDataset):
    """The base of datasets for BERT's heads: encodings as `token_ids`, `segment_ids` and `padding_mask`."""

    def __init__(self, encodings, segments, batch_size, multiple, max_length, seed, shuffle, batch_tokens, **kwargs):
        check_boolean("segments", segments)
        self.token_ids = [np.array(e.ids, "int32") for e in encodings]
        self.segment_ids = [np.array(e.type_ids, "int32") for e in encodings] if segments else None
        lengths = np.array([len(row) for row in self.token_ids])
        super().__init__(lengths, batch_size, multiple, max_length, seed, shuffle, batch_tokens, **kwargs)

    def make_inputs(self, indices, widths):
        """The inputs of the examples at `indices`, padded to `widths`."""
        segment_ids = [self.segment_ids[i] for i in indices] if self.segment_ids else None
        return padded_inputs([self.token_ids[i] for i in indices], segment_ids, widths[0])


def padded_inputs(token_ids, segment_ids, width):
    """Rows of ids, and of segments or None, padded to a width: a model's inputs."""
    token_ids, padding_mask = batches.pad(token_ids, width)
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    if segment_ids is not None:
        inputs["segment_ids"] = batches.pad(segment_ids, width)[0]
    return inputs


class ClassificationDataset(EncodingsDataset):
    """Texts with their labels, for `BERTClassifier`.

    A batch is `(inputs, labels)`: `inputs` has `token_ids`, `segment_ids` and `padding_mask` (B, T); the labels are
    (B,) int32 for one label of several, (B, L) float32 for many labels or numbers. For a model of one label, such as a
    reranker, they are 0 and 1, or numbers in between, trained with `BinaryCrossentropy(from_logits=True)`.

        dataset = ClassificationDataset(["Good.", "Bad."], ["pos", "neg"], tokenizer, label_names=["neg", "pos"])
        model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(dataset, epochs=3)

    Args:
        texts: sequence of strings.
        labels: for each text a label's number; or its name; or L numbers, as of a multi-label problem (0 or 1 each,
            trained with `BinaryCrossentropy(from_logits=True)`) or of a regression (trained with "mse"); or a float,
            for L = 1.
        tokenizer: puts [CLS] and [SEP] round the texts.
        pairs: the second texts, where pairs are judged.
        label_names: where labels are given by name, `model.arguments["labels"]`.
        max_length: the most tokens of an example, special ones included.
        too_long: what is done with longer examples: "error" raises, "drop" leaves them out, "truncate" cuts them;
            `num_too_long` counts them.
        segments: whether there are `segment_ids`: for models with two `num_segments` or more.
        batch_size, batch_tokens, multiple, seed, shuffle, **kwargs: see `BucketedDataset`; 32 texts by default.
        augment: function (list of texts, `numpy.random.Generator`) -> as many texts, such as
            `kerasllm.text.drop_words`, that makes the texts of each batch anew in every epoch, those of pairs too. All
            chance comes from the generator, so a resumed run has the same. What is longer than `max_length` then
            is cut.
    """

    def __init__(
        self,
        texts,
        labels,
        tokenizer,
        batch_size=None,
        pairs=None,
        label_names=None,
        max_length=128,
        too_long="error",
        segments=True,
        multiple=32,
        seed=0,
        shuffle=True,
        batch_tokens=None,
        augment=None,
        **kwargs,
    ):
        check_positive("max_length", max_length)
        if augment is not None:
            check_function("augment", augment)
        check_choice("too_long", too_long, ("error", "drop", "truncate"))
        texts, labels = read_sequence("texts", texts), read_labels(labels, label_names)
        if not texts or len(labels) != len(texts):
            raise ValueError(f"labels ({len(labels)} of them) must be as many as texts ({len(texts)}), at least one.")
        given = {"texts": texts} if pairs is None else {"texts": texts, "pairs": read_sequence("pairs", pairs)}
        encodings, keep, self.num_too_long = encode(tokenizer, given, max_length, too_long)
        self.labels = labels[keep]
        self.augment, self.tokenizer = augment, tokenizer
        self.given = {name: [side[i] for i in keep] for name, side in given.items()} if augment else {}
        super().__init__(encodings, segments, batch_size, multiple, max_length, seed, shuffle, batch_tokens, **kwargs)

    def make_batch(self, indices, widths, generator):
        if self.augment is None:
            return self.plain_batch(indices, widths)
        sides = [self._augmented(name, [side[i] for i in indices], generator) for name, side in self.given.items()]
        encodings = self.tokenizer.encodings(*sides, max_length=self.max_length)
        for encoding, *texts in zip(encodings, *sides, strict=True):
            if len(set(encoding.sequence_ids) - {None}) < len(sides):
                raise ValueError(f"augment: of its result {shown(texts)} a text has no tokens.")
        segment_ids = [np.array(e.type_ids, "int32") for e in encodings] if self.segment_ids else None
        token_ids = [np.array(e.ids, "int32") for e in encodings]
        longest = -(-max(map(len, token_ids)) // self.multiple) * self.multiple
        width = max(widths[0], min(longest, self.max_length))
        return padded_inputs(token_ids, segment_ids, width), self.labels[indices]

    def plain_batch(self, indices, widths):
        return self.make_inputs(indices, widths), self.labels[indices]

    def description(self):
        found = super().description()
        if self.augment is not None:
            some = np.unique(np.linspace(0, len(self.lengths) - 1, 256).astype(int))
            found["augmented"] = self.make_batch(some, (1,), np.random.default_rng(self.seed))
        return found

    def _augmented(self, name, texts, generator):
        """The texts that `augment` makes of some, as many strings."""
        made = self.augment(list(texts), generator)
        if not isinstance(made, list | tuple) or len(made) != len(texts):
            raise ValueError(f"augment: its result ({shown(made)}) must be a list of {len(texts)} {name}.")
        for i, text in enumerate(made):
            check_text(f"augment: {name}[{i}]", text)
        return list(made)


class TokenClassificationDataset(EncodingsDataset):
    """Texts whose words have labels, for `BERTTokenClassifier`.

    A batch is `(inputs, labels)`: `inputs` as in `ClassificationDataset`; the labels (B, T) int32 stand at the first
    token of each word, -1 at all others, as `TokenCrossentropy` wants them.

        words, labels = [["Ada", "Lovelace", "smiled", "."]], [["B-PER", "I-PER", "O", "O"]]
        dataset = TokenClassificationDataset(words, labels, tokenizer, label_names=["O", "B-PER", "I-PER"])

    Args:
        words: for each text its words, a list of strings; the text is their join by spaces.
        labels: for each text a label of each word, its number or its name.
        tokenizer, label_names, max_length, too_long, segments: as for `ClassificationDataset`.
        batch_size, batch_tokens, multiple, seed, shuffle, **kwargs: see `BucketedDataset`; 32 texts by default.
    """

    def __init__(
        self,
        words,
        labels,
        tokenizer,
        batch_size=None,
        label_names=None,
        max_length=128,
        too_long="error",
        segments=True,
        multiple=32,
        seed=0,
        shuffle=True,
        batch_tokens=None,
        **kwargs,
    ):
        check_positive("max_length", max_length)
        check_choice("too_long", too_long, ("error", "drop", "truncate"))
        words, labels = read_sequence("words", words), read_sequence("labels", labels)
        if not words or len(words) != len(labels):
            raise ValueError(f"labels ({len(labels)} of them) must be as many as words ({len(words)}), at least one.")
        for i, (row, marks) in enumerate(zip(words, labels, strict=True)):
            row, marks = read_sequence(f"words[{i}]", row), read_sequence(f"labels[{i}]", marks)
            if not row or len(row) != len(marks) or not all(isinstance(w, str) and w for w in row):
                raise ValueError(
                    f"words[{i}] ({shown(row, 60)}) must be words, one at least, as many as labels[{i}] ({len(marks)})."
                )
        marks = [read_labels(marks, label_names, f"labels[{i}]") for i, marks in enumerate(labels)]
        for i, row in enumerate(marks):
            if row.ndim > 1:
                raise ValueError(f"labels[{i}] ({shown(labels[i])}) must be a number or a name for each word.")
        texts = [" ".join(row) for row in words]
        encodings, keep, self.num_too_long = encode(tokenizer, {"words": texts}, max_length, too_long)
        self.labels = [
            np.array(token_labels(e, words[i], marks[i]), "int32") for i, e in zip(keep, encodings, strict=True)
        ]
        super().__init__(encodings, segments, batch_size, multiple, max_length, seed, shuffle, batch_tokens, **kwargs)

    def make_batch(self, indices, widths, generator):
        labels, _ = batches.pad([self.labels[i] for i in indices], widths[0], value=batches.IGNORED)
        return self.make_inputs(indices, widths), labels


class QuestionAnsweringDataset(EncodingsDataset):
    """Questions whose answers stand in a context, for `BERTQuestionAnswerer`.

    A batch is `(inputs, labels)`: `inputs` as in `ClassificationDataset`, the question first; the labels are a dict of
    `start_logits` and `end_logits` (B,) int32, the first and the last token of the answer, 0 (which is [CLS]) where
    there is none.

        dataset = QuestionAnsweringDataset(["Who sat?"], ["The cat sat."], [(4, 7)], tokenizer)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adamw", {"start_logits": loss, "end_logits": loss})
        model.fit(dataset, epochs=2)

    Args:
        questions, contexts: sequences of strings, as many.
        answers: for each the characters (start, end) of the answer in its context, or None where it has none.
        tokenizer, max_length, segments: as for `ClassificationDataset`.
        too_long: "error" or "drop"; `num_too_long` counts the examples.
        batch_size, batch_tokens, multiple, seed, shuffle, **kwargs: see `BucketedDataset`; 16 questions by default.
    """

    default_batch_size = 16

    def __init__(
        self,
        questions,
        contexts,
        answers,
        tokenizer,
        batch_size=None,
        max_length=384,
        too_long="error",
        segments=True,
        multiple=32,
        seed=0,
        shuffle=True,
        batch_tokens=None,
        **kwargs,
    ):
        check_positive("max_length", max_length)
        check_choice("too_long", too_long, ("error", "drop"))
        given = {"questions": questions, "contexts": contexts, "answers": answers}
        questions, contexts, answers = (read_sequence(name, value) for name, value in given.items())
        if not questions or len({len(questions), len(contexts), len(answers)}) > 1:
            raise ValueError(
                f"questions ({len(questions)} of them), contexts ({len(contexts)}) and answers ({len(answers)}) "
                "must be as many, at least one."
            )
        given = {"questions": questions, "contexts": contexts}
        encodings, keep, self.num_too_long = encode(tokenizer, given, max_length, too_long)
        spans = [answer_tokens(i, e, contexts[i], answers[i]) for i, e in zip(keep, encodings, strict=True)]
        self.spans = np.array(spans, "int32")  # (N, 2)
        super().__init__(encodings, segments, batch_size, multiple, max_length, seed, shuffle, batch_tokens, **kwargs)

    def make_batch(self, indices, widths, generator):
        starts, ends = self.spans[indices].T
        return self.make_inputs(indices, widths), {"start_logits": starts, "end_logits": ends}


def token_labels(encoding, words, labels):
    """The label of each token of words joined by spaces: a word's at its first token, -1 elsewhere."""
    marks = [batches.IGNORED] * len(encoding)
    for place, label in zip(first_tokens(encoding, words), labels, strict=True):
        if place is not None:
            marks[place] = label
    return marks


def answer_tokens(index, encoding, context, answer):
    """The first and last token of the characters (start, end) of a context; (0, 0) for None."""
    if answer is None:
        return 0, 0
    is_pair = isinstance(answer, list | tuple | np.ndarray) and len(answer) == 2
    if not is_pair or not all(isinstance(i, numbers.Integral) for i in answer):
        raise ValueError(
            f"answers[{index}] ({shown(answer)}) must be (start, end), characters of contexts[{index}], or None; of "
            "SQuAD's answers these are answer_start and answer_start + len(text)."
        )
    start, end = answer
    if not 0 <= start < end <= len(context) or not context[start:end].strip():
        raise ValueError(
            f"answers[{index}] ({shown(answer)}) must be characters of contexts[{index}] ({shown(context, 60)})."
        )
    places = zip(encoding.offsets, encoding.sequence_ids, strict=True)
    inside = [t for t, ((first, last), side) in enumerate(places) if side == 1 and first < end and last > start]
    if not inside:
        raise ValueError(f"answers[{index}] ({context[start:end]!r}) has no tokens.")
    return inside[0], inside[-1]


def read_labels(labels, label_names, name="labels"):
    """Labels as an array: numbers or names as (N,) int32, rows of numbers as (N, L) float32."""
    labels = read_sequence(name, labels)
    if label_names is not None:
        label_names = read_sequence("label_names", label_names)
        places = {label: i for i, label in enumerate(label_names)}
        if len(places) < len(label_names):
            raise ValueError(f"label_names ({shown(label_names, 200)}) must be different names.")
        for i, label in enumerate(labels):
            if not isinstance(label, Hashable) or label not in places:
                raise ValueError(
                    f"{name}[{i}] ({shown(label)}) must be one of label_names ({shown(label_names, 200)})."
                )
        return np.array([places[label] for label in labels], "int32")
    array = as_array(name, labels)
    if array.dtype.kind in "iu" and array.ndim == 1:
        for i in np.flatnonzero(array != array.astype("int32"))[:1]:
            raise ValueError(f"{name}[{i}] ({labels[i]}) must be a whole number of 32 bits.")
        return array.astype("int32")
    if array.dtype.kind == "f" and array.ndim == 1:
        array = array[:, None]
    if array.dtype.kind not in "iufb" or array.ndim != 2:
        raise ValueError(f"{name} ({shown(labels)}) must be whole numbers, names with label_names, or rows of numbers.")
    check_finite(name, array)
    return array.astype("float32")


def encode(tokenizer, given, max_length, too_long):
    """`(encodings, indices of the examples they belong to, number of examples that were too long)`.

    Args:
        given: dict of the argument's name -> texts; a second one holds their pairs.
    """
    if not hasattr(tokenizer, "encodings"):
        raise ValueError(f"tokenizer ({shown(tokenizer)}) must be a kerasllm.Tokenizer.")
    for name, texts in given.items():
        for i, text in enumerate(texts):
            check_text(f"{name}[{i}]", text)
    names, (texts, *pairs) = list(given), given.values()
    encodings = tokenizer.encodings(texts, *pairs)
    for i, encoding in enumerate(encodings):
        for side, name in enumerate(names):
            if side not in encoding.sequence_ids:
                raise ValueError(f"{name}[{i}] ({shown(given[name][i])}) has no tokens.")
    lengths = np.array([len(e) for e in encodings])
    keep = fitting(lengths, max_length, too_long, names[0])
    for i in keep[lengths[keep] > max_length]:
        encodings[i] = tokenizer.encodings([texts[i]], *([p[i]] for p in pairs), max_length=max_length)[0]
    return [encodings[i] for i in keep], keep, int((lengths > max_length).sum())
