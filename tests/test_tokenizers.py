import functools
import hashlib
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from kerasllm.text.tokenizers import Tokenizer

DATA = pathlib.Path(__file__).parent / "data" / "tokenizers"
ANSWERS = json.loads((DATA / "answers.json").read_text())
HARD = ANSWERS["texts"]
TEXTS = ["The cat sat on the mat.", "A cat's life, isn't it?", "the dog and the cat sat", "Qwx jkv Zß"] * 3
KINDS = ["wordpiece", "bpe", "unigram", "words"]


def train(kind, texts=TEXTS, vocabulary_size=300, **arguments):
    return getattr(Tokenizer, f"train_{kind}")(texts, vocabulary_size, **arguments)


@functools.cache
def trained(kind):
    return train(kind)


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return trained(request.param)


# Parity


def from_fixture(name):
    folder, _, side = name.partition("/")
    return Tokenizer.from_folder(DATA / folder, f"{side}_" if side else "")


FAMILIES = [name for name in ANSWERS if name != "texts"]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_texts_are_those_of_transformers(family):
    tokenizer = from_fixture(family)
    answers = ANSWERS[family]
    for text, ids, decoded in zip(HARD, answers["ids"], answers["texts"], strict=True):
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == decoded
    for text, pair in zip(HARD, answers.get("pairs", []), strict=False):
        assert tokenizer.encode_with_segments(text, "The cat.") == tuple(pair)
    assert tokenizer.encode_batch(HARD) == answers["ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_any_family_is_saved_as_tokenizer_json(family, tmp_path):
    tokenizer = from_fixture(family)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.from_folder(tmp_path)
    assert loaded == tokenizer
    assert loaded.encode_batch(HARD) == ANSWERS[family]["ids"]
    # transformers would build any other class anew, from what it thinks that class is.
    assert loaded.config["tokenizer_class"] == "PreTrainedTokenizerFast"
    has_segments = "token_type_ids" in loaded.config["model_input_names"]
    assert has_segments == (family in ("bert", "albert"))


@pytest.mark.parametrize("lowercase", [True, False])
def test_bert_from_vocab_txt_equals_the_installed_transformers(lowercase, tmp_path):
    transformers = pytest.importorskip("transformers")
    train("wordpiece", TEXTS + HARD * 2, 500, lowercase=lowercase).save_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    reference = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), do_lower_case=lowercase)
    assert [tokenizer.encode(text) for text in HARD] == [reference(text)["input_ids"] for text in HARD]


