"""Wrong ids, segments, positions, masks, lengths, shapes, labels, weights: a `ValueError` before a backend sees them.

Each case changes one thing in a batch that is right, and the model is as it was afterwards.
"""

from functools import partial

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm import (
    GPT,
    BERTClassifier,
    BERTEmbedder,
    BERTMaskedLM,
    BERTQuestionAnswerer,
    BERTTokenClassifier,
    EmbeddingIndex,
    LSTMTranslator,
    RNNLanguageModel,
    Summarizer,
    Tokenizer,
    TransformerTranslator,
)
from kerasllm.text import batches
from kerasllm.training import (
    ClassificationDataset,
    LanguageModelDataset,
    MaskedLMDataset,
    Perplexity,
    QuestionAnsweringDataset,
    TokenAccuracy,
    TokenClassificationDataset,
    TokenCrossentropy,
    TranslationDataset,
)

TEXTS = ["the cat sat on the mat .", "the dog ran to the cat .", "a bird sings"]
SMALL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16}
B, T, V, LABELS = 3, 6, 40, 3
PIECES = Tokenizer.train_wordpiece(TEXTS, V)
WORDS = Tokenizer.train_words(TEXTS, V, pad="<pad>", unk="<unk>", bos="<s>", eos="</s>")
LARGER = Tokenizer.train_bpe(["a b c d e f g h"], 300, cls="[CLS]", sep="[SEP]", mask="[MASK]", bos="<s>", eos="</s>")
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

MODELS = {
    "gpt": lambda: (GPT(V, **SMALL, tokenizer=WORDS), TokenCrossentropy()),
    "rotary": lambda: (GPT(V, **SMALL, positions="rotary"), TokenCrossentropy()),
    "rnn": lambda: (RNNLanguageModel(V, hidden_dim=8, tokenizer=WORDS), TokenCrossentropy()),
    "masked": lambda: (BERTMaskedLM(V, **SMALL, tokenizer=PIECES), TokenCrossentropy()),
    "classifier": lambda: (BERTClassifier(V, **SMALL, labels=LABELS, tokenizer=PIECES), SPARSE),
    "multi": lambda: (
        BERTClassifier(V, **SMALL, labels=LABELS, problem_type="multi_label"),
        keras.losses.BinaryCrossentropy(from_logits=True),
    ),
    "regression": lambda: (BERTClassifier(V, **SMALL, labels=1, problem_type="regression"), "mse"),
    "tagger": lambda: (BERTTokenClassifier(V, **SMALL, labels=LABELS, tokenizer=PIECES), TokenCrossentropy()),
    "answerer": lambda: (
        BERTQuestionAnswerer(V, **SMALL, tokenizer=PIECES),
        {"start_logits": SPARSE, "end_logits": SPARSE},
    ),
    "embedder": lambda: (BERTEmbedder(V, **SMALL, tokenizer=PIECES), "mse"),
    "translator": lambda: (
        TransformerTranslator(V, V, **SMALL, source_tokenizer=WORDS, target_tokenizer=WORDS),
        TokenCrossentropy(),
    ),
    "lstm": lambda: (
        LSTMTranslator(V, V, hidden_dim=8, source_tokenizer=WORDS, target_tokenizer=WORDS),
        TokenCrossentropy(),
    ),
    "summarizer": lambda: (Summarizer(V, **SMALL, tokenizer=PIECES), TokenCrossentropy()),
}


@pytest.fixture(scope="module")
def models():
    """The models by their names, each made when it is first asked for."""
    return Made()


class Made(dict):
    def __missing__(self, name):
        model, loss = MODELS[name]()
        model.compile("sgd", loss)
        return self.setdefault(name, model)


def right(model):
    """A batch that is right, `(x, y)`."""
    mask = np.arange(T) < np.array([[T], [T - 1], [2]])
    x = {}
    for name in model.input:
        x[name] = mask.copy() if name.endswith("mask") else np.where(mask, 5, 0).astype("int32")
        if name == "segment_ids":
            x[name] = np.where(np.arange(T) > 0, mask, 0).astype("int32")
        if name == "masked_positions":
            x[name] = np.array([[1, 2], [4, 0], [1, 0]], "int32")
    output = model.output
    if isinstance(output, dict):
        return x, {"start_logits": np.array([1, 0, 1], "int32"), "end_logits": np.array([2, 0, 1], "int32")}
    if len(output.shape) == 3:
        length = 2 if "masked_positions" in x else T
        return x, np.where(mask[:, :length], 1, -1).astype("int32")
    if model.name == "bert_classifier" and model.problem_type == "single_label":
        return x, np.array([0, 1, 2], "int32")
    return x, np.ones((B, output.shape[1]), "float32")


def changed(array, value, where=(1, 0)):
    array = np.array(array, "float64" if isinstance(value, float) else "int64")
    array[where[: array.ndim]] = value
    return array


