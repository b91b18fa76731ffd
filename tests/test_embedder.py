import json
import re

import keras
import numpy as np
import pytest

from kerasllm import BERT, BERTEmbedder, BERTMaskedLM, EmbeddingIndex, Tokenizer, cli, load
from kerasllm.checkpoints import describe, files, read_modules, write_modules
from kerasllm.models import embedding_index
from kerasllm.models.embedder import pool

TEXTS = ["the cat sat", "a dog ran away", "the cat ran", "a dog sat on the mat and ran"]
REAL = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
POOLED = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling")]
TOKENIZER = Tokenizer.train_wordpiece(TEXTS * 3, 60)
SIZE = dict(vocabulary_size=60, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=16, dropout=0.0)


@pytest.fixture(scope="module")
def model():
    return BERTEmbedder(**SIZE, initializer_range=0.5, truncate_at=5, tokenizer=TOKENIZER)


COMBINE = {
    "mean": lambda rows, places: rows.mean(0),
    "max": lambda rows, places: rows.max(0),
    "cls": lambda rows, places: rows[0],
    "mean_sqrt_len_tokens": lambda rows, places: rows.sum(0) / len(rows) ** 0.5,
    "weightedmean": lambda rows, places: (rows * places[:, None]).sum(0) / places.sum(),
    "lasttoken": lambda rows, places: rows[-1],
}


@pytest.mark.parametrize("mode", COMBINE)
def test_pooling_looks_at_the_tokens_that_take_part(mode):
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32") - 5
    places, combine = np.arange(1, 5), COMBINE[mode]
    vectors = keras.ops.convert_to_numpy(pool(keras.ops.array(x), REAL, [mode, "max"]))
    np.testing.assert_allclose(vectors[:, :3], [combine(x[0], places), combine(x[1, :2], places[:2])], atol=1e-5)
    np.testing.assert_array_equal(vectors[:, 3:], [x[0].max(0), x[1, :2].max(0)])
    without_prompt = REAL * (places > 1)  # whose tokens keep the weights of their places
    vectors = keras.ops.convert_to_numpy(pool(keras.ops.array(x), without_prompt, mode, include_prompt=False))
    np.testing.assert_allclose(vectors, [combine(x[0, 1:], places[1:]), combine(x[1, 1:2], places[1:2])], atol=1e-5)


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


MODULES = {
    "pooling": "cls",
    "include_prompt": True,
    "dense": [],
    "normalize": True,
    "truncate_at": None,
    "prompts": {},
    "default_prompt_name": None,
    "similarity": "cosine",
}


