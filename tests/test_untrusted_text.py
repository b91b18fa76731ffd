"""Files of text that lie: tokenizers, chat templates, and what stands beside an exported file.

Changed in thousands of ways, all are read and used, or refused by a ValueError that names them, quickly and in little
memory.
"""

import base64
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from test_untrusted import changed_bytes, changed_json

from kerasllm.export import description
from kerasllm.export.runtime import Runner
from kerasllm.text import chat, template_processes, template_worker, tokenizer_limits
from kerasllm.text.sentencepiece_model import SentencePieceModel, to_tokenizer
from kerasllm.text.tokenizers import CANNOT_ENCODE, Tokenizer

DATA = pathlib.Path(__file__).parent / "data" / "tokenizers"
FAMILIES = ["albert", "bert", "gpt2", "llama", "marian", "roberta", "t5", "xlm_roberta"]
TEXTS = ["", "Hello world, it's 42!", "  a naïve café  𐍈 \n\n", "a" * 50]
CONFIG = {"do_lower_case": True, "additional_special_tokens": ["<y>"], "add_prefix_space": False, "chat_template": "x"}
NEEDS_JINJA2 = pytest.mark.skipif(importlib.util.find_spec("jinja2") is None, reason="needs jinja2")
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]


# Tokenizers


def use(folder):
    tokenizer = Tokenizer.from_folder(folder, "source_" if (folder / "source.spm").exists() else "")
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text))
    tokenizer.encode("a", "b")
    tokenizer.decode(range(min(tokenizer.vocabulary_size, 300)))


def folders(root):
    """A folder of each family's files, and of the tokenizer.json of some, with all files of settings."""
    for name in FAMILIES:
        shutil.copytree(DATA / name, root / name)
        own = Tokenizer.from_folder(root / name, "source_" if name == "marian" else "")
        if name in ("bert", "gpt2", "albert", "llama"):
            own.save(root / f"{name}_json")
        if not (root / name / "tokenizer_config.json").exists():
            (root / name / "tokenizer_config.json").write_text(json.dumps(CONFIG))
        (root / name / "added_tokens.json").write_text(json.dumps({"<x>": own.vocabulary_size + 1, "<y>": 0}))
    return sorted(path for path in root.iterdir() if path.is_dir())


def changed(random, path, content):
    """The content of a file with a few changes."""
    if path.suffix != ".json" or random.random() < 0.2:
        return bytes(changed_bytes(random, content, len(content)))
    value = json.loads(content)
    for _ in range(random.integers(1, 3)):
        keys = list(value) if isinstance(value, dict) else ()
        if len(keys) > 50 and random.random() < 0.9:  # of a vocabulary
            key = keys[random.integers(len(keys))]
            value = value | {key: changed_json(random, value[key])}
        else:
            value = changed_json(random, value)
    return json.dumps(value).encode()


def count_refused(root, trials):
    """How many of the changed files are refused, and how many there are."""
    random, refused, count = np.random.default_rng(0), 0, 0
    for folder in folders(root):
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            for _ in range(trials):
                path.write_bytes(changed(random, path, content))
                start = time.thread_time()
                try:
                    use(folder)
                except ValueError as error:
                    closed = str(error).startswith(CANNOT_ENCODE) and tokenizer_limits.UNKNOWN.search(str(error))
                    assert closed or str(folder) in str(error), path.read_bytes()
                    refused += 1
                assert time.thread_time() - start < 1, path.read_bytes()
                count += 1
            path.write_bytes(content)
    return refused, count


def test_changed_tokenizer_files(tmp_path):
    refused, count = count_refused(tmp_path, 4)
    assert 0.5 < refused / count < 1 and count > 120


@pytest.mark.slow
def test_many_changed_tokenizer_files(tmp_path):
    refused, count = count_refused(tmp_path, 160)
    assert 0.5 < refused / count < 1 and count > 5000


