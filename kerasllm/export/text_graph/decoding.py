"""Decoders of the `tokenizers` package as TensorFlow operations: ids as `Rows` -> strings (B,)."""

import re

import tensorflow as tf

from kerasllm.export.text_graph import characters
from kerasllm.export.text_graph.normalization import flattened
from kerasllm.export.text_graph.rows import Rows, before

REPLACEMENT = "\ufffd"


def decoding(spec, tokens):
    """The decoder given as in a tokenizer.json, of tokens by their ids: strings, "" where the vocabulary has a hole.

    Raises:
        ValueError: there are no operations for it.
    """
    parts = flattened(spec, "decoders")
    kinds = [part["type"] for part in parts]
    if not kinds:
        return Joined(tokens, [" " + token for token in tokens])
    if kinds == ["ByteLevel"]:
        strings = [as_bytes(token) for token in tokens]
        return Joined(strings, strings, repair=True)
    if kinds in (["WordPiece"], ["Metaspace"]):
        return _by_place(spec, tokens)
    if "Fuse" in kinds:
        return _fused(parts[: kinds.index("Fuse")], parts[kinds.index("Fuse") + 1 :], tokens)
    raise ValueError(f"its decoder is {' and '.join(kinds)}, for which there are no operations")


def _letters():
    """GPT-2's letters for bytes: those that can be printed stand for themselves. Dict character -> bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [i for i in range(256) if i not in printable]
    return {chr(i): bytes([i]) for i in printable} | {chr(256 + k): bytes([i]) for k, i in enumerate(others)}


LETTERS = _letters()


def as_bytes(token):
    """The bytes that a token of a byte-level vocabulary stands for; of other tokens, those of its text."""
    if all(c in LETTERS for c in token):
        return b"".join(LETTERS[c] for c in token)
    return token.encode()


def _by_place(spec, tokens):
    """A decoder of each token by itself, but for the first one of a text."""
    decode = characters.component("decoder", spec).decode
    end = len(decode(["a", "a"])) - 1
    first = [decode([token, "a"])[:-end] for token in tokens]
    return Joined(first, [decode(["a", token, "a"])[1:-end] for token in tokens])


def _fused(before, after, tokens):
    kinds = [part["type"] for part in before]
    single = [part for part in before if part["type"] != "ByteFallback"]
    if {*kinds} - {"Replace", "ByteFallback"}:
        raise ValueError(f"its decoder begins with {' and '.join(kinds)}, for which there are no operations")
    decode = characters.component("decoder", {"type": "Sequence", "decoders": single}).decode
    strings = [decode([token]) for token in tokens]
    octets = None
    if "ByteFallback" in kinds:
        octets = [bool(re.fullmatch("<0x[0-9A-F]{2}>", token)) for token in tokens]
        strings = [bytes([int(t[3:5], 16)]) if o else s for t, o, s in zip(tokens, octets, strings, strict=True)]
    return Joined(strings, strings, octets, rules=[_rule(part) for part in after])


def _rule(part):
    if part["type"] == "Strip":
        content = re.escape(part["content"])
        return f"^(?:{content}){{0,{part['start']}}}|(?:{content}){{0,{part['stop']}}}$", ""
    if part["type"] == "Replace" and part["content"] == "":
        pattern = part["pattern"]
        return (pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])), ""
    raise ValueError(f"its decoder ends with {part}, for which there are no operations")


class Joined(tf.Module):
    """The strings of tokens, one after the other.

    Args:
        first: list of strings by ids: of a text's first token.
        others: list of strings by ids: of the others.
        octets: list of bools by ids, or None: which tokens are single bytes; of bytes in a row that are no UTF-8,
            each becomes a replacement character.
        rules: list of (pattern, content): what is replaced in the end.
        repair: whether bytes that are no UTF-8 become replacement characters in the end.
    """

    def __init__(self, first, others, octets=None, rules=(), repair=False):
        super().__init__()
        self.others = tf.constant(others, tf.string)
        self.first = self.others if first is others else tf.constant(first, tf.string)
        self.octets = None if octets is None else tf.constant(octets)
        self.rules, self.repair = rules, repair

    def __call__(self, ids, num_rows):
        first = tf.gather(self.first, ids.values)
        strings = Rows(tf.where(ids.starts(), first, tf.gather(self.others, ids.values)), ids.rows)
        if self.octets is not None:
            strings = _with_joined_octets(strings, tf.gather(self.octets, ids.values))
        texts = tf.strings.unsorted_segment_join(*strings, num_rows)
        for pattern, content in self.rules:
            texts = tf.strings.regex_replace(texts, pattern, content)
        if self.repair:
            texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        return texts


def _with_joined_octets(strings, is_octet):
    """Strings, as `Rows`, of which those that are one byte are joined with the bytes around them."""
    begins = ~(is_octet & before(is_octet, False)) | strings.starts()
    numbers = tf.cumsum(tf.cast(begins, tf.int32)) - 1
    joined = tf.strings.unsorted_segment_join(strings.values, numbers, tf.reduce_sum(tf.cast(begins, tf.int32)))
    is_octet, rows = strings._replace(values=is_octet).kept(begins)
    is_valid = tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8", errors="ignore") == joined
    broken = tf.strings.regex_replace(joined, r"\C", REPLACEMENT)
    return Rows(tf.where(is_octet & ~is_valid, broken, joined), rows)
