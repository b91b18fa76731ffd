"""Blocks of running text, from memory and from token files."""

import collections
import pickle

import keras
import numpy as np
import pytest

from kerasllm import GPT
from kerasllm.text import token_files
from kerasllm.text.token_files import TokenFile
from kerasllm.text.tokenizers import Tokenizer
from kerasllm.training import LanguageModelDataset, TokenCrossentropy
from kerasllm.training.packed_datasets import Shares

WORDS = "the cat dog sat ran on under mat log a big small and then it was good bad very not".split()
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, size=n)) for n in RNG.integers(1, 30, size=120)]
TOKENIZER = Tokenizer.train_bpe(TEXTS, 300)
LENGTH, BATCH = 16, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Token files of all texts, and of two parts of them."""
    folder = tmp_path_factory.mktemp("tokens")
    parts = {"all": TEXTS, "few": TEXTS[:30], "many": TEXTS[30:]}
    for name, texts in parts.items():
        (folder / f"{name}.txt").write_text("\n".join(texts))
    return {name: TokenFile.write(folder / name, folder / f"{name}.txt", TOKENIZER) for name in parts}


def dataset(documents, **arguments):
    return LanguageModelDataset(documents, TOKENIZER, **{"batch_size": BATCH, "sequence_length": LENGTH, **arguments})


def rows_of(data, epoch=0):
    """The blocks of an epoch, each as a tuple of token ids."""
    data.epoch = epoch
    return [tuple(row) for inputs, _ in (data[i] for i in range(len(data))) for row in inputs["token_ids"]]


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"packing": "best_fit"}], ids=str)
def test_a_token_file_gives_the_batches_of_its_texts(options, files):
    texts, tokens = dataset(TEXTS, **options), dataset(files["all"], **options)
    assert len(texts) == len(tokens)
    for epoch in (0, 3):
        texts.epoch = tokens.epoch = epoch
        for i in range(len(texts)):
            for a, b in zip(keras.tree.flatten(texts[i]), keras.tree.flatten(tokens[i]), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tokens))[1][1], tokens[1][1])


def test_a_dataset_of_a_token_file_goes_to_other_processes_without_its_tokens(files):
    assert len(pickle.dumps(dataset(files["all"]))) < 3000


def test_every_token_but_the_first_is_predicted_once():
    tokenizer = Tokenizer.train_words(["a b c d"], 20)
    a, b, c, d, start, end = (tokenizer.token_to_id(token) for token in ("a", "b", "c", "d", "<s>", "</s>"))
    data = LanguageModelDataset(["a b", "c d"], tokenizer, batch_size=3, sequence_length=3, shuffle=False)
    inputs, labels = data[0]
    assert inputs["token_ids"].tolist() == [[start, a, b], [end, start, c], [d, 0, 0]]
    assert labels.tolist() == [[a, b, end], [start, c, d], [end, -1, -1]]
    np.testing.assert_array_equal(inputs["padding_mask"], labels != -1)


def test_best_fit_puts_whole_documents_into_rows():
    tokenizer = Tokenizer.train_words(["a b c d"], 20)
    a, b, c, d, start, end = (tokenizer.token_to_id(token) for token in ("a", "b", "c", "d", "<s>", "</s>"))
    texts = ["a", "a b c d a b", "c d"]
    data = LanguageModelDataset(texts, tokenizer, 3, sequence_length=5, shuffle=False, packing="best_fit")
    inputs, labels = data[0]
    # The long one is cut: what it has over shares a row with another document.
    assert inputs["token_ids"].tolist() == [[start, a, b, c, d], [start, c, d, start, a], [a, b, 0, 0, 0]]
    assert labels.tolist() == [[a, b, c, d, a], [c, d, end, a, end], [b, end, -1, -1, -1]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    np.testing.assert_array_equal(inputs["padding_mask"], labels != -1)


@pytest.mark.parametrize("roles", [{"bos": "<s>", "eos": "<s>"}, {"bos": "<s>"}, {"eos": "</s>"}, {}], ids=str)
def test_best_fit_predicts_what_follows_within_each_document_once(roles):
    tokenizer = Tokenizer.train_words(TEXTS, 100, **{"bos": None, "eos": None, **roles})
    data = LanguageModelDataset(TEXTS, tokenizer, BATCH, LENGTH, packing="best_fit")
    found = collections.Counter()
    for inputs, labels in (data[i] for i in range(len(data))):
        real = labels >= 0
        assert (real == inputs["padding_mask"]).all()
        found.update(zip(inputs["token_ids"][real].tolist(), labels[real].tolist(), strict=True))
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    documents = [start + tokenizer.encode(text, special_tokens=False) + end for text in TEXTS]
    assert found == collections.Counter(pair for ids in documents for pair in zip(ids[:-1], ids[1:], strict=True))


def test_an_epoch_has_each_block_once_in_an_order_of_its_own(files):
    data = dataset([files["few"], files["many"]])
    first, second = rows_of(data, 0), rows_of(data, 1)
    assert first != second and collections.Counter(first) == collections.Counter(second)
    inside = [rows_of(dataset(files[name], shuffle=False)) for name in ("few", "many")]
    assert collections.Counter(first) == collections.Counter(inside[0] + inside[1])


def test_weights_are_shares_of_the_blocks(files):
    data = dataset([files["few"], files["many"]], weights=[3, 1])
    sizes, counts = data.shares.sizes, data.shares.counts
    assert sum(counts) == sum(sizes) and abs(counts[0] - 0.75 * sum(sizes)) < 1 and counts[0] > 2 * sizes[0]
    inside = [set(rows_of(dataset(files[name], shuffle=False))) for name in ("few", "many")]
    seen = collections.Counter()
    for epoch in range(8):
        rows = rows_of(data, epoch)
        assert sum(row in inside[0] for row in rows) == counts[0] and sum(row in inside[1] for row in rows) == counts[1]
        seen.update(rows)
        # Each block of a source has come as often as any other, or once more.
        for source in inside:
            often = [seen[row] for row in source]
            assert max(often) - min(often) <= 1
    assert rows_of(data, 2) == rows_of(dataset([files["few"], files["many"]], weights=[6, 2]), 2)


def test_places_are_parted_between_sources():
    shares = Shares([3, 5], [3, 5])
    assert [shares.place(i) for i in range(8)] == [(0, 0), (0, 1), (0, 2), *((1, i) for i in range(5))]
    np.testing.assert_array_equal(shares.rows(np.arange(8), epoch=2), np.arange(8))


def test_a_model_that_cannot_read_a_file_says_so_at_once(files, monkeypatch):
    largest = int(files["all"].ids.max())
    model = GPT(largest, 1, 1, 8, max_sequence_length=LENGTH)
    model.compile("sgd", TokenCrossentropy())
    monkeypatch.setattr(LanguageModelDataset, "_plan_of", lambda self, epoch: [])  # the epoch is not looked through
    with pytest.raises(ValueError, match=rf"token_ids\[\d+, \d+\] \({largest}\)"):
        model.fit(dataset(files["all"]))


@pytest.mark.once("torch")
@pytest.mark.parametrize("packing", ["wrapped", "best_fit"])
def test_fit_learns_from_a_file(packing, files):
    model = GPT(TOKENIZER.vocabulary_size, 1, 1, 16, max_sequence_length=LENGTH, dropout=0.0)
    model.compile("adam", TokenCrossentropy())
    train = dataset(files["all"], packing=packing)
    losses = model.fit(train, validation_data=dataset(files["few"], shuffle=False), epochs=2, verbose=0)
    assert losses.history["loss"][1] < losses.history["loss"][0]


def test_what_does_not_fit_together_is_an_error(files, tmp_path):
    other = Tokenizer.train_words(TEXTS, 100)
    with pytest.raises(ValueError, match="tokenizer .* must be the one that"):
        LanguageModelDataset(files["all"], other)
    with pytest.raises(ValueError, match=r"documents\[1\] .* must be a TokenFile where others are"):
        dataset([files["all"], "the cat"])
    with pytest.raises(ValueError, match="must be as many as there are TokenFiles, 2"):
        dataset([files["few"], files["many"]], weights=[1])
    with pytest.raises(ValueError, match=r"sequence_length \(0\)"):
        dataset(TEXTS, sequence_length=0)
    with pytest.raises(ValueError, match="documents hold 1 tokens"):
        LanguageModelDataset([[5]], Tokenizer.train_words(TEXTS, 100, bos=None, eos=None))
    with pytest.raises(ValueError, match="documents hold 2 tokens, none of which follows one of its own document"):
        LanguageModelDataset([[5], [6]], Tokenizer.train_words(TEXTS, 100, bos=None, eos=None), packing="best_fit")
    with pytest.raises(ValueError, match=r"packing \('padded'\)"):
        dataset(TEXTS, packing="padded")
    with pytest.raises(ValueError, match=r"weights\[0\] \(1e-09\) is less than a row"):
        dataset([files["few"], files["many"]], weights=[1e-9, 1])
    with pytest.raises(ValueError, match=r"weights\[1\] \(0\)"):
        dataset([files["few"], files["many"]], weights=[1, 0])


def test_of_a_file_no_more_is_read_than_its_batches(tmp_path, monkeypatch):
    """10^8 tokens, which the file system need not hold."""
    tokens, size = TokenFile.__new__(TokenFile), 10**8
    ids = np.memmap(tmp_path / "ids", "uint16", "w+", shape=(size,))
    tokens.folder, tokens.ids, tokens.largest_at = tmp_path, ids, 0
    tokens.manifest = {"tokenizer": token_files.fingerprint(TOKENIZER)}
    read = []
    monkeypatch.setattr(LanguageModelDataset, "make_batch", lambda self, indices, *_: read.append(indices))
    data = dataset(tokens)
    assert len(data) == -(-(size - 1) // LENGTH // BATCH) and not read
    data.epoch = 1
    data._batch(data._plan, 1, 5)
    assert len(read) == 1 and len(read[0]) == BATCH
