"""A tokenizer.json, and what the files beside it change: as in transformers, class by class."""

import functools
import json
import pathlib
import pickle
import tempfile

import pytest

from kerasllm.text import Tokenizer, tokenizer_parts

DATA = pathlib.Path(__file__).parent / "data" / "tokenizers"
HARD = json.loads((DATA / "answers.json").read_text())["texts"]
HARD += ["x<new>y <new> z", "Newword and newwords", "the cat , isn 't it ?", "a <mask> b", "``Ça'' 9, été"]
# Kind of files -> class of tokenizers, type of model.
KINDS = {
    "bert": ("BertTokenizer", "bert"),
    "gpt2": ("GPT2Tokenizer", "gpt2"),
    "roberta": ("RobertaTokenizer", "roberta"),
    "albert": ("AlbertTokenizer", "albert"),
    "xlm_roberta": ("XLMRobertaTokenizer", "xlm-roberta"),
    "t5": ("T5Tokenizer", "t5"),
    "llama": ("LlamaTokenizer", "llama"),
    "any": ("PreTrainedTokenizerFast", "mistral"),
}
NEW = {"content": "<new>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": True}
WORD = {"content": "newword", "lstrip": False, "rstrip": True, "normalized": True, "single_word": True}
CASES = [
    ("bert", {}),
    ("bert", {"do_lower_case": False}),
    ("bert", {"do_lower_case": False, "strip_accents": True}),
    ("bert", {"strip_accents": False, "tokenize_chinese_chars": False}),
    ("bert", {"cls_token": "a", "sep_token": "b"}),
    ("bert", {"clean_up_tokenization_spaces": True}),
    ("bert", {"split_special_tokens": True}),
    ("gpt2", {"add_prefix_space": True, "clean_up_tokenization_spaces": True}),
    ("gpt2", {"add_bos_token": True}),
    ("roberta", {"add_prefix_space": True}),
    ("roberta", {"eos_token": "a", "cls_token": "b"}),
    ("albert", {"do_lower_case": False}),
    ("albert", {"keep_accents": True, "add_prefix_space": False}),
    ("xlm_roberta", {"add_prefix_space": False}),
    ("xlm_roberta", {"eos_token": "a"}),
    ("t5", {"eos_token": "a"}),
    ("llama", {"add_prefix_space": False}),
    ("llama", {"legacy": True}),
    ("any", {"do_lower_case": True, "add_prefix_space": True}),
    ("any", {"split_special_tokens": True, "clean_up_tokenization_spaces": True}),
    *((kind, {"additional_special_tokens": ["<new>", "newword"]}) for kind in KINDS),
    *((kind, {"added_tokens_decoder": [NEW, WORD]}) for kind in KINDS),
    ("any", {"extra_special_tokens": {"image_token": "<new>"}}),
    ("any", {"image_token": NEW["content"]}),
]


@functools.cache
def base(kind):
    folder = pathlib.Path(tempfile.mkdtemp())
    if kind == "any":
        tokenizer = Tokenizer.train_unigram(HARD, 400)
    else:
        tokenizer = Tokenizer.from_folder(DATA / kind)
    tokenizer.save(folder)
    return {path.name: path.read_text() for path in folder.iterdir()}, tokenizer


def folder_of(tmp_path, kind, config=None, **files):
    """A folder of a kind: its tokenizer.json, the other files given; `config` changes the tokenizer_config.json."""
    saved, tokenizer = base(kind)
    (tmp_path / "tokenizer.json").write_text(saved["tokenizer.json"])
    if config is not None:
        whole = json.loads(saved["tokenizer_config.json"]) | {"tokenizer_class": KINDS[kind][0], **config}
        added = whole.pop("added_tokens_decoder", {})
        if isinstance(config.get("added_tokens_decoder"), list):
            flags = {"special": False}
            new = {tokenizer.vocabulary_size + i: flags | token for i, token in enumerate(added)}
            whole["added_tokens_decoder"] = (
                json.loads(saved["tokenizer_config.json"]).get("added_tokens_decoder", {}) | new
            )
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(whole))
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path


def assert_same(tokenizer, reference, texts=HARD):
    for text in texts:
        ids = reference(text)["input_ids"]
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.encode(text, special_tokens=False) == reference(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True), text
        assert tokenizer.decode(ids, skip_special_tokens=False) == reference.decode(ids), text


@pytest.mark.parametrize("kind, config", CASES)
def test_the_config_rules_where_transformers_obeys_it(kind, config, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, kind, config)
    tokenizer, reference = Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert_same(tokenizer, reference)
    roles = {name.removesuffix("_token"): token for name, token in reference.special_tokens_map.items()}
    assert tokenizer.roles == {role: token for role, token in roles.items() if role in tokenizer_parts.ROLES}
    tokenizer.save(tmp_path / "again")
    again = Tokenizer.from_folder(tmp_path / "again")
    assert again == tokenizer
    assert_same(again, transformers.AutoTokenizer.from_pretrained(tmp_path / "again"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("llama", "any")])