MODEL = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
ADDED = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
AROUND = {"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}


def unigram(pieces):
    return {"type": "Unigram", "vocab": [["<unk>", 0.0], *pieces], "unk_id": 0, "byte_fallback": False}


def precompiled(size, units):
    charsmap = size.to_bytes(4, "little") + units + b"abc"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}


def template(single, ids):
    special = {"a": {"id": "a", "ids": ids, "tokens": ["a"] * len(ids)}}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# Each takes minutes, gigabytes or the process, or gives ids that no token has, where it is not refused.
STRANGE = {
    "ids of 2^32": {"model": MODEL | {"vocab": {"a": 0, "<unk>": 2**32 - 1}}},
    "negative ids": {"model": MODEL | {"vocab": {"a": -1, "<unk>": 1}}},
    "ids that are no numbers": {"model": MODEL | {"vocab": {"a": [0], "<unk>": 1}}},
    "no vocabulary": {"model": MODEL | {"vocab": {}}},
    "a piece of a million characters": {"model": unigram([["a" * 10**6, -1.0]])},
    "scores that are no numbers": {"model": unigram([["a", "x"]])},
    "the prefix of a piece": {"model": MODEL | {"type": "WordPiece", "continuing_subword_prefix": "#" * 10**6}},
    "words without end": {"model": MODEL | {"type": "WordPiece", "max_input_chars_per_word": 2**62}},
    "an added token of a million characters": {"added_tokens": [ADDED | {"id": 2, "content": "x" * 10**6}]},
    "added tokens": {"added_tokens": [ADDED | {"id": i, "content": f"x{i}"} for i in range(2, 70_000)]},
    "added tokens that are none": {"added_tokens": [5]},
    "replacements of replacements": {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 30}},
    "a long replacement": {"normalizer": REPLACE | {"content": "b" * 10**6}},
    "replacements in the decoder": {"decoder": {"type": "Sequence", "decoders": [REPLACE] * 30}},
    "a prefix": {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}},
    "parts": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 10_000}},
    "rules that are no rules": {"normalizer": precompiled(2**32 - 1, b"")},
    "rules out of their tables": {"normalizer": precompiled(8, b"\xff" * 8)},
    "words of no characters": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "repeated repetitions": {"pre_tokenizer": split(r"(?:\w+)+$")},
    "repeated numbers of times": {"pre_tokenizer": split(r"(?:[a-z]{1,3}){2,}!")},
    "patterns that refer back": {"pre_tokenizer": split(r"(.*)\1x")},
    "patterns that take long for any text": {"pre_tokenizer": split("(?=" + r"[\s\S]*" * 7 + r"[\x00\x01])x|\w+")},
    "tokens around a text": {"post_processor": template([*[AROUND[0]] * 2000, AROUND[1]], [0])},
    "the ids of one": {"post_processor": template(list(AROUND), [0] * 2000)},
    "an id that no token has": {"post_processor": template(list(AROUND), [4_000_000_000])},
    "processors of processors": {
        "post_processor": {
            "type": "Sequence",
            "processors": [{"type": "BertProcessing", "sep": ["a", 0], "cls": ["a", 0]}] * 600,
        }
    },
    "nests": {"normalizer": json.loads('{"type":"Sequence","normalizers":[' * 90 + "]}" * 90)},
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_parts_of_a_tokenizer_json_are_refused(name, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": MODEL, **STRANGE[name]}))
    start = time.thread_time()
    with pytest.raises(ValueError, match="tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
    assert time.thread_time() - start < 2


def test_paddings_and_truncations_of_a_tokenizer_json_are_not_its_own(tmp_path):
    padding = {"strategy": {"Fixed": 2**30}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    truncation = {"max_length": 1, "strategy": "LongestFirst", "direction": "Right", "stride": 0}
    spec = {"version": "1.0", "model": MODEL, "padding": padding, "truncation": truncation}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"pre_tokenizer": {"type": "Whitespace"}}))
    assert Tokenizer.from_folder(tmp_path).encode("a b") == [0, 1]