def test_gpt2_from_vocab_json_equals_the_installed_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    train("bpe", TEXTS + HARD * 2, 500).save_vocabulary(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    reference = transformers.GPT2TokenizerFast(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    assert [tokenizer.encode(text) for text in HARD] == [reference(text)["input_ids"] for text in HARD]


def test_transformers_opens_a_saved_folder(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD:
        assert reference(text)["input_ids"] == tokenizer.encode(text)
        assert reference.decode(tokenizer.encode(text), skip_special_tokens=True) == tokenizer.decode(
            tokenizer.encode(text)
        )
    assert {role: getattr(reference, f"{role}_token") for role in tokenizer.roles} == tokenizer.roles
    # GPT-2 would add the embeddings of segment ids.
    assert ("token_type_ids" in reference("cat")) == ("cls" in tokenizer.roles)


def test_trained_ids_are_those_of_the_tokenizers_package():
    texts = TEXTS + HARD
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        min_frequency=2,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = train("bpe", texts)
    assert [tokenizer.encode(text) for text in HARD] == [raw.encode(text).ids for text in HARD]

    tokenizer = train("wordpiece", texts)
    raw = tokenizers.Tokenizer(models.WordPiece(tokenizer.backend.get_vocab(), unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    for text in HARD:
        assert tokenizer.encode(text, special_tokens=False) == raw.encode(text).ids


# Encoding and decoding


@pytest.mark.parametrize("text", HARD)
def test_bytes_give_every_text_back(text):
    tokenizer = trained("bpe")
    assert tokenizer.decode(tokenizer.encode(text, special_tokens=False), skip_special_tokens=False) == text


def test_role_tokens_inside_a_text_stay_whole(tokenizer):
    for token in tokenizer.roles.values():
        ids = tokenizer.encode(f"cat {token} sat{token}", special_tokens=False)
        assert ids.count(tokenizer.token_to_id(token)) == 2
        assert tokenizer.decode(ids, skip_special_tokens=False).count(token) == 2
        assert token not in tokenizer.decode(ids)


def test_roles_have_ids_and_absent_roles_none():
    tokenizer = trained("wordpiece")
    assert tokenizer.encode("[PAD][UNK][CLS][SEP][MASK]", special_tokens=False) == [0, 1, 2, 3, 4]
    ids = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    assert ids == [0, 1, 2, 3, 4] == tokenizer.special_ids
    assert tokenizer.bos_id is None and tokenizer.eos_id is None


def test_pairs_have_segments():
    tokenizer = trained("wordpiece")
    ids, segments = tokenizer.encode_with_segments("cat", "sat the")
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    cat, sat, the = (tokenizer.token_to_id(t) for t in ("cat", "sat", "the"))
    assert ids == [cls, cat, sep, sat, the, sep] == tokenizer.encode("cat", "sat the")
    assert segments == [0, 0, 0, 1, 1, 1]


def test_given_roles_replace_the_defaults():
    tokenizer = train("bpe", bos="<s>", eos="</s>", pad="<pad>")
    assert tokenizer.roles == {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.encode("cat") == tokenizer.encode("cat", special_tokens=False)
    without = train("wordpiece", cls=None, sep=None)
    assert without.cls_id is None and without.encode("cat") == [without.token_to_id("cat")]


def test_cased_and_uncased():
    assert trained("wordpiece").encode("CAT") == trained("wordpiece").encode("cat")
    cased = train("wordpiece", lowercase=False)
    assert cased.encode("CAT") != cased.encode("cat")


def test_unknown_words():
    tokenizer = trained("words")
    assert tokenizer.decode(tokenizer.encode("The cat"), skip_special_tokens=False) == "The cat"
    assert tokenizer.encode("elephant, cat") == [tokenizer.unk_id, *tokenizer.encode(", cat")]


def test_word_starts_follow_the_marks():
    for kind, text in (("wordpiece", "the cat sat"), ("bpe", " the cat sat"), ("unigram", "the cat sat")):
        tokenizer = trained(kind)
        ids = tokenizer.encode(text, special_tokens=False)
        assert tokenizer.word_starts.shape == (tokenizer.vocabulary_size,)
        assert tokenizer.word_starts[ids].sum() == 3, kind
        assert tokenizer.word_starts[tokenizer.special_ids].all()
    assert not trained("wordpiece").word_starts[trained("wordpiece").token_to_id("##t")]
    assert trained("words").word_starts.all()


def test_decode_takes_arrays_and_ids_have_tokens(tokenizer):
    ids = tokenizer.encode("the cat")
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(ids)
    assert [tokenizer.token_to_id(tokenizer.id_to_token(i)) for i in ids] == ids
    assert tokenizer.token_to_id("no such token") is None
    assert tokenizer.decode([]) == ""


def test_ids_beyond_the_vocabulary_decode_to_nothing(tokenizer):
    ids, size = tokenizer.encode("the cat"), tokenizer.vocabulary_size
    for skip in (False, True):
        assert tokenizer.decode([size, *ids[:2], size + 7, *ids[2:], 2**40], skip) == tokenizer.decode(ids, skip)
    assert tokenizer.decode([size]) == "" and tokenizer.id_to_token(size) is None


def test_padding_and_truncation_of_a_loaded_tokenizer_are_off():
    backend = tokenizers.Tokenizer.from_str(trained("wordpiece").backend.to_str())
    backend.enable_padding(length=9)
    backend.enable_truncation(3)
    tokenizer = Tokenizer(backend, pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    assert tokenizer == trained("wordpiece")
    assert tokenizer.encode_batch(["cat", "cat sat on the mat"]) == trained("wordpiece").encode_batch(
        ["cat", "cat sat on the mat"]
    )


def test_vocabulary_size_covers_the_largest_id():
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 7, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = Tokenizer(backend, unk="<unk>")
    assert tokenizer.vocabulary_size == 8
    assert tokenizer.id_to_token(5) is None


def test_encodings_say_where_a_token_comes_from():
    question, context = "Who sat?", "The cat sat on the mat."
    for tokenizer in (trained("wordpiece"), from_fixture("xlm_roberta"), from_fixture("roberta")):
        [encoding] = tokenizer.encodings([question], [context])
        assert (encoding.ids, encoding.type_ids) == tokenizer.encode_with_segments(question, context)
        special = [i in (tokenizer.cls_id, tokenizer.sep_id) for i in encoding.ids]
        assert encoding.special_tokens_mask == special
        spans = {}
        rows = zip(encoding.sequence_ids, encoding.word_ids, encoding.offsets, special, strict=True)
        for sequence, word, (start, end), is_special in rows:
            if is_special:
                assert (sequence, word, start, end) == (None, None, 0, 0)
            else:
                first, last = spans.get((sequence, word), (start, end))
                spans[sequence, word] = min(first, start), max(last, end)
        words = [context[start:end] for (sequence, _), (start, end) in spans.items() if sequence == 1]
        assert "".join(words) == context.replace(" ", "")
        assert {"The", "cat", "sat", "on", "the"} <= set(words)
    first, second = trained("wordpiece").encodings(["cat", "sat on"], special_tokens=False)
    assert (first.ids, len(second.ids)) == (trained("wordpiece").encode("cat", special_tokens=False), 2)


# Determinism and equality

CHILD = """
import hashlib, sys
from kerasllm.text.tokenizers import Tokenizer
for kind in ("wordpiece", "bpe", "unigram", "words"):
    tokenizer = getattr(Tokenizer, "train_" + kind)(eval(sys.argv[1]), 300)
    print(hashlib.sha256(tokenizer.backend.to_str().encode()).hexdigest())
"""


def test_the_same_texts_give_the_same_tokenizer_in_every_process():
    texts = TEXTS + HARD
    child = subprocess.run([sys.executable, "-c", CHILD, repr(texts)], capture_output=True, text=True, check=True)
    for kind, checksum in zip(KINDS, child.stdout.split(), strict=True):
        for _ in range(3):
            tokenizer = train(kind, iter(texts))
            assert hashlib.sha256(tokenizer.backend.to_str().encode()).hexdigest() == checksum, kind


def test_equal_tokenizers_are_equal(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer and hash(copy) == hash(tokenizer)
    assert all((tokenizer == trained(kind)) == (tokenizer is trained(kind)) for kind in KINDS)
    assert tokenizer != Tokenizer(tokenizers.Tokenizer.from_str(tokenizer.backend.to_str()))


# Files


@pytest.mark.parametrize("prefix", ["", "source_"])
def test_save_and_from_folder_are_inverse(tokenizer, prefix, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder", prefix)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [
        f"{prefix}tokenizer.json",
        f"{prefix}tokenizer_config.json",
    ]
    loaded = Tokenizer.from_folder(tmp_path / "new" / "folder", prefix)
    assert loaded == tokenizer
    assert [loaded.encode(text) for text in HARD] == [tokenizer.encode(text) for text in HARD]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_old_files_give_the_tokenizer_back(kind, tmp_path):
    trained(kind).save_vocabulary(tmp_path, "source_")
    assert Tokenizer.from_folder(tmp_path, "source_") == trained(kind)


def test_entries_of_a_hugging_face_config_survive(tmp_path):
    trained("bpe").save(tmp_path)
    end = {"__type": "AddedToken", "content": "<|endoftext|>", "special": True}
    config = {"eos_token": end, "bos_token": None, "chat_template": "{{ messages }}", "model_max_length": 9}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.roles == {"eos": "<|endoftext|>"}
    tokenizer.save(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["chat_template"] == "{{ messages }}" and written["model_max_length"] == 9
    assert written["eos_token"] == "<|endoftext|>"


def test_roles_of_special_tokens_map_are_read(tmp_path):
    trained("words").save(tmp_path)
    (tmp_path / "tokenizer_config.json").rename(tmp_path / "special_tokens_map.json")
    assert Tokenizer.from_folder(tmp_path).roles == trained("words").roles


def test_a_failed_save_leaves_the_old_files(tmp_path, monkeypatch):
    trained("bpe").save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ValueError, match="no space left"):
        trained("words").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Bad input


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "texts, vocabulary_size, arguments, message",
    [
        (None, 300, {}, "texts .None."),
        ("a string", 300, {}, "texts .'a string'. must be an iterable"),
        ([], 300, {}, "nothing to learn"),
        (["", " \n"], 300, {}, "nothing to learn"),
        (["cat", None], 300, {}, r"texts\[1\] .None. must be a string"),
        (("cat", 3), 300, {}, r"texts\[1\] .3. must be a string"),
        (TEXTS, 0, {}, "vocabulary_size .0. must be a positive"),
        (TEXTS, 2, {}, "vocabulary_size .2."),
        (TEXTS, 300, {"start": "<s>"}, "'start' is not the role"),
    ],
)
def test_bad_training_input(kind, texts, vocabulary_size, arguments, message):
    with pytest.raises(ValueError, match=message):
        train(kind, texts, vocabulary_size, **arguments)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: t.encode(None), "text .None. must be a string"),
        (lambda t: t.encode(["cat"]), "must be a string"),
        (lambda t: t.encode("cat", 3), "pair .3. must be a string or None"),
        (lambda t: t.encode_batch("cat"), "texts .'cat'. must be an iterable"),
        (lambda t: t.encode_batch([b"cat"]), r"texts\[0\]"),
        (lambda t: t.encodings("cat"), "texts .'cat'. must be an iterable"),
        (lambda t: t.encodings(["cat"], [None]), r"pairs\[0\]"),
        (lambda t: t.encodings(["cat"], ["a", "b"]), r"pairs \(2\) must be as many as texts \(1\)"),
        (lambda t: t.decode([-1]), "ids holds -1"),
        (lambda t: t.decode([[1, 2]]), "flat sequence"),
        (lambda t: t.decode([0.5]), "integers"),
        (lambda t: t.id_to_token(-1), "token_id"),
        (
            lambda t: Tokenizer(t.backend, mask="<hidden>"),
            "mask .'<hidden>'. must be a token of the vocabulary",
        ),
        (lambda t: Tokenizer("tokenizer.json"), "backend .str."),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(trained("words"))


HALF = "a\ud800"
CALLS_WITH_HALVES = {
    "text": lambda t: t.encode(HALF),
    "pair": lambda t: t.encode("a", HALF),
    "texts[1]": lambda t: t.encode_batch(["a", HALF]),
    "pairs[0]": lambda t: t.encodings(["a"], [HALF]),
    "token": lambda t: t.token_to_id(HALF),
    "texts[12]": lambda t: train("bpe", [*TEXTS, HALF]),
    "mask": lambda t: Tokenizer(t.backend, mask=HALF),
    "bos": lambda t: train("words", bos=HALF),
    "messages": lambda t: chatting(t).apply_chat_template([{"role": "user", "content": HALF}]),
}


def chatting(tokenizer):
    return Tokenizer(tokenizer.backend, config={"chat_template": "{{ messages[0].content }}"})


@pytest.mark.parametrize("name", CALLS_WITH_HALVES)
def test_half_a_character_is_named(name):
    """Python's strings may hold lone surrogates, which no UTF-8 has."""
    with pytest.raises(ValueError, match=re.escape(f"{name} ('a\\ud800') holds a lone surrogate, '\\ud800', at 1")):
        CALLS_WITH_HALVES[name](trained("bpe"))


def test_required_and_missing_roles():
    with pytest.raises(ValueError, match="unk .None. must be a token"):
        train("words", unk=None)
    with pytest.raises(ValueError, match="leave only the special tokens"):
        train("words", min_frequency=1000)
    with pytest.raises(ValueError, match="must be WordPiece or BPE"):
        trained("words").save_vocabulary("unused")


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="must hold tokenizer.json, vocab.txt, vocab.json with merges.txt, spiece"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ValueError, match="must hold"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c d\n")
    with pytest.raises(ValueError, match="merges.txt cannot be read"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"half": ')
    with pytest.raises(ValueError, match="tokenizer.json cannot be read"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1")
    with pytest.raises(ValueError, match="tokenizer_config.json cannot be read"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        trained("words").save(tmp_path / "file")


def test_a_role_of_a_config_must_be_in_the_vocabulary(tmp_path):
    trained("bpe").save_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    with pytest.raises(ValueError, match=r"pad \('\[PAD\]'\) must be a token of the vocabulary"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"cls_token": "<s>"}')
    with pytest.raises(ValueError, match=r"vocab.json and .*merges.txt: pad \('<pad>'\) must be a token of the vocab"):
        Tokenizer.from_folder(tmp_path)
