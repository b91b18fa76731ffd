import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.text.tokenizers import Tokenizer
from kerasllm.training import (
    CosineSimilarityLoss,
    InBatchNegativesLoss,
    PairDataset,
    ResumableTraining,
    ScoredPairDataset,
)
from kerasllm.training.pair_datasets import with_unlike_ends

WORDS = "the cat dog sat ran on under mat log a big small and then it was good bad very not".split()
RNG = np.random.default_rng(0)
TEXTS = list(dict.fromkeys(" ".join(RNG.choice(WORDS, size=n)) for n in RNG.integers(2, 9, size=80)))[:60]
TOKENIZER = Tokenizer.train_wordpiece(TEXTS, 60)
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 32, "dropout": 0.0}


def embedder(**arguments):
    return kerasllm.BERTEmbedder(TOKENIZER.vocabulary_size, **SIZES, tokenizer=TOKENIZER, **arguments)


MODEL = embedder()
PAIRS = list(zip(TEXTS[:20], TEXTS[20:40], strict=True))
TRIPLETS = [(*pair, negative) for pair, negative in zip(PAIRS, TEXTS[40:], strict=True)]


def decoded(row, real):
    return TOKENIZER.decode(row[real.astype(bool)].tolist())


@pytest.mark.once("jax")
@pytest.mark.parametrize("examples", [PAIRS, TRIPLETS, [(*t, t[2] + " the") for t in TRIPLETS]], ids=["2", "3", "4"])
def test_a_batch_has_a_row_and_a_label_for_each_text(examples):
    data = PairDataset(examples, MODEL, batch_size=8, multiple=4)
    seen = []
    for index in range(len(data)):
        inputs, labels = data[index]
        assert set(inputs) == set(MODEL.input) and labels.dtype == "int32"
        assert len(labels) == len(inputs["token_ids"]) == len(data.examples_of(index)) * len(examples[0])
        assert inputs["token_ids"].shape[1] % 4 == 0
        texts = {}
        for (group, role), ids, real in zip(labels, inputs["token_ids"], inputs["padding_mask"], strict=True):
            texts.setdefault(group, []).append((role, decoded(ids, real)))
        for group, example in enumerate(data.examples_of(index)):
            assert texts[group] == list(zip([0, 1, 2, 2], examples[example], strict=False))
        seen += data.examples_of(index).tolist()
    assert sorted(seen) == list(range(20))
    assert [len(data[i][1]) for i in range(2)] == [8 * len(examples[0]), 4 * len(examples[0])]


@pytest.mark.once("jax")
def test_equal_texts_never_share_a_batch_and_none_is_lost():
    common = [(text, "the cat sat") for text in TEXTS[:7]] + [("the dog", text) for text in TEXTS[7:12]]
    data = PairDataset(common + PAIRS[12:] + [("The CAT sat", "big")], MODEL, batch_size=4, multiple=4)
    orders = set()
    for epoch in range(3):
        data.epoch = epoch
        shown = [data.examples_of(i).tolist() for i in range(len(data))]
        assert sorted(sum(shown, [])) == list(range(21))
        for batch in shown:
            assert sum(i < 7 or i == 20 for i in batch) <= 1 and sum(7 <= i < 12 for i in batch) <= 1
        orders.add(str(shown))
        again = PairDataset(common + PAIRS[12:] + [("The CAT sat", "big")], MODEL, batch_size=4, multiple=4)
        for place in range(len(data)):
            np.testing.assert_array_equal(data[place][0]["token_ids"], again.batch_of(epoch, place)[0]["token_ids"])
    assert len(orders) == 3
    with pytest.raises(ValueError, match=r"pairs\[0\] and pairs\[1\] have a text in common"):
        data.arrays()
    assert len(PairDataset(PAIRS, MODEL).arrays()[1]) == 40


@pytest.mark.once("jax")
def test_the_first_two_batches_differ_in_each_axis_in_which_any_do():
    def plan(*shapes):
        return [(np.arange(rows), (width,)) for rows, width in shapes]

    for shapes in ([(4, 8), (4, 8), (3, 8), (4, 4)], [(4, 8), (4, 4), (3, 8)], [(4, 8), (4, 8), (1, 8)], [(4, 8)] * 2):
        ends = with_unlike_ends(plan(*shapes))
        assert sorted((len(i), w[0]) for i, w in ends) == sorted(shapes)
        first, last = ((len(i), w[0]) for i, w in (ends[0], ends[-1]))
        for axis in range(2):
            assert (first[axis] != last[axis]) == (len({shape[axis] for shape in shapes}) > 1)


