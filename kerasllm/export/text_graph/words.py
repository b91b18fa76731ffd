"""Pre-tokenizers of the `tokenizers` package as TensorFlow operations.

A step takes stretches of text (N,), and whether each begins its text (N,), and gives the stretches with a byte that no
text holds at the places where they are to be cut.
"""

import functools
import re

import tensorflow as tf

from kerasllm.export.text_graph import characters
from kerasllm.export.text_graph.normalization import flattened
from kerasllm.export.text_graph.rows import CUT, Rows, cut

SPACES = r"\s+(?!\S)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def pre_tokenization(spec):
    """The steps of a pre-tokenizer, given as in a tokenizer.json.

    Raises:
        ValueError: there are no operations for it.
    """
    steps = []
    for part in flattened(spec, "pretokenizers"):
        steps += _steps(part)
    if any(getattr(step, "func", None) is _metaspace and step.keywords["scheme"] == "first" for step in steps[1:]):
        raise ValueError("its pre-tokenizer puts a space before a first word that it has cut before")
    return steps


def cut_into_words(steps, texts, first):
    """The words of stretches of text (N,), as `Rows`; `first` (N,) says which stretches begin their text."""
    words = Rows(texts, tf.range(tf.size(texts, tf.int64))).kept(texts != "")
    first = tf.gather(first, words.rows)
    for step in steps:
        words = cut(step(words.values, first)).within(words)
        first = tf.zeros_like(words.rows, tf.bool)
    return words


def _steps(part):
    kind = part["type"]
    if kind == "Metaspace":
        options = {"space": part["replacement"], "scheme": part["prepend_scheme"], "split": part["split"]}
        return [functools.partial(_metaspace, **options)]
    if kind == "ByteLevel":
        prefix = [_prefix_space] * part["add_prefix_space"]
        return prefix + _isolated(GPT2) * part["use_regex"]
    if kind == "Digits":
        numbers = f"[{characters.ranges(characters.numbers())}]"
        return [_replacing((numbers + "+" * (not part["individual_digits"]), CUT + rb"\0" + CUT))]
    if kind in ("BertPreTokenizer", "Whitespace"):
        vanishing, alone = (f"[{characters.ranges(c)}]" for c in characters.kinds(kind))
        return [_replacing((vanishing, CUT), (alone + "+" * (kind == "Whitespace"), CUT + rb"\0" + CUT))]
    if kind == "CharDelimiterSplit":
        return [_replacing((re.escape(part["delimiter"]), CUT))]
    if kind == "WhitespaceSplit":
        return [_replacing((f"[{characters.ranges(characters.kinds(kind)[0])}]", CUT))]
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"] and "Regex" in part["pattern"]:
        return _isolated(part["pattern"]["Regex"])
    raise ValueError(f"its pre-tokenizer is {part}, for which there are no operations")


def _replacing(*rules):
    def step(texts, first):
        for pattern, content in rules:
            texts = tf.strings.regex_replace(texts, pattern, content)
        return texts

    return step


def _isolated(pattern):
    r"""The step that makes each match of a pattern a word; RE2 cannot look ahead, so \s+(?!\S) is cut off before.

    It matches spaces up to the last one before something else, which is left to the alternatives after it. So
    there the text is cut, and a simple \s+ does the rest; but not before line ends, if others match these first.
    """
    rules = []
    if SPACES in pattern:
        last = characters.matching(r"\s") - (set("\r\n") if r"[\r\n]" in pattern else set())
        rules.append((translated(rf"(\s+)([{characters.ranges(last)}]\S)"), rb"\1" + CUT + rb"\2"))
        pattern = pattern.replace(SPACES + "|", "")
    if re.search(r"\(\?[=!<]", pattern):
        raise ValueError(f"its pre-tokenizer cuts by {pattern!r}, which looks ahead or back")
    try:
        tf.strings.regex_replace("", translated(pattern), "")
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"its pre-tokenizer cuts by {pattern!r}, which RE2 cannot read") from error
    return [_replacing(*rules, (translated(pattern), CUT + rb"\0" + CUT))]


def translated(pattern):
    r"""A regular expression for RE2: \s, \p{L} and so on as ranges of characters."""
    result, inside = "", False
    for token in re.findall(r"\\[pP]\{\^?\w+\}|\\x\{[0-9a-f]+\}|\\.|.", pattern, re.DOTALL):
        if re.fullmatch(r"\\[pP]\{\w+\}|\\[sSdDwW]", token):
            negated = token[1] in "PSDW"
            if negated and inside:
                raise ValueError(f"its pre-tokenizer cuts by {pattern!r}, with {token} in a class")
            token = characters.ranges(characters.matching(token[0] + token[1].lower() + token[2:]))
            token = token if inside else f"[{'^' * negated}{token}]"
        elif token in "[]":
            inside = token == "["
        result += token
    return result


def _prefix_space(texts, first):
    return tf.where(tf.strings.substr(texts, 0, 1) == " ", texts, " " + texts)


def _metaspace(texts, first, space, scheme, split):
    texts = tf.strings.regex_replace(texts, " ", space)
    if scheme != "never":
        starts = tf.strings.substr(texts, 0, len(space.encode())) == space
        prefixed = tf.where(starts, texts, tf.constant(space) + texts)
        texts = prefixed if scheme == "always" else tf.where(first, prefixed, texts)
    return tf.strings.regex_replace(texts, re.escape(space), CUT + rb"\0") if split else texts
