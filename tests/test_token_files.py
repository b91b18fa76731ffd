"""Corpora as token ids in mapped files: what is in them, and that nothing interrupts them for good."""

import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from kerasllm.text import token_files
from kerasllm.text.token_files import TokenFile, partial
from kerasllm.text.tokenizers import Tokenizer

WORDS = "the cat dog sat ran on under mat log a big small and then it was good bad very not".split()
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, size=n)) for n in RNG.integers(1, 30, size=400)]
ONE = Tokenizer.train_bpe(TEXTS, 300)  # one token for bos and eos
TWO = Tokenizer.train_words(TEXTS, 100)  # <s> and </s>


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus").mkdir()
    for i in range(4):
        (tmp_path / "corpus" / f"{i}.txt").write_text("\n".join(TEXTS[100 * i : 100 * i + 100]))
    return tmp_path / "corpus"


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(token_files, "CHUNK", 1000)
    monkeypatch.setattr(token_files, "SECONDS", 0.0)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("tokenizer", [ONE, TWO])
def test_documents_come_back(tokenizer, corpus, tmp_path, small_chunks):
    calls = []
    tokens = TokenFile.write(tmp_path / "out", corpus, tokenizer, progress=lambda *call: calls.append(call))
    assert [list(row) for row in tokens] == tokenizer.encode_batch(TEXTS, special_tokens=False)
    around = {ONE: "<|endoftext|>".join(["", *TEXTS, ""]), TWO: "".join(f"<s> {text} </s> " for text in TEXTS).strip()}
    assert tokenizer.decode(tokens.ids, skip_special_tokens=False) == around[tokenizer]
    assert tokens.ids[tokens.largest_at] == tokens.ids.max() and tokens.ids[: tokens.largest_at].max() < max(tokens.ids)
    assert len(tokens) == 400 and tokens.manifest["num_tokens"] == len(tokens.ids) == tokens.starts[-1] + (
        tokenizer is ONE
    )
    size = sum(path.stat().st_size for path in corpus.iterdir())
    assert calls[-1] == (size, size, 400, len(tokens.ids)) and calls[0][0] < size
    assert tokens.ids.dtype == "uint16" and sorted(contents(tmp_path / "out")) == sorted(token_files.FILES)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tokens)).ids, tokens.ids)
    assert len(pickle.dumps(tokens)) < 1000


def test_blank_lines_keep_their_places_or_are_refused(tmp_path, small_chunks):
    path = tmp_path / "train.en"
    path.write_text("the cat\n\n \t\nthe dog\n\n")
    expected = ["the cat", "", "", "the dog", ""]
    for i, tokenizer in enumerate((ONE, TWO, Tokenizer.train_words(TEXTS, 100, bos=None, eos=None))):
        tokens = TokenFile.write(tmp_path / f"out{i}", path, tokenizer, blank_lines="keep")
        assert [list(row) for row in tokens] == [tokenizer.encode(t, special_tokens=False) for t in expected]
        assert tokens.lengths.tolist() == [len(row) for row in tokens] and len(tokens) == 5
        assert tokens.manifest["blank_lines"] == "keep" and tokens.ids[tokens.largest_at] == tokens.ids.max()
    with pytest.raises(ValueError, match="train.en, line 2 is blank"):
        TokenFile.write(tmp_path / "no", path, ONE, blank_lines="error")
    with pytest.raises(ValueError, match="was begun with another blank_lines .'error', now 'keep'"):
        TokenFile.write(tmp_path / "no", path, ONE, blank_lines="keep")
    with pytest.raises(ValueError, match="train.en' must end in .txt"):
        TokenFile.write(tmp_path / "other", path, ONE)
    path.write_text("\n\n")
    only = Tokenizer.train_words(TEXTS, 100, bos=None, eos=None)
    assert TokenFile.write(tmp_path / "blank", path, only, blank_lines="keep").lengths.tolist() == [0, 0]


def test_an_older_writer_s_work_is_taken_up(corpus, tmp_path, small_chunks):
    """What it has noted does not say what blank lines are: nothing, as there was no choice."""
    (corpus / "3.txt").write_bytes(b"b\xfcse\n")
    with pytest.raises(ValueError, match="line 1"):
        TokenFile.write(tmp_path / "out", corpus, ONE)
    job = partial(tmp_path / "out") / token_files.JOB
    noted = token_files.read_json(job)
    del noted["blank_lines"]
    token_files._write_json(job, noted)
    (corpus / "3.txt").write_text("the cat")
    assert len(TokenFile.write(tmp_path / "out", corpus, ONE)) == 301


