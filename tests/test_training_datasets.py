import collections
import os
import pathlib
import pickle
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm import GPT as GPTModel
from kerasllm.datasets import parallel
from kerasllm.text.token_files import TokenFile
from kerasllm.text.tokenizers import Tokenizer
from kerasllm.training import MaskedLMDataset, Perplexity, TokenCrossentropy, TranslationDataset, text_rows
from kerasllm.training.datasets import BucketedDataset
from kerasllm.training.labelled_datasets import (
    ClassificationDataset,
    QuestionAnsweringDataset,
    TokenClassificationDataset,
)
from kerasllm.training.packed_datasets import LanguageModelDataset

WORDS = "the cat dog sat ran on under mat log a big small and then it was good bad very not".split()
RNG = np.random.default_rng(0)
SENTENCES = [" ".join(RNG.choice(WORDS, size=n)) for n in RNG.integers(1, 15, size=50)]
PAIRS = [(text, text.upper()) for text in SENTENCES]
SOURCE = Tokenizer.train_words(SENTENCES, 100)
TARGET = Tokenizer.train_words([target for _, target in PAIRS], 100)
BERT = Tokenizer.train_wordpiece(SENTENCES, 60)
GPT = Tokenizer.train_bpe(SENTENCES, 300)


def translation(**arguments):
    return TranslationDataset(PAIRS, SOURCE, TARGET, **{"batch_size": 8, **arguments})


def masked(**arguments):
    return MaskedLMDataset(SENTENCES, BERT, **{"batch_size": 8, "multiple": 16, **arguments})


def language_model(**arguments):
    return LanguageModelDataset(SENTENCES, GPT, **{"batch_size": 4, "sequence_length": 16, **arguments})


KINDS = pytest.mark.parametrize("make", [translation, masked, language_model])


