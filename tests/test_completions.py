"""The text of completions: stop strings cut exactly, streams that hold whole characters."""

import pytest
import tokenizers

from kerasllm import Tokenizer
from kerasllm.text.completions import CompletionWriter

TEXTS = ["the cat sat on the mat. stop here, the dog did not.", "Grüße 🎉🎉 naïve 日本語 café", "one\n\ntwo\n\nthree"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_bpe(TEXTS, 280, bos="<s>", eos="</s>")


def grown(completion, step=1):
    lengths = [*range(step, len(completion), step), len(completion)]
    return [(completion[:n], n == len(completion)) for n in lengths]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_pieces_join_to_the_text_and_hold_whole_characters(tokenizer, text, step):
    ids = tokenizer.encode(text)
    writer = CompletionWriter(tokenizer)
    pieces = list(writer.pieces(ids[:3], grown(ids[3:], step)))
    assert "".join(pieces) == writer.write(ids[:3], ids[3:])
    assert writer.write_prompt(ids[:3]) + writer.write(ids[:3], ids[3:]) == text
    assert all(piece and "\ufffd" not in piece for piece in pieces)
    assert len(pieces) > 1


def test_bytes_that_never_become_a_character_are_written_at_the_end(tokenizer):
    half = tokenizer.encode("€")[:1]
    writer = CompletionWriter(tokenizer)
    pieces = list(writer.pieces([], grown([*half, *tokenizer.encode(" the"), *half])))
    assert "".join(pieces) == writer.write([], [*half, *tokenizer.encode(" the"), *half]) == "\ufffd the\ufffd"


@pytest.mark.parametrize(
    "stop, before",
    [
        (["stop"], "the cat sat on the mat. "),
        (["t. s"], "the cat sat on the ma"),
        ([" the"], "the cat sat on"),
        (["dog", "mat"], "the cat sat on the "),
        (["t sat on t"], "the ca"),
        (["never"], TEXTS[0]),
    ],
)
def test_a_text_ends_where_a_stop_string_begins(tokenizer, stop, before):
    ids = tokenizer.encode(TEXTS[0])
    writer = CompletionWriter(tokenizer, stop)
    assert writer.write([], ids) == before
    for step in (1, 3):
        assert "".join(writer.pieces([], grown(ids, step))) == before


def test_no_piece_shows_a_part_of_a_stop_string(tokenizer):
    ids = tokenizer.encode(TEXTS[0])
    written = ""
    for piece in CompletionWriter(tokenizer, ["mat. stop"]).pieces([], grown(ids)):
        written += piece
        assert "the cat sat on the ".startswith(written)


def test_find_stop_counts_the_tokens_up_to_its_end(tokenizer):
    ids = tokenizer.encode(TEXTS[0])
    writer = CompletionWriter(tokenizer, ["on the m"])
    expected = next(n for n in range(len(ids)) if "on the m" in tokenizer.decode(ids[:n]))
    for checked in range(expected):
        assert writer.find_stop([], ids, checked) == expected
    assert writer.find_stop([], ids[: expected - 1]) is None


def test_a_stop_string_in_the_prompt_does_not_count(tokenizer):
    ids = tokenizer.encode("the cat sat on the mat")
    writer = CompletionWriter(tokenizer, ["cat"])
    assert writer.find_stop(ids[:5], ids[5:]) is None


def test_before_the_least_number_of_tokens_no_stop_string_counts(tokenizer):
    ids = tokenizer.encode("the cat and the dog")
    first = next(n for n in range(len(ids)) if "the" in tokenizer.decode(ids[:n]))
    writer = CompletionWriter(tokenizer, ["the"], min_tokens=first + 1)
    assert writer.write([], ids) == "the cat and "
    exact = CompletionWriter(tokenizer, ["the"], min_tokens=first)
    assert exact.write([], ids) == "" and exact.find_stop([], ids) == first


def test_decoders_that_begin_a_text_in_their_own_way_keep_the_space_between():
    tokenizer = Tokenizer.train_unigram(TEXTS, 60, unk="<unk>", bos="<s>")
    ids = tokenizer.encode("the cat sat")
    cut = next(n for n in range(len(ids)) if tokenizer.decode(ids[:n]) == "the")
    assert CompletionWriter(tokenizer).write(ids[:cut], ids[cut:]) == " cat sat"


def test_special_tokens_are_not_written(tokenizer):
    ids = tokenizer.encode("the cat")
    assert CompletionWriter(tokenizer).write([tokenizer.bos_id], [*ids, tokenizer.eos_id]) == "the cat"


def test_a_space_that_may_be_cleaned_up_waits():
    vocabulary = {"<unk>": 0, "▁is": 1, "▁n": 2, "'t": 3, "▁,": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.decoder = tokenizers.decoders.Metaspace()
    tokenizer = Tokenizer(backend, unk="<unk>", config={"clean_up_tokenization_spaces": True})
    ids = [1, 2, 3, 4, 1]
    assert tokenizer.decode(ids) == "isn't, is" == "".join(CompletionWriter(tokenizer).pieces([], grown(ids)))