LETTERS = {token: i for i, token in enumerate(["[CLS]", "[SEP]", "A", "C", "G", "T"])}
CLOSED = {
    "WordLevel": {"vocab": LETTERS, "unk_token": "[UNK]"},
    "WordPiece": {
        **{"vocab": LETTERS | {f"##{x}": 6 + i for i, x in enumerate("ACGT")}, "unk_token": "[UNK]"},
        **{"continuing_subword_prefix": "##", "max_input_chars_per_word": 4096},
    },
    "Unigram": {"vocab": [[token, -1.0] for token in LETTERS], "unk_id": None, "byte_fallback": False},
    "BPE": {
        **{"vocab": LETTERS, "merges": [], "unk_token": "[UNK]", "dropout": None, "continuing_subword_prefix": None},
        **{"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False},
    },
}


@pytest.mark.parametrize("kind", CLOSED)
def test_closed_vocabularies_are_read_and_refuse_what_they_lack(kind, tmp_path):
    around = [{"SpecialToken": {"id": id, "type_id": 0}} for id in ("[CLS]", "[SEP]")]
    text = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
    spec = {
        "version": "1.0",
        "model": {"type": kind, **CLOSED[kind]},
        "added_tokens": [ADDED | {"id": i, "content": token, "special": True} for token, i in [*LETTERS.items()][:2]],
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [around[0], text[0], around[1]],
            "pair": [around[0], text[0], around[1], text[1]],
            "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in [*LETTERS.items()][:2]},
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.roles == {"cls": "[CLS]", "sep": "[SEP]"}
    assert tokenizer.encode("TAC")[:2] == [0, 5] and tokenizer.encode("A", "C") == [0, 2, 1, 3]
    for call in (
        tokenizer.encode,
        lambda text: tokenizer.encode_batch([text]),
        lambda text: tokenizer.encodings([text]),
    ):
        with pytest.raises(ValueError, match="tokenizer cannot encode this text"):
            call("AXA")
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.from_folder(tmp_path / "saved") == tokenizer
    assert "token_type_ids" in (tmp_path / "saved" / "tokenizer_config.json").read_text()


def test_patterns_of_well_known_tokenizers_are_taken():
    for pattern in (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lo}\p{M}]+(?i:'s|'t|'re)?|\s+(?!\S)|\s+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
        r" ?[^(\s|[.,!?…。，、।۔،])]+",
        r"\d{1,3}(?=(?:\d{3})*\b)|(?=(\d{3})+(?!\d))|(?:\r?\n)+|(?>a+)b|(?:a++)+",
    ):
        tokenizer_limits.check_pattern(pattern)


def test_sentencepiece_models_take_time_by_their_size():
    for pieces in (["a" * 10**6], ["a" * i for i in range(1, 3000)], ["a" * i for i in range(1, 1000)]):
        start = time.thread_time()
        with pytest.raises(ValueError, match="pieces? "):
            scores = [0.0, *(-float(i) for i in range(len(pieces)))]
            to_tokenizer(SentencePieceModel(["<unk>", *pieces], scores, [2] + [1] * len(pieces), "bpe"))
        assert time.thread_time() - start < 1
    for score, kind in ((float("nan"), 1), (float("inf"), 1), (0.0, 7), (0.0, 0)):
        with pytest.raises(ValueError, match="the piece 'a' has the score"):
            SentencePieceModel(["<unk>", "a"], [0.0, score], [2, kind], "unigram")


def test_settings_of_wrong_types_are_named(tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(DATA / "gpt2" / name, tmp_path)
    for config, words in (
        ({"add_prefix_space": "false"}, "tokenizer_config.json: add_prefix_space .'false'. must be bool"),
        ({"bos_token": ["a"]}, "tokenizer_config.json: bos_token"),
        ({"added_tokens_decoder": {"x": "a"}}, "tokenizer_config.json"),
        ({"added_tokens_decoder": {"1": {"content": "a", "lstrip": "x"}}}, "tokenizer_config.json: added token"),
        ({"chat_template": [{"name": [], "template": "x"}]}, "tokenizer_config.json: chat_template must be a template"),
        ({"extra_ids": 10**30}, "tokenizer_config.json: extra_ids"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=words):
            Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match="vocab.json"):
        Tokenizer.from_folder(tmp_path)


# Chat templates

DOUBLES = "{%% set n = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set n.x = %s %%}{%% endfor %%}{{ %s }}"
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self._TemplateReference__context }}",
    "{{ lipsum.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{{ '%s' | format(messages) | attr('__class__') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ '{0.__class__}'.format_map({'0': messages}) }}",
    "{{ range(10**9) | list }}",
    "{{ strftime_now.__globals__ }}",
    "{{ dict.__base__ }}",
    "{{ namespace(__class__=1) }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ messages[0].update(role='x') }}",
    "{{ messages | map(attribute='__class__') | map('length') | sum }}{{ messages[0].clear() }}",
    "{{ request.application }}",
    "{{ (messages | attr)('__class__') }}",
    "{{ ''['__class__'] }}",
    "{% macro m() %}{{ caller.__globals__ }}{{ m.__globals__ }}{% endmacro %}{{ m() }}",
    "{{ [].__reduce_ex__(2) }}",
]
LONG = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    DOUBLES % ("3", "n.x * n.x", "n.x"),
    "{% macro m(n) %}{{ m(n - 1) if n }}{{ m(n - 1) if n }}{% endmacro %}{{ m(60) }}",
    DOUBLES % ("[]", "[n.x, n.x]", "n.x | tojson"),
    DOUBLES % ("()", "(n.x, n.x)", "{n.x: 1}"),
    "{{ ('1' * 4000) | int ** 4000 }}",
    "{{ 2 ** (2 ** 33) }}",
    "{{ 1" + " + 1" * 200_000 + " }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for i in range(99999) %}{% set l = range(99999) | list | sort %}{% endfor %}",
    "{% set l = range(99999) | list %}{% for i in l %}{% if -1 in l %}{% endif %}{% endfor %}",
    "{{ lipsum(n=1000000) }}",
    "{{ [1] | slice(1000000000) | list }}",
    "{% set s = 'a' * 10000000 %}{% for i in range(99999) %}{{ s.count('ab') }}{% endfor %}",
    "{{ ('a b ' * 1000000) | wordwrap(1) }}",
    "{{ 'x' | center(100000000) | title | length }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ x" + " | trim" * 100_000 + " }}",
    "{% set " + "a, " * 200_000 + "b = 1 %}",
    "{{ 'a'" + " ~ 'a'" * 100_000 + " }}",
]
LARGE = [
    "{{ 'a' * 10 ** 9 }}",
    "{{ 'a' * 1000000000 }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a'.ljust(10 ** 9) }}",
    "{{ 'a'.zfill(10 ** 9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{0:{1}}'.format(1, 10 ** 9) }}",
    "{{ '%1000000000s' | format('a') }}",
    DOUBLES % ("'aaaa'", "n.x ~ n.x", "n.x"),
    DOUBLES % ("'aaaa'", "n.x + n.x", "n.x"),
    DOUBLES % ("[1]", "n.x + n.x", "n.x"),
    "{{ [1] * 10 ** 9 }}",
    "{{ ('a' * 10000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ range(99999) | join('b' * 100000) }}",
    "{{ {'a': 1} | tojson(indent=1000000000) }}",
    "{{ 'a\nb' | indent(1000000000) }}",
    "{{ [1] | batch(1000000000, 1) | list }}",
    "{{ '\t'.expandtabs(10 ** 9) }}",
    "{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}{{ 'y' * 9999 }}{% endfor %}{% endset %}{{ x | length }}",
    "{{ raise_exception('x' * 10 ** 8) }}",
    "{{ 'a' * 20000000 }}",
    "a" * 10**8,
    "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "{{ " + "[" * 100_000 + "]" * 100_000 + " }}",
    "{% if 1 %}" * 20_000 + "{% endif %}" * 20_000,
]