def assert_equal(a, b):
    """The structures hold equal arrays of equal dtypes."""
    a, b = keras.tree.flatten(a), keras.tree.flatten(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def equal(a, b):
    a, b = keras.tree.flatten(a), keras.tree.flatten(b)
    return all(x.shape == y.shape and (x == y).all() for x, y in zip(a, b, strict=True))


def shapes(batch):
    return tuple(x.shape for x in keras.tree.flatten(batch))


# What is in a batch


@KINDS
def test_batches_have_the_stated_names_dtypes_and_shapes(make):
    names = {
        translation: "source_token_ids source_padding_mask target_token_ids target_padding_mask",
        masked: "token_ids segment_ids padding_mask masked_positions",
        language_model: "token_ids padding_mask",
    }
    for inputs, labels in make():
        assert list(inputs) == names[make].split()
        for name, x in inputs.items():
            assert x.dtype == (bool if name.endswith("mask") else "int32")
        assert labels.dtype == "int32"
    sizes = [len(labels) for _, labels in make()]
    assert sorted(sizes)[1:] == [max(sizes)] * (len(sizes) - 1)


def test_translation_is_shifted_for_teacher_forcing():
    dataset = translation()
    seen = []
    for inputs, labels in dataset:
        np.testing.assert_array_equal(inputs["target_padding_mask"], labels != -1)
        for row in range(len(labels)):
            source = inputs["source_token_ids"][row][inputs["source_padding_mask"][row]]
            target = inputs["target_token_ids"][row][inputs["target_padding_mask"][row]]
            label = labels[row][labels[row] != -1]
            assert target[0] == TARGET.bos_id and label[-1] == TARGET.eos_id
            np.testing.assert_array_equal(target[1:], label[:-1])
            seen.append((SOURCE.decode(source), TARGET.decode(label)))
    assert collections.Counter(seen) == collections.Counter(PAIRS)


def test_masked_positions_point_at_hidden_ordinary_tokens():
    texts = collections.Counter()
    for inputs, labels in masked():
        assert labels.shape == inputs["masked_positions"].shape
        ids = inputs["token_ids"].copy()
        rows, places = np.nonzero(labels != -1)
        ids[rows, inputs["masked_positions"][rows, places]] = labels[rows, places]
        assert not np.isin(labels, BERT.special_ids).any()
        assert (inputs["token_ids"] == BERT.mask_id).any()
        assert (ids[:, 0] == BERT.cls_id).all() and not inputs["segment_ids"].any()
        texts.update(BERT.decode(row[real]) for row, real in zip(ids, inputs["padding_mask"], strict=True))
    assert texts == collections.Counter(SENTENCES)


def test_whole_words_hide_all_pieces_of_a_word():
    texts = [text for text in SENTENCES if len(text.split()) > 5]  # Some word fits into the number.
    dataset = MaskedLMDataset(texts, BERT, whole_words=True, rate=0.6, batch_size=8, multiple=8)
    for inputs, labels in dataset:
        rows, places = np.nonzero(labels != -1)
        positions = inputs["masked_positions"][rows, places]
        chosen = np.zeros(inputs["token_ids"].shape, bool)
        chosen[rows, positions] = True
        ids = inputs["token_ids"].copy()
        ids[rows, positions] = labels[rows, places]
        continues = ~BERT.word_starts[ids] & inputs["padding_mask"]
        # A piece that continues a word shares the fate of the piece before it.
        np.testing.assert_array_equal(chosen[:, 1:][continues[:, 1:]], chosen[:, :-1][continues[:, 1:]])
    assert continues.any()


def test_blocks_hold_the_whole_stream():
    dataset = language_model(shuffle=False)
    inputs, labels = dataset.arrays()
    real = inputs["padding_mask"]
    stream = [*inputs["token_ids"][real], labels[real][-1]]
    assert GPT.decode(stream, skip_special_tokens=False) == "<|endoftext|>".join(["", *SENTENCES, ""])
    np.testing.assert_array_equal(labels[real][:-1], inputs["token_ids"][real][1:])


@KINDS
def test_arrays_are_all_examples_in_their_order(make):
    inputs, labels = make().arrays()
    assert len(labels) == sum(len(labels) for _, labels in make())
    if make is translation:
        texts = [SOURCE.decode(ids[real]) for ids, real in zip(*list(inputs.values())[:2], strict=True)]
        assert texts == SENTENCES


def test_token_ids_serve_as_well_as_strings():
    ids = [(SOURCE.encode(s), TARGET.encode(t)) for s, t in PAIRS]
    assert_equal(TranslationDataset(ids, SOURCE, TARGET, batch_size=8)[3], translation()[3])
    ids = [BERT.encode(text, special_tokens=False) for text in SENTENCES]
    assert_equal(MaskedLMDataset(ids, BERT, batch_size=8, multiple=16)[2], masked()[2])
    ids = [np.array(GPT.encode(text)) for text in SENTENCES]
    assert_equal(LanguageModelDataset(ids, GPT, batch_size=4, sequence_length=16)[1], language_model()[1])


# Order and chance


@KINDS
def test_a_batch_depends_on_seed_epoch_and_index_only(make):
    dataset, again = make(seed=3), make(seed=3)
    for epoch in (0, 1, 5):
        dataset.epoch = again.epoch = epoch
        forwards = [dataset[i] for i in range(len(dataset))]
        backwards = [again[i] for i in reversed(range(len(again)))]
        assert_equal(forwards, backwards[::-1])
        assert_equal(pickle.loads(pickle.dumps(dataset))[1], forwards[1])
    dataset.epoch = 0
    batches = [dataset[i] for i in range(len(dataset))]
    assert not equal(batches, forwards)
    assert not all(equal(a, b) for a, b in zip(make(seed=4), batches, strict=True))


@KINDS
def test_epochs_advance_and_evaluation_stays_the_same(make):
    dataset = make()
    first = list(dataset)
    dataset.on_epoch_end()
    assert dataset.epoch == 1
    assert collections.Counter(map(shapes, dataset)) == collections.Counter(map(shapes, first))
    assert not all(equal(a, b) for a, b in zip(dataset, first, strict=True))
    still = make(shuffle=False)
    first = list(still)
    still.on_epoch_end()
    assert_equal(list(still), first)


@KINDS
def test_shapes_are_few_and_the_first_two_batches_differ_where_any_do(make):
    for shuffle in (True, False):
        dataset = make(shuffle=shuffle)
        assert len(set(map(shapes, dataset))) <= 3
        every = np.array([sum(shapes(batch), ()) for batch in dataset])
        np.testing.assert_array_equal(every[0] != every[1], (every != every[0]).any(axis=0))


# Batches by tokens

TOKENS = 200


def translation_by_tokens(**arguments):
    return TranslationDataset(PAIRS, SOURCE, TARGET, **{"batch_tokens": TOKENS, "multiple": 4, **arguments})


def masked_by_tokens(**arguments):
    return MaskedLMDataset(SENTENCES, BERT, **{"batch_tokens": TOKENS, "multiple": 8, **arguments})


BY_TOKENS = pytest.mark.parametrize("make", [translation_by_tokens, masked_by_tokens])


@BY_TOKENS
def test_batches_by_tokens_have_all_examples_and_at_most_so_many_tokens(make):
    for shuffle in (True, False):
        dataset = make(shuffle=shuffle)
        for epoch in (0, 1):
            dataset.epoch = epoch
            indices = [dataset.examples_of(i) for i in range(len(dataset))]
            np.testing.assert_array_equal(np.sort(np.concatenate(indices)), np.arange(50))
            for i, (inputs, _) in enumerate(dataset):
                padded = [x for name, x in inputs.items() if name.endswith("token_ids")]
                assert max(x.size for x in padded) <= TOKENS and len(padded[0]) == len(indices[i])
                assert_equal(dataset.batch_of(epoch, i), dataset[i])
        assert len(dataset) > 2 and len({len(i) for i in indices}) > 1


@BY_TOKENS
def test_batches_by_tokens_depend_on_seed_and_epoch_and_hold_the_examples_of_arrays(make):
    dataset, again = make(seed=3), make(seed=3)
    for epoch in (0, 5):
        dataset.epoch = again.epoch = epoch
        assert_equal(list(dataset), list(again))
    assert collections.Counter(map(shapes, dataset)) == collections.Counter(map(shapes, make(seed=4)))
    assert not equal([dataset[0], dataset[1]], [make(seed=4)[0], make(seed=4)[1]])
    expected = {translation_by_tokens: translation, masked_by_tokens: masked}[make](
        multiple=dataset.multiple, batch_size=50, seed=3
    )
    dataset.epoch = 0
    assert_equal(dataset.arrays(), expected.arrays())


def test_the_first_two_batches_by_tokens_differ_wherever_any_do():
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths = rng.integers(1, rng.integers(2, 40), size=(rng.integers(1, 60), rng.integers(1, 3)))
        tokens, multiple = int(rng.integers(40, 400)), int(rng.integers(1, 9))
        dataset = BucketedDataset(lengths, None, multiple, 40, 0, True, batch_tokens=tokens)
        every = np.array([(len(indices), *widths) for indices, widths in dataset._plan])
        np.testing.assert_array_equal(every[0] != every[min(1, len(every) - 1)], (every != every[0]).any(axis=0))


def test_labelled_datasets_have_batches_by_tokens():
    words = [text.split() for text in SENTENCES]
    given = {"batch_tokens": 300, "multiple": 8}
    for dataset in (
        ClassificationDataset(SENTENCES, [0] * 50, BERT, **given),
        TokenClassificationDataset(words, [[0] * len(row) for row in words], BERT, **given),
        QuestionAnsweringDataset(SENTENCES, SENTENCES, [None] * 50, BERT, **given),
    ):
        sizes = [inputs["token_ids"].shape for inputs, _ in dataset]
        assert sum(rows for rows, _ in sizes) == 50 and all(rows * width <= 300 for rows, width in sizes)
        assert len({rows for rows, _ in sizes}) > 1


def test_tokens_and_size_of_a_batch_exclude_each_other():
    assert (translation().batch_size, TranslationDataset(PAIRS, SOURCE, TARGET).batch_size) == (8, 64)
    assert (translation_by_tokens().batch_size, translation_by_tokens().batch_tokens) == (None, TOKENS)
    with pytest.raises(ValueError, match=r"batch_tokens \(9\) takes the place of batch_size \(8\)"):
        translation(batch_tokens=9)
    with pytest.raises(ValueError, match="batch_tokens .9. takes the place of batch_size .4."):
        language_model(batch_tokens=9)
    with pytest.raises(ValueError, match=r"batch_tokens \('9'\) must be a positive"):
        translation_by_tokens(batch_tokens="9")
    longest = int(np.argmax([len(SOURCE.encode(s)) for s in SENTENCES]))
    with pytest.raises(ValueError, match=rf"batch_tokens .8. .* example {longest} has \d+ tokens"):
        translation_by_tokens(batch_tokens=8)


def test_a_description_says_what_a_batch_is():
    assert "batch_tokens" not in translation().description()
    description = translation_by_tokens().description()
    assert description["batch_tokens"] == TOKENS and "batch_size" not in description


TRANSLATOR = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 32, "dropout": 0.0}