def test_a_folder_of_sentence_transformers_comes_back_as_it_was(model, tmp_path):
    for _ in range(2):  # also over an older one
        model.save_to_preset(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertModel"]
    assert read_modules(tmp_path) == MODULES | {"pooling": "mean", "truncate_at": 5}
    copy = BERTEmbedder.from_preset(tmp_path)
    assert copy.arguments == {**model.arguments, "intermediate_dim": 32}
    np.testing.assert_allclose(copy.embed(TEXTS), model.embed(TEXTS), atol=1e-6)
    BERT(**SIZE).save_to_preset(tmp_path)
    assert read_modules(tmp_path) == {} and not (tmp_path / "1_Pooling").exists()


def test_all_that_follows_the_encoder_is_read_computed_and_written(tmp_path):
    model = BERTEmbedder(
        **SIZE,
        initializer_range=0.5,
        pooling=["lasttoken", "mean"],  # not in the order of the older files
        include_prompt=False,
        dense=[{"units": 5, "use_bias": False}, {"units": 3, "activation": "linear"}],
        normalize=False,
        prompts={"query": "the cat ", "passage": "a dog "},
        default_prompt_name="query",
        similarity="dot",
        tokenizer=TOKENIZER,
    )
    model.save_to_preset(tmp_path / "folder")
    model.save(tmp_path / "model.keras")
    assert json.loads((tmp_path / "folder/2_Dense/config.json").read_text())["in_features"] == 16
    tensors = files.read_tensors(tmp_path / "folder/2_Dense")
    assert {name: x.shape for name, x in tensors.items()} == {"linear.weight": (5, 16)}
    copy = load(None, tmp_path / "folder")
    assert copy.arguments == {**model.arguments, "intermediate_dim": 32}

    # The vector by hand: the prompt's tokens are read, and take no part.
    ids = TOKENIZER.encode("the cat sat on the mat")
    encoder = BERT(**SIZE, pooler=False)
    encoder.set_weights(model.encoder.get_weights())
    inputs = {"token_ids": np.array([ids]), "segment_ids": np.array([ids]) * 0, "padding_mask": np.ones((1, len(ids)))}
    rows = keras.ops.convert_to_numpy(encoder(inputs)["sequence_output"])[0, len(TOKENIZER.encode("the cat")) - 1 :]
    one, two, bias = (keras.ops.convert_to_numpy(v) for v in model.weights[-3:])
    expected = np.tanh(np.concatenate([rows[-1], rows.mean(0)]) @ one) @ two + bias
    for other in (model, copy, keras.models.load_model(tmp_path / "model.keras")):
        np.testing.assert_allclose(other.embed("sat on the mat"), expected, atol=1e-5)
        np.testing.assert_allclose(other.embed("sat on the mat", prompt_name="query"), expected, atol=1e-5)
    query, texts = model.embed("sat"), model.embed(TEXTS, prompt_name="passage")
    assert np.abs(texts - model.embed(TEXTS, prompt="")).max() > 1e-3
    found = model.search("sat", TEXTS, top_k=4)
    np.testing.assert_allclose([r["score"] for r in found], np.sort(texts @ query)[::-1], atol=1e-4)
    with pytest.raises(ValueError, match="prompt_name .'corpus'. must be one of the model's: 'query', 'passage'"):
        model.embed("sat", prompt_name="corpus")


def test_the_words_of_newer_and_of_older_versions_are_read(tmp_path):
    write_modules(tmp_path, MODULES | {"normalize": False}, dimension=8)
    assert read_modules(tmp_path) == MODULES | {"normalize": False}
    (tmp_path / "1_Pooling/config.json").write_text('{"embedding_dimension": 8, "pooling_mode": "max"}')
    (tmp_path / "sentence_bert_config.json").write_text('{"transformer_task": "feature-extraction"}')
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 99}')
    assert read_modules(tmp_path) == MODULES | {"normalize": False, "pooling": "max", "truncate_at": 99}
    old = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(old))
    (tmp_path / "sentence_roberta_config.json").write_text('{"max_seq_length": 7}')
    assert read_modules(tmp_path) == MODULES | {"normalize": False, "pooling": ["cls", "mean"], "truncate_at": 7}


def test_texts_are_lowercased_where_the_folder_says_so(tmp_path):
    cased = Tokenizer.train_wordpiece(TEXTS * 3, 60, lowercase=False)
    assert cased.encode("THE Cat") != cased.encode("the cat") == cased.lowercased().encode("THE Cat")
    assert TOKENIZER.lowercased() is TOKENIZER
    BERTEmbedder(**SIZE, tokenizer=cased, truncate_at=9).save_to_preset(tmp_path)
    settings = {"max_seq_length": 999, "do_lower_case": True}  # no text can be so long
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(settings))
    model = BERTEmbedder.from_preset(tmp_path)
    np.testing.assert_array_equal(model.embed("THE Cat"), model.embed("the cat"))
    assert model.arguments["truncate_at"] == 16


