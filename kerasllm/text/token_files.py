"""Token ids of a corpus in files that are mapped into memory, written in one go or in several."""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kerasllm.arguments import check_boolean, check_choice, is_whole, read_path, shown
from kerasllm.json_files import read_json
from kerasllm.text.corpora import BLANK_LINES, check_encoding, find_files, read_documents
from kerasllm.writing import held, replacing

FORMAT, VERSION = "kerasllm tokens", 1
IDS, STARTS, MANIFEST = "ids.npy", "starts.npy", "manifest.json"
FILES = (IDS, STARTS, MANIFEST)
JOB, PROGRESS, LOCK = "job.json", "progress.json", "lock"  # of a writer
HEADER = 128  # bytes of an .npy file of one axis before its numbers
CHUNK = 2**21  # characters that are tokenized at a time
SECONDS = 2.0  # between two notes of progress


class TokenFile:
    """Documents as token ids, one after the other, in a folder of files that are read where they are needed.

        tokens = TokenFile.write("wiki.tokens", ["wiki.jsonl.gz", "more/"], tokenizer)
        dataset = LanguageModelDataset(TokenFile("wiki.tokens"), tokenizer, sequence_length=1024)

    The tokenizer's bos and eos, as far as it has them, stand round each document; where both are one token it stands
    once between two. `ids.npy` holds the ids (N,), uint16 where the vocabulary allows it and else uint32; `starts.npy`
    the place where each document begins, and where the last ends, (D + 1,) uint64; `manifest.json` the rest.

    A sequence: `tokens[i]` are the ids of document i, int32, without bos and eos.

    Parallel text is a file of each side, whose lines are kept together by `blank_lines`:

        source = TokenFile.write("train.en.tokens", "train.en", english, blank_lines="keep")
        target = TokenFile.write("train.de.tokens", "train.de", german, blank_lines="keep")
        dataset = TranslationDataset((source, target), english, german)

    Args:
        folder: path.

    Attributes:
        ids: (N,) uint16 or uint32, mapped.
        starts: (D + 1,) uint64, mapped.
        largest_at: the place of the first of the largest ids.
        manifest: dict of `num_tokens` N, `num_documents` D, `vocabulary_size`, `bos_id`, `eos_id`,
            `tokenizer`, the SHA-256 of what decides its ids, and what the corpus was.

    Raises:
        ValueError: the folder holds no token file, or another version's, or its files are not of the sizes that the
            manifest says.
    """

    def __init__(self, folder):
        self.folder = Path(read_path("folder", folder))
        if partial(self.folder).is_dir() and not (self.folder / MANIFEST).exists():
            raise ValueError(f"folder ({str(folder)!r}) is not written to its end: call TokenFile.write again.")
        self.manifest = read_json(self.folder / MANIFEST)
        found = self.manifest.get("format"), self.manifest.get("version")
        if found != (FORMAT, VERSION):
            raise ValueError(f"folder ({str(folder)!r}): {MANIFEST} must be of {FORMAT!r}, {VERSION}, not of {found}.")
        for name in ("num_tokens", "num_documents", "largest_at", "bos_id", "eos_id"):
            value = self.manifest.get(name)
            if not (is_whole(value) and value >= 0 or value is None and name.endswith("_id")):
                raise ValueError(f"{self.folder / MANIFEST}: {name} ({shown(value)}) must be a whole number from 0 on.")
        self.ids = self._mapped(IDS, "num_tokens", 0)
        self.starts = self._mapped(STARTS, "num_documents", 1)
        self.largest_at = self.manifest["largest_at"]
        if len(self.ids) - int(self.starts[-1]) not in (0, 1):
            raise ValueError(f"{self.folder / STARTS} ends at {self.starts[-1]}, and there are {len(self.ids)} ids.")

    def _mapped(self, name, count, more):
        path = self.folder / name
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no array of token ids: {error}") from error
        if array.shape != (self.manifest[count] + more,) or array.dtype.kind != "u":
            raise ValueError(
                f"{path} holds {array.shape} of {array.dtype}, and {MANIFEST} says {self.manifest[count] + more}."
            )
        return array

    def __reduce__(self):
        return TokenFile, (self.folder,)  # other processes map the files too

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, index):
        index = range(len(self))[index]
        start, end = map(int, self.starts[index : index + 2])
        return self.ids[start + (self.manifest["bos_id"] is not None) : end - self._ends_with_eos].astype("int32")

    @property
    def lengths(self):
        """How many ids each document has without bos and eos: (D,) int32, made anew each time."""
        around = (self.manifest["bos_id"] is not None) + self._ends_with_eos
        return (np.diff(self.starts) - np.uint64(around)).astype("int32")

    @property
    def share_ends(self):
        """Whether bos and eos are one token, which ends a document and begins the next."""
        bos, eos = self.manifest["bos_id"], self.manifest["eos_id"]
        return bos is not None and bos == eos

    @property
    def _ends_with_eos(self):
        return self.manifest["eos_id"] is not None and not self.share_ends

    def check_tokenizer(self, name, tokenizer):
        """Raise `ValueError` unless a tokenizer is the one that the ids are from."""
        if fingerprint(tokenizer) != self.manifest["tokenizer"]:
            raise ValueError(f"{name} ({tokenizer}) must be the one that {str(self.folder)!r} was written with.")

    @classmethod
    def write(
        cls,
        folder,
        sources,
        tokenizer,
        sample_by="line",
        field="text",
        encoding="utf-8",
        overwrite=False,
        progress=None,
        blank_lines="skip",
    ):
        """Tokenize a corpus on all cores, in memory that does not grow with it.

        What is written is `folder` once it is whole. Until then it is in `folder.partial`: where that was left by a
        writer that was interrupted, the same call goes on from there, and the end is equal.

        Args:
            folder: path.
            sources: path of a text or JSONL file, .gz or not, or of a folder of them, or several.
            tokenizer: a `kerasllm.Tokenizer`.
            sample_by: what a document of a text file is: "line", "paragraph" or "document", the whole file.
            field: the entry of a JSONL file's objects that holds the text.
            encoding: of the files.
            overwrite: whether it takes the place of another `folder`.
            progress: function (bytes read, bytes of all files, documents, tokens), called now and then and at the end.
                Of a file that is being read the bytes are guessed from its characters.
            blank_lines: what a line of spaces, or of nothing, is where lines are documents: "skip", none; "keep", a
                document without ids, as is a line of which the tokenizer leaves none; "error" names the file and the
                line. Both of the latter keep parallel text together, whose files may then have any ending.

        Returns:
            The `TokenFile`.

        Raises:
            ValueError: something is there already, or is written by another process; the interrupted writer had other
                sources or settings; a line cannot be read, of which the error names file and number, or the disk is
                full. What was tokenized until then stays, and the same call goes on once the reason is gone; a file
                that was not read to its end is read anew where it has changed.
        """
        check_boolean("overwrite", overwrite)
        folder = Path(read_path("folder", folder))
        if os.path.lexists(folder) and not overwrite:
            raise ValueError(f"folder ({str(folder)!r}) is there already; overwrite=True replaces it.")
        corpus = Corpus.of(sources, sample_by, field, encoding, blank_lines)
        with _partial(folder) as place:
            writer = Writer(place, tokenizer, corpus)
            try:
                writer.run(progress)
            except OSError as error:
                raise ValueError(f"folder ({str(folder)!r}) cannot be written: {error}") from error
            with replacing(folder, "folder") as new:
                os.rename(place, new)
            for name in (JOB, PROGRESS, LOCK):
                (folder / name).unlink(missing_ok=True)
        return cls(folder)