def translator(**compiled):
    keras.utils.set_random_seed(0)
    model = kerasllm.TransformerTranslator(SOURCE.vocabulary_size, TARGET.vocabulary_size, **TRANSLATOR)
    model.compile(**{"optimizer": keras.optimizers.SGD(0.1), "loss": TokenCrossentropy(), **compiled})
    return model


@pytest.mark.in_turn
@pytest.mark.parametrize(("steps", "jit"), [(1, "auto"), (3, True)])
def test_fit_takes_batches_of_different_numbers_of_rows(steps, jit):
    """It learns what a loop over `train_on_batch` does, with several steps in an execution too."""
    dataset = translation_by_tokens(seed=1, multiple=8, batch_tokens=100)
    assert len({shapes(batch) for batch in dataset}) == 3
    if steps > 1 and keras.backend.backend() == "torch":
        with pytest.raises(ValueError, match="steps_per_execution"):
            translator(steps_per_execution=steps).fit(dataset, verbose=0)
        return
    model, start = translator(), translator().get_weights()
    dataset.epoch = 1
    for batch in dataset:
        model.train_on_batch(*batch)
    expected = model.get_weights()
    model = translator(steps_per_execution=steps, jit_compile=jit)
    dataset, still = (
        translation_by_tokens(seed=1, multiple=8, batch_tokens=100, shuffle=shuffle) for shuffle in (True, False)
    )
    model.fit(dataset, validation_data=still, verbose=0)
    for a, b in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert max(np.abs(a - b).max() for a, b in zip(expected, start, strict=True)) > 0.01