def refusal(template):
    """Why a template is not filled in, where the least that a process does is taken for the time of its answer."""
    start = time.process_time()
    with pytest.raises(ValueError, match="the chat template cannot be filled in: ") as caught:
        chat.render(template, MESSAGES)
    assert time.process_time() - start < 1 and len(str(caught.value)) < 1100
    return str(caught.value)


@NEEDS_JINJA2
@pytest.mark.parametrize("template", ESCAPES)
def test_templates_of_chats_reach_nothing(template):
    try:  # what is forbidden is undefined, and empty, until something is done with it
        assert chat.render(template, MESSAGES) == ""
    except ValueError as error:
        assert "the chat template cannot be filled in" in str(error)


@NEEDS_JINJA2
def test_templates_of_chats_end_in_time():
    assert refusal(LONG[0]).endswith("it takes longer than 1 s.")
    assert "recursion" in refusal(LONG[8])
    assert "longer than 1048576 characters" in refusal("a" * 2**21)
    assert "recursion" in refusal(LARGE[-3])
    with pytest.raises(ValueError, match="cannot be filled in: maximum recursion"):
        chat.variables_of(LARGE[-3])


@NEEDS_JINJA2
def test_templates_of_chats_leave_memory():
    for template in LARGE[:3]:
        assert refusal(template).endswith("it needs more than 192 MB of memory")
    assert "its text is longer than 16777216 bytes" in refusal("{{ 'a' * 20000000 }}")
    assert chat.render("{{ messages | length }}", MESSAGES) == "2"