IDS = {
    "beyond": lambda a: changed(a, 40),
    "far beyond": lambda a: changed(a, 10**6),
    "beyond int32": lambda a: changed(a, 2**40 + 1),
    "negative": lambda a: changed(a, -1),
    "a fraction": lambda a: changed(a, 1.7),
    "nan": lambda a: changed(a, float("nan")),
    "infinite": lambda a: changed(a, float("inf")),
    "uint64": lambda a: changed(a, 1).astype("uint64") + np.uint64(2**63),
    "bools": lambda a: a.astype("bool"),
    "strings": lambda a: a.astype(str),
    "objects": lambda a: a.astype(object),
    "complex": lambda a: a.astype("complex64"),
    "bytes of another order": lambda a: a.astype(">i4" if np.little_endian else "<i4"),
    "flat": lambda a: a[:, 0],
    "an axis more": lambda a: np.stack([a, a], -1),
    "longer than the others": lambda a: np.concatenate([a, a[:, :1]], axis=1),
    "a row less": lambda a: a[:-1],
    "no row": lambda a: a[:0],
    "no column": lambda a: a[:, :0],
}
SEGMENTS = {name: IDS[name] for name in ("negative", "a fraction", "beyond int32", "strings")}
SEGMENTS |= {"beyond": lambda a: changed(a, 2), "one position": lambda a: a[:, :1]}
POSITIONS = {name: IDS[name] for name in ("negative", "a fraction", "beyond int32", "flat", "a row less", "bools")}
POSITIONS |= {"beyond": lambda a: changed(a, T), "of padding": lambda a: changed(a, 5), "none": lambda a: a[:, :0]}
MASKS = {
    "two": lambda a: changed(a, 2),
    "negative": lambda a: changed(a, -1),
    "halves": lambda a: changed(a, 0.5),
    "strings": lambda a: a.astype(str),
    "another length": lambda a: a[:, :-1],
    "one column": lambda a: a[:, :1],
    "another number of rows": lambda a: a[:-1],
    "of attention": lambda a: a[:, None, :] & a[:, :, None],
    "flat": lambda a: a[0],
}
RIGHT = {  # which encoders take
    "padding on the left": lambda a: a[:, ::-1],
    "a hole": lambda a: changed(a, 0, (0, 2)),
}
CLASSES = {
    "beyond": lambda a: changed(a, 40),
    "far beyond": lambda a: changed(a, 10**6),
    "beyond int32": lambda a: changed(a, 2**40 + 1),
    "negative": lambda a: changed(a, -2),
    "of torch, -100": lambda a: changed(a, -100),
    "a fraction": lambda a: changed(a, 1.7),
    "nan": lambda a: changed(a, float("nan")),
    "strings": lambda a: a.astype(str),
    "objects": lambda a: a.astype(object),
    "an axis less": lambda a: a[..., 0] if a.ndim > 1 else a[0],
    "an axis more": lambda a: np.stack([a, a], -1),
    "one column more": lambda a: np.concatenate([a, a[..., :1]], axis=-1),
    "a row less": lambda a: a[:-1],
}
NUMBERS = {
    "nan": lambda a: changed(a, float("nan")),
    "infinite": lambda a: changed(a, float("inf")),
    "strings": lambda a: a.astype(str),
    "a column more": lambda a: np.concatenate([a, a[:, :1]], axis=1),
}
WEIGHTS = {
    "nan": lambda: np.array([1, np.nan, 1]),
    "infinite": lambda: np.array([1, np.inf, 1]),
    "too few": lambda: np.ones(B - 1),
    "too many columns": lambda: np.ones((B, T + 1)),
    "strings": lambda: np.array(["1"] * B),
}


def wrong_inputs():
    """`(model, what is wrong, input, change)` of all that is tried on inputs."""
    for model in ("gpt", "rnn", "masked", "classifier", "answerer", "embedder"):
        yield from ((model, "token_ids", wrong, change) for wrong, change in IDS.items())
    for model in ("translator", "lstm", "summarizer"):
        for name in ("source_token_ids", "target_token_ids"):
            yield from ((model, name, wrong, change) for wrong, change in IDS.items())
        yield from ((model, "source_padding_mask", wrong, change) for wrong, change in MASKS.items())
        yield from ((model, "target_padding_mask", wrong, change) for wrong, change in (MASKS | RIGHT).items())
    for model in ("masked", "classifier", "tagger", "answerer"):
        yield from ((model, "segment_ids", wrong, change) for wrong, change in SEGMENTS.items())
        yield from ((model, "padding_mask", wrong, change) for wrong, change in MASKS.items())
    yield from (("gpt", "padding_mask", wrong, change) for wrong, change in (MASKS | RIGHT).items())
    for model in ("rotary", "rnn"):
        yield from ((model, "padding_mask", wrong, change) for wrong, change in MASKS.items())
    yield from (("masked", "masked_positions", wrong, change) for wrong, change in POSITIONS.items())