def test_the_class_that_keeps_the_heads_is_picked_and_what_it_leaves_out_is_named(model, tmp_path, capsys):
    model.save_to_preset(tmp_path / "embedder")
    config = json.loads((tmp_path / "embedder/config.json").read_text())
    assert cli.main(["convert", str(tmp_path / "embedder"), str(tmp_path / "again")]) == 0
    assert read_modules(tmp_path / "again")["truncate_at"] == 5 and capsys.readouterr().err == ""

    masked = BERTMaskedLM(**SIZE)
    masked.save_to_preset(tmp_path / "masked")
    tensors = dict(files.read_tensors(tmp_path / "masked"))
    others = {"bert.pooler.dense.weight": (8, 8), "cls.seq_relationship.bias": (2,)}
    folder = tmp_path / "pretraining"
    for architectures in (["BertForPreTraining"], None):
        folder.mkdir(exist_ok=True)
        files.write_json(folder / "config.json", config | {"architectures": architectures})
        files.write_tensors(folder, tensors | {name: np.ones(shape, "float32") for name, shape in others.items()})
        with pytest.warns(UserWarning, match="BERTMaskedLM has no place for bert.pooler.dense.weight, cls.seq_rel"):
            assert type(load(None, folder)) is BERTMaskedLM
    assert describe(folder).left_out == tuple(others)
    assert cli.main(["convert", str(folder), str(tmp_path / "converted")]) == 0
    assert set(files.read_tensors(tmp_path / "converted")) == set(tensors)
    assert "cls.seq_relationship.bias; they are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("modules.json", {}, "expected an array"),
        ("modules.json", [{"type": "sentence_transformers.models.Transformer"}, {"type": "a.Dense"}], "'a.Dense'"),
        ("modules.json", [{"type": "mine.Transformer"}, *POOLED[1:]], "'mine.Transformer'"),
        ("modules.json", [*POOLED, {"type": "sentence_transformers.models.CNN", "path": "2_CNN"}], "'CNN'"),
        ("modules.json", [POOLED[0] | {"path": "0_BERT"}, POOLED[1]], "path .'0_BERT'"),
        ("modules.json", [POOLED[0], POOLED[1] | {"path": "../other"}], "path .'../other'"),
        ("modules.json", [POOLED[0], POOLED[1] | {"path": ".."}], "path .'..'"),
        ("modules.json", [POOLED[0], POOLED[1] | {"path": "/tmp"}], "path .'/tmp'"),
        ("modules.json", [POOLED[0], POOLED[1] | {"path": "linked"}], "path .'linked'"),
        ("modules.json", [POOLED[0] | {"path": 0}, POOLED[1]], "path .0. of .*Transformer must be a string"),
        ("modules.json", [POOLED[0] | {"kwargs": 0}, POOLED[1]], "kwargs .0."),
        ("modules.json", [[0], 1], "modules"),
        ("modules.json", [POOLED[0] | {"kwargs": ["task"]}, POOLED[1]], r"kwargs \(\['task'\]\)"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "median"]}, "'median'"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "p": 3}, "p .3. is unknown"),
        ("1_Pooling/config.json", {}, "pooling modes"),
        ("1_Pooling/config.json", {"pooling_mode": [["cls"]]}, "pooling modes"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": "false"}, "pooling_mode_cls_token .'false'"),
        ("1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": "false"}, "include_prompt .'false'"),
        ("2_Dense/config.json", {"out_features": 3, "bias": "false"}, "bias .'false'"),
        ("2_Dense/config.json", {"out_features": 3, "activation_function": ["x"]}, "activation_function"),
        ("2_Dense/config.json", {"out_features": 3, "in_features": 9}, "in_features .9. must be 8"),
        ("sentence_bert_config.json", {"max_seq_length": "8"}, "max_seq_length .'8'"),
        ("tokenizer_config.json", {"model_max_length": "8"}, "model_max_length .'8'"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts"),
        ("config_sentence_transformers.json", {"prompts": 0}, "prompts .0."),
        ("2_Dense/config.json", {"out_features": 3, "use_residual": True}, "use_residual"),
        (
            "2_Dense/config.json",
            {"out_features": 3, "activation_function": "mine.Act"},
            "activation_function .'mine.Act",
        ),
        ("sentence_bert_config.json", {"query_length": 8}, "query_length"),
        ("config_sentence_transformers.json", {"truncate_dim": 4}, "truncate_dim"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type .'SparseEncoder'"),
    ],
)
def test_what_an_embedder_of_ours_has_not_is_refused(file, content, words, tmp_path):
    write_modules(tmp_path, MODULES | {"dense": [{"units": 3, "activation": "tanh", "use_bias": True}]}, dimension=8)
    (tmp_path / file).write_text(json.dumps(content))
    (tmp_path / "linked").symlink_to("/tmp")
    if file == "tokenizer_config.json":
        (tmp_path / "sentence_bert_config.json").unlink()
    with pytest.raises(ValueError, match=f"{file}.*{words}"):
        read_modules(tmp_path, {"hidden_dim": 8})


@pytest.mark.parametrize("name", ["hidden_dim", "max_sequence_length"])
def test_a_size_that_is_none_is_refused_by_name(name, tmp_path):
    BERTEmbedder(**SIZE, activation="tanh", truncate_at=5).save_to_preset(tmp_path)  # in our own layout
    config = files.read_json(tmp_path / "config.json")
    files.write_json(tmp_path / "config.json", config | {"arguments": config["arguments"] | {name: {}}})
    with pytest.raises(ValueError, match=f"{name} .{{}}. must be"):
        BERTEmbedder.from_preset(tmp_path)


