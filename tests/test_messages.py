import os

import pytest

from kerasllm.export.messages import without_notes

NOTES = b"INFO: Created a delegate.\nI0000 00:00:1.2 3 reader.cc:83] Reading\n"
NEWS = b"WARNING: it is old\nERROR: it is broken\nW0000 00:00:1.2 3 a.cc:1] odd\n"


def test_notes_are_left_out_and_news_is_written_afterwards(capfd):
    with without_notes():
        os.write(2, NOTES + NEWS)
        with without_notes():  # of a thread that is in already
            os.write(2, NOTES)
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err.encode() == NEWS


def test_where_there_is_an_error_all_is_written(capfd):
    with pytest.raises(RuntimeError), without_notes():
        os.write(2, NOTES + NEWS)
        raise RuntimeError
    assert capfd.readouterr().err.encode() == NOTES + NEWS