def test_updates_of_batches_by_tokens_have_the_mean_over_all_their_tokens():
    count = len(translation_by_tokens(multiple=8, batch_tokens=100))
    whole = translator()
    whole.fit(translation(batch_size=50), epochs=2, verbose=0)
    parts = translator(optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=count))
    parts.fit(translation_by_tokens(multiple=8, batch_tokens=100), epochs=2, verbose=0)
    for a, b in zip(parts.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# Texts in files, and texts that come one after the other


def token_file(folder, texts, tokenizer, blank_lines="keep", **arguments):
    """A token file of texts, one on each line."""
    name = f"{len(list(folder.iterdir()))}"
    (folder / f"{name}.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return TokenFile.write(
        folder / f"{name}.tokens", folder / f"{name}.txt", tokenizer, blank_lines=blank_lines, **arguments
    )


def pair_of_files(folder, pairs, source, target):
    sides = zip(*pairs, strict=True)
    return tuple(token_file(folder, texts, tokenizer) for texts, tokenizer in zip(sides, (source, target), strict=True))


ROBERTA = Tokenizer.from_folder(pathlib.Path(__file__).parent / "data" / "tokenizers" / "roberta")
UPPER = Tokenizer.train_bpe([target for _, target in PAIRS], 300)


@pytest.mark.parametrize(
    ("source", "target", "arguments"),
    [
        (SOURCE, TARGET, {"batch_size": 8}),
        (GPT, UPPER, {"batch_tokens": 300, "shuffle": False}),  # bos is eos
        (BERT, TARGET, {"max_length": 8, "too_long": "truncate", "batch_tokens": 100}),
        (BERT, TARGET, {"max_length": 10, "too_long": "drop", "multiple": 4}),
        (ROBERTA, ROBERTA, {"start_token_id": ROBERTA.eos_id, "max_length": 99}),
        (ROBERTA, ROBERTA, {"start_token_id": ROBERTA.bos_id, "max_length": 9, "too_long": "truncate"}),
    ],
)
def test_a_pair_of_files_gives_the_batches_of_its_texts(source, target, arguments, tmp_path):
    pairs = [*PAIRS[:20], ("", "AND"), *PAIRS[20:], ("and", " "), ("", "")]
    files = pair_of_files(tmp_path, pairs, source, target)
    texts, of_files = (TranslationDataset(p, source, target, empty="drop", **arguments) for p in (pairs, files))
    assert of_files.num_empty == texts.num_empty == 3 and of_files.num_too_long == texts.num_too_long
    for epoch in (0, 2):
        texts.epoch = of_files.epoch = epoch
        assert_equal(list(texts), list(of_files))
    assert_equal(texts.arrays(), of_files.arrays())
    assert_equal(texts.description()["examples"], of_files.description()["examples"])
    assert_equal(pickle.loads(pickle.dumps(of_files))[0], of_files[0])
    with pytest.raises(ValueError, match=r"sources\[20\] \(''\) has no tokens"):
        TranslationDataset(pairs, source, target, **arguments)
    with pytest.raises(ValueError, match=r"pairs\[20\]: the source, document 20 of '.*', has no tokens; empty='drop'"):
        TranslationDataset(files, source, target, **arguments)


def test_parallel_text_gives_the_same_batches_as_strings_and_as_files(tmp_path, capsys):
    source = "\ufeffthe cat\r\na\u2028dog \r\n\r\n it was\n\nthe\x85 log\n"
    target = "THE CAT\n A DOG\nNOT\n \t\r\n\nTHE LOG"
    paths = tmp_path / "train.en", tmp_path / "train.de"
    files = []
    for path, text, tokenizer in zip(paths, (source, target), (SOURCE, TARGET), strict=True):
        path.write_bytes(text.encode())
        files.append(TokenFile.write(path.with_suffix(".tokens" + path.suffix), path, tokenizer, blank_lines="keep"))
    texts = TranslationDataset(parallel(*paths, empty="drop"), SOURCE, TARGET)
    of_files = TranslationDataset(files, SOURCE, TARGET, empty="drop")
    assert_equal(list(texts), list(of_files))
    assert len(texts.sources) == 3 and of_files.num_empty == 3


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_length": 32},
        {"max_length": 8, "too_long": "split", "batch_tokens": 64},
        {"max_length": 8, "too_long": "truncate"},
        {"max_length": 8, "too_long": "drop"},
        {"whole_words": True, "shuffle": False},
    ],
)
def test_token_files_give_a_masked_lm_the_batches_of_their_texts(arguments, tmp_path):
    files = [token_file(tmp_path, texts, BERT, "skip") for texts in (SENTENCES[:15], SENTENCES[15:])]
    texts, of_files = (MaskedLMDataset(t, BERT, multiple=8, **arguments) for t in (SENTENCES, files))
    assert len(of_files.rows) == len(texts.rows) and of_files.num_too_long == texts.num_too_long
    texts.epoch = of_files.epoch = 3
    assert_equal(list(texts), list(of_files))
    assert_equal(texts.arrays(), of_files.arrays())
    assert_equal(
        MaskedLMDataset(files[0], BERT, multiple=8, **arguments)[0],
        MaskedLMDataset(SENTENCES[:15], BERT, multiple=8, **arguments)[0],
    )


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    source, target = pair_of_files(tmp_path, PAIRS, SOURCE, TARGET)
    few = token_file(tmp_path, SENTENCES[:9], TARGET)
    skipped = token_file(tmp_path, SENTENCES, TARGET, "skip")
    whole = token_file(tmp_path, SENTENCES, TARGET, "skip", sample_by="document")
    blank = token_file(tmp_path, ["the cat", ""], BERT)
    for pairs, message in (
        ((source, few), r"pairs: the source file '.*' has 50 documents and the target file '.*' 9"),
        (
            (source, skipped),
            "pairs: the target file .* must be written line by line with blank_lines='keep' or 'error'",
        ),
        ((source, whole), "sample_by='document'"),
        ((target, source), "source_tokenizer .* must be the one that"),
        ((source, source), "target_tokenizer .* must be the one that"),
        ((source, SENTENCES), r"pairs\[1\] .* must be a TokenFile where others are"),
        ((source, target, target), r"pairs \(3 of them\) must be 2 TokenFiles"),
        (source, r"pairs \(1 of them\) must be 2 TokenFiles"),
    ):
        with pytest.raises(ValueError, match=message):
            TranslationDataset(pairs, SOURCE, TARGET)
    with pytest.raises(ValueError, match="empty .'keep'. must be one of 'error', 'drop'"):
        translation(empty="keep")
    with pytest.raises(ValueError, match=r"pairs \(2 of them\) all have an empty side"):
        TranslationDataset([("a", ""), (" ", "b")], SOURCE, TARGET, empty="drop")
    with pytest.raises(ValueError, match="tokenizer .* must be the one that"):
        MaskedLMDataset(source, BERT)
    with pytest.raises(ValueError, match=r"texts\[1\] has no tokens: .*blank_lines='skip'"):
        MaskedLMDataset(blank, BERT)


