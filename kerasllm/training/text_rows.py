"""Rows of token ids of texts, which come one after the other.

Texts are an iterable of strings, or of token ids: a list, a generator, or anything with a length and entries. It is
read once, from its beginning to its end, and what is held of it are token ids; strings are encoded some at a time, and
those of a generator are not held. (The datasets of labelled texts hold texts and labels in lists while they are made.)
"""

import numpy as np

from kerasllm.arguments import check_sequence, shown
from kerasllm.text import batches
from kerasllm.text.limits import as_array
from kerasllm.text.token_files import CHUNK


def tokenize(texts, tokenizer, name, special_tokens=False):
    """Token ids (int32 arrays) of strings; token ids are checked against the vocabulary and kept.

    Args:
        texts: iterable of either, which is read once.
        tokenizer: a `kerasllm.Tokenizer`.
        name: of the argument, for errors.
        special_tokens: whether those of the tokenizer are put round strings.
    """
    rows = TextRows(tokenizer, name, special_tokens)
    for text in iterated(name, texts):
        rows.add(text)
    return rows.read()


class TextRows:
    """Token ids of texts that come one after the other: strings are encoded some at a time, and not held."""

    def __init__(self, tokenizer, name, special_tokens=False, blank_is_empty=False):
        self.tokenizer, self.name, self.special_tokens = tokenizer, name, special_tokens
        self.blank_is_empty = blank_is_empty
        self.rows, self.empty = [], {}  # and the place of each text that has no tokens -> it
        self.waiting, self.size, self.of_strings = [], 0, None

    def add(self, text):
        """Take a string, or its token ids where those before it were ids."""
        place = len(self.rows) + len(self.waiting)
        self.of_strings = isinstance(text, str) if self.of_strings is None else self.of_strings
        if self.of_strings != isinstance(text, str):
            kind = "a string" if self.of_strings else "token ids"
            raise ValueError(f"{self.name}[{place}] ({shown(text)}) must be {kind} where others are.")
        if self.of_strings:
            self.waiting.append(text)
            self.size += len(text)
            if self.size >= CHUNK:
                self._encode()
            return
        if as_array(f"{self.name}[{place}]", text).ndim != 1:
            raise ValueError(f"{self.name}[{place}] ({shown(text)}) must be a string or a flat list of token ids.")
        batches.check_ids(text, self.tokenizer.vocabulary_size, f"{self.name}[{place}]")
        if len(text) == 0:
            self.empty[place] = text
        self.rows.append(np.asarray(text, dtype="int32"))

    def _encode(self):
        rows = self.tokenizer.encode_batch(self.waiting, special_tokens=self.special_tokens)
        for text, row in zip(self.waiting, rows, strict=True):
            if len(row) == 0 or self.blank_is_empty and not text.strip():
                self.empty[len(self.rows)] = text
            self.rows.append(np.asarray(row, dtype="int32"))
        self.waiting, self.size = [], 0

    def read(self, empty="error"):
        """All rows: a list of (T,) int32. Of texts without tokens the first is named, unless `empty` is "drop"."""
        if self.waiting:
            self._encode()
        if not self.rows:
            raise ValueError(f"{self.name} must not be empty.")
        for place, text in self.empty.items() if empty == "error" else ():
            raise ValueError(f"{self.name}[{place}] ({shown(text)}) has no tokens.")
        return self.rows


def iterated(name, values):
    """An iterator over an argument; what has a length and entries, and does not say how to iterate, ends at its length.

    Raises:
        ValueError: it is a string, a mapping, a set, or no iterable.
    """
    check_sequence(name, values)
    if not hasattr(values, "__iter__") and hasattr(values, "__len__"):
        return (values[index] for index in range(len(values)))
    return iter(values)