def wrong_labels():
    """`(model, what is wrong, change)` of all that is tried on labels."""
    for model in ("gpt", "rnn", "masked", "classifier", "tagger", "translator", "lstm", "summarizer"):
        yield from ((model, wrong, change) for wrong, change in CLASSES.items())
    yield "classifier", "one that the loss does not ignore", lambda a: changed(a, -1)
    yield "classifier", "one hot", lambda a: np.eye(LABELS, dtype="int32")[a]
    yield "classifier", "one more than there are", lambda a: changed(a, LABELS)
    yield "tagger", "one more than there are", lambda a: changed(a, LABELS)
    for model in ("multi", "regression", "embedder"):
        yield from ((model, wrong, change) for wrong, change in NUMBERS.items())
    yield "multi", "one column", lambda a: a[:, :1]
    yield "multi", "flat", lambda a: a[:, 0]
    yield "multi", "two", lambda a: changed(a, 2)
    yield "multi", "negative", lambda a: changed(a, -1)
    for side in ("start_logits", "end_logits"):
        for wrong, change in {
            "beyond": lambda a: changed(a, T),
            "of padding": lambda a: changed(a, 5, (2,)),
            "negative": lambda a: changed(a, -1),
            "of torch, -100": lambda a: changed(a, -100),
            "a fraction": lambda a: changed(a, 0.5),
            "of another shape": lambda a: np.stack([a, a], -1),
        }.items():
            yield "answerer", f"{side}: {wrong}", lambda y, s=side, c=change: {**y, s: c(y[s])}
    yield "answerer", "the end first", lambda y: {"start_logits": y["end_logits"], "end_logits": y["start_logits"]}
    yield "answerer", "in the question", lambda y: {**y, "start_logits": y["start_logits"] * 0}


INPUTS = {f"{model}: {name}: {wrong}": (model, name, change) for model, name, wrong, change in wrong_inputs()}
LABELLED = {f"{model}: labels: {wrong}": (model, change) for model, wrong, change in wrong_labels()}
WEIGHTED = {
    f"{model}: sample_weight: {wrong}": (model, make)
    for model in ("gpt", "classifier", "regression")
    for wrong, make in WEIGHTS.items()
}


def calls(models):
    """Each wrong call by its name, and what its error must say."""
    for case, (name, given, change) in INPUTS.items():
        x, y = right(models[name])
        yield case, partial(models[name].train_on_batch, {**x, given: change(x[given])}, y), given
    for case, (name, change) in LABELLED.items():
        x, y = right(models[name])
        yield case, partial(models[name].train_on_batch, x, change(y)), "labels"
    for case, (name, make) in WEIGHTED.items():
        yield case, partial(models[name].train_on_batch, *right(models[name]), make()), "sample_weight"


def outcome(call, said):
    """ "" where `call` raises a `ValueError` that holds `said` and is short, else what it does instead."""
    try:
        result = call()
    except ValueError as error:
        message = str(error)
        return "" if said in message and len(message) < 400 else f"ValueError: {message[:200]}"
    except Exception as error:  # what the backends raise
        return f"{type(error).__name__}: {error}"[:200]
    return f"gives {result!r:.80}"