@pytest.mark.parametrize("largest", ["first", "last"])
def test_a_model_that_cannot_read_files_says_so_before_it_looks_at_all_batches(largest, tmp_path, monkeypatch):
    """The largest id, that of bos and eos aside, is found wherever it is."""
    tokenizer = Tokenizer.train_words(SENTENCES, 100, **({} if largest == "first" else {"bos": "zz", "eos": "zz"}))
    files = pair_of_files(tmp_path, [(text, text) for text in SENTENCES], tokenizer, tokenizer)
    dataset = TranslationDataset(files, tokenizer, tokenizer, batch_size=4)
    size = max(int(dataset.sources[i].max()) for i in range(50))
    model = kerasllm.TransformerTranslator(size, tokenizer.vocabulary_size, **TRANSLATOR)
    model.compile("sgd", TokenCrossentropy())
    made = []
    plain_batch = dataset.plain_batch
    monkeypatch.setattr(dataset, "plain_batch", lambda *given: made.append(given) or plain_batch(*given))
    with pytest.raises(ValueError, match=rf"source_token_ids\[\d+, \d+\] \({size}\)"):
        model.fit(dataset, verbose=0)
    assert len(made) <= 2
    short = kerasllm.TransformerTranslator(100, 100, **(TRANSLATOR | {"max_sequence_length": 8}))
    short.compile("sgd", TokenCrossentropy())
    with pytest.raises(ValueError, match="max_sequence_length"):
        short.fit(dataset, verbose=0)