@NEEDS_JINJA2
@pytest.mark.slow
@pytest.mark.parametrize("template", LONG + LARGE)
def test_all_templates_of_chats_end(template):
    refusal(template)


@NEEDS_JINJA2
def test_processes_of_chat_templates_serve_threads_and_outlive_bombs():
    wrong = []

    def work(number):
        for turn in range(20):
            try:
                if turn == 5 and number < 2:
                    refusal(LARGE[0])
                text = chat.render("{{ messages[0].content }}", [{"role": "user", "content": f"{number} {turn}"}])
                if text != f"{number} {turn}":
                    wrong.append(text)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for process in template_processes._idle:  # as the system may end them
        process.kill()
        process.wait()
    assert chat.render("x", MESSAGES) == "x"


@NEEDS_JINJA2
def test_an_interrupted_chat_template_leaves_no_answer_behind(monkeypatch):
    receive = template_worker.receive

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(template_worker, "receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        chat.render("one", MESSAGES)
    monkeypatch.setattr(template_worker, "receive", receive)
    assert chat.render("two", MESSAGES) == "two"


@NEEDS_JINJA2
def test_chat_templates_end_where_processes_have_no_timers_or_cannot_be_started(monkeypatch):
    monkeypatch.setattr(template_processes, "PATIENCE", 0.3)
    assert refusal(LONG[0]).endswith("it takes longer than 1 s.")
    assert chat.render("x", MESSAGES) == "x"
    monkeypatch.setattr(template_processes.sys, "frozen", True, raising=False)
    monkeypatch.setattr(template_processes, "_started", None)
    assert chat.render("{{ messages | length }}", MESSAGES) == "2"


FORKS = """
import os
from kerasllm.text import chat, template_processes

def process_ids():
    return [process.pid for process in template_processes._idle]

messages = [{"role": "user", "content": "hi"}]
assert chat.render("x", messages) == "x"
before, (reader, writer) = process_ids(), os.pipe()
if not (child := os.fork()):
    is_own = not process_ids() and chat.render("y", messages) == "y" and process_ids() != before
    os.write(writer, b"1" if is_own else b"0")
    template_processes._end_all()
    os._exit(0)
os.waitpid(child, 0)
assert os.read(reader, 1) == b"1" and chat.render("z", messages) == "z" and process_ids() == before
"""


@NEEDS_JINJA2
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_has_chat_template_processes_of_its_own():
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=60)  # without the threads of a backend


# What stands beside an exported file


