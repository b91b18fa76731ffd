"""Lines of text in and out of a process: one in, one out, whatever is wrong with one of them."""

import codecs
import contextlib
import io
import itertools
import json
import os
import sys
from typing import NamedTuple

from kerasllm.arguments import shown


class Text(NamedTuple):
    """A text to work on.

    Args:
        place: what an error calls it, such as "line 3".
        text: the text.
        error: why it cannot be read, or None.
    """

    place: str
    text: str
    error: str | None = None


def of_arguments(texts):
    """`Text`s of a command's arguments; bytes that are no UTF-8 came in as lone surrogates."""
    for number, text in enumerate(texts, 1):
        place = f"text {number}"
        yield _decoded(place, os.fsencode(text), "utf-8") if _has_surrogates(text) else Text(place, text)


def of_stream(stream, encoding="utf-8"):
    """`Text`s of the lines of a stream, one after the other as they come, without line ends and byte order mark.

    Args:
        stream: a text stream, such as `sys.stdin`; its bytes are decoded here, each line by itself. None is empty.
        encoding: of the bytes.
    """
    stream = io.StringIO() if stream is None else stream
    if hasattr(stream, "buffer") and "\n".encode(encoding) == b"\n":
        for number, line in enumerate(stream.buffer, 1):
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if number == 1 and codecs.lookup(encoding).name == "utf-8":
                line = line.removeprefix(codecs.BOM_UTF8)
            yield _decoded(f"line {number}", line, encoding)
        return
    leave = contextlib.ExitStack()
    if hasattr(stream, "buffer"):  # UTF-16: a line feed is more than a byte
        stream = io.TextIOWrapper(stream.buffer, encoding, newline="\n")
        leave.callback(stream.detach)  # the bytes are another's to close
    with leave:
        for number, line in enumerate(stream, 1):
            line = line.removesuffix("\n").removesuffix("\r")
            yield _checked(f"line {number}", line.removeprefix("\ufeff") if number == 1 else line)


def read_all(stream, encoding="utf-8"):
    """The whole text of a stream; `ValueError` where it is not in the encoding."""
    texts = list(of_stream(stream, encoding))
    for place, _, error in texts:
        if error and error != BLANK:
            raise ValueError(f"{place}: {error}")
    return "\n".join(text for _, text, _ in texts)


BLANK = "it is blank"


def _decoded(place, data, encoding):
    try:
        return _checked(place, data.decode(encoding))
    except UnicodeDecodeError as error:
        return Text(place, data.decode(encoding, "replace"), f"it is not in {encoding}: {error.reason}")


def _checked(place, text):
    return Text(place, text, None if text.strip() else BLANK)


def check_readable(name, text):
    """Raise `ValueError` where an argument's bytes were no UTF-8."""
    if _has_surrogates(text):
        raise ValueError(f"{name} ({shown(text)}) must be UTF-8.")


def redecoded(argument):
    """An argument of the process that a locale without UTF-8 has garbled, as it was."""
    if _has_surrogates(argument):
        with contextlib.suppress(UnicodeError):
            return os.fsencode(argument).decode("utf-8")
    return argument


def _has_surrogates(text):
    return any("\ud800" <= c <= "\udfff" for c in text)


def answer(texts, run, write, batch_size):
    """Answer texts, some at a time, and write what comes out for each in their order.

    Args:
        texts: iterable of `Text`s. It is read as far as the next batch.
        run: function (list of strings, place of the first among those that could be read) -> as many outputs. Where it
            raises ValueError or FloatingPointError, the batch is halved until what is wrong is alone.
        write: function (`Text`, output, error or None).
        batch_size: the most texts at a time.

    Returns:
        Whether all have been answered.
    """
    texts, num_read, all_well = iter(texts), 0, True
    while batch := list(itertools.islice(texts, batch_size)):
        readable = [text for text in batch if text.error is None]
        outputs = iter(_outputs([text.text for text in readable], run, num_read))
        num_read += len(readable)
        for text in batch:
            output, error = next(outputs) if text.error is None else (None, text.error)
            all_well = all_well and error is None
            write(text, output, error)
        flush()
    return all_well


def _outputs(texts, run, first):
    """For each text its output and None, or None and the error."""
    if not texts:
        return []
    try:
        return [(output, None) for output in run(texts, first)]
    except (ValueError, FloatingPointError) as error:
        if len(texts) == 1:
            return [(None, one_line(error))]
    half = len(texts) // 2
    return _outputs(texts[:half], run, first) + _outputs(texts[half:], run, first + half)


def one_line(error, longest=500):
    """An error's message on one line."""
    message = " ".join(str(error).split())
    return message if len(message) <= longest else f"{message[:longest]}..."


def escaped(text, tabs=False):
    """A text as a part of a line: a line feed becomes a backslash and an n, a carriage return an r."""
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    return text.replace("\t", "\\t") if tabs else text


def write_json(value, default=None):
    """Print an object on a line; `default` is that of `json.dumps`."""
    print(json.dumps(value, ensure_ascii=False, default=default))


def complain(message):
    """Print a message to the standard error, on a line."""
    with contextlib.suppress(OSError):  # nobody reads on
        print(f"kerasllm: {one_line(message)}", file=sys.stderr or io.StringIO(), flush=True)


def flush():
    """Hand on what has been printed."""
    if sys.stdout is not None:
        sys.stdout.flush()


def use_utf8():
    """Write UTF-8 whatever the locale says."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


def abandon():
    """Let what cannot be written go, or Python would try again at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):
            continue
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
