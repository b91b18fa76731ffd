"""Models of another vocabulary, other positions, other labels: what stays the same, and what new weights begin with."""

import pathlib

import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm import add_lora, add_tokens, prune_vocabulary, student_of, with_labels, with_positions
from kerasllm.text import Tokenizer, vocabularies

DATA = pathlib.Path(__file__).parent / "data"
TEXTS = ["the cat sat on the mat .", "a dog ran to the unhappiest cat !", "é日本 cats", "dogs and cats and mats"] * 3
CORPUS = ["the cat sat .", "cats ran to the mat !"]
KINDS = {
    "wordpiece": lambda: Tokenizer.train_wordpiece(TEXTS, 120),
    "bpe": lambda: Tokenizer.train_bpe(TEXTS, 340, pad="<pad>", bos="<s>", eos="</s>"),
    "unigram": lambda: Tokenizer.train_unigram(TEXTS * 30, 45, pad="<pad>", bos="<s>", eos="</s>"),
}


def gpt(tokenizer, extra=0, /, **arguments):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16, "dropout": 0.0}
    size = tokenizer.vocabulary_size + extra
    return kerasllm.GPT(size, **{**sizes, "initializer_range": 0.5, "tokenizer": tokenizer, **arguments})


def outputs(model, ids):
    ids = np.array([ids], "int32")
    inputs = {"token_ids": ids, "padding_mask": np.ones(ids.shape, bool)}
    if "segment_ids" in model.input:
        inputs["segment_ids"] = np.zeros_like(ids)
    return ops.convert_to_numpy(model(inputs))[0]


@pytest.mark.once("jax")
@pytest.mark.parametrize("kind", KINDS)
def test_new_tokens_stay_whole_and_get_the_next_ids(kind):
    tokenizer = KINDS[kind]()
    larger = vocabularies.with_tokens(tokenizer, ["<tool>", "Ünïcode word"], special=False)
    assert larger.token_to_id("<tool>") == tokenizer.vocabulary_size == larger.vocabulary_size - 2
    ids = larger.encode("the <tool>cat Ünïcode word", special_tokens=False)
    assert {larger.vocabulary_size - 2, larger.vocabulary_size - 1} < set(ids)
    assert "<tool>" in larger.decode(ids) and larger.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert larger.roles == tokenizer.roles and tokenizer.token_to_id("<tool>") is None


@pytest.mark.in_turn
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("extra", [0, 5])
def test_a_model_with_new_tokens_computes_what_it_did(tie, extra, tmp_path):
    tokenizer = KINDS["bpe"]()
    model = gpt(tokenizer, extra, tie_embeddings=tie)
    larger = add_tokens(model, ["<a>", "<b>", "<c>"], {"<a>": "the cat", "<b>": "mat", "<c>": "a"})
    assert larger.arguments["vocabulary_size"] == tokenizer.vocabulary_size + max(3, extra)
    ids = tokenizer.encode("the cat sat")
    old, new = outputs(model, ids), outputs(larger, ids)
    size = tokenizer.vocabulary_size
    np.testing.assert_allclose(new[:, :size], old[:, :size], atol=1e-6)
    # The logit of a token whose embedding is a mean is the mean of the logits.
    source = tokenizer.encode("the cat", special_tokens=False)
    np.testing.assert_allclose(new[:, size], old[:, source].mean(axis=1), atol=1e-5)
    tables = [ops.convert_to_numpy(m.decoder.embeddings.token.embeddings) for m in (model, larger)]
    np.testing.assert_allclose(tables[1][size], tables[0][source].mean(axis=0), atol=1e-6)
    larger.save_to_preset(tmp_path)
    again = kerasllm.GPT.from_preset(tmp_path)
    assert again.tokenizer.encode("<b>") == [size + 1]
    np.testing.assert_allclose(outputs(again, ids), new, atol=1e-5)
    mean = add_tokens(model, ["<a>"], multiple=8)
    assert mean.arguments["vocabulary_size"] % 8 == 0
    np.testing.assert_allclose(outputs(mean, ids)[:, size], old[:, :size].mean(axis=1), atol=1e-5)