def tensor(*shape, dtype="float32"):
    return {"shape": list(shape), "dtype": dtype}


STEPS = {
    "decode": {
        "inputs": {
            "tokens": tensor(1, 1, dtype="int32"),
            "input_pos": tensor(1, dtype="int32"),
            "kv_cache_k_0": tensor(1, 2, 8, 4),
        },
        "outputs": {"logits": tensor(1, 1, 9), "kv_cache_k_0": tensor(1, 2, 8, 4)},
    },
    "prefill_4": {"inputs": {"tokens": tensor(1, 4, dtype="int32")}, "outputs": {}},
}
HEAD = {"forward": {"inputs": {"token_ids": tensor(None, None, dtype="int32")}, "outputs": {"logits": tensor(None, 3)}}}
DESCRIPTIONS = [
    {
        "model": "GPT",
        "settings": {"max_length": 8, "end_token_ids": [1], "prefill_lengths": [4], "vocabulary_size": 9},
        "signatures": STEPS,
    },
    {
        "model": "BERTClassifier",
        "settings": {
            **{"task": "classify", "max_length": 8, "labels": ["a", "b", "c"], "problem_type": "single_label"},
            **{"segment_ids": False, "special_token_ids": {"pad": 0}},
        },
        "signatures": HEAD,
    },
]


def exported(folder, content, **changes):
    path = folder / "model.tflite"
    path.write_bytes(content)
    (folder / "model.tflite.assets").mkdir(exist_ok=True)
    description.write(folder / "model.tflite.assets", path, {**DESCRIPTIONS[0], **changes})
    return path


def count_refused_descriptions(folder, trials):
    path, random, refused = exported(folder, b"x"), np.random.default_rng(0), 0
    place = folder / "model.tflite.assets" / "signatures.json"
    for trial in range(trials):
        value = DESCRIPTIONS[trial % 2]
        for _ in range(random.integers(1, 3)):
            value = changed_json(random, value)
        content = json.dumps(value).encode()
        place.write_bytes(changed_bytes(random, content, len(content)) if random.random() < 0.2 else content)
        try:
            runner = Runner(path)
            assert runner.methods and all(isinstance(i, int) for i in runner.end_token_ids)
        except ValueError as error:
            assert "signatures.json" in str(error), value
            refused += 1
        except AssertionError:
            assert not {"decode", "forward"} & set(runner.signatures) or "task" not in runner.settings
    return refused


def test_changed_descriptions_of_exported_files(tmp_path):
    assert 0.5 < count_refused_descriptions(tmp_path, 300) / 300 < 1


@pytest.mark.slow
def test_many_changed_descriptions_of_exported_files(tmp_path):
    assert 0.5 < count_refused_descriptions(tmp_path, 5000) / 5000 < 1


def test_a_damaged_file_is_refused_before_it_is_opened(tmp_path):
    content = bytes(range(256)) * 40
    path = exported(tmp_path, content)
    assert Runner(path).model == "GPT"
    for place in (0, 5000, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match="model.tflite is damaged, or another than signatures.json"):
            Runner(path)
    for other in (b"", content[:-1], content + b"x"):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="is damaged"):
            Runner(path)
    path.write_bytes(content)
    Runner(path)
    sealed = tmp_path / "model.tflite.assets" / "signatures.json"
    sealed.write_text(json.dumps(DESCRIPTIONS[0]))  # as before there were sums
    path.write_bytes(b"x")
    assert Runner(path).model == "GPT"


def test_functions_that_take_other_shapes_than_described_are_not_called(tmp_path):
    shapes = {name: x["shape"] for name, x in STEPS["decode"]["inputs"].items()}
    description.compare("f", "decode", STEPS["decode"], shapes)
    description.compare("f", "forward", HEAD["forward"], {"token_ids": np.array([-1, -1])})
    with pytest.raises(ValueError, match="f: decode takes"):
        description.compare("f", "decode", STEPS["decode"], shapes | {"kv_cache_k_0": [1, 2, 64, 4]})
