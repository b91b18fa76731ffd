"""Tokenizers as TensorFlow operations; all in a process with the tensorflow backend, whatever this one's backend."""

import functools
import json
import pathlib

import keras
import numpy as np
import pytest
import tokenizers
from alone import run_alone
from tokenizers import decoders, models, normalizers, pre_tokenizers

from kerasllm import pretrained
from kerasllm.export import text_ops
from kerasllm.export.text_graph.hard_texts import HARD_TEXTS
from kerasllm.text.tokenizers import Tokenizer

if keras.backend.backend() != "tensorflow":
    # It has nothing to do with the backend, and TensorFlow beside another one takes seconds.
    pytest.skip("runs under the tensorflow backend alone", allow_module_level=True)

import tensorflow as tf

from kerasllm.export.text_graph import normalization, pairs, words
from kerasllm.export.text_graph.tokenizer import GraphTokenizer

DATA = pathlib.Path(__file__).parent / "data" / "tokenizers"
OTHER_TEXTS = [
    *json.loads((DATA / "answers.json").read_text())["texts"],
    "a\x00b",
    "Σίσυφος ΣΊΣΥΦΟΣ",
    "e\u0323\u0301 x\u0327",
]
TEXTS = ["The cat sat on the mat.", "A cat's life, isn't it?", "the dog and the cat sat", "Qwx jkv Zß", *HARD_TEXTS]
KINDS = {
    "uncased": lambda: Tokenizer.train_wordpiece(TEXTS * 2, 700),
    "cased": lambda: Tokenizer.train_wordpiece(TEXTS * 2, 700, lowercase=False),
    "bytes": lambda: Tokenizer.train_bpe(TEXTS, 500),
    "unigram": lambda: Tokenizer.train_unigram(TEXTS, 700),
    "words": lambda: Tokenizer.train_words(TEXTS, 200, lowercase=True),
    "smollm2": lambda: with_words([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "llama 3": lambda: with_words(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
        ignore_merges=True,
    ),
    "a space before": lambda: with_words([pre_tokenizers.ByteLevel(add_prefix_space=True)]),
    **{
        name: functools.partial(Tokenizer.from_folder, DATA / name, "source_" if name == "marian" else "")
        for name in ("roberta", "llama", "llama_legacy", "t5", "albert", "xlm_roberta", "marian")
    },
}
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def with_words(steps, ignore_merges=False):
    """A byte-level tokenizer with other pre-tokenizers."""
    backend = Tokenizer.train_bpe(TEXTS, 600).backend
    spec = json.loads(backend.to_str())
    spec["model"]["ignore_merges"] = ignore_merges
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.add_tokens(["<|im_start|>"])
    backend.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True), "<|im_end|>"])
    return Tokenizer(backend, bos="<|endoftext|>", eos="<|endoftext|>")


