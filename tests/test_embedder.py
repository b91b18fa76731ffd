import json

import keras
import numpy as np
import pytest

from kerasllm import BERT, BERTEmbedder, EmbeddingIndex, Tokenizer
from kerasllm.checkpoints import read_modules, write_modules
from kerasllm.models.embedder import pool

TEXTS = ["the cat sat", "a dog ran away", "the cat ran", "a dog sat on the mat and ran"]
REAL = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
TOKENIZER = Tokenizer.train_wordpiece(TEXTS * 3, 60)
SIZE = dict(vocabulary_size=60, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=16, dropout=0.0)


@pytest.fixture(scope="module")
def model():
    return BERTEmbedder(**SIZE, initializer_range=0.5, truncate_at=5, tokenizer=TOKENIZER)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_pooling_looks_at_real_tokens_only(pooling):
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32") - 5
    vectors = keras.ops.convert_to_numpy(pool(keras.ops.array(x), REAL, pooling))
    combine = {"mean": lambda rows: rows.mean(0), "max": lambda rows: rows.max(0), "cls": lambda rows: rows[0]}[pooling]
    np.testing.assert_allclose(vectors, [combine(x[0]), combine(x[1, :2])], atol=1e-6)


def test_vectors_have_length_one_and_do_not_depend_on_the_batch(model):
    vectors = model.embed(TEXTS, batch_size=2)
    assert vectors.shape == (4, 8) and vectors.dtype == "float32"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(model.embed(TEXTS[1]), vectors[1], atol=1e-6)
    assert next(model.embed(iter(TEXTS))).shape == (8,)


def test_a_text_is_cut_where_the_model_says_and_an_error_where_it_does_not(model):
    long = "the cat sat on the mat " * 9
    np.testing.assert_allclose(model.embed(long), model.embed("the cat sat"), atol=1e-6)
    other = BERTEmbedder(**SIZE, tokenizer=TOKENIZER, normalize=False)
    other.set_weights(model.get_weights())
    with pytest.raises(ValueError, match=r"texts\[0\].*56 tokens.*is 16; truncate=True"):
        other.embed(long)
    assert abs(np.linalg.norm(other.embed(long, truncate=True)) - 1) > 1e-3
    with pytest.raises(ValueError, match=r"truncate_at \(17\)"):
        BERTEmbedder(**SIZE, truncate_at=17)


def test_the_corpus_is_ranked_by_cosine_also_from_a_saved_index(model, tmp_path):
    vectors = model.embed(TEXTS)
    results = model.search("the cat sat", TEXTS, top_k=3)
    order = np.argsort(-(vectors @ vectors[0]))[:3]
    assert [r["index"] for r in results] == order.tolist() and results[0]["text"] == TEXTS[0]
    assert results[0] == {"index": 0, "score": pytest.approx(1, abs=1e-5), "text": "the cat sat"}
    assert type(results[0]["score"]) is float
    model.index(TEXTS).save(tmp_path / "index")
    again = model.search(["the cat sat", "a dog"], EmbeddingIndex.load(tmp_path / "index"), top_k=3)
    assert [r["index"] for r in again[0]] == order.tolist() and len(again) == 2


def test_a_folder_of_sentence_transformers_comes_back_as_it_was(model, tmp_path):
    for _ in range(2):  # also over an older one
        model.save_to_preset(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertModel"]
    assert read_modules(tmp_path) == {"pooling": "mean", "normalize": True, "truncate_at": 5}
    copy = BERTEmbedder.from_preset(tmp_path)
    assert copy.arguments == {**model.arguments, "intermediate_dim": 32}
    np.testing.assert_allclose(copy.embed(TEXTS), model.embed(TEXTS), atol=1e-6)
    BERT(**SIZE).save_to_preset(tmp_path)
    assert read_modules(tmp_path) == {} and not (tmp_path / "1_Pooling").exists()


def test_the_words_of_newer_versions_are_read(tmp_path):
    write_modules(tmp_path, "cls", False, None, dimension=8)
    assert read_modules(tmp_path) == {"pooling": "cls", "normalize": False, "truncate_at": None}
    (tmp_path / "1_Pooling/config.json").write_text('{"embedding_dimension": 8, "pooling_mode": "max"}')
    assert read_modules(tmp_path)["pooling"] == "max"


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("modules.json", {}, "expected an array"),
        ("modules.json", [{"type": "a.Transformer"}, {"type": "a.Dense", "path": "2_Dense"}], "'Dense'"),
        ("modules.json", [{"type": "Transformer", "path": "0_BERT"}, {"type": "Pooling"}], "path .'0_BERT'"),
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}, "weightedmean.*'mean'"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "max"]}, "'cls', 'max'"),
        ("1_Pooling/config.json", {}, "pooling modes"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
    ],
)
def test_what_an_embedder_of_ours_has_not_is_refused(file, content, words, tmp_path):
    write_modules(tmp_path, "cls", True, None, dimension=8)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        read_modules(tmp_path)


# The index alone


def test_equal_texts_come_in_their_order():
    index = EmbeddingIndex(["a", "b", "c"], np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
    (found,) = index.search([[5.0, 0.0]], top_k=2)
    assert found == [{"index": 0, "score": 1.0, "text": "a"}, {"index": 1, "score": 1.0, "text": "b"}]
    assert len(index) == 3


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: EmbeddingIndex([], np.ones((0, 2))), "texts"),
        (lambda: EmbeddingIndex(["a"], np.ones((2, 2))), r"embeddings .float64, shape \(2, 2\)"),
        (lambda: EmbeddingIndex(["a"], np.full((1, 2), np.nan)), "finite"),
        (lambda: EmbeddingIndex(["a"], np.ones((1, 2))).search([[1.0]]), r"queries .shape \(1, 1\)"),
        (lambda: EmbeddingIndex(["a"], np.ones((1, 2))).search([[1.0, 2.0]], 0), "top_k"),
        (lambda: EmbeddingIndex.load("/nowhere"), "nowhere"),
    ],
)
def test_a_bad_index_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
