"""Texts made of texts: what changes, what stays, and that a seed says it all."""

from collections import Counter
from functools import partial

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.text import drop_words, replace_words, swap_words
from kerasllm.training import ClassificationDataset, ResumableTraining
from kerasllm.training.comparing import described_data

WORDS = "the cat dog sat ran on under mat log a big small and then it was good bad very not".split()
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, size=n)) for n in RNG.integers(1, 12, size=200)]
TOKENIZER = kerasllm.Tokenizer.train_wordpiece(TEXTS, 90)
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16, "tokenizer": TOKENIZER}


@pytest.fixture(scope="module")
def masked_lm():
    return kerasllm.BERTMaskedLM(TOKENIZER.vocabulary_size, **SIZES, initializer_range=0.5)


@pytest.mark.once("jax")
def test_words_are_dropped_at_the_rate_in_their_order_and_never_all():
    new = drop_words(TEXTS, seed=1, rate=0.3)
    kept = sum(len(text.split()) for text in new) / sum(len(text.split()) for text in TEXTS)
    assert 0.65 < kept < 0.76 and len(new) == len(TEXTS)
    for old, text in zip(TEXTS, new, strict=True):
        rest = iter(old.split())
        assert text and all(word in rest for word in text.split())
    assert all(drop_words(["one two"] * 50, rate=0.99)) and drop_words(TEXTS, rate=0) == TEXTS
    assert drop_words([" a \n b "], rate=0) == ["a b"] and drop_words([""]) == [""]


@pytest.mark.once("jax")
def test_swapped_words_are_the_same_words():
    new = swap_words(TEXTS, seed=1, rate=0.2)
    assert all(Counter(a.split()) == Counter(b.split()) for a, b in zip(TEXTS, new, strict=True))
    assert new != TEXTS and swap_words(TEXTS, rate=0) == TEXTS
    assert swap_words(["a b"], rate=0.1) == ["b a"] and swap_words(["a"]) == ["a"]


def test_replaced_words_are_likely_words_and_others_stay(masked_lm):
    texts = TEXTS[:40]
    new = replace_words(texts, masked_lm, seed=1, rate=0.3)
    pairs = [
        (a, b) for old, text in zip(texts, new, strict=True) for a, b in zip(old.split(), text.split(), strict=True)
    ]
    changed = [(a, b) for a, b in pairs if a != b]
    assert 0.1 < len(changed) / len(pairs) < 0.4
    assert not any("##" in b or "[" in b for _, b in changed)
    assert replace_words(texts, masked_lm, rate=0) == texts
    with pytest.raises(ValueError, match=r"^texts\[1\] .*MASK"):
        replace_words(["a", "the [MASK]"], masked_lm)
    for wrong in (None, "x", kerasllm.BERTMaskedLM(9, 1, 2, 8)):
        with pytest.raises(ValueError, match="^model "):
            replace_words(texts, wrong)


@pytest.mark.once("jax")
def test_a_seed_says_all(masked_lm):
    for make in (drop_words, swap_words, partial(replace_words, model=masked_lm)):
        first, again, other = (make(TEXTS[:30], seed=seed) for seed in (1, np.random.default_rng(1), 2))
        assert first == again != other


def test_a_dataset_has_new_texts_in_each_epoch_and_the_same_when_it_is_resumed():
    labels = [i % 2 for i in range(len(TEXTS))]
    drop = partial(drop_words, rate=0.5)
    make = partial(ClassificationDataset, TEXTS, labels, TOKENIZER, max_length=16, multiple=4, batch_size=8)
    data, again, plain = make(augment=drop), make(augment=drop), make()

    def batches(dataset, epoch):
        dataset.epoch = epoch
        return [dataset[i] for i in range(len(dataset))]

    for (x, y), (other, z), (whole, w) in zip(batches(data, 1), batches(again, 1), batches(plain, 1), strict=True):
        assert all(np.array_equal(x[name], other[name]) for name in x) and np.array_equal(y, z)
        assert np.array_equal(y, w) and (x["padding_mask"].sum(1) <= whole["padding_mask"].sum(1)).all()
        assert {k: v.dtype for k, v in x.items()} == {k: v.dtype for k, v in whole.items()}
    first, second = (np.sort([x["token_ids"].sum() for x, _ in batches(data, epoch)]) for epoch in (1, 2))
    assert not np.array_equal(first, second)
    # Another way to augment is another run.
    assert described_data(data) == described_data(again) != described_data(make(augment=partial(drop_words, rate=0.4)))
    longer = make(augment=lambda texts, generator: [text + " cat" * 30 for text in texts])
    assert all(x["token_ids"].shape[1] == 16 for x, _ in batches(longer, 1))
    pairs = make(pairs=TEXTS, max_length=30, too_long="truncate", augment=drop)
    assert pairs[0][0]["segment_ids"].max() == 1
    for wrong in (
        lambda texts, seed: texts[:-1],
        lambda texts, seed: [3] * len(texts),
        lambda texts, seed: [""] * len(texts),
    ):
        with pytest.raises(ValueError, match="^augment: "):
            make(augment=wrong)[0]


@pytest.mark.once("torch")
def test_a_run_that_is_stopped_goes_on_with_the_texts_it_would_have_had(tmp_path):
    def fit(folder, epochs):
        keras.utils.set_random_seed(1)
        model = kerasllm.BERTClassifier(TOKENIZER.vocabulary_size, labels=2, dropout=0.0, **SIZES)
        labels = [i % 2 for i in range(16)]
        data = ClassificationDataset(TEXTS[:16], labels, TOKENIZER, max_length=16, augment=drop_words, batch_size=8)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(data, epochs=epochs, verbose=0, callbacks=[ResumableTraining(tmp_path / folder)])
        return model.get_weights()

    whole = fit("whole", 2)
    fit("stopped", 1)
    assert all(np.array_equal(a, b) for a, b in zip(whole, fit("stopped", 2), strict=True))
