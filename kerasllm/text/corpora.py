"""Documents of text files, one after the other as they are asked for, each with the place where it stands."""

import gzip
import io
import json
from pathlib import Path
from typing import NamedTuple

from kerasllm.arguments import check_choice, check_text, shown
from kerasllm.text import lines

ENDINGS = (".txt", ".text", ".jsonl", ".ndjson")
SAMPLE_BY = ("line", "paragraph", "document")


class Document(NamedTuple):
    """A text, and what an error calls it, such as "corpus.txt, line 3"."""

    place: str
    text: str


def find_files(sources):
    """The files of a corpus in their order.

    Args:
        sources: a path or several. Of a folder all files are taken, those in its folders too, in the order of their
            names; hidden ones, whose names begin with a point, are not.

    Returns:
        A list of `pathlib.Path`.

    Raises:
        ValueError: there is no such file, it is of none of the `ENDINGS` (and .gz after them), or a folder has none.
    """
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    files = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = (path for path in source.rglob("*") if path.is_file())
            found = sorted(p for p in inside if not any(x.startswith(".") for x in p.relative_to(source).parts))
            if not found:
                raise ValueError(f"sources: the folder {str(source)!r} holds no file.")
            files += found
        elif source.is_file():
            files.append(source)
        else:
            raise ValueError(f"sources: there is no file {str(source)!r}.")
    if not files:
        raise ValueError(f"sources ({shown(sources)}) must name one file at least.")
    for path in files:
        if _ending(path) not in ENDINGS:
            raise ValueError(f"sources: {str(path)!r} must end in {', '.join(ENDINGS)}, or in these and .gz.")
    return files


def read_documents(path, sample_by="line", field="text", encoding="utf-8"):
    """The `Document`s of a file.

    Args:
        path: a text file, or JSONL: an object on each line; compressed where its name ends in .gz.
        sample_by: what a document of a text file is: "line"; "paragraph", lines without a blank one between them;
            "document", the whole file. Blank lines before and after it are no part of one.
        field: the entry of a JSONL file's objects that holds the text.
        encoding: of the bytes.

    Yields:
        `Document`s of one character at least.

    Raises:
        ValueError: names the file and line: it is not in the encoding, no JSON object, or has no such text.
    """
    check_choice("sample_by", sample_by, SAMPLE_BY)
    check_text("field", field)
    is_json = _ending(path) in (".jsonl", ".ndjson")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file, io.TextIOWrapper(file, encoding) as stream:
            numbered = enumerate(_readable(path, lines.of_stream(stream, encoding)), 1)
            yield from _objects(path, numbered, field) if is_json else _texts(path, numbered, sample_by)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _ending(path):
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def _readable(path, texts):
    """The text of each line; blank ones are empty."""
    for place, text, error in texts:
        if error not in (None, lines.BLANK):
            raise ValueError(f"{path}, {place}: {error}.")
        yield "" if error else text


def _objects(path, numbered, field):
    for number, line in numbered:
        if not line:
            continue
        place = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place} is no JSON: {error}.") from error
        text = entry.get(field) if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{place} ({shown(line)}) must be an object with a text in {field!r}.")
        yield Document(place, text)


def _texts(path, numbered, sample_by):
    if sample_by == "line":
        yield from (Document(f"{path}, line {number}", line) for number, line in numbered if line)
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
