import pathlib
import tempfile

import numpy as np
import pytest

from kerasllm import BERTTokenClassifier, Tokenizer
from kerasllm.tasks.predicting import softmax
from kerasllm.training import TokenClassificationDataset, TokenCrossentropy

TEXT = "Ada Lovelace lived  in London, Ada!"
PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] ada love ##l ##a ##c ##e lived in lon ##d ##o ##n , !"
with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, "vocab.txt").write_text(PIECES.replace(" ", "\n"))
    TOKENIZER = Tokenizer.from_folder(folder)
LABELS = ["O", "B-PER", "I-PER", "LOC"]
TAGS = {
    "ada": "B-PER",
    "love": "I-PER",
    "##l": "O",
    "##a": "I-PER",
    "##c": "I-PER",
    "##e": "I-PER",
    "lon": "LOC",
    "##d": "LOC",
    "##o": "O",
    "##n": "LOC",
}


@pytest.fixture(scope="module")
def model():
    return BERTTokenClassifier(60, 1, 2, 8, max_sequence_length=32, labels=LABELS, tokenizer=TOKENIZER, dropout=0.0)


def tagged(model, aggregation, text=TEXT, tags=TAGS):
    """The entities, where each token has its label with probability 0.7 or 0.5 / 0.8."""
    (encoding,) = TOKENIZER.encodings([text])
    logits = np.log(np.full((len(encoding) + 3, 4), 0.1))
    for row, token in zip(logits, encoding.tokens, strict=False):
        # Where it disagrees with its word, a token is less sure.
        row[LABELS.index(tags.get(token, "O"))] = np.log(0.5 if tags.get(token) == "O" else 0.7)
    entities = model._entities(text, encoding, logits, aggregation)
    assert all(text[e["start"] : e["end"]] == e["word"] for e in entities)
    return entities


def words(entities):
    return [(e["entity"], e["word"]) for e in entities]


@pytest.mark.parametrize(
    "aggregation, expected",
    [
        ("simple", [("PER", "Ada Love"), ("PER", "ace"), ("LOC", "Lond"), ("LOC", "n"), ("PER", "Ada")]),
        ("first", [("PER", "Ada Lovelace"), ("LOC", "London"), ("PER", "Ada")]),
        ("average", [("PER", "Ada Lovelace"), ("LOC", "London"), ("PER", "Ada")]),
        ("max", [("PER", "Ada Lovelace"), ("LOC", "London"), ("PER", "Ada")]),
    ],
)
def test_entities_are_joined_as_the_aggregation_says(aggregation, expected, model):
    assert words(tagged(model, aggregation)) == expected


def test_tokens_come_one_by_one_without_aggregation(model):
    entities = tagged(model, "none")
    assert words(entities)[:3] == [("B-PER", "Ada"), ("I-PER", "Love"), ("I-PER", "a")]
    assert entities[0] == {"entity": "B-PER", "score": pytest.approx(0.7), "word": "Ada", "start": 0, "end": 3}
    assert type(entities[0]["score"]) is float and type(entities[0]["start"]) is int


def test_scores_are_means(model):
    love_lace, london = (4 * 0.7 + 0.125) / 5, (3 * 0.7 + 0.125) / 4
    assert [e["score"] for e in tagged(model, "average")] == pytest.approx([(0.7 + love_lace) / 2, london, 0.7])


def test_a_beginning_starts_a_new_entity_and_so_does_what_lies_between(model):
    assert words(tagged(model, "simple", "ada ada")) == [("PER", "ada"), ("PER", "ada")]
    assert words(tagged(model, "simple", "love love")) == [("PER", "love love")]
    assert words(tagged(model, "simple", "love in love")) == [("PER", "love"), ("PER", "love")]


def test_byte_level_tokenizers_have_offsets_and_words_too():
    tokenizer = Tokenizer.train_bpe(["Ada lives in London"] * 3, 300)
    model = BERTTokenClassifier(300, 1, 2, 8, max_sequence_length=32, labels=LABELS, tokenizer=tokenizer)
    text = "Ada lives in Lisbon"
    (encoding,) = tokenizer.encodings([text])
    logits = np.zeros((len(encoding), 4))
    last = [i for i, (_, end) in enumerate(encoding.offsets) if end > 13]
    logits[:, 0] = 9.0
    logits[last[0]] = [0, 0, 0, 9.0]
    assert len(last) > 1
    assert words(model._entities(text, encoding, logits, "first")) == [("LOC", "Lisbon")]


def test_bad_arguments_are_refused(model):
    with pytest.raises(ValueError, match=r"texts\[0\].*42 tokens"):
        model.tag("ada " * 40)


def test_tags_are_those_of_the_logits_and_the_loss_counts_first_tokens(model):
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    sentences = [["Ada", "Lovelace", "lived"], ["in", "London"]]
    data = TokenClassificationDataset(sentences, [[1, 2, 0], [0, 3]], TOKENIZER, multiple=16, max_length=16)
    model.compile(loss=TokenCrossentropy())
    loss = model.evaluate(data, verbose=0)
    inputs, labels = data.arrays()
    logits = model.predict_on_batch(inputs)
    chosen = np.take_along_axis(np.log(softmax(logits)), np.maximum(labels, 0)[..., None], -1)[..., 0]
    assert loss == pytest.approx(-chosen[labels != -1].mean(), rel=1e-5) and (labels != -1).sum() == 5

    for text, row, real in zip(sentences, logits.argmax(-1), inputs["padding_mask"], strict=True):
        expected = [LABELS[i] for i in row[real][1:-1] if i != 0]
        assert [e["entity"] for e in model.tag(" ".join(text), aggregation="none")] == expected != []


def test_words_have_the_labels_of_their_first_tokens(model):
    words = [["Ada", "Lovelace", "lived"], ["London!"], ["in", "Lovelace,", "Ada"]]
    found = model.tag_words(words, batch_size=2)
    for row, labels in zip(words, found, strict=True):
        (encoding,) = TOKENIZER.encodings([" ".join(row)])
        inputs = {"token_ids": np.array([encoding.ids]), "padding_mask": np.ones((1, len(encoding)), bool)}
        logits = model.predict({**inputs, "segment_ids": np.zeros_like(inputs["token_ids"])}, verbose=0)[0]
        ends, at = np.cumsum([len(word) + 1 for word in row]), {}
        for place, (start, end) in enumerate(encoding.offsets):
            if end > start:
                at.setdefault(int(np.searchsorted(ends, end)), place)
        assert labels == [LABELS[k] for k in logits[[at[i] for i in range(len(row))]].argmax(-1)]
    for wrong, message in (
        ([["ada", " "]], "words.0..1. .' '. must not be blank"),
        ([[]], "words.0. .... must not be"),
    ):
        with pytest.raises(ValueError, match=message):
            model.tag_words(wrong)
    with pytest.raises(ValueError, match="words.1..0. .'.u200b'. has no tokens"):
        model.tag_words([["ada"], ["\u200b", "ada"]])
