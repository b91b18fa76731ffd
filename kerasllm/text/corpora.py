"""Documents of text files, one after the other as they are asked for, each with the place where it stands."""

import codecs
import contextlib
import gzip
import io
import json
from pathlib import Path
from typing import NamedTuple

from kerasllm.arguments import check_choice, check_text, shown
from kerasllm.text import lines

ENDINGS = (".txt", ".text", ".jsonl", ".ndjson")
SAMPLE_BY = ("line", "paragraph", "document")
BLANK_LINES = ("skip", "keep", "error")


class Document(NamedTuple):
    """A text, and what an error calls it, such as "corpus.txt, line 3"."""

    place: str
    text: str


def find_files(sources, any_ending=False, name="sources"):
    """The files of a corpus in their order.

    Args:
        sources: a path or several. Of a folder all files are taken, those in its folders too, in the order of their
            names; hidden ones, whose names begin with a point, are not.
        any_ending: whether a file that is named by itself may have another ending: that of parallel text is often a
            language, as of "train.en". It is a text file then.
        name: of the argument, for errors.

    Returns:
        A list of `pathlib.Path`.

    Raises:
        ValueError: there is no such file, it is of none of the `ENDINGS` (and .gz after them), or a folder has none.
    """
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    files, named = [], set()
    for source in map(Path, sources):
        if source.is_dir():
            inside = (path for path in source.rglob("*") if path.is_file())
            found = sorted(p for p in inside if not any(x.startswith(".") for x in p.relative_to(source).parts))
            if not found:
                raise ValueError(f"{name}: the folder {str(source)!r} holds no file.")
            files += found
        elif source.is_file():
            files.append(source)
            named.add(source)
        else:
            raise ValueError(f"{name}: there is no file {str(source)!r}.")
    if not files:
        raise ValueError(f"{name} ({shown(sources)}) must name one file at least.")
    for path in files:
        if _ending(path) not in ENDINGS and not (any_ending and path in named):
            raise ValueError(f"{name}: {str(path)!r} must end in {', '.join(ENDINGS)}, or in these and .gz.")
    return files


def read_documents(path, sample_by="line", field="text", encoding="utf-8", blank_lines="skip"):
    """The `Document`s of a file.

    Args:
        path: a text file, or JSONL: an object on each line; compressed where its name ends in .gz.
        sample_by: what a document of a text file is: "line"; "paragraph", lines without a blank one between them;
            "document", the whole file. Blank lines before and after it are no part of one.
        field: the entry of a JSONL file's objects that holds the text.
        encoding: of the bytes.
        blank_lines: what a line of spaces, or of nothing, is where lines are documents: "skip", none; "keep", an empty
            document, as is a blank text in JSONL; "error".

    Yields:
        `Document`s of one character at least, unless blank lines are kept.

    Raises:
        ValueError: names the file and line: it is not in the encoding, no JSON object, has no such text, or is blank.
    """
    check_choice("sample_by", sample_by, SAMPLE_BY)
    check_text("field", field)
    check_choice("blank_lines", blank_lines, BLANK_LINES)
    if blank_lines != "skip" and sample_by != "line":
        raise ValueError(f"blank_lines ({blank_lines!r}) is for sample_by='line', not {sample_by!r}.")
    numbered = enumerate((document.text for document in read_lines(path, encoding)), 1)
    if _ending(path) in (".jsonl", ".ndjson"):
        yield from _objects(path, numbered, field, blank_lines)
    else:
        yield from _texts(path, numbered, sample_by, blank_lines)


def read_objects(path, encoding="utf-8"):
    """The objects of a JSONL file, compressed where its name ends in .gz: (what an error calls the line, dict).

    Raises:
        ValueError: names the file and line: it is not in the encoding, or no JSON object.
    """
    for place, line in read_lines(path, encoding):
        if line:
            yield place, _object(place, line)


def read_lines(path, encoding="utf-8"):
    """The lines of a text file, compressed where its name ends in .gz, as `Document`s, of which blank ones are empty.

    A line ends with a line feed, with a carriage return before it or not, and with nothing else.

    Raises:
        ValueError: the file cannot be read, or a line is not in the encoding.
    """
    check_encoding(encoding)
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file, io.TextIOWrapper(file, encoding) as stream:
            for number, (place, text, error) in enumerate(lines.of_stream(stream, encoding), 1):
                if error not in (None, lines.BLANK):
                    raise ValueError(f"{path}, {place}: {error}.")
                yield Document(f"{path}, line {number}", "" if error else text)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except UnicodeError as error:  # of encodings whose line feeds are more than a byte
        raise ValueError(f"{path} is not in {encoding}: {error}") from error


def check_encoding(encoding):
    """Raise `ValueError` unless Python knows an encoding of this name."""
    check_text("encoding", encoding)
    with contextlib.suppress(LookupError):
        codecs.lookup(encoding)
        return
    raise ValueError(f"encoding ({encoding!r}) must be one that Python knows, such as 'utf-8'.")


def _ending(path):
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def _objects(path, numbered, field, blank_lines):
    for number, line in numbered:
        if not line:
            continue
        place = f"{path}, line {number}"
        text = _object(place, line).get(field)
        if not isinstance(text, str) or not (text.strip() or blank_lines == "keep"):
            raise ValueError(f"{place} ({shown(line)}) must be an object with a text in {field!r}.")
        yield Document(place, text if text.strip() else "")


def _object(place, line):
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON: {error}.") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{place} ({shown(line)}) must be a JSON object.")
    return entry


def _texts(path, numbered, sample_by, blank_lines):
    if sample_by == "line":
        for number, line in numbered:
            if not line and blank_lines == "error":
                raise ValueError(f"{path}, line {number} is blank.")
            if line or blank_lines == "keep":
                yield Document(f"{path}, line {number}", line)
        return
    first, held = 0, []
    for number, line in numbered:
        if line or (held and sample_by == "document"):
            first = first if held else number
            held.append(line)
        elif held:
            yield Document(f"{path}, line {first}", "\n".join(held))
            held = []
    while held and not held[-1]:
        held.pop()
    if held:
        yield Document(f"{path}, line {first}", "\n".join(held))