def test_where_the_largest_id_is_cut_off_all_batches_are_looked_at(tmp_path):
    tokens = Tokenizer.train_words(["the cat a dog zebra"], 20)
    files = pair_of_files(tmp_path, [("the cat", "the cat " * 9 + "zebra"), ("a dog", "the")], tokens, tokens)
    cut = TranslationDataset(files, tokens, tokens, max_length=8, too_long="truncate", batch_size=1)
    assert tokens.token_to_id("zebra") == files[1].ids.max() and len(list(cut.batches_ahead())) == 2
    assert cut.targets.holders_of_largest() is None


@pytest.mark.once("jax")
def test_fit_learns_from_a_pair_of_files(tmp_path):
    files = pair_of_files(tmp_path, PAIRS, SOURCE, TARGET)
    dataset = TranslationDataset(files, SOURCE, TARGET, batch_tokens=100)
    model = translator()
    model.fit(dataset, verbose=0)
    expected = translator()
    expected.fit(translation(batch_size=None, batch_tokens=100), verbose=0)
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class Entries:
    """A length and entries, and no end but the length."""

    def __init__(self, entries):
        self.entries = entries

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        return self.entries[index % len(self.entries)]


@pytest.mark.parametrize("read", [Entries, iter, tuple, lambda x: (entry for entry in x)])
def test_texts_may_come_one_after_the_other(read, monkeypatch):
    monkeypatch.setattr(text_rows, "CHUNK", 50)
    assert_equal(list(TranslationDataset(read(PAIRS), SOURCE, TARGET, batch_size=8)), list(translation()))
    assert_equal(list(MaskedLMDataset(read(SENTENCES), BERT, batch_size=8, multiple=16)), list(masked()))
    ids = [BERT.encode(text, special_tokens=False) for text in SENTENCES]
    assert_equal(list(MaskedLMDataset(read(ids), BERT, batch_size=8, multiple=16)), list(masked()))
    given = {"batch_size": 4, "sequence_length": 16}
    assert_equal(list(LanguageModelDataset(read(SENTENCES), GPT, **given)), list(language_model()))


def test_strings_of_a_generator_are_not_held(monkeypatch):
    class Text(str):
        __slots__ = ("__weakref__",)

    monkeypatch.setattr(text_rows, "CHUNK", 50)
    alive, most = weakref.WeakSet(), 0

    def texts():
        nonlocal most
        for i in range(200):
            text = Text(f"{SENTENCES[i % 50]} {i}")
            alive.add(text)
            most = max(most, len(alive))
            yield text
            del text

    assert len(MaskedLMDataset(texts(), BERT).rows) == 200 and most < 60


# Lengths


def test_too_long_is_an_explicit_choice():
    lengths = np.array([len(SOURCE.encode(s)) for s in SENTENCES])
    with pytest.raises(ValueError, match=r"pairs\[\d+\] has \d+ tokens, more than 8, as have \d+ of 50"):
        translation(max_length=8)
    dropped = translation(max_length=8, too_long="drop")
    assert dropped.num_too_long == (lengths + 1 > 8).sum() == 50 - len(dropped.arrays()[1])
    cut = translation(max_length=8, too_long="truncate")
    inputs, labels = cut.arrays()
    assert cut.num_too_long == dropped.num_too_long and labels.shape == (50, 8)
    # A cut target still ends with the end token.
    assert (labels.max(axis=1) >= 0).all()
    ends = (labels != -1).sum(axis=1) - 1
    assert (labels[np.arange(50), ends] == TARGET.eos_id).all()
    assert inputs["source_token_ids"].shape == (50, 8)


def test_long_texts_of_a_masked_lm_are_cut_or_split():
    with pytest.raises(ValueError, match="texts.*more than 6"):
        masked(max_length=8)
    cut, parts = masked(max_length=8, too_long="truncate"), masked(max_length=8, too_long="split")
    assert len(cut.rows) == 50 and cut.num_too_long == parts.num_too_long > 0
    assert max(map(len, cut.rows)) == max(map(len, parts.rows)) == 8
    ids = BERT.encode_batch(SENTENCES, special_tokens=False)
    assert [i for row in parts.rows for i in row[1:-1]] == [i for row in ids for i in row]
    assert all(row[0] == BERT.cls_id and row[-1] == BERT.sep_id for row in cut.rows + parts.rows)
    assert len(masked(max_length=8, too_long="drop").rows) == 50 - cut.num_too_long


