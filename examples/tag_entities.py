"""Teach MiniLM, which reads no capitals, to find the names in sentences of Wikipedia.

What is a name the capitals of the original tell, inside a sentence. Models trained on other labels open the same way:
kerasllm.BERTTokenClassifier.from_preset("hf://dslim/bert-base-NER").tag("Ada Lovelace lived in London.")

python examples/tag_entities.py
"""

import collections

import kerasllm
from kerasllm.training import AdamW, TokenClassificationDataset, TokenCrossentropy, WarmupCosine

LABELS = ["O", "B-NAME", "I-NAME"]
SENTENCES, TEST_SENTENCES = 6000, 500
BATCH_SIZE = 32
LEARNING_RATE = 3e-4


def main(tiny=False):
    """Train, use and measure the model; with `tiny` a toy of it, for the tests.

    Returns:
        The model, its validation data, and figures: (name, value, {baseline: its value}).
    """
    # Data: sentences as lists of words, and a label for each word.
    train, _, test = (sentences(part) for part in kerasllm.datasets.wikitext2("paragraph"))
    train, test = train[:SENTENCES], test[:TEST_SENTENCES]

    # The encoder is MiniLM's; the classifier on top of it is new.
    model = kerasllm.BERTTokenClassifier.from_preset(kerasllm.pretrained.minilm(), fresh_head=True, labels=LABELS)
    options = {"batch_size": BATCH_SIZE, "label_names": LABELS, "too_long": "drop"}
    train_data = TokenClassificationDataset(*labelled(train), model.tokenizer, **options)
    test_data = TokenClassificationDataset(*labelled(test), model.tokenizer, shuffle=False, **options)
    steps = len(train_data)
    model.compile(
        AdamW(WarmupCosine(LEARNING_RATE, steps // 10, steps), weight_decay=0.01, global_clipnorm=1.0),
        loss=TokenCrossentropy(),
    )
    model.fit(train_data, validation_data=test_data, epochs=1)

    # Use: names, and where they stand in the text.
    texts = [" ".join(words).lower() for words in test]
    found = [{(hit["start"], hit["end"]) for hit in hits} for hits in model.tag(texts, aggregation="first")]
    for text, places in list(zip(texts, found, strict=True))[:5]:
        print(f"{text}\n    {', '.join(text[start:end] for start, end in sorted(places)) or 'no names'}")

    true = [spans(words, names(words)) for words in test]
    usual = capitalised(train)
    trivial = [spans(words, [word.lower() in usual for word in words]) for words in test]
    figures = {"ours": f1(true, found), "words that are names elsewhere": f1(true, trivial)}
    print("F1 of whole names in held-out sentences: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
    ours = figures.pop("ours")
    return model, test_data, [("F1 of names", ours, figures)]


def sentences(paragraphs):
    """Lists of words, with at least one name."""
    rows = [sentence.split() for paragraph in paragraphs for sentence in paragraph.split(" . ")]
    return [words for words in rows if 5 <= len(words) <= 40 and any(names(words))]


def names(words):
    """Whether each word is (part of) a name: has a capital, and does not begin the sentence."""
    return [i > 0 and word[0].isupper() for i, word in enumerate(words)]


def labelled(rows):
    """The words without capitals, and their labels."""
    labels = []
    for words in rows:
        marks = names(words)
        before = [False, *marks]
        labels.append(
            ["O" if not mark else "I-NAME" if last else "B-NAME" for mark, last in zip(marks, before, strict=False)]
        )
    return [[word.lower() for word in words] for words in rows], labels


def spans(words, marks):
    """Places (start, end) of the runs of marked words in their join by spaces."""
    places, position, last = [], 0, False
    for word, mark in zip(words, marks, strict=True):
        end = position + len(word)
        if mark:
            places[-1:] = [(places[-1][0], end)] if last else [*places[-1:], (position, end)]
        position, last = end + 1, mark
    return set(places)


def capitalised(rows):
    """The words that have a capital more often than not, inside sentences."""
    counts = collections.Counter()
    for words in rows:
        counts.update(
            {word.lower(): 1 if mark else -1 for word, mark in list(zip(words, names(words), strict=True))[1:]}
        )
    return {word for word, count in counts.items() if count > 0}


def f1(true, found):
    """F1 of the places found."""
    common = sum(len(a & b) for a, b in zip(true, found, strict=True))
    return 2 * common / max(sum(map(len, true)) + sum(map(len, found)), 1)


if __name__ == "__main__":
    main()