CHILD = """
import os, signal, sys
from kerasllm.text import token_files
from kerasllm.text.tokenizers import Tokenizer
token_files.CHUNK, token_files.SECONDS = 1000, 0.0
folder, corpus, tokenizer, most = sys.argv[1:]

def killed(read, size, documents, tokens):
    if documents >= int(most):
        os.kill(os.getpid(), signal.SIGKILL)

token_files.TokenFile.write(folder, corpus, Tokenizer.from_folder(tokenizer), progress=killed)
"""


def test_a_killed_writer_is_followed_by_one_that_ends_its_work(corpus, tmp_path, small_chunks):
    ONE.save(tmp_path / "tokenizer")
    killed = tmp_path / "killed"
    for most in (50, 230):
        command = [sys.executable, "-c", CHILD, killed, corpus, tmp_path / "tokenizer", str(most)]
        assert subprocess.run(command).returncode == -signal.SIGKILL
        noted = token_files.read_json(partial(killed) / token_files.PROGRESS)
        assert most - 50 < noted["done"]["num_documents"] < most + 50
        with pytest.raises(ValueError, match="not written to its end"):
            TokenFile(killed)
    read = []
    TokenFile.write(killed, corpus, ONE, progress=lambda read_, size, documents, tokens: read.append(documents))
    assert min(read) >= 230  # it does not begin anew
    TokenFile.write(tmp_path / "whole", corpus, ONE)
    assert contents(killed) == contents(tmp_path / "whole") and not partial(killed).exists()


def test_what_is_wrong_is_mended_and_the_writer_goes_on(corpus, tmp_path, small_chunks):
    good = (corpus / "2.txt").read_bytes()
    (corpus / "2.txt").write_bytes(good + b"\nb\xfcse\n")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="2.txt, line 101: it is not in utf-8"):
        TokenFile.write(out, corpus, ONE)
    assert not out.exists()
    with pytest.raises(ValueError, match="was begun with another tokenizer"):
        TokenFile.write(out, corpus, TWO)
    with pytest.raises(ValueError, match="was begun with another sample_by .'line', now 'document'"):
        TokenFile.write(out, corpus, ONE, sample_by="document")
    (corpus / "2.txt").write_bytes(good)
    TokenFile.write(out, corpus, ONE)
    TokenFile.write(tmp_path / "whole", corpus, ONE)
    assert contents(out)["ids.npy"] == contents(tmp_path / "whole")["ids.npy"]
    with pytest.raises(ValueError, match="there already"):
        TokenFile.write(out, corpus, ONE)
    assert len(TokenFile.write(out, corpus / "0.txt", TWO, overwrite=True)) == 100


def test_files_that_were_read_must_stay_as_they_are(corpus, tmp_path, small_chunks):
    (corpus / "2.txt").write_bytes(b"b\xfcse\n")
    with pytest.raises(ValueError, match="line 1"):
        TokenFile.write(tmp_path / "out", corpus, ONE)
    os.utime(corpus / "0.txt", (1, 1))
    with pytest.raises(ValueError, match="was begun with another files .*delete it"):
        TokenFile.write(tmp_path / "out", corpus, ONE)


def test_one_writes_at_a_time(corpus, tmp_path):
    def begin_another(*_):
        with pytest.raises(ValueError, match="is being written by another"):
            TokenFile.write(tmp_path / "out", corpus, ONE)
        seen.append(True)

    seen = []
    TokenFile.write(tmp_path / "out", corpus, ONE, progress=begin_another)
    assert seen


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is full")
def test_a_full_disk_is_an_error(corpus, tmp_path):
    partial(tmp_path / "out").mkdir()
    os.symlink("/dev/full", partial(tmp_path / "out") / "ids.npy")
    with pytest.raises(ValueError, match="folder .* cannot be written: .*No space left"):
        TokenFile.write(tmp_path / "out", corpus, ONE)
    assert not (tmp_path / "out").exists()


def test_what_is_no_token_file_is_refused(corpus, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="hold no documents"):
        TokenFile.write(tmp_path / "none", tmp_path / "empty.txt", ONE)
    tokens = TokenFile.write(tmp_path / "out", corpus, ONE)
    with pytest.raises(ValueError, match="must be the one that"):
        tokens.check_tokenizer("tokenizer", TWO)
    with pytest.raises(ValueError, match="must be the one that"):
        tokens.check_tokenizer("tokenizer", Tokenizer(ONE.backend, eos="<|endoftext|>"))
    (tmp_path / "out" / "ids.npy").write_bytes((tmp_path / "out" / "ids.npy").read_bytes()[:-100])
    with pytest.raises(ValueError, match="ids.npy is no array"):
        TokenFile(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text('{"format": "kerasllm tokens", "version": 1, "num_tokens": -1}')
    with pytest.raises(ValueError, match=r"num_tokens \(-1\) must be a whole number"):
        TokenFile(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="must be of 'kerasllm tokens', 1"):
        TokenFile(tmp_path / "out")
    with pytest.raises(ValueError, match="manifest.json"):
        TokenFile(tmp_path)
