"""Rows of examples: from JSONL, CSV or TSV files, two text files, or dicts; each knows where it stands."""

import codecs
import contextlib
import csv
import os
from collections.abc import Mapping
from typing import NamedTuple

from kerasllm.arguments import check_positive, check_text, read_path, read_sequence, shown
from kerasllm.json_files import parse_json

ENDINGS = {".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "tsv"}
LONGEST_FIELD = 2**30  # characters of a field of a CSV file; Python's own limit is 131,072


class Row(NamedTuple):
    """An example: what an error calls it, such as "reviews.csv, line 3", and its values by the names of a task."""

    place: str
    values: dict


class Column(NamedTuple):
    """What a task reads of a row.

    Args:
        read: function (place and name for errors, value) -> the value, or `ValueError`.
        is_needed: whether each row must have it; else all rows have it, or none.
    """

    read: object
    is_needed: bool = True


def read_rows(data, columns, names=None, limit=None, plain=None):
    """The rows of `data` as a list, one at least.

    Args:
        data: path of a file that ends in .jsonl, .ndjson, .csv or .tsv (columns parted by tabs, without quotes; the
            first line of either names them); or a list of dicts; or what `plain` reads.
        columns: dict name -> `Column`, what is read.
        names: dict name -> what the data calls it, where that is another name.
        limit: the most rows that are read. Default: all.
        plain: how else data may be given: "pair", two text files, line by line, of the first two columns; "text", a
            text file that is one row of the first column. Default: not at all.

    Raises:
        ValueError: names the file and line: it is no UTF-8, no JSON object, has too few or too many fields, lacks a
            column, or a value is not what its column holds; or there are no rows.
    """
    if limit is not None:
        check_positive("limit", limit)
    names = _read_names(columns, names)
    rows, found, described = [], None, None
    for place, values in _records(data, columns, names, plain):
        row, here = {}, frozenset(name for name in columns if values.get(names[name]) is not None)
        for name, column in columns.items():
            if name in here:
                row[name] = column.read(f"{place}, {names[name]}", values[names[name]])
            elif column.is_needed:
                there = ", ".join(map(str, values)) or "none"
                raise ValueError(f"{place} has no {shown(names[name])}; its columns are {there:.200}.")
        if found is not None and here != found:
            name = min(here ^ found)
            raise ValueError(
                f"{place} {'has a' if name in here else 'has no'} {names[name]!r}, other than {described}."
            )
        found, described = here, described or place
        rows.append(Row(place, row))
        if len(rows) == limit:
            break
    if not rows:
        raise ValueError(f"data ({shown(data)}) holds no rows.")
    return rows


def _read_names(columns, names):
    names = {} if names is None else names
    if not isinstance(names, Mapping) or not all(isinstance(x, str) and x for pair in names.items() for x in pair):
        raise ValueError(f"columns ({shown(names)}) must be a dict of names.")
    for name in names:
        if name not in columns:
            raise ValueError(f"columns ({shown(name)}) must be of {', '.join(map(repr, columns))}.")
    return {name: names.get(name, name) for name in columns}


def _records(data, columns, names, plain):
    """Yield the place and the dict of each record."""
    if isinstance(data, tuple | list) and data and all(isinstance(x, str | os.PathLike) for x in data):
        if plain != "pair" or len(data) != 2:
            raise ValueError(f"data ({shown(data)}) must be one file{', or two text files' * (plain == 'pair')}.")
        return _parallel(*data, [names[name] for name in list(columns)[:2]])
    if not isinstance(data, str | os.PathLike):
        return _given(data)
    path = read_path("data", data)
    if not path.is_file():
        raise ValueError(f"data: there is no file {str(path)!r}.")
    kind = ENDINGS.get(path.suffix.lower())
    if kind is None and plain == "text":
        return iter([(str(path), {names[next(iter(columns))]: "".join(line for _, line in _whole_lines(path))})])
    if kind is None:
        others = {"pair": ", or be two text files", None: ""}[plain]
        raise ValueError(f"data ({str(path)!r}) must end in {', '.join(ENDINGS)}{others}.")
    return _objects(path) if kind == "json" else _table(path, kind)


def _given(data):
    for i, values in enumerate(read_sequence("data", data)):
        if not isinstance(values, Mapping):
            raise ValueError(f"data[{i}] ({shown(values)}) must be a dict.")
        yield f"data[{i}]", values


def _lines(path):
    """Yield the number and text of each line, without its end."""
    for number, line in _whole_lines(path):
        yield number, line.removesuffix("\n").removesuffix("\r")


def _whole_lines(path):
    """Yield the number and text of each line with its end, the first without the mark of UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: it is not in utf-8: {error.reason}.") from error


def _objects(path):
    for number, line in _lines(path):
        if line.strip():
            yield (place := f"{path}, line {number}"), parse_json(line, place)


def _table(path, kind):
    dialect = {"csv": {"strict": True}, "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}[kind]
    with _long_fields():
        last = 0  # the line where the record before has ended

        def lines():
            nonlocal last
            for number, line in _lines(path):
                last = number
                yield line + "\n"

        reader, header = csv.reader(lines(), **dialect), None
        while True:
            first = last + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise ValueError(f"{path}, line {first}: {error}.") from error
            if fields is None:
                return
            if not fields or kind == "tsv" and fields == [""]:
                continue
            place = f"{path}, line {first}"
            if header is None:
                header = fields
                if len(set(header)) < len(header):
                    raise ValueError(f"{place} ({shown(header)}) must be different names of columns.")
                continue
            if len(fields) != len(header):
                raise ValueError(f"{place} has {len(fields)} fields, the first line {len(header)}.")
            # What is empty in a table is not there.
            yield place, {name: field for name, field in zip(header, fields, strict=True) if field != ""}


@contextlib.contextmanager
def _long_fields():
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parallel(source, target, names):
    paths = [read_path("data", path) for path in (source, target)]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"data: there is no file {str(path)!r}.")
    sides = [[line for _, line in _lines(path)] for path in paths]
    if len(sides[0]) != len(sides[1]):
        counts = [f"{path} has {len(side)} lines" for path, side in zip(paths, sides, strict=True)]
        raise ValueError(f"data: {counts[0]} and {counts[1]}; there must be as many.")
    for number, pair in enumerate(zip(*sides, strict=True), 1):
        for path, line in zip(paths, pair, strict=True):
            if not line.strip():
                raise ValueError(f"{path}, line {number}: it is blank.")
        yield f"{paths[0]}, line {number}", dict(zip(names, pair, strict=True))


# What columns hold: functions (place and name, value) -> value.


def text(place, value):
    """A text that is not blank."""
    check_text(place, value)
    if not value.strip():
        raise ValueError(f"{place} ({shown(value)}) must not be blank.")
    return value


def words(place, value):
    """A list of words, or a string of words parted by spaces."""
    found = value.split() if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not found:
        raise ValueError(f"{place} ({shown(value)}) must be a list of words, or words parted by spaces.")
    return [text(f"{place}[{i}]", word) for i, word in enumerate(found)]


def label(place, value):
    """A label: its name, or its number."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"{place} ({shown(value)}) must be a label's name, or its number.")
    return value


def answers(place, value):
    """Answers as a list: a string, a list of strings, or SQuAD's dict with `text`. No answer is an empty list."""
    found = value.get("text") if isinstance(value, Mapping) else value
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list | tuple):
        raise ValueError(f"{place} ({shown(value)}) must be a string, a list of strings, or a dict with `text`.")
    return [text(f"{place}[{i}]", answer) for i, answer in enumerate(found)]
