"""Documents of text files, with the places where they stand."""

import gzip
import json

import pytest

from kerasllm.text.corpora import find_files, read_documents, read_lines

TEXT = "\n one \ntwo\r\n\n\nthree\n\nfour"


def texts(path, **arguments):
    return [document.text for document in read_documents(path, **arguments)]


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_a_text_file_is_lines_paragraphs_or_one_document(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(TEXT.encode()) if ending.endswith("gz") else TEXT.encode())
    assert texts(path) == [" one ", "two", "three", "four"]
    assert texts(path, sample_by="paragraph") == [" one \ntwo", "three", "four"]
    assert texts(path, sample_by="document") == [" one \ntwo\n\n\nthree\n\nfour"]
    assert [d.place.removeprefix(f"{path}, ") for d in read_documents(path)] == ["line 2", "line 3", "line 6", "line 8"]


def test_blank_lines_are_passed_over_kept_or_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.encode())
    assert texts(path, blank_lines="keep") == ["", " one ", "two", "", "", "three", "", "four"]
    assert [d.text for d in read_lines(path)] == texts(path, blank_lines="keep")
    with pytest.raises(ValueError, match="a.txt, line 1 is blank"):
        texts(path, blank_lines="error")
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\xe2\x80\xa8too\n \t\r\n")
    assert [d.text for d in read_lines(path)] == ["one", "two\u2028too", ""]
    json_lines = tmp_path / "a.jsonl"
    json_lines.write_text('{"text": "a"}\n\n{"text": " "}\n{"text": ""}\n')
    assert texts(json_lines, blank_lines="keep") == ["a", "", ""]
    with pytest.raises(ValueError, match="line 3 .* must be an object with a text"):
        texts(json_lines, blank_lines="error")
    with pytest.raises(ValueError, match="blank_lines .'none'. must be one of 'skip', 'keep', 'error'"):
        texts(path, blank_lines="none")
    with pytest.raises(ValueError, match="blank_lines .'keep'. is for sample_by='line', not 'paragraph'"):
        texts(path, blank_lines="keep", sample_by="paragraph")


def test_jsonl_and_encodings(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(["", json.dumps({"body": "a\nb"}), "  ", json.dumps({"body": "ü", "more": 1})]), "utf-8")
    assert texts(path, field="body") == ["a\nb", "ü"]
    other = tmp_path / "b.txt"
    for encoding in ("latin-1", "utf-16", "utf-8-sig"):
        other.write_bytes("grün\nblau\n".encode(encoding))
        assert texts(other, encoding=encoding) == ["grün", "blau"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"good\nb\xfcse\n", "line 2: it is not in utf-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is no JSON"),
        ("a.jsonl", b'{"text": "a"}\n["a"]\n', "line 2 .* must be a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": " "}\n', "line 2 .* must be an object with a text"),
        ("a.jsonl", b'{"text": 3}\n', "line 1 .* must be an object with a text"),
        ("a.txt.gz", gzip.compress(b"good\n" * 9)[:-9], "a.txt.gz cannot be read"),
        ("b.txt.gz", b"good\n", "b.txt.gz cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        texts(path)


@pytest.mark.parametrize(("encoding", "message"), [("utf-16", "a.txt is not in utf-16"), ("utf-61", "encoding .'utf-")])
def test_encodings_of_more_bytes_and_unknown_ones_are_named(encoding, message, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"odd")
    with pytest.raises(ValueError, match=message):
        texts(path, encoding=encoding)


def test_files_of_folders_come_in_the_order_of_their_names(tmp_path):
    for name in ("b.txt", "a.jsonl", "c/d.txt.gz", ".hidden.txt", ".git/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in find_files(tmp_path)]
    assert found == ["a.jsonl", "b.txt", "c/d.txt.gz"]
    assert find_files([tmp_path / "b.txt", str(tmp_path / "c")]) == [tmp_path / "b.txt", tmp_path / "c" / "d.txt.gz"]
    with pytest.raises(ValueError, match="no file 'nowhere'"):
        find_files(["nowhere"])
    (tmp_path / "notes.md").write_text("a")
    with pytest.raises(ValueError, match="notes.md' must end in .txt"):
        find_files(tmp_path)
    (tmp_path / "train.en").write_text("a")
    with pytest.raises(ValueError, match="train.en' must end in .txt"):
        find_files([tmp_path / "train.en"])
    assert find_files([tmp_path / "train.en"], any_ending=True) == [tmp_path / "train.en"]
    with pytest.raises(ValueError, match="must end in .txt"):
        find_files(tmp_path, any_ending=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file"):
        find_files(tmp_path / "empty")
    with pytest.raises(ValueError, match="one file at least"):
        find_files([])
