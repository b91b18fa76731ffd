"""Rows of token ids that stay in token files until a batch asks for them."""

import numpy as np

from kerasllm.arguments import shown
from kerasllm.text.token_files import TokenFile

CHUNK = 2**22  # ids that are looked through at a time


class FileRows:
    """Documents of token files as rows: a sequence of arrays (T,) int32.

    Row i is `[*before, *ids[start : start + most], *after][:longest]`, of the ids of a document.

    Args:
        files: list of `TokenFile`s, whose documents are numbered through all of them.
        documents: (N,) int, the document of each row.
        before, after: lists of ids that stand round each.
        starts: (N,) int, where rows start in their documents. Default: at the beginnings.
        most, longest: the most ids of a document, and of a row. Default: all.
    """

    def __init__(self, files, documents, before=(), after=(), starts=None, most=None, longest=None):
        self.files, self.documents, self.starts, self.most, self.longest = files, documents, starts, most, longest
        self.before, self.after = np.array(before, "int32"), np.array(after, "int32")
        self.firsts = np.cumsum([0, *map(len, files)])  # the number of each file's first document

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        file, document = self._place(self.documents[index])
        start = 0 if self.starts is None else int(self.starts[index])
        ids = file[document][start : None if self.most is None else start + self.most]
        return np.concatenate([self.before, ids, self.after])[: self.longest]

    def _place(self, document):
        number = int(np.searchsorted(self.firsts, document, side="right")) - 1
        return self.files[number], int(document - self.firsts[number])

    def holders_of_largest(self):
        """For each file a row with the largest of its documents' ids; None where one is in no row."""
        found = []
        for file, first in zip(self.files, self.firsts, strict=False):
            place = largest_at(file)
            document = int(np.searchsorted(file.starts, place, side="right")) - 1
            inside = place - int(file.starts[document]) - (file.manifest["bos_id"] is not None)
            for row in np.flatnonzero(self.documents == first + document):
                start = 0 if self.starts is None else int(self.starts[row])
                end = min(len(file[document]) if self.most is None else start + self.most, self._end())
                if start <= inside < end:
                    found.append(int(row))
                    break
            else:
                return None
        return found

    def _end(self):
        return np.inf if self.longest is None else self.longest - len(self.before)


def largest_at(file):
    """The place of the first of the largest ids of a token file that are neither its bos nor its eos."""
    around = [i for i in (file.manifest["bos_id"], file.manifest["eos_id"]) if i is not None]
    if file.ids[file.largest_at] not in around:
        return file.largest_at
    best, place = -1, 0
    for start in range(0, len(file.ids), CHUNK):
        ids = np.where(np.isin(file.ids[start : start + CHUNK], around), 0, file.ids[start : start + CHUNK])
        if ids.max() > best:
            best, place = ids.max(), start + int(ids.argmax())
    return place


def is_of_files(value):
    """Whether an argument is a `TokenFile`, or a list in which there is one."""
    return isinstance(value, TokenFile) or (
        isinstance(value, list | tuple) and any(isinstance(x, TokenFile) for x in value)
    )


def read_files(name, value, tokenizer_names, tokenizers):
    """A `TokenFile` or several as a list, once it is known that their tokenizers have written them.

    Args:
        name: of the argument, for errors.
        value: what it is.
        tokenizer_names, tokenizers: of each file, or one for all.
    """
    files = [value] if isinstance(value, TokenFile) else list(value)
    if len(tokenizers) == 1:
        tokenizer_names, tokenizers = tokenizer_names * len(files), tokenizers * len(files)
    for index, file in enumerate(files):
        if not isinstance(file, TokenFile):
            raise ValueError(f"{name}[{index}] ({shown(file)}) must be a TokenFile where others are.")
    if len(files) != len(tokenizers):
        raise ValueError(f"{name} ({len(files)} of them) must be {len(tokenizers)} TokenFiles, a source and a target.")
    for file, tokenizer_name, tokenizer in zip(files, tokenizer_names, tokenizers, strict=True):
        file.check_tokenizer(tokenizer_name, tokenizer)
    return files


def check_parallel(source, target):
    """Raise `ValueError` unless document i of one token file is surely the translation of document i of the other."""
    for name, file in (("source", source), ("target", target)):
        how = file.manifest.get("sample_by"), file.manifest.get("blank_lines")
        if how[0] != "line" or how[1] not in ("keep", "error"):
            raise ValueError(
                f"pairs: the {name} file {str(file.folder)!r} must be written line by line with blank_lines='keep' or "
                f"'error', or its lines may have lost their translations; it is written with sample_by={how[0]!r}, "
                f"blank_lines={how[1] or 'skip'!r}."
            )
    if len(source) != len(target):
        raise ValueError(
            f"pairs: the source file {str(source.folder)!r} has {len(source)} documents and the target file "
            f"{str(target.folder)!r} {len(target)}; there must be as many."
        )