@pytest.mark.once("torch")
def test_texts_are_read_as_the_model_embeds_them():
    prompts = {"query": "the big : ", "passage": "a small "}
    model = embedder(prompts=prompts, include_prompt=False, truncate_at=9, pooling="mean")
    data = PairDataset(PAIRS, model, too_long="truncate", shuffle=False)
    inputs, _ = data.arrays()
    vectors = model.predict(inputs, verbose=0)
    for side, name in enumerate(("query", "passage")):
        expected = model.embed([pair[side] for pair in PAIRS], prompt_name=name)
        np.testing.assert_allclose(vectors[side::2], expected, atol=1e-5)
    assert data.num_too_long > 0 and inputs["token_ids"].shape[1] <= 9
    other = PairDataset(PAIRS, model, query_prompt="", document_prompt="bad ", max_length=30).arrays()[0]
    np.testing.assert_allclose(
        model.predict(other, verbose=0)[::2], model.embed([p[0] for p in PAIRS], prompt=""), atol=1
    )
    scored = ScoredPairDataset(PAIRS, np.arange(20) / 20, model, prompt_name="query", too_long="truncate").arrays()
    np.testing.assert_allclose(
        model.predict(scored[0], verbose=0)[1::2], model.embed([p[1] for p in PAIRS], prompt_name="query"), atol=1e-5
    )
    np.testing.assert_allclose(scored[1][::2, 1], np.arange(20) / 20, rtol=1e-6)
    assert (scored[1][::2] == scored[1][1::2]).all()


@pytest.mark.once("torch")
def test_embedders_learn_from_pairs_and_from_scores():
    model = embedder()
    data = PairDataset(PAIRS[:16], model, batch_size=8, multiple=32)
    optimizer = keras.optimizers.Adam(0.02, gradient_accumulation_steps=2)
    model.compile(optimizer, InBatchNegativesLoss(chunk_size=12))
    before = model.evaluate(data, verbose=0)
    model.fit(data, epochs=4, verbose=0)
    assert model.evaluate(data, verbose=0) < 0.95 * before
    data = ScoredPairDataset(PAIRS[:8], [0.0, 1.0] * 4, model, batch_size=8, multiple=32)
    model.compile(keras.optimizers.Adam(0.02), CosineSimilarityLoss())
    losses = model.fit(data, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.once("jax")
@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: PairDataset([], MODEL), r"pairs \(\[\]\) must not be empty"),
        (lambda: PairDataset("ab", MODEL), r"pairs \('ab'\) must be a sequence"),
        (lambda: PairDataset(["ab"], MODEL), r"pairs\[0\] \('ab'\) must be a sequence"),
        (lambda: PairDataset([("a",)], MODEL), r"pairs\[0\] .* must be 2 texts, it has 1"),
        (lambda: PairDataset([("a", "b"), ("a", "b", "c")], MODEL), r"pairs\[1\] .* must be 2 texts, it has 3"),
        (lambda: PairDataset([("a", "b"), ("a", 3)], MODEL), r"pairs\[1\]\[1\] \(3\) must be a string"),
        (lambda: PairDataset([("a", " ")], MODEL), r"pairs\[0\]\[1\] \(' '\) must not be empty"),
        (lambda: PairDataset([("a", "the " * 40)], MODEL), r"pairs\[0\] has 42 tokens, more than 32"),
        (lambda: PairDataset(PAIRS, TOKENIZER), r"model .* must be a BERTEmbedder"),
        (lambda: PairDataset(PAIRS, MODEL, batch_size=1), r"batch_size \(1\) must be 2 or more"),
        (lambda: PairDataset(PAIRS, MODEL, query_prompt=3), r"query_prompt \(3\) must be a string"),
        (lambda: PairDataset(PAIRS, MODEL, too_long="cut"), r"too_long \('cut'\) must be one of"),
        (lambda: ScoredPairDataset(TRIPLETS, [1] * 20, MODEL), r"pairs\[0\] .* must be 2 texts, it has 3"),
        (lambda: ScoredPairDataset(PAIRS, [1], MODEL), r"scores \(1 of them\) must be as many as pairs \(20\)"),
        (lambda: ScoredPairDataset(PAIRS, [1] * 19 + [float("nan")], MODEL), r"scores\[19\] \(nan\) must be a finite"),
        (
            lambda: ScoredPairDataset(PAIRS, [1] * 20, MODEL, prompt_name="query"),
            r"prompt_name \('query'\) must be one",
        ),
    ],
)
def test_bad_examples_are_refused_by_their_number(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.once("torch")
def test_a_resumed_run_goes_on_with_the_same_pairs(tmp_path):
    def trained(*all_epochs):
        for epochs in all_epochs:
            keras.utils.set_random_seed(0)
            model = embedder()
            model.compile(keras.optimizers.SGD(0.5), InBatchNegativesLoss(chunk_size=5))
            folder = tmp_path / str(len(all_epochs))
            data = PairDataset(PAIRS[:8], model, batch_size=4)
            model.fit(data, epochs=epochs, callbacks=[ResumableTraining(folder)], verbose=0)
        return model.get_weights()

    for a, b in zip(trained(2), trained(1, 2), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.once("jax")
def test_fit_refuses_a_dataset_that_is_not_its_losss():
    model = embedder()
    model.compile("sgd", InBatchNegativesLoss())
    with pytest.raises(ValueError, match=r"labels\[0\].* must be a group and a role, whole"):
        model.fit(ScoredPairDataset(PAIRS, [0.5] * 20, model, shuffle=False, multiple=32), verbose=0)
    model.compile("sgd", CosineSimilarityLoss())
    with pytest.raises(ValueError, match=r"labels\[.*two scores"):
        model.fit(PairDataset(PAIRS, model), verbose=0)
