"""Normalisers of the `tokenizers` package as TensorFlow operations: strings (N,) -> strings (N,)."""

import base64
import json
import re

import numpy as np
import tensorflow as tf

from kerasllm.export.text_graph import characters
from kerasllm.export.text_graph.rows import CUT, cut
from kerasllm.export.text_graph.rows import characters as characters_of

# Those that normalise each character by itself.
BY_CHARACTER = ("BertNormalizer", "Lowercase", "StripAccents", "NFD", "NFKD")


def normalization(spec):
    """The steps of a normaliser, given as in a tokenizer.json: a list of functions of strings (N,).

    Raises:
        ValueError: there are no operations for it.
    """
    steps, run = [], []
    for part in flattened(spec, "normalizers"):
        if part["type"] in BY_CHARACTER:
            run.append(part)
            continue
        steps += _by_character(run)
        run = []
        steps.append(_step(part))
    return steps + _by_character(run)


def flattened(spec, parts):
    """A component of a tokenizer.json as a list, the parts of "Sequence" one by one."""
    if spec is None:
        return []
    if spec["type"] == "Sequence":
        return [inner for part in spec[parts] for inner in flattened(part, parts)]
    return [spec]


def _by_character(parts):
    if not parts:
        return []
    return [CharacterMap(characters.images(*map(json.dumps, parts)))]


def _step(part):
    if part["type"] == "Replace":
        if "String" not in part["pattern"]:
            raise ValueError(f"its normalizer replaces what {part['pattern']} matches")
        return Replacement(re.escape(part["pattern"]["String"]), part["content"])
    if part["type"] == "Prepend":
        return Replacement("(?s)^.", part["prepend"].replace("\\", "\\\\") + "\\0", escaped=True)
    if part["type"] == "Precompiled":
        return Rules(charsmap_rules(base64.b64decode(part["precompiled_charsmap"])))
    raise ValueError(f"its normalizer is {part['type']}, for which there are no operations")


class Replacement(tf.Module):
    r"""Replaces each match of a regular expression.

    Args:
        pattern: in the syntax of RE2.
        content: string that is put there.
        escaped: whether `content` has references to the match, such as \0.
    """

    def __init__(self, pattern, content, escaped=False):
        super().__init__()
        self.pattern, self.content = pattern, content if escaped else content.replace("\\", "\\\\")

    def __call__(self, texts):
        return tf.strings.regex_replace(texts, self.pattern, self.content)


class CharacterMap(tf.Module):
    """Replaces characters one by one.

    Args:
        images: dict character -> string.
    """

    def __init__(self, images):
        super().__init__()
        # Thousands of characters are dropped, become spaces or get spaces around them (Chinese): three patterns.
        kinds = {"": "", " ": " ", None: " \\0 "}
        sets = {kind: [] for kind in kinds}
        others = {}
        for character, image in images.items():
            kind = None if image == f" {character} " else image
            if kind in sets:
                sets[kind].append(character)
            else:
                others[character] = image
        self.patterns = [(f"[{characters.ranges(chars)}]", kinds[kind]) for kind, chars in sets.items() if chars]
        self.table = string_table(list(others), list(others.values())) if others else None

    def __call__(self, texts):
        for pattern, content in self.patterns:
            texts = tf.strings.regex_replace(texts, pattern, content)
        if self.table is None:
            return texts
        split, rows = characters_of(texts)
        images = self.table.lookup(split)
        images = tf.where(images == UNCHANGED, split, images)
        return tf.strings.unsorted_segment_join(images, rows, tf.size(texts))


class Rules(tf.Module):
    """SentencePiece's rules, as the `tokenizers` package applies them.

    The first character of a cluster of less than six bytes, or else the first two or all of its characters, stand for
    the whole of it if there is a rule for them. Without one, and in longer clusters, the rule of each character holds.

    Args:
        rules: dict string -> string.
    """

    def __init__(self, rules):
        super().__init__()
        self.single = CharacterMap({key: value for key, value in rules.items() if len(key) == 1})
        self.rules = string_table(list(rules), list(rules.values()))
        extending, alone = map(characters.ranges, characters.cluster())
        self.pattern = f"\r\n|[^{alone}][{extending}]+"

    def __call__(self, texts):
        parts = cut(tf.strings.regex_replace(texts, self.pattern, CUT + CLUSTER + rb"\0" + CUT))
        is_cluster = tf.strings.substr(parts.values, 0, 1) == CLUSTER
        values = tf.strings.regex_replace(parts.values, rb"^\C", b"")
        values = tf.where(is_cluster, values, parts.values)
        images = tf.fill(tf.shape(values), UNCHANGED)
        for size in (1, 2, 3):
            image = self.rules.lookup(tf.strings.substr(values, 0, size, unit="UTF8_CHAR"))
            images = tf.where(images == UNCHANGED, image, images)
        is_single = ~is_cluster | (tf.strings.length(values) > 5) | (images == UNCHANGED)
        values = tf.where(is_single, self.single(values), images)
        return tf.strings.unsorted_segment_join(values, parts.rows, tf.size(texts))


def charsmap_rules(charsmap):
    """The rules of SentencePiece, for keys of less than six bytes: dict string -> string.

    Args:
        charsmap: bytes: the size of a trie in bytes, the trie as a double array (darts-clone,
            https://github.com/s-yata/darts-clone), and the strings it points to, each closed by a zero.
    """
    size = int.from_bytes(charsmap[:4], "little")
    units, strings = np.frombuffer(charsmap[4 : 4 + size], "<u4"), charsmap[4 + size :]
    children = np.arange(len(units), dtype="uint32") ^ (units >> 10 << ((units & 1 << 9) >> 6))
    rules, nodes = {}, [(b"", children[0])]
    while nodes:
        key, start = nodes.pop()
        places = start ^ np.arange(1, 256, dtype="uint32")
        for place in places[units[places] & 0x800000FF == np.arange(1, 256)]:
            longer = key + bytes([place ^ start])
            if units[place] >> 8 & 1:
                value = units[children[place]] & 0x7FFFFFFF
                rules[longer.decode()] = strings[value : strings.index(0, value)].decode()
            if len(longer) < 5:
                nodes.append((longer, children[place]))
    return rules


CLUSTER = b"\xfe"  # no byte of UTF-8; stands before a cluster of several characters
UNCHANGED = b"\xff"  # no byte of UTF-8


def string_table(keys, values):
    """A table of strings, by default `UNCHANGED`."""
    initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(keys), tf.constant(values))
    return tf.lookup.StaticHashTable(initializer, UNCHANGED)


def id_table(keys, values):
    """A table of int64, by default -1; the keys are strings or int64."""
    keys = tf.constant(keys, tf.string if isinstance(next(iter(keys)), str | bytes) else tf.int64)
    initializer = tf.lookup.KeyValueTensorInitializer(keys, tf.constant(values, tf.int64))
    return tf.lookup.StaticHashTable(initializer, -1)