@pytest.mark.parametrize("value", [0, False, "", [], "l2"])
def test_a_similarity_that_is_none_is_refused_and_no_similarity_is_cosine(value, model, tmp_path):
    model.save_to_preset(tmp_path)
    files.write_json(tmp_path / "config_sentence_transformers.json", {"similarity_fn_name": value})
    with pytest.raises(ValueError, match=f"{tmp_path}.*similarity .{re.escape(repr(value))}. must be one of"):
        BERTEmbedder.from_preset(tmp_path)
    files.write_json(tmp_path / "config_sentence_transformers.json", {"similarity_fn_name": None})
    assert BERTEmbedder.from_preset(tmp_path).arguments["similarity"] == "cosine"


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"pooling": []}, "pooling .None. must be one of 'mean'"),
        ({"dense": [{"units": 0}]}, "dense: units .0."),
        ({"dense": [{"units": 3, "activation": "gelu_tanh"}]}, "dense: activation .'gelu_tanh'"),
        ({"prompts": {"query": None}}, "prompts .* must be a dict of names and strings"),
        ({"default_prompt_name": "query"}, "default_prompt_name .'query'"),
        ({"similarity": "l2"}, "similarity .'l2'"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        BERTEmbedder(**SIZE, **arguments)


# The index alone


def test_the_similarity_ranks():
    index = EmbeddingIndex(["a", "b"], np.array([[1.0, 1.0], [4.0, 0.0]]))
    scores = {"cosine": [1.0, 0.5**0.5], "dot": [4.0, 2.0], "euclidean": [0.0, -(10**0.5)], "manhattan": [0.0, -4.0]}
    for similarity, expected in scores.items():
        (found,) = index.search([[1.0, 1.0]], similarity=similarity)
        np.testing.assert_allclose([r["score"] for r in found], expected, rtol=1e-6)
        assert found[0]["text"] == ("b" if similarity == "dot" else "a")


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


def test_a_mapping_is_no_list_of_texts(model):
    for call in (model.embed, model.index, lambda texts: model.search("a", texts)):
        with pytest.raises(ValueError, match="texts .* must be a s"):
            call({"input_ids": [[1, 2]], "attention_mask": [[1, 1]]})


@pytest.mark.once("jax")
def test_an_index_of_8_bits_finds_the_same_in_a_quarter_of_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_index, "CHUNK", 7)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 64)).astype("float32") * rng.uniform(0.1, 9, (50, 1)).astype("float32")
    vectors[3] = 0
    texts, queries = [f"text {i}" for i in range(50)], rng.normal(size=(5, 64)).astype("float32")
    whole, small = EmbeddingIndex(texts, vectors), EmbeddingIndex(texts, vectors, dtype="int8")
    assert small.embeddings.nbytes == vectors.nbytes / 4 and small.embeddings.dtype == "int8"
    off = np.abs(small.embeddings * small.scales - vectors)
    assert (off <= 1.001 * np.abs(vectors).max(axis=1, keepdims=True) / 254).all()
    small.save(tmp_path)
    loaded = EmbeddingIndex.load(tmp_path)
    for similarity, most in (("cosine", 0.005), ("dot", 1.0), ("euclidean", 0.3)):
        expected = whole.search(queries, 50, similarity)
        found = small.search(queries, 50, similarity)
        assert loaded.search(queries, 50, similarity) == found
        for a, b in zip(expected, found, strict=True):
            assert a[0]["index"] == b[0]["index"]
            scores = [{hit["index"]: hit["score"] for hit in hits} for hits in (a, b)]
            assert max(abs(scores[0][i] - scores[1][i]) for i in range(50)) < most
    with pytest.raises(ValueError, match=r"dtype \('int4'\) must be one of"):
        EmbeddingIndex(texts, vectors, dtype="int4")
    files.write_tensors(tmp_path, {"embeddings": small.embeddings, "scales": small.scales[:9]})
    with pytest.raises(ValueError, match=r"'scales' \(float32, shape \(9, 1\)\) float32 \(N, 1\)"):
        EmbeddingIndex.load(tmp_path)
