import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from kerasllm import BERT, BERTClassifier, BERTEmbedder, BERTQuestionAnswerer, BERTTokenClassifier, Tokenizer
from kerasllm.tasks.predicting import softmax
from kerasllm.training import ClassificationDataset

DATA = Path(__file__).parent / "data"
TEXTS = ["a good film", "a bad film", "good good good", "a bad bad story", "the film is good", "the story is bad"]
TOKENIZER = Tokenizer.train_wordpiece(TEXTS * 3, 60)
SIZE = dict(vocabulary_size=60, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=16, dropout=0.0)
LABELS = ["bad", "good"]


def make(**arguments):
    return BERTClassifier(**{**SIZE, "initializer_range": 0.3, "labels": LABELS, "tokenizer": TOKENIZER, **arguments})


RERANKER = make(labels=["relevant"])
CROSS_ENCODER = json.loads((DATA / "cross_encoder" / "scores.json").read_text())


@pytest.fixture(scope="module")
def model():
    return make()


def test_texts_get_the_labels_that_the_logits_say(model):
    texts = TEXTS[:3]
    results = model.classify(texts, top_k=None, verbose=0)
    for text, ranked in zip(texts, results, strict=True):
        ids = np.array([TOKENIZER.encode(text)], "int32")
        x = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": np.ones_like(ids, bool)}
        expected = softmax(keras.ops.convert_to_numpy(model(x)))[0]
        assert [r["label"] for r in ranked] == [LABELS[i] for i in np.argsort(-expected)]
        np.testing.assert_allclose([r["score"] for r in ranked], np.sort(expected)[::-1], atol=1e-6)
        assert all(type(r["score"]) is float and type(r["label"]) is str for r in ranked)
    assert model.classify(texts[1])[0].keys() == {"label", "score"}
    assert [r["label"] for r in model.classify(texts[1])] == [results[1][0]["label"]]


def test_the_second_text_of_a_pair_matters(model):
    (one,), (other,) = (model.classify("a film", pair) for pair in ("good", "bad bad bad"))
    assert one != other
    assert model.classify(["a film", "a film"], ["good", "bad bad bad"])[1][0]["label"] == other["label"]


@pytest.mark.parametrize(
    "arguments, scores",
    [
        ({}, [0.8807971, 0.1192029]),
        ({"problem_type": "multi_label"}, [0.8807971, 0.5]),
        ({"problem_type": "regression"}, [2.0, 0.0]),
    ],
)
def test_scores_are_what_the_problem_type_says(arguments, scores):
    ranked = make(**arguments)._ranked(np.array([0.0, 2.0], "float32"), None)
    assert [r["label"] for r in ranked] == ["good", "bad"]
    np.testing.assert_allclose([r["score"] for r in ranked], scores, rtol=1e-6)


def test_one_label_alone_has_a_sigmoid():
    assert make(labels=["relevant"]).problem_type == "multi_label"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: m.classify("a film", top_k=3), r"top_k \(3\)"),
        (lambda m: m.classify("a film", ["good"]), "pairs"),
        (lambda m: m.classify(["a film"], ["good", "bad"]), "pairs"),
        (lambda m: m.classify(["a film", " "]), r"texts\[1\]"),
        (lambda m: m.classify("good " * 20), r"texts\[0\].*22 tokens.*truncate=True"),
        (lambda m: m.rank("a", ["b"]), r"labels \(2 of them\) must be one"),
        (lambda m: RERANKER.rank("", ["b"]), r"query \(''\) must not be empty"),
        (lambda m: RERANKER.rank(["a"], ["b"]), r"query \(\['a'\]\) must be a string"),
        (lambda m: RERANKER.rank("a", "b"), r"texts \('b'\) must be a sequence"),
        (lambda m: RERANKER.rank("a", ["b", " "]), r"texts\[1\]"),
        (lambda m: RERANKER.rank("a", ["b"], top_k=0), r"top_k \(0\)"),
        (lambda m: RERANKER.rank("a", ["b", "good " * 20]), r"texts\[1\].* with the query; truncate=True"),
        (lambda m: make(labels=["a", "a"]), "labels"),
        (lambda m: make(labels=0), "labels"),
        (lambda m: make(problem_type="ranking"), "problem_type .'ranking'.*'single_label'"),
        (lambda m: make(family="t5"), "family .'t5'.*'roberta'"),
    ],
)
def test_bad_arguments_are_refused(call, words, model):
    with pytest.raises(ValueError, match=words):
        call(model)


def test_it_learns_from_strings():
    model = make(num_segments=0, dropout=0.0)
    labels = ["good" if "good" in text else "bad" for text in TEXTS]
    data = ClassificationDataset(
        TEXTS, labels, TOKENIZER, batch_size=6, label_names=LABELS, segments=False, multiple=16, max_length=16
    )
    model.compile(keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data, epochs=20, shuffle=False, verbose=0)
    assert [r[0]["label"] for r in model.classify(TEXTS)] == labels


# Rerankers


