import dataclasses
import json
import pathlib
import shutil
import struct

import pytest

from kerasllm.text import sentencepiece_model
from kerasllm.text.sentencepiece_model import SentencePieceModel
from kerasllm.text.tokenizers import Tokenizer

DATA = pathlib.Path(__file__).parent / "data" / "tokenizers"
HARD = json.loads((DATA / "answers.json").read_text())["texts"]
UNK, CONTROL, SYMBOL, UNUSED, BYTE = 2, 3, 4, 5, 6


def model(algorithm, pieces, **arguments):
    """A model of `pieces`, which map a piece to its score, or to a score and a type."""
    rows = [("<unk>", 0.0, UNK)]
    rows += [(piece, *(value if isinstance(value, tuple) else (value, 1))) for piece, value in pieces.items()]
    pieces, scores, types = map(list, zip(*rows, strict=True))
    return SentencePieceModel(pieces, scores, types, algorithm, **arguments)


def pieces_of(model, text, **arguments):
    backend = sentencepiece_model.to_tokenizer(model, **arguments)
    return [backend.id_to_token(i) for i in backend.encode(text).ids]


# Segmentation


def test_unigram_takes_the_likeliest_path():
    scores = {"▁ab": -3.0, "▁a": -1.0, "b": -1.0, "c": -4.0, "bc": -2.0, "▁": -1.0, "a": -2.5}
    assert pieces_of(model("unigram", scores), "ab abc  x") == ["▁a", "b", "▁a", "bc", "▁", "<unk>"]


def test_bpe_merges_the_best_piece_first():
    scores = {"▁": -9.0, "a": -9.0, "b": -9.0, "c": -9.0, "bc": -1.0, "ab": -2.0, "▁ab": -3.0}
    assert pieces_of(model("bpe", scores), "abc ab") == ["▁", "a", "bc", "▁ab"]
    swapped = scores | {"bc": -2.0, "ab": -1.0}
    assert pieces_of(model("bpe", swapped), "abc ab") == ["▁ab", "c", "▁ab"]


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_unknown_characters_are_bytes_where_the_model_has_them(algorithm):
    scores = {"▁": -2.0, "a": -1.0} | {f"<0x{i:02X}>": (0.0, BYTE) for i in range(256)}
    backend = sentencepiece_model.to_tokenizer(model(algorithm, scores))
    encoding = backend.encode("a é")
    assert encoding.tokens == ["▁", "a", "▁", "<0xC3>", "<0xA9>"]
    assert backend.decode(encoding.ids) == "a é"


def test_user_defined_symbols_are_whole_and_unused_pieces_never_written():
    scores = {"▁": -1.0, "a": -1.0, "b": -2.0, "ab": (0.0, SYMBOL), "aa": (0.0, UNUSED)}
    assert pieces_of(model("unigram", scores), "abaa") == ["▁", "ab", "a", "a"]
    assert pieces_of(model("bpe", scores), "abaa") == ["ab", "▁", "a", "a"]


def test_whitespace_is_kept_or_removed_as_the_model_says():
    scores = {"▁": -1.0, "a": -1.0}
    kept = model("bpe", scores, remove_extra_whitespaces=False)
    assert pieces_of(kept, " a  a ") == ["▁", "▁", "a", "▁", "▁", "a", "▁"]
    assert pieces_of(model("bpe", scores), " a  a ") == ["▁", "a", "▁", "a"]
    bare = dataclasses.replace(kept, add_dummy_prefix=False)
    assert pieces_of(bare, "a a") == ["a", "▁", "a"]
    assert sentencepiece_model.to_tokenizer(bare).decode([1, 2]) == " a"
    assert sentencepiece_model.to_tokenizer(kept).decode([1, 2]) == "a"


def test_text_after_a_special_token_begins_with_a_space_or_not():
    scores = {"▁": -1.0, "a": -1.0, "</s>": (0.0, CONTROL)}
    llama = model("bpe", scores, remove_extra_whitespaces=False)
    assert pieces_of(llama, "a</s>a") == ["▁", "a", "</s>", "▁", "a"]
    assert pieces_of(llama, "a</s>a", prefix_after_special_tokens=False) == ["▁", "a", "</s>", "a"]