def fingerprint(tokenizer):
    """The SHA-256 of all that decides a tokenizer's ids, in hexadecimal digits."""
    splits = tokenizer.backend.encode_special_tokens  # what looks like a special token in a text
    parts = [tokenizer.backend.to_str(), tokenizer.bos_id, tokenizer.eos_id, splits]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def id_dtype(tokenizer):
    """The smallest type that holds a tokenizer's ids."""
    return np.dtype("<u2" if tokenizer.vocabulary_size <= 2**16 else "<u4")


def partial(folder):
    """Where a token file is written."""
    return folder.with_name(f"{folder.name}.partial")


@contextlib.contextmanager
def _partial(folder):
    """The folder that a token file is written in, held against other writers."""
    place = partial(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"folder ({str(folder)!r}) cannot be written: {error}") from error
    with held(place / LOCK) as is_ours:
        if not is_ours:
            raise ValueError(f"folder ({str(folder)!r}) is being written by another process or thread.")
        yield place


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What is tokenized: files, and how documents are found in them."""

    files: list
    sample_by: str
    field: str
    encoding: str
    blank_lines: str

    @classmethod
    def of(cls, sources, *how):
        *_, encoding, blank_lines = how
        check_encoding(encoding)
        check_choice("blank_lines", blank_lines, BLANK_LINES)
        return cls(find_files(sources, any_ending=blank_lines != "skip"), *how)

    def listed(self):
        """Of each file what tells it from what it was when another writer read it."""
        return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in self.files]

    def settings(self):
        """How documents are found."""
        return {name: getattr(self, name) for name in ("sample_by", "field", "encoding", "blank_lines")}

    def chunks(self, num_files, num_documents):
        """Lists of documents of `CHUNK` characters or a little more.

        Args:
            num_files: files that are passed over.
            num_documents: documents of the next that are passed over.

        Yields:
            The number of files read to their ends, that of documents of the next, the documents since the last.
        """
        chunk, size = [], 0
        for number, path in enumerate(self.files[num_files:], num_files):
            documents = read_documents(path, **self.settings())
            for count, document in enumerate(documents, 1):
                if number == num_files and count <= num_documents:
                    continue
                chunk.append(document)
                size += len(document.text)
                if size >= CHUNK:
                    yield number, count, chunk
                    chunk, size = [], 0
        yield len(self.files), 0, chunk


class Writer:
    """Appends chunks to the files of a folder, and notes how far it has come."""

    def __init__(self, folder, tokenizer, corpus):
        self.folder, self.tokenizer, self.corpus = folder, tokenizer, corpus
        self.bos, self.eos = tokenizer.bos_id, tokenizer.eos_id
        self.dtype = id_dtype(tokenizer)
        self.files = corpus.listed()
        self.settings = {**corpus.settings(), "tokenizer": fingerprint(tokenizer), "version": VERSION}
        self.done = dict.fromkeys(("files", "documents_of_file", "characters_of_file", "num_tokens"), 0)
        self.done |= {"num_documents": 0, "largest_at": 0, "largest": -1}
        self.before_file = self.done.copy()  # what was done before the file that is read now

    def run(self, progress):
        """Write all that is left to write."""
        self._take_up()
        sizes = [size for _, size, _ in self.files]
        with open(self.folder / IDS, "r+b") as ids, open(self.folder / STARTS, "r+b") as starts:
            ids.seek(HEADER + self.done["num_tokens"] * self.dtype.itemsize)
            starts.seek(HEADER + self.done["num_documents"] * 8)
            noted = time.monotonic()
            for files, documents_of_file, characters, rows in self._tokenized():
                if files > self.done["files"]:
                    self.before_file = self.done.copy()
                    characters = 0  # most of them are of files that have ended
                else:
                    characters += self.done["characters_of_file"]
                self._append(ids, starts, rows)
                self.done |= {
                    "files": files,
                    "documents_of_file": documents_of_file,
                    "characters_of_file": characters,
                }
                if time.monotonic() > noted + SECONDS:
                    self._note(ids, starts)
                    noted = time.monotonic()
                    if progress:
                        inside = sum(sizes[files : files + 1])
                        read = sum(sizes[:files]) + min(inside, self.done["characters_of_file"])
                        progress(read, sum(sizes), self.done["num_documents"], self.done["num_tokens"])
            self._note(ids, starts)
            self._end(ids, starts)
        if progress:
            progress(sum(sizes), sum(sizes), self.done["num_documents"], self.done["num_tokens"])

    def _take_up(self):
        """Begin, or go on where another has been interrupted; a file that has changed since is read anew."""
        if (self.folder / PROGRESS).exists():
            job, noted = (read_json(self.folder / name) for name in (JOB, PROGRESS))
            job.setdefault("blank_lines", BLANK_LINES[0])  # as it was before there was a choice
            self.done, self.before_file = noted["done"], noted["before_file"]
            ended = slice(self.done["files"])
            for name, value in (*self.settings.items(), ("files", self.files[ended])):
                before = job["files"][ended] if name == "files" else job[name]
                if value != before:
                    raise ValueError(
                        f"{str(self.folder)!r} was begun with another {name} ({shown(before)}, now {shown(value)}); "
                        "delete it to begin anew."
                    )
            now = slice(self.done["files"], self.done["files"] + 1)
            if self.files[now] != job["files"][now]:
                self.done = self.before_file.copy()
            self._note()  # before the job is written, which may name that file as it is now
        else:
            for name in (IDS, STARTS):
                (self.folder / name).write_bytes(bytes(HEADER))
        _write_json(self.folder / JOB, {**self.settings, "files": self.files})
        self._note()

    def _note(self, *files):
        """Note how far the files are written, once the disk has it."""
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        _write_json(self.folder / PROGRESS, {"done": self.done, "before_file": self.before_file})

    def _tokenized(self):
        """The corpus's chunks as token ids; the next is read while one is tokenized."""
        chunks = self.corpus.chunks(self.done["files"], self.done["documents_of_file"])
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(next, chunks, None)
            while (current := coming.result()) is not None:
                coming = reader.submit(next, chunks, None)
                files, documents_of_file, documents = current
                yield files, documents_of_file, sum(len(text) for _, text in documents), self._encoded(documents)

    def _encoded(self, documents):
        try:
            rows = iter(self.tokenizer.encode_batch([text for _, text in documents if text], special_tokens=False))
            rows = [next(rows) if text else [] for _, text in documents]
        except ValueError:
            for place, text in documents:
                try:
                    self.tokenizer.encode_batch([text], special_tokens=False)
                except ValueError as error:
                    raise ValueError(f"{place}: {error}") from error
            raise
        for (place, text), row in zip(documents, rows, strict=True):
            if not row and self.corpus.blank_lines != "keep":
                raise ValueError(f"{place} ({shown(text)}) has no tokens.")
        return rows

    def _append(self, ids, starts, rows):
        places = []
        for row in rows:
            places.append(self.done["num_tokens"])
            if self.bos is not None:
                row.insert(0, self.bos)
            if self.eos not in (None, self.bos):
                row.append(self.eos)
            array = np.array(row, self.dtype)
            ids.write(array)
            if (largest := int(array.max(initial=0))) > self.done["largest"] and row:
                self.done |= {"largest": largest, "largest_at": self.done["num_tokens"] + int(array.argmax())}
            self.done["num_tokens"] += len(array)
        starts.write(np.array(places, "<u8"))
        self.done["num_documents"] += len(rows)

    def _end(self, ids, starts):
        """Write what stands behind the last document and before the first, and the manifest."""
        done = self.done
        if not done["num_documents"]:
            raise ValueError(f"sources ({shown(list(map(str, self.corpus.files)))}) hold no documents.")
        starts.write(np.array([done["num_tokens"]], "<u8"))
        if self.bos is not None and self.bos == self.eos:
            ids.write(np.array([self.eos], self.dtype))
            done["num_tokens"] += 1
        for file, dtype, count in ((ids, self.dtype, done["num_tokens"]), (starts, "<u8", done["num_documents"] + 1)):
            file.truncate()
            file.seek(0)
            described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(file, described)  # HEADER bytes
            file.flush()
            os.fsync(file.fileno())
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **{name: done[name] for name in ("num_tokens", "num_documents", "largest_at")},
            "vocabulary_size": self.tokenizer.vocabulary_size,
            "bos_id": self.bos,
            "eos_id": self.eos,
            "tokenizer": self.settings["tokenizer"],
            **self.corpus.settings(),
            "files": [{"name": Path(name).name, "size": size} for name, size, _ in self.files],
        }
        _write_json(self.folder / MANIFEST, manifest)


def _write_json(path, value):
    new = path.with_suffix(".new")
    with open(new, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