@functools.cache
def made(kind):
    tokenizer = KINDS[kind]()
    return tokenizer, GraphTokenizer(tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_gives_what_the_tokenizer_gives(kind):
    tokenizer, graph = made(kind)
    text_ops.check_equal(graph, tokenizer, HARD_TEXTS + OTHER_TEXTS + text_ops.special_texts(tokenizer))


@pytest.mark.parametrize("kind", ["uncased", "cased", "words"])
def test_a_graph_knows_where_tokens_stand(kind):
    tokenizer, graph = made(kind)
    text_ops.check_places(graph, tokenizer, HARD_TEXTS + OTHER_TEXTS + text_ops.special_texts(tokenizer))


@pytest.mark.parametrize("kind, reason", [("bytes", "its model is BPE"), ("uncased", "would stand at")])
def test_places_that_a_graph_does_not_know_are_refused(kind, reason, monkeypatch):
    monkeypatch.setattr(GraphTokenizer, "_num_read", lambda self, texts: tf.strings.length(texts))
    with pytest.raises(ValueError, match=reason):
        text_ops.graph_tokenizer(made(kind)[0], with_places=True)


def test_a_graph_is_compared_with_the_tokenizer_before_it_is_used(monkeypatch):
    compared = []
    monkeypatch.setattr(text_ops, "check_equal", lambda graph, tokenizer, texts: compared.extend(texts))
    graph = text_ops.graph_tokenizer(made("uncased")[0])
    assert isinstance(graph, GraphTokenizer)
    assert set(HARD_TEXTS) < set(compared) and any("[MASK]" in text for text in compared)


def test_batches_are_padded_on_the_right():
    tokenizer, graph = made("uncased")
    batch = graph.encode(tf.constant(["the cat", ""]), tf.constant(["sat", "on the mat"]))
    assert {name: x.dtype for name, x in batch.items()} == {
        "token_ids": tf.int32,
        "padding_mask": tf.bool,
        "segment_ids": tf.int32,
    }
    for i, encoding in enumerate(tokenizer.encodings(["the cat", ""], ["sat", "on the mat"])):
        end = len(batch["token_ids"][i]) - len(encoding)
        assert batch["token_ids"][i].numpy().tolist() == encoding.ids + [tokenizer.pad_id] * end
        assert batch["segment_ids"][i].numpy().tolist() == encoding.type_ids + [0] * end
        assert batch["padding_mask"][i].numpy().tolist() == [True] * len(encoding) + [False] * end
    plain = graph.encode(tf.constant(["the cat"]), add_special_tokens=False)["token_ids"]
    assert plain[0].numpy().tolist() == tokenizer.encode("the cat", special_tokens=False)


def test_no_texts_give_no_ids():
    for kind in ("uncased", "bytes", "unigram", "words"):
        graph = made(kind)[1]
        batch = graph.encode(tf.constant([], tf.string))
        assert batch["token_ids"].shape[0] == batch["padding_mask"].shape[0] == 0
        assert graph.decode(batch["token_ids"], batch["padding_mask"]).shape == (0,)


def test_cut_off_characters_are_decoded_as_python_does():
    tokenizer, graph = made("bytes")
    ids = [tokenizer.encode(text) for text in ("🙂", "日本", "é", "a🙂b", "👩‍👩")]
    broken = [row[start:end] for row in ids for start in range(len(row)) for end in range(start, len(row) + 1)]
    broken += [row[::-1] for row in broken]
    width = max(map(len, broken))
    mask = tf.sequence_mask([len(row) for row in broken], width)
    texts = graph.decode(tf.constant([row + [0] * (width - len(row)) for row in broken]), mask)
    assert [text.decode() for text in texts.numpy()] == [tokenizer.decode(row) for row in broken]


def test_ids_beyond_the_vocabulary_are_decoded_to_nothing():
    for kind in ("uncased", "bytes"):
        tokenizer, graph = made(kind)
        ids, size = tokenizer.encode("the cat sat"), tokenizer.vocabulary_size
        row = [size, *ids[:2], size + 5, *ids[2:]]
        [text] = graph.decode(tf.constant([row]), tf.ones((1, len(row)), tf.bool)).numpy()
        assert text.decode() == tokenizer.decode(ids) == tokenizer.decode(row)


def saved(tokenizer, graph, folder):
    module = tf.Module()
    module.tokenizer = graph

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def there_and_back(texts):
        batch = graph.encode(texts)
        return batch | {"texts": graph.decode(batch["token_ids"], batch["padding_mask"])}

    module.there_and_back = there_and_back
    tf.saved_model.save(module, str(folder), signatures={"there_and_back": there_and_back})


def there_and_back(folder, paths):
    """What saved graphs make of the hard texts: for each a list of pairs (ids, text)."""
    inputs = {"texts": np.array([text.encode() for text in HARD_TEXTS], object)}
    for batch in run_alone(folder, [(path, "there_and_back", inputs) for path in paths]):
        rows = zip(*(batch[name] for name in ("token_ids", "padding_mask", "texts")), strict=True)
        yield [(ids[mask].tolist(), text.decode()) for ids, mask, text in rows]


def test_a_saved_model_needs_tensorflow_alone(tmp_path):
    kinds = ["uncased", "bytes"]
    for kind in kinds:
        saved(*made(kind), tmp_path / kind)
    results = there_and_back(tmp_path, [tmp_path / kind for kind in kinds])
    for kind, rows in zip(kinds, results, strict=True):
        tokenizer = made(kind)[0]
        assert rows == [(ids, tokenizer.decode(ids)) for ids in map(tokenizer.encode, HARD_TEXTS)]


def change(kind, **parts):
    """A tokenizer of a kind with other parts."""
    backend = tokenizers.Tokenizer.from_str(made(kind)[0].backend.to_str())
    for name, part in parts.items():
        setattr(backend, name, part)
    return Tokenizer(backend)


@pytest.mark.parametrize(
    "parts, reason",
    [
        ({"normalizer": normalizers.Replace(tokenizers.Regex("a+"), "b")}, "its normalizer replaces what"),
        ({"normalizer": normalizers.Strip()}, "its normalizer is Strip"),
        ({"pre_tokenizer": pre_tokenizers.UnicodeScripts()}, "its pre-tokenizer is .*UnicodeScripts"),
        ({"pre_tokenizer": pre_tokenizers.Split(tokenizers.Regex("(?<=a)b"), "isolated")}, "looks ahead or back"),
        ({"pre_tokenizer": pre_tokenizers.Split(tokenizers.Regex("a++b"), "isolated")}, "which RE2 cannot read"),
        ({"model": models.WordLevel({"a": 0}, unk_token="<unk>")}, "its vocabulary lacks '<unk>'"),
        ({"decoder": decoders.CTC()}, "its decoder is CTC"),
        ({"model": models.BPE({"a": 0}, [], end_of_word_suffix="</w>")}, "marks parts of words"),
    ],
)
def test_a_part_without_operations_is_refused(parts, reason):
    with pytest.raises(ValueError, match=f"cannot become a part of a graph: .*{reason}"):
        text_ops.graph_tokenizer(change("words", **parts))


@pytest.mark.parametrize("setting", ["split_special_tokens", "clean_up_tokenization_spaces"])
def test_a_setting_without_operations_is_refused(setting):
    plain = change("words")
    tokenizer = Tokenizer(plain.backend, **plain.roles, config={setting: True})
    with pytest.raises(ValueError, match=f"there are no operations for {setting}"):
        text_ops.graph_tokenizer(tokenizer)


def test_a_normalised_added_token_is_refused():
    tokenizer = change("uncased")
    tokenizer.backend.add_tokens([tokenizers.AddedToken("Foo", normalized=True)])
    with pytest.raises(ValueError, match="it finds 'Foo' in a text after it is normalised"):
        text_ops.graph_tokenizer(tokenizer)


@pytest.mark.parametrize(
    "kind, module, name, value",
    [
        ("uncased", normalization.CharacterMap, "__call__", lambda self, texts: tf.strings.lower(texts)),
        ("bytes", words, "GPT2", r"\s+|\S+"),
        ("bytes", pairs.BPE, "_merged", lambda self, ids: ids),
    ],
)
def test_operations_that_give_something_else_are_refused(kind, module, name, value, monkeypatch):
    monkeypatch.setattr(module, name, value)
    with pytest.raises(ValueError, match="'.*' would have the ids"):
        text_ops.graph_tokenizer(made(kind)[0])


def test_the_first_text_that_is_decoded_otherwise_is_named(monkeypatch):
    tokenizer, graph = made("bytes")
    monkeypatch.setattr(graph, "decode", lambda token_ids, mask: tf.fill([tf.shape(token_ids)[0]], "other"))
    with pytest.raises(ValueError, match=r"\[.*\] would be decoded as 'other', not 'Hello, world!'"):
        text_ops.check_equal(graph, tokenizer, ["Hello, world!"])


@pytest.mark.network
def test_minilm_and_smollm2(tmp_path):
    from kerasllm.checkpoints import gguf

    folder = tmp_path / "smollm2"
    folder.mkdir()
    for name, text in gguf.read(pretrained.smollm2())[2].items():
        (folder / name).write_text(text)
    for name, source in (("minilm", pretrained.minilm()), ("smollm2", folder)):
        tokenizer = Tokenizer.from_folder(source)
        graph = text_ops.graph_tokenizer(tokenizer)
        text_ops.check_equal(graph, tokenizer, OTHER_TEXTS)
        saved(tokenizer, graph, tmp_path / f"saved_{name}")
        [rows] = there_and_back(tmp_path, [tmp_path / f"saved_{name}"])
        assert rows == [(ids, tokenizer.decode(ids)) for ids in map(tokenizer.encode, HARD_TEXTS)]