def test_a_file_alone_has_the_roles_of_the_model_beside_it(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, kind)
    (folder / "config.json").write_text(json.dumps({"model_type": KINDS[kind][1]}))
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.roles == {name.removesuffix("_token"): t for name, t in reference.special_tokens_map.items()}
    assert_same(tokenizer, reference)


def test_a_file_alone_has_the_roles_that_are_evident(tmp_path):
    assert Tokenizer.from_folder(folder_of(tmp_path, "bert")).roles == {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    assert Tokenizer.from_folder(folder_of(tmp_path, "t5")).roles == {"eos": "</s>"}
    assert Tokenizer.from_folder(folder_of(tmp_path, "llama")).roles == {"unk": "<unk>", "bos": "<s>"}
    # Ids in config.json say more; a list of them does not say which.
    model = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": [0, 1]}
    folder = folder_of(tmp_path, "llama")
    (folder / "config.json").write_text(json.dumps(model))
    assert Tokenizer.from_folder(folder).roles == {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
    # A config that names roles names them all.
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert Tokenizer.from_folder(folder).roles == {"eos": "</s>"}
    (folder / "tokenizer_config.json").unlink()
    # A text between two tokens without segments leaves doubts.
    (folder / "config.json").unlink()
    assert Tokenizer.from_folder(folder_of(tmp_path, "xlm_roberta")).roles == {}


def test_older_files_beside_it_rule_where_the_config_lists_no_tokens(tmp_path):
    transformers = pytest.importorskip("transformers")
    size = base("gpt2")[1].vocabulary_size
    older = {"special_tokens_map": {"eos_token": "b", "additional_special_tokens": ["<new>"]}}
    older["added_tokens"] = {"newword": size}
    folder = folder_of(tmp_path, "gpt2", {}, **older)
    tokenizer = Tokenizer.from_folder(folder)
    assert_same(tokenizer, transformers.AutoTokenizer.from_pretrained(folder))
    assert tokenizer.roles["eos"] == "b" and tokenizer.encode("newword") == [size]
    folder = folder_of(tmp_path, "gpt2", {"added_tokens_decoder": []})
    tokenizer = Tokenizer.from_folder(folder)
    assert_same(tokenizer, transformers.AutoTokenizer.from_pretrained(folder))
    assert tokenizer.roles["eos"] == "<|endoftext|>" and len(tokenizer.encode("newword")) > 1


def test_a_file_of_another_kind_than_its_class_stays_as_it_is(tmp_path):
    # Llama 3 calls itself a Llama, and many files of words a BERT.
    for kind, name in (("gpt2", "LlamaTokenizer"), ("xlm_roberta", "BertTokenizer")):
        config = {"tokenizer_class": name, "do_lower_case": True, "add_prefix_space": False}
        tokenizer = Tokenizer.from_folder(folder_of(tmp_path, kind, config))
        assert tokenizer.encode_batch(HARD) == base(kind)[1].encode_batch(HARD)


def test_the_config_names_the_language_of_a_translator(tmp_path):
    transformers = pytest.importorskip("transformers")
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

    size = base("xlm_roberta")[1].vocabulary_size
    codes = [{"content": code, "special": True} for code in FAIRSEQ_LANGUAGE_CODES]
    codes = {str(size + i): code for i, code in enumerate(codes)}
    config = {"tokenizer_class": "MBartTokenizer", "additional_special_tokens": list(FAIRSEQ_LANGUAGE_CODES)}
    folder = folder_of(tmp_path, "xlm_roberta", config | {"added_tokens_decoder": []})
    for language in ("fr_XX", None):
        whole = json.loads((folder / "tokenizer_config.json").read_text())
        whole["src_lang"] = language
        whole["added_tokens_decoder"] |= codes
        (folder / "tokenizer_config.json").write_text(json.dumps(whole))
        reference = transformers.AutoTokenizer.from_pretrained(folder)
        assert Tokenizer.from_folder(folder).encode_batch(HARD[:3]) == [reference(t)["input_ids"] for t in HARD[:3]]


def test_settings_outlive_copies(tmp_path):
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path, "any", {"split_special_tokens": True}))
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("a</s>") == tokenizer.encode("a</s>") != base("any")[1].encode("a</s>")


def test_roles_and_tokens_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer.json: pad \('\[PAD\]'\) must be a token of the vocabulary"):
        Tokenizer.from_folder(folder_of(tmp_path, "gpt2", {"pad_token": "[PAD]"}))
    with pytest.raises(ValueError, match="added token {'lstrip': True} must be a string, or a dict with content"):
        Tokenizer.from_folder(folder_of(tmp_path, "gpt2", {"mask_token": {"lstrip": True}}))
    with pytest.raises(ValueError, match="additional_special_tokens .'<new>'. must be list"):
        Tokenizer.from_folder(folder_of(tmp_path, "gpt2", {"additional_special_tokens": "<new>"}))
    with pytest.raises(ValueError, match="extra_special_tokens .0. must be list"):
        Tokenizer.from_folder(folder_of(tmp_path, "gpt2", {"extra_special_tokens": 0}))