def test_a_cross_encoder_ranks_as_in_sentence_transformers(tmp_path):
    model = BERTClassifier.from_preset(DATA / "cross_encoder")
    query, texts, scores = CROSS_ENCODER["query"], CROSS_ENCODER["texts"], CROSS_ENCODER["scores"]
    ranked = model.rank(query, texts, batch_size=2)
    assert [hit["index"] for hit in ranked] == np.argsort(-np.array(scores)).tolist()
    np.testing.assert_allclose([hit["score"] for hit in ranked], sorted(scores, reverse=True), atol=1e-5)
    assert [hit["text"] for hit in ranked] == [texts[hit["index"]] for hit in ranked]
    assert [hit["index"] for hit in model.rank(query, texts, top_k=2)] == [hit["index"] for hit in ranked[:2]]
    assert model.rank(query, texts + ["cat " * 30], truncate=True)[0].keys() == {"index", "score", "text"}
    model.save_to_preset(tmp_path)
    again = BERTClassifier.from_preset(tmp_path).rank(query, texts)
    np.testing.assert_allclose([hit["score"] for hit in again], [hit["score"] for hit in ranked], atol=1e-5)
    said = json.loads((tmp_path / "config.json").read_text())["sentence_transformers"]
    assert said == {"activation_fn": "torch.nn.modules.linear.Identity"}


@pytest.mark.once("torch")
def test_transformers_opens_a_saved_reranker(tmp_path):
    transformers = pytest.importorskip("transformers")
    query, texts, scores = CROSS_ENCODER["query"], CROSS_ENCODER["texts"], CROSS_ENCODER["scores"]
    BERTClassifier.from_preset(DATA / "cross_encoder").save_to_preset(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        [query] * 5, texts, padding=True, return_tensors="pt"
    )
    np.testing.assert_allclose(theirs(**encoded).logits.detach().numpy()[:, 0], scores, atol=1e-5)


@pytest.mark.once("jax")
def test_older_cross_encoders_say_their_scores_in_their_config(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / "cross_encoder" / name, tmp_path)
    config = json.loads((DATA / "cross_encoder" / "config.json").read_text())
    sigmoid, identity = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
    for field, value, problem_type in (
        ("sentence_transformers", {"activation_fn": identity, "version": "4.0.1"}, "regression"),
        ("sentence_transformers", {"activation_fn": sigmoid}, "multi_label"),
        ("sbert_ce_default_activation_function", identity, "regression"),
        ("classifier_dropout", None, "multi_label"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
        assert BERTClassifier.from_preset(tmp_path).problem_type == problem_type
    (tmp_path / "config.json").write_text(json.dumps({**config, "sentence_transformers": {"activation_fn": "my.Own"}}))
    with pytest.raises(ValueError, match=r"activation_fn \('my.Own'\) must be one of"):
        BERTClassifier.from_preset(tmp_path)


@pytest.mark.in_turn
@pytest.mark.parametrize("relevance", [[1, 0, 1, 0], [0.9, 0.1, 0.8, 0.0]])
def test_a_reranker_learns_which_texts_go_with_a_query(relevance):
    model = make(labels=["relevant"], num_segments=0)
    queries, texts = ["good", "good", "bad", "bad"], ["the film is good", "a bad story", "a bad story", "a good film"]
    data = ClassificationDataset(
        queries, relevance, TOKENIZER, pairs=texts, segments=False, multiple=16, max_length=16, shuffle=False
    )
    model.compile(keras.optimizers.Adam(0.03), keras.losses.BinaryCrossentropy(from_logits=True))
    losses = model.fit(data, epochs=8, verbose=0).history["loss"]
    x = model.predict(data, verbose=0)[:, 0]
    expected = np.mean(np.logaddexp(0, x) - np.array(relevance) * x)
    assert model.evaluate(data, verbose=0) == pytest.approx(expected, rel=1e-4) and expected < losses[0]


# Heads and presets


def test_a_fresh_head_takes_the_encoder_and_the_pooler():
    model = BERTClassifier.from_preset(DATA / "bert", fresh_head=True, labels=["a", "b", "c"], dropout=0.3)
    assert model.arguments["labels"] == ["a", "b", "c"] and model.arguments["dropout"] == 0.3
    encoder = BERT.from_preset(DATA / "bert")
    values = {v.path: v for v in model.weights}
    assert len(values) == len(encoder.weights) + 2
    for variable in encoder.weights:
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (variable.value, values[variable.path].value)))


def test_a_fresh_head_replaces_a_foreign_one_and_keeps_the_family():
    model = BERTQuestionAnswerer.from_preset(DATA / "roberta_masked_lm", fresh_head=True)
    assert model.arguments["family"] == "roberta"
    assert "segment_ids" not in model.input


@pytest.mark.parametrize(
    "model_class, name, words",
    [
        (BERTClassifier, "bert", "no BERTClassifier.*BertModel.*classifier.weight.*fresh_head=True"),
        (BERTTokenClassifier, "bert_classifier", "no BERTTokenClassifier.*BertForSequenceClassification.*fresh_head"),
        (BERTClassifier, "bert_token_classifier", "no BERTClassifier.*BertForTokenClassification"),
        (BERTQuestionAnswerer, "roberta_classifier", "no BERTQuestionAnswerer.*missing tensors: qa_outputs.weight"),
        (BERTClassifier, "electra_discriminator", "no BERTClassifier.*ElectraForPreTraining"),
        (BERTEmbedder, "gpt2", "gpt2"),
    ],
)
def test_a_preset_with_another_head_is_refused_by_name(model_class, name, words):
    with pytest.raises(ValueError, match=words):
        model_class.from_preset(DATA / name)


def test_a_model_that_its_family_cannot_say_is_written_in_our_layout(tmp_path):
    model = make(family="distilbert")  # which has no segments
    model.save_to_preset(tmp_path)
    assert '"model_type": "kerasllm"' in (tmp_path / "config.json").read_text()
    assert BERTClassifier.from_preset(tmp_path).arguments == model.arguments