def test_no_batch_is_wider_than_max_length():
    for dataset in (
        masked(max_length=10, too_long="split"),
        translation(max_length=10, too_long="truncate", multiple=8),
    ):
        batches = [dataset[i] for i in range(len(dataset))] + [dataset.arrays()]
        assert max(x.shape[1] for inputs, _ in batches for x in inputs.values()) == 10


# fit


def tiny_model(dataset):
    """Embeds every integer input, adds what it sees and predicts the labels."""
    (example, labels) = dataset[0]
    inputs = {name: keras.Input((None,), dtype=str(x.dtype), name=name) for name, x in example.items()}
    names = {translation: "target_token_ids", masked: "masked_positions", language_model: "token_ids"}
    makes = {TranslationDataset: translation, MaskedLMDataset: masked, LanguageModelDataset: language_model}
    x = keras.layers.Embedding(320, 8)(inputs[names[makes[type(dataset)]]])
    outputs = keras.layers.Dense(320)(x)
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    model.compile("sgd", loss)
    return model


@pytest.mark.in_turn
@KINDS
def test_fit_trains_alike_with_any_number_of_workers(make):
    model = tiny_model(make())
    model.fit(make(), verbose=0)  # With two workers the fit that builds a model is special; see the module.
    weights = [np.array(w) for w in model.get_weights()]
    losses = []
    for workers in (0, 1, 2):
        model.set_weights(weights)
        dataset = make(workers=workers)
        history = model.fit(
            dataset, validation_data=make(workers=workers, shuffle=False), epochs=2, shuffle=False, verbose=0
        )
        assert dataset.epoch == 3  # One at the start of fit, one at the end of each epoch.
        losses.append(history.history["loss"] + history.history["val_loss"])
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-6)
    assert losses[0][1] < losses[0][0]


@KINDS
def test_fit_takes_plain_arrays(make):
    dataset = make()
    inputs, labels = dataset.arrays()
    tiny_model(dataset).fit(inputs, labels, batch_size=16, verbose=0)


def test_fit_goes_through_every_batch_of_an_epoch_once():
    dataset = translation()
    asked = collections.defaultdict(list)
    make_batch = dataset.make_batch

    def recorded(indices, widths, generator):
        asked[dataset.epoch].extend(indices)
        return make_batch(indices, widths, generator)

    model = tiny_model(dataset)
    model.fit(dataset, epochs=1, verbose=0)  # Builds the model, which looks at a batch.
    dataset.epoch = 10
    dataset.make_batch = recorded
    model.fit(dataset, epochs=2, verbose=0)
    for epoch in (11, 12):
        assert set(asked[epoch]) == set(range(50))


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def recorded_batches(dataset):
    """A set that is filled with `(epoch, examples)` of all batches that are made from now on."""
    seen, make_batch = set(), dataset.make_batch

    def recorded(indices, widths, generator):
        seen.add((dataset.epoch, *indices))
        return make_batch(indices, widths, generator)

    dataset.make_batch = recorded
    return seen


@pytest.mark.once("torch")
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_resumed_fit_sees_the_batches_of_its_epoch(workers, tmp_path):
    model = GPTModel(GPT.vocabulary_size, num_layers=1, num_heads=1, hidden_dim=4, max_sequence_length=16)
    whole, interrupted, resumed, later = (language_model(workers=workers) for _ in range(4))

    model.compile("sgd", TokenCrossentropy())

    def fit(dataset, **arguments):
        seen = recorded_batches(dataset)
        model.fit(dataset, shuffle=False, verbose=0, **arguments)
        return {batch for batch in seen if batch[0] > 1}  # those of the epochs after the first

    expected = fit(whole, epochs=3)
    assert {epoch for epoch, *_ in expected} == {2, 3}
    assert fit(later, epochs=3, initial_epoch=1) == expected
    whole.epoch = 1
    assert fit(whole, epochs=2) == expected  # a second fit goes on counting
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, epochs=3, callbacks=[keras.callbacks.BackupAndRestore(tmp_path), Stop()])
    model.compile("sgd", TokenCrossentropy(), metrics=[Perplexity()])  # which Keras builds on a batch
    assert fit(resumed, epochs=3, callbacks=keras.callbacks.BackupAndRestore(tmp_path)) == expected