def test_a_vocabulary_of_two_languages():
    source = model("unigram", {"▁": -1.0, "▁a": -1.0, "b": -2.0, "gone": -1.0})
    vocabulary = {"</s>": 0, "<unk>": 1, "b": 2, "▁": 3, "▁c": 4, "▁a": 5, "ß": 6, "bb": 7, "<pad>": 8}
    both = sentencepiece_model.with_vocabulary(source, vocabulary, "<unk>", ["</s>", "<pad>"])
    backend = sentencepiece_model.to_tokenizer(both)
    # "▁c" and "bb" are the other language's; "ß" is a single character, which Marian looks up.
    assert backend.encode("abb c ß").ids == [5, 2, 2, 3, 1, 3, 6]
    assert backend.decode([5, 7, 4, 6, 8]) == "abb cß"
    with pytest.raises(ValueError, match="each id from 0 to 1 once"):
        sentencepiece_model.with_vocabulary(source, {"a": 0, "b": 2}, "<unk>", [])


# Families


def copy(name, tmp_path, **config):
    folder = tmp_path / name
    shutil.copytree(DATA / name, folder)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_t5_has_sentinels_the_last_first(tmp_path):
    tokenizer = Tokenizer.from_folder(DATA / "t5")
    assert [tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id] == [0, 1, 2]
    assert tokenizer.token_to_id("<extra_id_0>") == tokenizer.vocabulary_size - 1
    assert tokenizer.token_to_id("<extra_id_99>") == tokenizer.vocabulary_size - 100
    without = Tokenizer.from_folder(copy("t5", tmp_path, extra_ids=0))
    assert without.vocabulary_size == tokenizer.vocabulary_size - 100


def test_the_class_of_the_tokenizer_or_of_the_model_chooses_the_family(tmp_path):
    with pytest.raises(ValueError, match=r"spiece.model: tokenizer_class \('XLNetTokenizerFast'\) must be T5Tokenizer"):
        Tokenizer.from_folder(copy("t5", tmp_path / "0", tokenizer_class="XLNetTokenizerFast"))
    # Without a class a spiece.model is T5's, and this has no end token.
    folder = copy("albert", tmp_path / "1", do_lower_case=False)
    with pytest.raises(ValueError, match=r"spiece.model: eos \('</s>'\) must be a token of the vocabulary"):
        Tokenizer.from_folder(folder)
    (folder / "config.json").write_text('{"model_type": "albert"}')
    assert Tokenizer.from_folder(folder).cls_id is not None
    with pytest.raises(ValueError, match=r"'DebertaTokenizer'\) must be GPT2Tokenizer or RobertaTokenizer or CodeGen"):
        Tokenizer.from_folder(copy("gpt2", tmp_path / "3", tokenizer_class="DebertaTokenizer"))
    named = copy("t5", tmp_path / "2", tokenizer_class="T5TokenizerFast")
    assert Tokenizer.from_folder(named) == Tokenizer.from_folder(DATA / "t5")


def model_of(tmp_path, name, model_type):
    """A folder without a class of tokenizers; config.json says which model it is of."""
    folder = copy(name, tmp_path / model_type)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def write_gemma(path):
    """Make a model of Llama one of Gemma: tokens in front, runs of spaces and lines that the user defined."""
    llama = sentencepiece_model.read(path)
    rows = [
        ("<pad>", 0, CONTROL),
        ("<eos>", 0, CONTROL),
        ("<bos>", 0, CONTROL),
        ("<unk>", 0, UNK),
        ("<mask>", 0, SYMBOL),
    ]
    rows += [(symbol, 0, SYMBOL) for symbol in ("\n", "\n\n", "▁▁", "▁▁▁", "<start_of_turn>")]
    own = {piece for piece, *_ in rows}
    rows += [row for row in zip(llama.pieces, llama.scores, llama.types, strict=True) if row[0] not in own][2:]
    # By bytes, two to be merged, and without a space before a text.
    settings = field(2, b"\x18\x02\x98\x02\x01") + field(3, b"\x18\x00\x20\x00")
    path.write_bytes(pieces_field(rows) + settings)