@pytest.mark.once("jax")
@pytest.mark.parametrize("kind", KINDS)
def test_pruned_vocabularies_read_the_corpus_alike(kind):
    tokenizer = KINDS[kind]()
    smaller, ids = vocabularies.pruned(tokenizer, CORPUS)
    assert len(ids) == smaller.vocabulary_size < tokenizer.vocabulary_size
    for text in CORPUS:
        assert ids[smaller.encode(text)].tolist() == tokenizer.encode(text)
        assert smaller.decode(smaller.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert smaller.roles == tokenizer.roles
    # Other texts are still texts.
    assert "".join(smaller.decode(smaller.encode("dog sat")).split()) == "dogsat"


@pytest.mark.in_turn
@pytest.mark.parametrize("name", ["bert_masked_lm", "bert_classifier", "gpt"])
def test_a_pruned_model_computes_the_same(name):
    tokenizer = KINDS["bpe" if name == "gpt" else "wordpiece"]()
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 16, "initializer_range": 0.5}
    if name == "gpt":
        model = gpt(tokenizer)
    elif name == "bert_masked_lm":
        model = kerasllm.BERTMaskedLM(tokenizer.vocabulary_size, **sizes, tokenizer=tokenizer)
    else:
        model = kerasllm.BERTClassifier(tokenizer.vocabulary_size, **sizes, labels=2, tokenizer=tokenizer)
    smaller = prune_vocabulary(model, CORPUS)
    kept = vocabularies.pruned(tokenizer, CORPUS).ids
    assert smaller.count_params() < model.count_params()
    if name == "bert_masked_lm":
        text = "the [MASK] sat ."
        old, new = (m.fill_mask(text, top_k=40) for m in (model, smaller))
        scores = {guess["token"]: guess["score"] for guess in old}
        theirs = {int(kept[guess["token"]]): guess["score"] for guess in new}
        assert len(theirs) == 40 and len(set(theirs) & set(scores)) > 10
        ratios = [theirs[i] / scores[i] for i in set(theirs) & set(scores)]  # of softmaxes over fewer
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
        return
    for text in CORPUS:
        old, new = outputs(model, tokenizer.encode(text)), outputs(smaller, smaller.tokenizer.encode(text))
        np.testing.assert_allclose(new, old[:, kept] if name == "gpt" else old, atol=1e-5)
    if name == "gpt":
        assert smaller.end_token_ids == (smaller.tokenizer.eos_id,)


def test_translators_keep_their_ids_through_pruning():
    tokenizer = KINDS["bpe"]()
    size = tokenizer.vocabulary_size
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "share_embeddings": True, "tie_embeddings": True}
    model = kerasllm.TransformerTranslator(
        size, size, **sizes, initializer_range=0.5, source_tokenizer=tokenizer, target_tokenizer=tokenizer
    )
    smaller = prune_vocabulary(model, CORPUS)
    assert smaller.start_token_id == smaller.target_tokenizer.bos_id
    larger = add_tokens(smaller, ["<2en>"])
    assert larger.source_tokenizer.encode("<2en>") == [smaller.arguments["source_vocabulary_size"]]
    assert larger.target_tokenizer == larger.source_tokenizer


def test_longer_positions_are_between_or_begin_anew():
    model = gpt(KINDS["bpe"](), positions="learned", max_sequence_length=5)
    table = ops.convert_to_numpy(model.decoder.embeddings.position.embeddings)
    longer = ops.convert_to_numpy(with_positions(model, 9).decoder.embeddings.position.embeddings)
    np.testing.assert_allclose(longer[::2], table, atol=1e-6)
    np.testing.assert_allclose(longer[1], (table[0] + table[1]) / 2, atol=1e-6)
    repeated = with_positions(model, 7, "repeat")
    again = ops.convert_to_numpy(repeated.decoder.embeddings.position.embeddings)
    np.testing.assert_array_equal(again[5:], table[:2])
    np.testing.assert_allclose(outputs(repeated, [1, 2, 3]), outputs(model, [1, 2, 3]), atol=1e-6)
    shorter = with_positions(model, 3)
    np.testing.assert_allclose(outputs(shorter, [1, 2, 3]), outputs(model, [1, 2, 3]), atol=1e-6)


def test_labels_of_the_same_name_keep_their_weights():
    model = kerasllm.BERTClassifier.from_preset(DATA / "bert_classifier")
    ids = [1, 5, 7, 2]
    new = with_labels(model, ["other", "LABEL_2", "LABEL_0"])
    old, now = outputs(model, ids), outputs(new, ids)
    np.testing.assert_allclose(now[1:], old[[2, 0]], atol=1e-6)
    assert abs(now[0]) < np.abs(old).max() and new.arguments["labels"] == ["other", "LABEL_2", "LABEL_0"]
    assert with_labels(model, 5).output.shape == (None, 5)


def test_lora_and_frozen_parts_go_along():
    model = gpt(KINDS["bpe"]())
    add_lora(model, 2, 4, "query|token")
    for variable in model.trainable_variables:
        variable.assign(ops.ones(variable.shape) * 0.1)
    larger = add_tokens(model, ["<a>"])
    assert [v.path for v in larger.trainable_variables] == [v.path for v in model.trainable_variables]
    old, new = outputs(model, [1, 2, 3]), outputs(larger, [1, 2, 3])
    np.testing.assert_allclose(new[:, :-1], old, atol=1e-5)
    np.testing.assert_allclose(new[:, -1], old.mean(axis=1), atol=1e-5)