def test_a_model_of_keras_is_told_the_epoch_by_a_callback():
    dataset = language_model()
    model = tiny_model(dataset)
    model.fit(dataset, initial_epoch=4, epochs=6, callbacks=[dataset.epoch_callback()], verbose=0)
    assert dataset.epoch == 7


CHILD = """
import sys
import numpy as np, keras
from kerasllm.text.tokenizers import Tokenizer
from kerasllm.training.packed_datasets import LanguageModelDataset
dataset = LanguageModelDataset(["a b c d e"] * 9, Tokenizer.train_words(["a b c d e"], 20), 2, 4)
inputs = {n: keras.Input((None,), dtype=str(x.dtype), name=n) for n, x in dataset[0][0].items()}
model = keras.Model(inputs, keras.layers.Embedding(20, 20)(inputs["token_ids"]))
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1))
model.fit(dataset, verbose=0)
foreign = {"tensorflow", "torch"} - {keras.backend.backend()}
print(sorted(foreign & set(sys.modules)))
"""


def test_fit_imports_no_other_backend():
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, env=environment)
    assert child.stdout.strip() == "[]", child.stderr


# Bad input

NO_EOS = Tokenizer.train_words(SENTENCES, 100, bos=None, eos=None)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: TranslationDataset([], SOURCE, TARGET), "sources must not be empty"),
        (lambda: TranslationDataset([("a", "b"), "cd"], SOURCE, TARGET), r"pairs\[1\]"),
        (lambda: TranslationDataset([("a", "b"), None], SOURCE, TARGET), r"pairs\[1\]"),
        (lambda: TranslationDataset([("a", "")], SOURCE, TARGET), r"targets\[0\] \(''\) has no tokens"),
        (lambda: TranslationDataset([("a", None)], SOURCE, TARGET), r"targets\[0\] .None. must be"),
        (lambda: TranslationDataset([([1], [100])], SOURCE, TARGET), r"targets\[0\] holds 100"),
        (lambda: TranslationDataset([([-1], [1])], SOURCE, TARGET), r"sources\[0\] holds -1"),
        (lambda: TranslationDataset(PAIRS, SOURCE, NO_EOS), "target_tokenizer .* must have a token for bos"),
        (lambda: translation(too_long="ignore"), "too_long .'ignore'. must be one of"),
        (lambda: translation(max_length=1, too_long="drop"), "all have more than 1 tokens"),
        (lambda: MaskedLMDataset(["a", [3]], BERT), r"texts\[1\] .* must be a string where others are"),
        (lambda: MaskedLMDataset([[3], "a"], BERT), r"texts\[1\] .* must be token ids where others are"),
        (lambda: MaskedLMDataset(iter(()), BERT), "texts must not be empty"),
        (lambda: MaskedLMDataset("a text", BERT), "texts .'a text'. must be a sequence"),
        (lambda: LanguageModelDataset({"input_ids": [[1]]}, GPT), "documents .{'input_ids'.* must be a sequence"),
        (lambda: TranslationDataset(dict(PAIRS), SOURCE, TARGET), "pairs .* must be a sequence"),
        (lambda: MaskedLMDataset(SENTENCES, GPT), "tokenizer .* must have a token for cls"),
        (lambda: masked(max_length=2), "max_length . 2 .0."),
        (lambda: MaskedLMDataset([[[3]]], BERT), r"texts\[0\]"),
        (lambda: LanguageModelDataset(None, GPT), "documents .None."),
        (lambda: LanguageModelDataset([[0.5]], GPT), r"documents\[0\] .* must hold integers"),
        (lambda: language_model(sequence_length=0), "length .0."),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_model_from_elsewhere_has_its_start_token_and_what_its_tokenizer_adds():
    """BART reads </s> <s> the cat, and is to write <s> the cat </s>."""
    bart = Tokenizer.from_folder(pathlib.Path(__file__).parent / "data" / "tokenizers" / "roberta")
    target = bart.encode("the cat")
    dataset = TranslationDataset([("the mat", "the cat")], bart, bart, start_token_id=bart.eos_id)
    inputs, labels = dataset.arrays()
    assert inputs["target_token_ids"][0, : len(target)].tolist() == [bart.eos_id, *target[:-1]]
    assert labels[0, : len(target)].tolist() == target and target[0] == bart.bos_id
    with pytest.raises(ValueError, match="start_token_id"):
        TranslationDataset([("the mat", "the cat")], bart, bart, start_token_id=bart.vocabulary_size)