@pytest.mark.parametrize(
    "files, model_type",
    [
        *(("bert", model_type) for model_type in ("electra", "distilbert", "convbert")),
        *(("gpt2", model_type) for model_type in ("qwen2", "qwen3", "gpt_neox", "phi", "opt", "codegen")),
        *(("roberta", model_type) for model_type in ("bart", "longformer")),
        *(("xlm_roberta", model_type) for model_type in ("camembert", "xlm-roberta")),
        *(("llama", model_type) for model_type in ("gemma", "gemma3_text")),
        ("t5", "mt5"),
    ],
)
def test_the_type_of_the_model_decides_by_which_convention_files_are_read(files, model_type, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")
    folder = model_of(tmp_path, files, model_type)
    if files == "llama":
        write_gemma(folder / "tokenizer.model")
    tokenizer, reference = Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in HARD:
        ids = reference(text)["input_ids"]
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize(
    "files, model_type",
    [
        ("bert", "roformer"),
        ("gpt2", "stablelm"),
        ("gpt2", "deberta"),
        ("xlm_roberta", "mbart"),
        ("xlm_roberta", "barthez"),
        ("t5", "xlnet"),
        ("t5", "pegasus"),
        ("t5", "big_bird"),
        ("llama", "phi3"),
        ("llama", "code_llama"),
    ],
)
def test_a_type_of_model_with_another_convention_is_named(files, model_type, tmp_path):
    with pytest.raises(ValueError, match=rf"model_type \('{model_type}'\) in config.json must be of a model with \w+"):
        Tokenizer.from_folder(model_of(tmp_path, files, model_type))


def test_texts_begin_and_end_as_the_config_says(tmp_path):
    folder = copy("llama", tmp_path, add_bos_token=False, add_eos_token=True)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("cat") == [*tokenizer.encode("cat", special_tokens=False), tokenizer.eos_id]
    folder = copy("gpt2", tmp_path, add_bos_token=True)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("cat") == [tokenizer.bos_id, *tokenizer.encode("cat", special_tokens=False)]


def test_the_first_space_is_left_out_where_the_config_says(tmp_path):
    tokenizer = Tokenizer.from_folder(copy("llama", tmp_path, add_prefix_space=False))
    with_space = Tokenizer.from_folder(DATA / "llama")
    assert tokenizer.encode(" the cat") == with_space.encode("the cat") != tokenizer.encode("the cat")
    assert tokenizer.decode(tokenizer.encode(" the cat")) == " the cat"
    with pytest.raises(ValueError, match="spiece.model: remove_extra_whitespaces needs add_dummy_prefix"):
        Tokenizer.from_folder(copy("t5", tmp_path, add_prefix_space=False))


def test_added_tokens_keep_their_ids(tmp_path):
    size = Tokenizer.from_folder(DATA / "llama").vocabulary_size
    added = {str(size): {"content": "<|im_start|>", "special": True}, "1": {"content": "<s>", "special": True}}
    tokenizer = Tokenizer.from_folder(copy("llama", tmp_path / "0", added_tokens_decoder=added))
    assert tokenizer.encode("<|im_start|>", special_tokens=False) == [size] and size in tokenizer.special_ids
    folder = copy("llama", tmp_path, pad_token="[PAD]")
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": size, "[PAD]": size + 1}))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("<|im_start|>[PAD]", special_tokens=False) == [size, size + 1]
    assert tokenizer.pad_id == size + 1 in tokenizer.special_ids and size not in tokenizer.special_ids
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": size + 7}))
    with pytest.raises(ValueError, match=rf"tokenizer.model: '\[PAD\]' has id {size}, not {size + 7}"):
        Tokenizer.from_folder(folder)


def test_marian_has_two_tokenizers_of_one_vocabulary(tmp_path):
    source, target = (Tokenizer.from_folder(DATA / "marian", side) for side in ("source_", "target_"))
    vocabulary = json.loads((DATA / "marian" / "vocab.json").read_text())
    assert source.vocabulary_size == target.vocabulary_size == len(vocabulary)
    assert source.pad_id == vocabulary["<pad>"] and source.eos_id == 0
    assert source.decode(range(2, len(vocabulary) - 1)) == target.decode(range(2, len(vocabulary) - 1))
    with pytest.raises(ValueError, match=r"prefix \(''\) must name one"):
        Tokenizer.from_folder(DATA / "marian")
    folder = copy("marian", tmp_path)
    (folder / "vocab.json").rename(folder / "target_vocab.json")
    assert Tokenizer.from_folder(folder, "target_") == target
    with pytest.raises(ValueError, match="must name one"):
        Tokenizer.from_folder(folder, "source_")


def test_files_without_a_prefix_serve_source_and_target():
    assert Tokenizer.from_folder(DATA / "t5", "source_") == Tokenizer.from_folder(DATA / "t5", "target_")


def field(number, value):
    """A field of a protobuf message with less than 128 bytes."""
    return bytes([number << 3 | 2, len(value)]) + value


def pieces_field(rows):
    pieces = (field(1, p.encode()) + b"\x15" + struct.pack("<f", s) + bytes([0x18, t]) for p, s, t in rows)
    return b"".join(field(1, piece) for piece in pieces)


def test_albert_cuts_the_comma_from_a_number(tmp_path):
    rows = [("<pad>", 0, CONTROL), ("<unk>", 0, UNK), *((f"[{name}]", 0, CONTROL) for name in ("CLS", "SEP", "MASK"))]
    rows += [("▁9,", -1, 1), ("▁a,", -1, 1), ("▁9", -3, 1), ("▁a", -3, 1), (",", -3, 1)]
    (tmp_path / "spiece.model").write_bytes(pieces_field(rows))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
    tokenizer = Tokenizer.from_folder(tmp_path)
    tokens = [tokenizer.id_to_token(i) for i in tokenizer.encode("9, A,")]
    assert tokens == ["[CLS]", "▁9", ",", "▁a,", "[SEP]"]


def test_the_mask_of_roberta_takes_the_space_before_it():
    tokenizer = Tokenizer.from_folder(DATA / "roberta")
    tokens = [tokenizer.id_to_token(i) for i in tokenizer.encode("The <mask> sat", special_tokens=False)]
    assert tokens[tokens.index("<mask>") - 1] != "Ġ"


# Bad files


@pytest.mark.parametrize("name", ["t5/spiece.model", "llama/tokenizer.model"])
def test_a_damaged_file_is_a_value_error_that_names_it(name, tmp_path):
    data = (DATA / name).read_bytes()
    path = tmp_path / pathlib.Path(name).name
    rules = sentencepiece_model.read(DATA / name).charsmap
    damaged = [b"", b"\x00", b"not a model", data[: len(data) // 2], data[:-1], b"\x80" * 20, data + b"\x0a\xff"]
    damaged += [b"\x08\x01" + data, data + data]  # a number for a piece; each piece twice
    damaged += [b"\x0a\x02\x08\x01" + data, b"\x0a\x03\x12\x01a" + data]  # a number for its text; a score of a byte
    for at in (0, 4, len(rules) - 8) if rules else ():
        damaged.append(data.replace(rules, rules[:at] + b"\xff" * 8 + rules[at + 8 :]))
    for wrong in damaged:
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"{path.name} cannot be read as a SentencePiece model"):
            Tokenizer.from_folder(tmp_path)


def test_models_of_words_have_no_counterpart(tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(b"\x0a\x07\x0a\x05<unk>\x12\x02\x18\x03")
    with pytest.raises(ValueError, match="algorithm is word"):
        sentencepiece_model.read(path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"algorithm": "char"}, "algorithm .'char'."),
        ({"scores": [0.0]}, "2 pieces, 1 scores, 2 types differ"),
        ({"pieces": ["a", "a"]}, "twice"),
        ({"types": [1, 1]}, "one unknown piece, not 0"),
    ],
)
def test_bad_models(arguments, message):
    with pytest.raises(ValueError, match=message):
        SentencePieceModel(**{"pieces": ["a", "b"], "scores": [0, 0], "types": [2, 1], "algorithm": "bpe"} | arguments)


def test_layouts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must begin with '<unk>', '<s>', '</s>'"):
        sentencepiece_model.with_fairseq_ids(model("unigram", {"a": -1.0}))
    with pytest.raises(ValueError, match="remove_extra_whitespaces needs"):
        sentencepiece_model.to_tokenizer(model("unigram", {"a": -1.0}, add_dummy_prefix=False))