def test_wrong_arrays_are_refused(models):
    before = {}
    for name in MODELS:
        before[name] = models[name].get_weights()
        x, y = right(models[name])
        kerasllm.training.limits.Limits.of(models[name]).check(x, y, np.ones(B))
    found = {case: problem for case, call, said in calls(models) if (problem := outcome(call, said))}
    assert not found, f"{len(found)}: {found}"
    for name in MODELS:
        for old, new in zip(before[name], models[name].get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("names", [["embedder"], pytest.param(MODELS, marks=pytest.mark.slow)], ids=["one", "all"])
def test_rows_of_padding_that_fill_up_a_batch_have_numbers_and_change_no_other_row(models, names):
    for name in names:
        model = models[name]
        x, y = right(model)
        expected = keras.tree.flatten(model.predict(x, verbose=0))
        for key in x:
            x[key][2] = 0
        for got, others in zip(keras.tree.flatten(model.predict(x, verbose=0)), expected, strict=True):
            assert np.isfinite(got).all(), name
            np.testing.assert_allclose(got[:2], others[:2], atol=1e-5)
        for labels in keras.tree.flatten(y):
            labels[2] = 0
        before = model.get_weights()
        model.fit(x, y, sample_weight=None if isinstance(y, dict) else np.array([1.0, 1.0, 0.0]), verbose=0)
        assert all(np.isfinite(w).all() for w in model.get_weights()), name
        model.set_weights(before)


def test_encoders_take_masks_with_holes_and_do_not_see_what_is_hidden(models):
    model = models["classifier"]
    kept, generator = model.get_weights(), np.random.default_rng(0)
    model.set_weights([generator.normal(0, 0.3, w.shape) if w.dtype.kind == "f" else w for w in kept])
    x, _ = right(model)
    x["token_ids"] = generator.integers(5, V, (B, T))
    expected = model.predict(x, verbose=0)
    for change in RIGHT.values():
        hidden = {**x, "padding_mask": change(x["padding_mask"])}
        other = {**hidden, "token_ids": np.where(hidden["padding_mask"], x["token_ids"], 7)}
        other["token_ids"][:, 0] = x["token_ids"][:, 0]  # which the head reads
        got = model.predict(hidden, verbose=0)
        np.testing.assert_allclose(model.predict(other, verbose=0), got, atol=1e-5)
        assert np.abs(got - expected).max() > 1e-3
    model.set_weights(kept)


def test_nothing_is_trained_before_all_is_checked(models):
    model = models["classifier"]
    before = model.get_weights()
    x, y = right(model)
    many, labels = {name: np.concatenate([a] * 20) for name, a in x.items()}, np.concatenate([y] * 20)
    last = {**many, "token_ids": changed(many["token_ids"], V, (59, 0))}
    fit = {"batch_size": 2, "verbose": 0}
    found = {
        "the last row": (lambda: model.fit(last, labels, **fit), f"token_ids[59, 0] ({V})"),
        "a tensor": (
            lambda: model.fit(keras.tree.map_structure(keras.ops.convert_to_tensor, last), labels, **fit),
            "token_ids[59, 0]",
        ),
        "the last label": (lambda: model.fit(many, changed(labels, 3, (59,)), **fit), "labels[59] (3)"),
        "validation": (lambda: model.fit(many, labels, validation_data=(last, labels), **fit), "token_ids[59, 0]"),
        "labels of the validation": (
            lambda: model.fit(many, labels, validation_data=(many, labels + 1), **fit),
            "labels[2] (3)",
        ),
        "evaluate": (lambda: model.evaluate(last, labels, **fit), "token_ids[59, 0]"),
        "predict": (lambda: model.predict(last, **fit), "token_ids[59, 0]"),
        "predict_on_batch": (lambda: model.predict_on_batch(last), "token_ids[59, 0]"),
        "test_on_batch": (lambda: model.test_on_batch(last, labels), "token_ids[59, 0]"),
        "lists": (lambda: model.predict_on_batch({n: a.tolist() for n, a in last.items()}), "token_ids[59, 0]"),
        "rows of other lengths": (lambda: model.predict_on_batch({**x, "token_ids": [[1, 2], [3], [4]]}), "token_ids"),
        "no inputs": (lambda: model.predict(None, **fit), "x (None)"),
        "no labels": (lambda: model.fit(many, **fit), "y (None)"),
        "no labels of the validation": (lambda: model.fit(many, labels, validation_data=(x,), **fit), "y (None)"),
        "an input of None": (lambda: model.predict({**x, "segment_ids": None}, **fit), "segment_ids"),
        "too long": (
            lambda: model.fit({n: np.concatenate([a[:, :1]] * 17, axis=1) for n, a in many.items()}, labels, **fit),
            "max_sequence_length (16)",
        ),
        "class_weight of no class": (lambda: model.fit(many, labels, class_weight={3: 1.0}, **fit), "3"),
        "class_weight by name": (lambda: model.fit(many, labels, class_weight={"LABEL_1": 1.0}, **fit), "LABEL_1"),
        "class_weight nan": (lambda: model.fit(many, labels, class_weight={0: float("nan")}, **fit), "nan"),
        "class_weight negative": (lambda: model.fit(many, labels, class_weight={0: -1}, **fit), "-1"),
        "class_weight a list": (lambda: model.fit(many, labels, class_weight=[1.0, 2.0], **fit), "class_weight"),
    }
    found = {case: problem for case, (call, said) in found.items() if (problem := outcome(call, said))}
    assert not found, found
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def datasets():
    """Datasets that are right in themselves, and do not fit the models: `(model, dataset, what is said)`."""
    long = [" ".join(["the"] * 20)] * 3
    answers = [(0, 3)] * 3
    yield "gpt", LanguageModelDataset([[1, 2, V + 5, 3]] * 3, LARGER, 2, 4), f"({V + 5})"
    yield "gpt", LanguageModelDataset(TEXTS, WORDS, sequence_length=17), "max_sequence_length (16)"
    yield "rnn", LanguageModelDataset([[1, 2, V + 5, 3]] * 3, LARGER, 2, 4), f"({V + 5})"
    yield "masked", MaskedLMDataset([[5, V + 5, 3]] * 3, LARGER, 2, 16), f"({V + 5})"
    yield "masked", MaskedLMDataset(long, PIECES, 2), "max_sequence_length (16)"
    yield "translator", TranslationDataset([([V + 5], [3])] * 3, LARGER, LARGER, 2), "source_token_ids["
    yield "lstm", TranslationDataset([([5], [V + 5])] * 3, WORDS, LARGER, 2), "target_token_ids["
    yield "translator", TranslationDataset([(long[0], "the")] * 3, WORDS, WORDS, 2), "max_sequence_length (16)"
    yield "summarizer", TranslationDataset([([V + 5], [3])] * 3, LARGER, LARGER, 2), "source_token_ids["
    yield "classifier", ClassificationDataset(["a b", "c d", "e"], [0, 1, 2], LARGER, max_length=16), "token_ids["
    yield "classifier", ClassificationDataset(long, [0, 1, 2], PIECES), "max_sequence_length (16)"
    yield "classifier", ClassificationDataset(TEXTS, [0, 1, 3], PIECES, batch_size=1, max_length=16), "labels[2] (3)"
    yield "classifier", ClassificationDataset(TEXTS, [0, -1, 2], PIECES, max_length=16), "labels[1] (-1)"
    yield "classifier", ClassificationDataset(TEXTS, [[0.0, 1.0, 2.0]] * 3, PIECES, max_length=16), "labels (3, 3)"
    yield "multi", ClassificationDataset(TEXTS, [[0, 1]] * 3, PIECES, max_length=16), "labels (3, 2)"
    yield "multi", ClassificationDataset(TEXTS, [[0, 1, 2]] * 3, PIECES, max_length=16), "(2.0)"
    yield "multi", ClassificationDataset(TEXTS, [0, 1, 2], PIECES, max_length=16), "labels (3,)"
    yield "tagger", TokenClassificationDataset([["the", "cat"]] * 3, [[0, 3]] * 3, PIECES, max_length=16), "(3)"
    yield (
        "tagger",
        TokenClassificationDataset([["the", "cat"]] * 3, [[0, 1], [0, -2], [0, 1]], PIECES, max_length=16),
        "(-2)",
    )
    yield "answerer", QuestionAnsweringDataset(["a b"] * 3, ["c d e"] * 3, answers, LARGER, max_length=16), "token_ids["
    yield "answerer", QuestionAnsweringDataset(TEXTS, long, answers, PIECES), "max_sequence_length (16)"


def test_datasets_that_do_not_fit_a_model_are_refused(models):
    found = {}
    for name, dataset, said in datasets():
        case, model = f"{name}: {type(dataset).__name__}: {said}", models[name]
        for method in (model.fit, model.evaluate):
            if problem := outcome(lambda method=method, dataset=dataset: method(dataset, verbose=0), said):
                found[f"{case}: {method.__name__}"] = problem
        dataset[0]  # which is the dataset's own again
    assert not found, found


ROW = [[1, 2, 3]]


def fitted(dataset):
    """A classifier of three labels, trained on a dataset."""
    model = BERTClassifier(PIECES.vocabulary_size, 1, 2, 8, labels=3)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(dataset, verbose=0)


ARGUMENTS = {
    "a string of documents": (lambda: LanguageModelDataset("the cat", WORDS), "documents ('the cat')"),
    "a set of documents": (lambda: LanguageModelDataset({"the cat", "a dog"}, WORDS), "documents"),
    "a dict of documents": (lambda: LanguageModelDataset({"the cat": 1}, WORDS), "documents"),
    "no documents": (lambda: LanguageModelDataset([], WORDS), "documents"),
    "None": (lambda: LanguageModelDataset(None, WORDS), "documents (None)"),
    "a number": (lambda: LanguageModelDataset(3, WORDS), "documents (3)"),
    "a document of no token": (lambda: LanguageModelDataset(["the", ""], WORDS), "documents[1]"),
    "a row of no token": (lambda: LanguageModelDataset([[1], []], WORDS), "documents[1]"),
    "a set of ids": (lambda: LanguageModelDataset([{1, 2}], WORDS), "documents[0]"),
    "ragged ids": (lambda: LanguageModelDataset([[1, [2, 3]]], WORDS), "documents[0]"),
    "bools": (lambda: LanguageModelDataset([[True, False]], WORDS), "documents[0]"),
    "fractions": (lambda: LanguageModelDataset([[1.7, 2.0]], WORDS), "documents[0]"),
    "an id beyond": (lambda: LanguageModelDataset([[1, 999]], WORDS), "documents[0] holds 999"),
    "a negative id": (lambda: LanguageModelDataset([[1, -1]], WORDS), "documents[0] holds -1"),
    "texts that are too long": (lambda: MaskedLMDataset([TEXTS[0] * 9], PIECES, max_length=16), "max_length"),
    "ids beyond int32": (lambda: LanguageModelDataset([[2**40 + 1, 1]], WORDS), "1099511627777"),
    "ids beyond int64": (lambda: LanguageModelDataset([[2**70, 1]], WORDS), "documents[0]"),
    "strings and ids": (lambda: LanguageModelDataset(["the", [1]], WORDS), "[1]"),
    "ids and strings": (lambda: LanguageModelDataset([[1], "the"], WORDS), "documents"),
    "half a character": (lambda: LanguageModelDataset(["the \ud800"], WORDS), "surrogate"),
    "no tokenizer": (lambda: LanguageModelDataset(ROW, None), "tokenizer (None)"),
    "batch_size 0": (lambda: LanguageModelDataset(ROW, WORDS, batch_size=0), "batch_size (0)"),
    "batch_size None": (lambda: LanguageModelDataset(ROW, WORDS, batch_size=None), "batch_size (None)"),
    "batch_size True": (lambda: LanguageModelDataset(ROW, WORDS, batch_size=True), "batch_size (True)"),
    "batch_size 1.5": (lambda: LanguageModelDataset(ROW, WORDS, batch_size=1.5), "batch_size (1.5)"),
    "sequence_length 0": (lambda: LanguageModelDataset(ROW, WORDS, sequence_length=0), "sequence_length (0)"),
    "sequence_length None": (lambda: LanguageModelDataset(ROW, WORDS, sequence_length=None), "sequence_length (None)"),
    "a seed of None": (lambda: LanguageModelDataset(ROW, WORDS, seed=None), "seed (None)"),
    "a string of pairs": (lambda: TranslationDataset("ab", WORDS, WORDS), "pairs ('ab')"),
    "a dict of pairs": (lambda: TranslationDataset({"the": "a"}, WORDS, WORDS), "pairs"),
    "pairs of three": (lambda: TranslationDataset([("a", "b", "c")], WORDS, WORDS), "pairs[0]"),
    "pairs of one": (lambda: TranslationDataset([("a",)], WORDS, WORDS), "pairs[0]"),
    "a pair that is a string": (lambda: TranslationDataset(["ab"], WORDS, WORDS), "pairs[0] ('ab')"),
    "a pair that is a number": (lambda: TranslationDataset([3], WORDS, WORDS), "pairs[0] (3)"),
    "a pair that is a set": (lambda: TranslationDataset([{"a", "b"}], WORDS, WORDS), "pairs[0]"),
    "a pair that is a dict": (lambda: TranslationDataset([{"en": "the", "de": "a"}], WORDS, WORDS), "pairs[0]"),
    "pairs of bytes": (lambda: TranslationDataset([b"ab"], WORDS, WORDS), "pairs[0]"),
    "pairs of None": (lambda: TranslationDataset([("the", None)], WORDS, WORDS), "targets"),
    "an empty source": (lambda: TranslationDataset([("", "the")], WORDS, WORDS), "sources[0]"),
    "an empty target": (lambda: TranslationDataset([("the", "")], WORDS, WORDS), "targets[0]"),
    "pairs used up": (lambda: TranslationDataset(iter([]), WORDS, WORDS), "sources"),
    "no pairs": (lambda: TranslationDataset([], WORDS, WORDS), "sources"),
    "no source tokenizer": (lambda: TranslationDataset([("a", "b")], None, WORDS), "source_tokenizer (None)"),
    "no target tokenizer": (lambda: TranslationDataset([("a", "b")], WORDS, None), "target_tokenizer (None)"),
    "a start beyond": (lambda: TranslationDataset([("a", "b")], WORDS, WORDS, start_token_id=V), "start_token_id"),
    "a string of texts": (lambda: MaskedLMDataset("the cat", PIECES), "texts ('the cat')"),
    "texts used up": (lambda: MaskedLMDataset(iter(()), PIECES), "texts"),
    "a text of no token": (lambda: MaskedLMDataset(["the", " "], PIECES), "texts[1]"),
    "numbers for texts": (lambda: MaskedLMDataset([1, 2], PIECES), "texts[0] (1)"),
    "None among texts": (lambda: MaskedLMDataset(["the", None], PIECES), "texts[1]"),
    "a rate of nan": (lambda: MaskedLMDataset(TEXTS, PIECES, rate=float("nan")), "rate (nan)"),
    "max_length 2": (lambda: MaskedLMDataset(TEXTS, PIECES, max_length=2), "max_length"),
    "a string to classify": (lambda: ClassificationDataset("the", [0], PIECES), "texts ('the')"),
    "numbers to classify": (lambda: ClassificationDataset([1, 2], [0, 1], PIECES), "texts[0] (1)"),
    "ids to classify": (lambda: ClassificationDataset([[1, 2]], [0], PIECES), "texts[0]"),
    "an empty text": (lambda: ClassificationDataset(["the", " "], [0, 1], PIECES), "texts[1]"),
    "too few labels": (lambda: ClassificationDataset(TEXTS, [0, 1], PIECES), "labels (2"),
    "no labels": (lambda: ClassificationDataset(TEXTS, None, PIECES), "labels (None)"),
    "labels by name": (lambda: ClassificationDataset(TEXTS, ["a", "b", "a"], PIECES), "label_names"),
    "an unknown name": (
        lambda: ClassificationDataset(TEXTS, ["a", "b", "c"], PIECES, label_names=["a", "b"]),
        "labels[2] ('c')",
    ),
    "names in a string": (
        lambda: ClassificationDataset(TEXTS, ["a", "b", "a"], PIECES, label_names="ab"),
        "label_names ('ab')",
    ),
    "names twice": (
        lambda: ClassificationDataset(TEXTS, ["a", "b", "a"], PIECES, label_names=["a", "b", "a"]),
        "label_names",
    ),
    "a label that is a list": (
        lambda: ClassificationDataset(TEXTS, [["a"], "b", "a"], PIECES, label_names=["a", "b"]),
        "labels[0]",
    ),
    "fractions of labels": (lambda: fitted(ClassificationDataset(TEXTS, [0.5, 1.0, 0.0], PIECES)), "labels[0"),
    "labels beyond int32": (lambda: ClassificationDataset(TEXTS, [2**40 + 1, 1, 0], PIECES), "labels[0]"),
    "labels of nan": (lambda: ClassificationDataset(TEXTS, [[float("nan")]] * 3, PIECES), "labels[0, 0] (nan)"),
    "ragged labels": (lambda: ClassificationDataset(TEXTS, [[0], [1, 0], [1]], PIECES), "labels"),
    "a string of pairs to classify": (lambda: ClassificationDataset(["a"], [0], PIECES, pairs="b"), "pairs ('b')"),
    "too few second texts": (lambda: ClassificationDataset(TEXTS, [0, 1, 2], PIECES, pairs=["b"]), "pairs (1)"),
    "None for a second text": (lambda: ClassificationDataset(["a"], [0], PIECES, pairs=[None]), "pairs[0]"),
    "no tokenizer for texts": (lambda: ClassificationDataset(TEXTS, [0, 1, 2], None), "tokenizer (None)"),
    "words in a string": (lambda: TokenClassificationDataset(["the cat"], [[0, 1]], PIECES), "words[0]"),
    "too few tags": (lambda: TokenClassificationDataset([["the", "cat"]], [[0]], PIECES), "words[0]"),
    "no tags": (lambda: TokenClassificationDataset([["the", "cat"]], [None], PIECES), "labels[0]"),
    "no words": (lambda: TokenClassificationDataset([None], [[0]], PIECES), "words[0]"),
    "rows of no words": (lambda: TokenClassificationDataset([[]], [[]], PIECES), "words[0]"),
    "tags in a string": (
        lambda: TokenClassificationDataset([["the", "cat"]], ["ab"], PIECES, label_names=["a", "b"]),
        "labels[0]",
    ),
    "words of numbers": (lambda: TokenClassificationDataset([[1, 2]], [[0, 1]], PIECES), "words[0]"),
    "tags of fractions": (lambda: TokenClassificationDataset([["the", "cat"]], [[0.5, 1]], PIECES), "labels[0]"),
    "tags of rows": (lambda: TokenClassificationDataset([["the"]], [[[0.0, 1.0]]], PIECES), "labels[0]"),
    "an answer that is a dict": (
        lambda: QuestionAnsweringDataset(["the"], TEXTS[:1], [{"text": ["cat"], "answer_start": [4]}], PIECES),
        "answers[0]",
    ),
    "an answer that is a string": (
        lambda: QuestionAnsweringDataset(["the"], TEXTS[:1], ["cat"], PIECES),
        "answers[0] ('cat')",
    ),
    "an answer of one number": (lambda: QuestionAnsweringDataset(["the"], TEXTS[:1], [4], PIECES), "answers[0] (4)"),
    "an answer of three": (lambda: QuestionAnsweringDataset(["the"], TEXTS[:1], [(1, 2, 3)], PIECES), "answers[0]"),
    "an answer of fractions": (lambda: QuestionAnsweringDataset(["the"], TEXTS[:1], [(0.5, 3)], PIECES), "answers[0]"),
    "an answer backwards": (lambda: QuestionAnsweringDataset(["the"], TEXTS[:1], [(7, 4)], PIECES), "answers[0]"),
    "an answer of nothing": (lambda: QuestionAnsweringDataset(["the"], TEXTS[:1], [(4, 4)], PIECES), "answers[0]"),
    "an answer beyond": (lambda: QuestionAnsweringDataset(["the"], TEXTS[:1], [(4, 99)], PIECES), "answers[0]"),
    "a negative answer": (lambda: QuestionAnsweringDataset(["the"], TEXTS[:1], [(-4, 3)], PIECES), "answers[0]"),
    "answers in a dict": (lambda: QuestionAnsweringDataset(["the"], TEXTS[:1], {"a": 1}, PIECES), "answers"),
    "a string of questions": (lambda: QuestionAnsweringDataset("the", TEXTS[:1], [None], PIECES), "questions ('the')"),
    "too few contexts": (lambda: QuestionAnsweringDataset(["the", "a"], TEXTS[:1], [None] * 2, PIECES), "contexts (1)"),
    "no question": (lambda: QuestionAnsweringDataset([" "], TEXTS[:1], [None], PIECES), "questions[0]"),
    "no context": (lambda: QuestionAnsweringDataset(["the"], [" "], [None], PIECES), "contexts[0]"),
    "rows of other ids": (lambda: batches.pad([[1.5, 2.0]]), "rows[0]"),
    "rows beyond int32": (lambda: batches.pad([[2**40 + 1]]), "rows[0]"),
    "a mask that is longer": (lambda: batches.pad([[1, 2, 3]], 2), "rows[0]"),
    "an index of a string": (lambda: BERTEmbedder(V, **SMALL, tokenizer=PIECES).index("the cat"), "texts ('the cat')"),
    "an index of nan": (lambda: EmbeddingIndex(["a"], np.array([[np.nan, 1.0]])), "embeddings[0, 0] (nan)"),
    "queries of nan": (lambda: EmbeddingIndex(["a"], np.ones((1, 2))).search([[np.nan, 1.0]]), "queries[0, 0] (nan)"),
    "queries of strings": (lambda: EmbeddingIndex(["a"], np.ones((1, 2))).search([["a", "b"]]), "queries"),
    "labels that wrap": (lambda: TokenCrossentropy()(np.array([[2**40 + 1]]), np.ones((1, 1, 3))), "labels"),
    "labels of 1.7": (lambda: TokenCrossentropy()([[1.7]], np.ones((1, 1, 3))), "labels"),
    "accuracy of 1.7": (lambda: TokenAccuracy()([[1.7]], np.ones((1, 1, 3))), "labels"),
    "perplexity of nan": (lambda: Perplexity()(np.array([[np.nan]]), np.ones((1, 1, 3))), "labels"),
}


def test_wrong_arguments_of_datasets_losses_and_indexes_are_refused():
    found = {case: problem for case, (call, said) in ARGUMENTS.items() if (problem := outcome(call, said))}
    assert not found, f"{len(found)}: {found}"


def test_labels_that_no_host_has_seen_give_nan_in_losses_and_metrics():
    logits = keras.ops.convert_to_tensor(np.eye(3, dtype="float32")[None])
    for wrong in (3, -2, -100, 1.7, 10**6):
        labels = keras.ops.convert_to_tensor(np.array([[0, wrong, -1]], "float32" if wrong == 1.7 else "int32"))
        for measure in (TokenCrossentropy(), Perplexity(), TokenAccuracy()):
            assert np.isnan(float(measure(labels, logits))), (wrong, measure)
        assert float(TokenAccuracy()(keras.ops.convert_to_tensor([[0, -1, -1]]), logits)) == 1.0


TASKS = {
    "masked": lambda m: m.fill_mask("the [MASK]", verbose=False),
    "classifier": lambda m: m.classify(["the cat"], verbose=False),
    "tagger": lambda m: m.tag("the cat", verbose=False),
    "answerer": lambda m: m.answer("the", "the cat", verbose=False),
    "embedder": lambda m: m.embed("the cat", verbose=False),
    "gpt score": lambda m: m.score("the cat"),
}
MORE_TASKS = {
    "embedder index": lambda m: m.index(["the cat"], verbose=False),
    "embedder search": lambda m: m.search("the", ["the cat"], verbose=False),
    "gpt generate": lambda m: m.generate("the", max_new_tokens=2),
    "gpt beams": lambda m: m.generate("the", max_new_tokens=2, num_beams=2),
    "gpt draft": lambda m: m.generate("the", max_new_tokens=2, draft="prompt"),
    "gpt stream": lambda m: list(m.stream("the", max_new_tokens=2)),
    "rnn score": lambda m: m.score("the cat"),
    "translator translate": lambda m: m.translate("the cat", max_new_tokens=2),
    "translator score": lambda m: m.score("the", "a cat"),
    "lstm translate": lambda m: m.translate("the cat", max_new_tokens=2),
    "summarizer summarize": lambda m: m.summarize("the cat", max_new_tokens=2),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "tasks", [TASKS, pytest.param(MORE_TASKS, marks=pytest.mark.slow)], ids=["heads", "all others"]
)
def test_tasks_of_models_whose_weights_are_no_numbers_say_so(models, tasks, value):
    found = {}
    for case, call in tasks.items():
        model = models[case.split()[0]]
        kept = model.get_weights()
        model.set_weights([np.full_like(w, value) if w.dtype.kind == "f" else w for w in kept])
        try:
            found[case] = f"gives {call(model)!r:.80}"
        except FloatingPointError as error:
            if "its weights or its inputs hold NaN, or its numbers overflow" not in str(error):
                found[case] = str(error)
        except Exception as error:
            found[case] = f"{type(error).__name__}: {error}"
        finally:
            model.set_weights(kept)
    assert not found, found
