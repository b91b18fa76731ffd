"""What the `tokenizers` package takes for a letter, a space, a punctuation mark, and what it makes of each character.

TensorFlow's regular expressions (RE2, https://github.com/google/re2/wiki/Syntax) know another version of Unicode, and
spaces of ASCII alone. So the package itself is asked about every character, and the answers are written out.
"""

import functools
import itertools
import json

import tokenizers
from tokenizers import normalizers, pre_tokenizers

# Planes that hold nothing, or only characters for private use: the first one speaks for all.
UNIFORM = {"\U00040000": "\U000dffff", "\U000e01f0": "\U000effff", "\U000f0000": "\U0010ffff"}
CHARACTERS = [chr(i) for i in (*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE01F0))] + list(UNIFORM)


def component(kind, spec):
    """A "normalizer", "pre_tokenizer" or "decoder" of the `tokenizers` package from its part of a tokenizer.json."""
    model = {"type": "BPE", "vocab": {}, "merges": []}
    return getattr(tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, kind: spec})), kind)


@functools.cache
def matching(pattern):
    r"""The characters that a class of characters in regular expressions, such as r"\\p{L}", matches."""
    others = tokenizers.Regex(f"[^{pattern}]+")
    return frozenset(normalizers.Replace(others, "").normalize_str("".join(CHARACTERS)))


@functools.cache
def numbers():
    """The characters that `Digits` parts from others."""
    split = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str("a".join(CHARACTERS))
    return frozenset(word for word, _ in split if len(word) == 1) - {"a"}


@functools.cache
def kinds(name):
    """For the pre-tokenizer of a name: characters that vanish, and characters that are parted from letters."""
    words = {word for word, _ in getattr(pre_tokenizers, name)().pre_tokenize_str("\na".join(["", *CHARACTERS]))}
    alone = frozenset(word for word in words if len(word) == 1) - {"a"}
    return frozenset(c for c in CHARACTERS if c not in alone and "a" + c not in words) - {"a"}, alone


@functools.cache
def images(*parts):
    """The characters that normalizers change one after the other, each with what it becomes: dict character -> string.

    Args:
        *parts: of a tokenizer.json, as JSON.
    """
    normalizer = component("normalizer", {"type": "Sequence", "normalizers": [json.loads(part) for part in parts]})
    # Between the characters a letter that stays, and that no other becomes: for private use, which BERT drops.
    mark = "\ue000" if normalizer.normalize_str("\ue000") else "|"
    results = normalizer.normalize_str(mark.join(CHARACTERS)).split(mark)
    position = CHARACTERS.index(mark)
    results[position : position + 2] = [mark]  # in its place were two empty strings
    if len(results) != len(CHARACTERS):
        raise ValueError("its normalizer does not treat each character by itself")
    return {c: image for c, image in zip(CHARACTERS, results, strict=True) if c != image}


@functools.cache
def cluster():
    """The characters that form a cluster with one before them, and those that none follows, as a pair of sets."""
    split = pre_tokenizers.Split(tokenizers.Regex(r"\X"), "isolated").pre_tokenize_str
    extending = {word[1:] for word, _ in split("\na".join(["", *CHARACTERS])) if len(word) == 2 and word[0] == "a"}
    followed = {word[0] for word, _ in split("\n".join(c + "\u0301" for c in CHARACTERS)) if word[1:] == "\u0301"}
    return frozenset(extending), frozenset(CHARACTERS) - followed


def ranges(characters):
    """Characters as the inside of a class of RE2: 'a-z' and so on."""
    codes = sorted(map(ord, characters))
    runs = itertools.groupby(enumerate(codes), key=lambda item: item[1] - item[0])
    bounds = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    bounds = [(first, ord(UNIFORM.get(chr(last), chr(last)))) for first, last in bounds]
    return "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in bounds)