@pytest.mark.once("torch")
def test_what_is_wrong_is_named():
    tokenizer = KINDS["bpe"]()
    model = gpt(tokenizer)
    for tokens, beginnings, message in (
        (["<s>"], "mean", r"tokens\[0\] \('<s>'\) is in the vocabulary already"),
        (["<a>", "<a>"], "mean", r"tokens\[1\] \('<a>'\) is there twice"),
        ([""], "mean", "must be a string of one character"),
        (["<a>"], "zeros", "beginnings"),
        (["<a>"], {"<b>": "the"}, "beginnings must have a text for each"),
        (["<a>"], {"<a>": ""}, "has no token"),
    ):
        with pytest.raises(ValueError, match=message):
            add_tokens(model, tokens, beginnings)
    with pytest.raises(ValueError, match="has no table of learned positions"):
        with_positions(gpt(tokenizer, positions="rotary"), 32)
    with pytest.raises(ValueError, match="with labels"):
        with_labels(model, 3)
    with pytest.raises(ValueError, match="tokenizer"):
        prune_vocabulary(gpt(tokenizer, tokenizer=None), CORPUS)
    words = Tokenizer.train_words(TEXTS, 40, unk="<unk>")
    with pytest.raises(ValueError, match="must be of WordPiece, BPE or Unigram"):
        prune_vocabulary(gpt(words), CORPUS)
    model.generation_defaults = kerasllm.GenerationConfig(suppress_tokens=[3])
    with pytest.raises(ValueError, match="generation_defaults: suppress_tokens has ids"):
        prune_vocabulary(model, CORPUS)
    model.quantize("int8")
    with pytest.raises(ValueError, match="is quantized"):
        add_tokens(model, ["<a>"])


def blocks(cls, *sizes, **arguments):
    sizes = [30] * (2 if cls is kerasllm.TransformerTranslator else 1)
    given = {"num_layers": 3, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 9, "initializer_range": 0.5}
    return cls(*sizes, **{**given, **arguments})


def passed_over(model, *places):
    """The model with blocks that add nothing to the stream, where norms come before sublayers."""
    for v in model.weights:
        if any(place in v.path for place in places) and "/output/" in v.path:
            v.assign(np.zeros(v.shape))
    return model


def test_a_student_has_the_blocks_that_are_kept():
    ids = np.array([[3, 4, 5, 6]])
    teacher = blocks(kerasllm.GPT, positions="rotary", rope_base=[100.0, 200.0, None], sliding_window=[2, None])
    student = student_of(passed_over(teacher, "block_1"), [0, 2])
    assert student.arguments["rope_base"] == [100.0, None] and student.arguments["sliding_window"] == [2, 2]
    np.testing.assert_allclose(outputs(student, ids[0]), outputs(teacher, ids[0]), atol=1e-5)
    assert not [v for v in student.weights if "block_2" in v.path] and teacher.arguments["num_layers"] == 3
    teacher = blocks(kerasllm.BERT, pooler=False)
    x = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": ids > 0}
    states = teacher.inspect(x)["hidden_states"]
    np.testing.assert_allclose(student_of(teacher, [0]).inspect(x)["hidden_states"][1], states[1], atol=1e-5)
    last = student_of(teacher, [2]).encoder.blocks[0].get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(last, teacher.encoder.blocks[2].get_weights(), strict=True))


def test_students_of_translators_have_fewer_blocks_on_either_side():
    ids = np.array([[3, 4, 5, 6]])
    x = {f"{side}_token_ids": ids for side in ("source", "target")}
    x |= {f"{side}_padding_mask": ids > 0 for side in ("source", "target")}
    teacher = blocks(kerasllm.TransformerTranslator, residual="pre", num_decoder_layers=2, positions="relative")
    passed_over(teacher, "encoder/block_0", "decoder/block_0")
    student = student_of(teacher, [1, 2], [1])
    assert (student.arguments["num_layers"], student.arguments["num_decoder_layers"]) == (2, 1)
    np.testing.assert_allclose(*(ops.convert_to_numpy(m(x)) for m in (student, teacher)), atol=1e-5)
    shared = student_of(blocks(kerasllm.Summarizer, share=True), [0, 2])
    assert shared.arguments["num_layers"] == 2
    for layers, decoder_layers, name in (
        ([0, 3], None, "layers"),
        ([0], [2], "decoder_layers"),
        ([1, 0], None, "layers"),
    ):
        with pytest.raises(ValueError, match=f"^{name} "):
            student_of(teacher, layers, decoder_layers)
    with pytest.raises(ValueError, match="decoder_layers"):
        student_of(blocks(kerasllm.Summarizer, share=True), [0, 2], [0, 1])


def test_a_student_keeps_what_is_set_on_the_blocks_it_has():
    teacher = blocks(kerasllm.BERTClassifier, labels=["a", "b"])
    teacher.encoder.blocks[1].trainable = False
    teacher.encoder.blocks[2].attention.query.enable_lora(2)
    student = student_of(teacher, [1, 2])
    assert not student.encoder.blocks[0].trainable and student.encoder.blocks[1].attention.query.lora_enabled
    assert student_of(teacher, [0]).encoder.blocks[0].trainable
    for wrong in (None, "x", 3, [], [3], [-1], [0, 0], [0.5], [True], {0}):
        with pytest.raises(ValueError, match="^layers "):
            student_of(teacher, wrong)
    for other in ("x", kerasllm.RNNLanguageModel(9, hidden_dim=4)):
        with pytest.raises(ValueError, match="^model "):
            student_of(other, [0])
    with pytest.raises(ValueError, match="^decoder_layers "):
        student_of(teacher, [0], [0])
    teacher.quantize("int8")
    with pytest.raises(ValueError, match="quantized"):
        student_of(teacher, [0])
