import numpy as np
import pytest

from kerasllm.text.tokenizers import Tokenizer
from kerasllm.training.labelled_datasets import (
    ClassificationDataset,
    QuestionAnsweringDataset,
    TokenClassificationDataset,
)

WORDS = "the cat dog sat ran on under mat log a big small and then it was good bad very not".split()
RNG = np.random.default_rng(0)
SENTENCES = [" ".join(RNG.choice(WORDS, size=n)) for n in RNG.integers(1, 15, size=50)]
BERT = Tokenizer.train_wordpiece(SENTENCES, 60)
BYTES = Tokenizer.train_bpe(SENTENCES, 280, cls="<s>", sep="</s>")


@pytest.mark.parametrize("tokenizer", [BERT, BYTES], ids=["wordpiece", "bytes"])
def test_an_answer_is_its_first_and_last_token(tokenizer):
    questions, context = ["who ran", "where", "why"], "the good cat ran under the log"
    places = [(4, 12), (17, 30), None]
    data = QuestionAnsweringDataset(questions, [context] * 3, places, tokenizer, shuffle=False, max_length=200)
    inputs, labels = data.arrays()
    assert inputs["token_ids"].shape == inputs["padding_mask"].shape == inputs["segment_ids"].shape
    encodings = tokenizer.encodings(questions, [context] * 3)
    for i, place in enumerate(places):
        start, end = labels["start_logits"][i], labels["end_logits"][i]
        if place is None:
            assert (start, end) == (0, 0)
        else:
            first, last = encodings[i].offsets[start][0], encodings[i].offsets[end][1]
            assert context[first:last].strip() == context[slice(*place)]
            assert encodings[i].sequence_ids[start] == 1


def test_long_contexts_are_dropped_and_bad_answers_refused():
    contexts = ["the cat sat", "the cat " * 50]
    data = QuestionAnsweringDataset(["who"] * 2, contexts, [(4, 7)] * 2, BERT, max_length=20, too_long="drop")
    assert data.num_too_long == 1 and len(data.arrays()[1]["start_logits"]) == 1
    for answer in ((4, 4), (-1, 2), (4, 99), (3, 4)):
        with pytest.raises(ValueError, match=r"answers\[0\] .* must be characters of contexts\[0\]"):
            QuestionAnsweringDataset(["who"], contexts[:1], [answer], BERT)
    with pytest.raises(ValueError, match="questions .1 of them., contexts .2. and answers .1. must be as many"):
        QuestionAnsweringDataset(["who"], contexts, [(4, 7)], BERT)
    with pytest.raises(ValueError, match="too_long .'truncate'. must be"):
        QuestionAnsweringDataset(["who"], contexts[:1], [(4, 7)], BERT, too_long="truncate")


def test_a_classification_batch_has_texts_pairs_and_labels():
    texts, pairs = SENTENCES[:6], SENTENCES[6:12]
    data = ClassificationDataset(
        texts, list("abcabc"), BERT, pairs=pairs, label_names=["c", "b", "a"], shuffle=False, max_length=200
    )
    inputs, labels = data.arrays()
    assert labels.tolist() == [2, 1, 0, 2, 1, 0] and labels.dtype == "int32"
    for ids, segments, real, *sides in zip(
        inputs["token_ids"], inputs["segment_ids"], inputs["padding_mask"], texts, pairs, strict=True
    ):
        assert (ids[real].tolist(), segments[real].tolist()) == BERT.encode_with_segments(*sides)
    assert "segment_ids" not in ClassificationDataset(texts, [0] * 6, BERT, segments=False, max_length=200)[0][0]


def test_labels_may_be_rows_of_numbers():
    labels = ClassificationDataset(SENTENCES[:2], [[1, 0, 1], [0, 0, 1]], BERT, max_length=200).arrays()[1]
    assert labels.dtype == "float32" and labels.tolist() == [[1, 0, 1], [0, 0, 1]]


def test_long_examples_are_dropped_or_cut_with_their_labels():
    texts = ["the cat", "the cat sat on the mat " * 5, "the dog"]
    dropped = ClassificationDataset(texts, [5, 6, 7], BERT, max_length=12, too_long="drop")
    assert dropped.arrays()[1].tolist() == [5, 7] and dropped.num_too_long == 1
    cut = ClassificationDataset(texts, [5, 6, 7], BERT, max_length=12, too_long="truncate")
    assert cut.arrays()[0]["padding_mask"].sum(axis=1)[1] == 12 and cut.num_too_long == 1


def test_a_word_has_its_label_at_its_first_token():
    words = [["Lovelace", "sat", ",", "didn't", "she"], ["the", "cat"]]
    labels = [[1, 2, 3, 4, 5], [6, 7]]
    for tokenizer in (BERT, BYTES):
        inputs, marks = TokenClassificationDataset(words, labels, tokenizer, multiple=1, max_length=200).arrays()
        for row, given, text in zip(marks, labels, words, strict=True):
            assert [m for m in row.tolist() if m != -1] == given
            (encoding,) = tokenizer.encodings([" ".join(text)])
            starts = np.cumsum([0] + [len(word) + 1 for word in text])[:-1]
            marked = [i for i, m in enumerate(row.tolist()) if m != -1]
            assert all(encoding.offsets[i][0] in (s, s - 1) for i, s in zip(marked, starts, strict=True))
    assert (inputs["padding_mask"] >= (marks != -1)).all()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ClassificationDataset(["a"], [0, 1], BERT), "labels .2 of them.*texts .1"),
        (lambda: ClassificationDataset(["a"], ["x"], BERT), "label_names"),
        (lambda: ClassificationDataset(["a"], ["x"], BERT, label_names=["y"]), r"labels\[0\] .'x'.*'y'"),
        (lambda: ClassificationDataset(["a"], [0], BERT, pairs=["b", "c"]), "pairs"),
        (lambda: ClassificationDataset(["the cat " * 99], [0], BERT), r"texts\[0\] has .* tokens, more than 128"),
        (lambda: TokenClassificationDataset([["a", "b"]], [[1]], BERT), r"words\[0\]"),
        (lambda: TokenClassificationDataset(["a"], [[1]], BERT), r"words\[0\] .'a'"),
    ],
)
def test_bad_labels_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
