"""Texts longer than a model, read in windows by `tag`, `classify` and `embed`."""

import types

import numpy as np
import pytest

from kerasllm import BERTClassifier, BERTEmbedder, BERTTokenClassifier, Tokenizer
from kerasllm.tasks.predicting import predict, softmax
from kerasllm.tasks.windows import Windows, in_windows, of_tokens

SHORT, LONG = "the cat sat on the mat", "the cat sat on the mat and the dog ran to the cat in the rain near London"
TOKENIZER = Tokenizer.train_wordpiece([LONG.lower(), "query: about"] * 3, 90)
SIZE = dict(vocabulary_size=90, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=12, dropout=0.0)
SIZE |= dict(initializer_range=0.5, tokenizer=TOKENIZER)


@pytest.fixture(scope="module")
def tagger():
    return BERTTokenClassifier(**SIZE, labels=["O", "B-X", "I-X"])


@pytest.fixture(scope="module")
def classifier():
    return BERTClassifier(**SIZE, labels=["a", "b", "c"])


@pytest.mark.once("torch")
@pytest.mark.parametrize("stride", [0, 3, 9])
def test_windows_are_parts_of_the_text_one_after_the_other(stride):
    model = types.SimpleNamespace(arguments={"max_sequence_length": 12}, required_tokenizer=lambda: TOKENIZER)
    short, long = in_windows(model, [SHORT, LONG], stride)
    assert [e.ids for e in short.encodings] == [TOKENIZER.encode(SHORT)] and short.starts == [0]
    ids = TOKENIZER.encode(LONG, special_tokens=False)
    assert long.whole.ids == ids and len(long.encodings) > 1 and long.starts[1] == 10 - stride
    for encoding, start, length in zip(long.encodings, long.starts, long.lengths, strict=True):
        assert encoding.ids == [TOKENIZER.cls_id, *ids[start : start + length], TOKENIZER.sep_id]
        assert len(encoding) <= 12 and encoding.offsets[1:-1] == long.whole.offsets[start : start + length]
    assert long.starts[-1] + long.lengths[-1] == len(ids)
    prompt = "query: "
    prompted = in_windows(model, [prompt + LONG], 1, prompt=prompt)[0]
    begin = TOKENIZER.encode(prompt)[:-1]
    assert all(encoding.ids[: len(begin)] == begin for encoding in prompted.encodings)
    assert prompted.whole.ids == ids and sum(prompted.lengths) == len(ids) + len(prompted.lengths) - 1


@pytest.mark.once("torch")
def test_a_token_has_what_the_window_with_most_context_says():
    def window(length):
        return types.SimpleNamespace(sequence_ids=[None, *[0] * length, None])

    windows = Windows([window(5), window(5), window(4)], [0, 3, 6], [5, 5, 4], range(10))
    outputs = [np.full((7, 1), float(number)) for number in range(3)]
    # Token 3 of the middle one has one token on either side in both: the first says it.
    middle = Windows([window(5), window(5)], [0, 2], [5, 5], range(7))
    assert of_tokens(middle, outputs[:2])[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    # Token 3 has one token behind it in the first window, none before it in the second; token 6 likewise.
    assert of_tokens(windows, outputs)[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_what_fits_is_as_without_windows(tagger, classifier):
    assert tagger.tag(SHORT, stride=2) == tagger.tag(SHORT)
    assert tagger.tag([SHORT, "cat"], "none", stride=2) == tagger.tag([SHORT, "cat"], "none")
    assert tagger.tag_words([SHORT.split()], stride=2) == tagger.tag_words([SHORT.split()])
    assert classifier.classify([SHORT], top_k=None, stride=2) == classifier.classify([SHORT], top_k=None)
    for pooling in ("mean", "cls"):
        embedder = BERTEmbedder(**SIZE, pooling=pooling, include_prompt=False)
        given = {"texts": ["the cat", SHORT], "prompt": "query: "}
        np.testing.assert_array_equal(embedder.embed(**given, stride=1), embedder.embed(**given))


def test_long_texts_are_tagged_and_classified_by_their_windows(tagger, classifier):
    [windows] = in_windows(tagger, [LONG], 3)
    logits = of_tokens(windows, predict(tagger, windows.encodings, 4))
    found = tagger.tag(LONG, "none", stride=3, batch_size=2)
    best = softmax(logits)
    expected = [(*windows.whole.offsets[i], float(row.max())) for i, row in enumerate(best) if row.argmax()]
    assert [(e["start"], e["end"]) for e in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([e["score"] for e in found], [row[2] for row in expected], rtol=1e-5)
    assert all(LONG[e["start"] : e["end"]] == e["word"] for e in found)
    labels = tagger.tag_words([LONG.split(), SHORT.split()], stride=3)
    assert len(labels[0]) == len(LONG.split()) and labels[1] == tagger.tag_words([SHORT.split()])[0]

    [windows] = in_windows(classifier, [LONG], 3)
    mean = softmax(np.mean(predict(classifier, windows.encodings, 4), axis=0))
    scores = {row["label"]: row["score"] for row in classifier.classify(LONG, top_k=None, stride=3)}
    np.testing.assert_allclose([scores[label] for label in "abc"], mean, rtol=1e-5)


@pytest.mark.in_turn
@pytest.mark.parametrize("normalize", [True, False])
def test_long_texts_have_the_mean_of_their_windows_as_vector(normalize):
    model = BERTEmbedder(**SIZE, normalize=normalize)
    [windows] = in_windows(model, [LONG], 3)
    vectors = np.stack(predict(model, windows.encodings, 4))
    mean = (vectors * np.array(windows.lengths)[:, None]).sum(0) / sum(windows.lengths)
    found = model.embed([LONG, SHORT], stride=3)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean) if normalize else mean, atol=1e-5)
    assert found.dtype == np.float32 and windows.lengths[-1] != windows.lengths[0]
    np.testing.assert_allclose(found[1], model.embed(SHORT), atol=1e-6)
    cut = BERTEmbedder(**SIZE, normalize=normalize, truncate_at=6)
    cut.set_weights(model.get_weights())
    assert np.abs(cut.embed(LONG, stride=1) - cut.embed(LONG)).max() > 1e-3


@pytest.mark.once("jax")
def test_windows_without_room_are_refused(tagger, classifier):
    embedder = BERTEmbedder(**SIZE)
    for call, message in (
        (lambda: tagger.tag(LONG), r"texts\[0\] .* max_sequence_length is 12; stride=... reads it in windows"),
        (lambda: tagger.tag([SHORT, LONG], stride=10), r"stride \(10\) must be less than the 10 tokens of texts\[1\]"),
        (lambda: tagger.tag_words([LONG.split()], stride=10), r"of words\[0\]"),
        (lambda: tagger.tag(SHORT, stride=-1), r"stride \(-1\) must be a non-negative whole number"),
        (lambda: classifier.classify(SHORT, stride="x"), r"stride \('x'\) must be"),
        (lambda: classifier.classify(SHORT, SHORT, stride=1), r"stride \(1\) must be None where there are pairs"),
        (lambda: classifier.classify(SHORT, truncate=True, stride=1), r"or with truncate=True"),
        (lambda: embedder.embed(SHORT, truncate=True, stride=1), r"stride \(1\) must be None with truncate=True"),
        (lambda: embedder.embed(LONG, prompt="the cat sat on the ", stride=5), r"less than the 5 tokens of texts\[0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
