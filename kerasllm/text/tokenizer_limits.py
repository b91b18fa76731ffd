"""What a tokenizer.json may hold: no more than the `tokenizers` package reads and applies in bounded time and memory.

The package trusts its files: it aborts the process, or takes minutes and gigabytes, on some of a few lines.
"""

import base64
import math
import re
import time

from kerasllm.arguments import shown
from kerasllm.text import sentencepiece_model

MOST_PARTS = 256  # normalizers, words, decoders
MOST_ADDED_TOKENS = 2**16
MOST_AROUND = 1024  # special tokens around a text
MOST_HOLES = 2**16  # ids without a token
MOST_CHARACTERS = {"added token": 1024, "prefix": 256, "pattern": 10_000, "piece": sentencepiece_model.MOST_PIECE}
MOST_WORD = 4096  # characters; WordPiece takes the cube of it: 1.5 s
MOST_GROWTH = 4096  # how many characters the replacements of a normalizer, one after another, may make of one
MOST_SECONDS = 0.25
MOST_TRIED = 64  # tokens
UNKNOWN = re.compile(r"(?i)\bunk")  # in the errors of models without a token for what they do not know

PROBE = (
    "The quick brown fox, isn't it? 1234567890 aaaaaaaaaaaaaaaaaaaaaaaa\n\n\n\t  ......... "
    "naïve 中文中文 _____ -=-=\r\n"
)


def check(spec):
    """Raise a `ValueError` if the parts of a tokenizer.json, a dict, are too many or too large, or break its rules."""
    model, added = spec.get("model"), spec.get("added_tokens") or []
    if not isinstance(model, dict) or not isinstance(added, list):
        raise ValueError("model must be an object, and added_tokens an array.")
    if len(added) > MOST_ADDED_TOKENS:
        raise ValueError(f"added_tokens ({len(added)}) must be at most {MOST_ADDED_TOKENS}.")
    for token in added:
        check_length("added token", token["content"])
    _check_model(model, [token["id"] for token in added])
    for part in _dicts(spec.get("post_processor")):
        for name in ("single", "pair", "ids", "processors"):
            if isinstance(part.get(name), list) and len(part[name]) > MOST_AROUND:
                raise ValueError(f"post_processor: {name} must have at most {MOST_AROUND} entries.")
    for kind in ("normalizer", "pre_tokenizer", "decoder"):
        _check_parts(kind, list(_dicts(spec.get(kind))))


def check_ids(ids):
    """Raise a `ValueError` unless `ids` are whole numbers from 0 on, with few holes."""
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise ValueError(f"the id {shown(i, 40)} must be a whole number from 0 on.")
    highest, most = max(ids, default=0), 2 * len(ids) + MOST_HOLES
    if highest >= most:
        raise ValueError(f"the id {highest} must be less than {most}, for {len(ids)} tokens.")


def check_length(kind, text):
    """Raise a `ValueError` unless `text` is a string, not longer than `MOST_CHARACTERS` says for its kind."""
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS[kind]:
        raise ValueError(f"{kind} ({shown(text, 40)}) must be a string of at most {MOST_CHARACTERS[kind]} characters.")


def check_use(backend):
    """Raise a `ValueError` if a tokenizer cannot encode and decode, writes too much, or takes too long for it."""
    if not backend.get_vocab_size():
        raise ValueError("it has no tokens.")
    around = backend.num_special_tokens_to_add(True)
    if around > MOST_AROUND:
        raise ValueError(f"it writes {around} special tokens around a text, of {MOST_AROUND} at most.")
    for text in (*(PROBE[:length] for length in (0, 1, 4, 8, 16, 32, 64)), PROBE, known_text(backend)):
        start = time.thread_time()
        try:
            ids = backend.encode(text).ids
        except Exception as error:
            if not UNKNOWN.search(str(error)):
                raise
            ids = []  # A vocabulary may be closed: what it lacks is refused when it is met.
        for i in set(ids):
            if backend.id_to_token(i) is None:
                raise ValueError(f"it writes the id {i}, which none of its tokens has.")
        backend.decode(ids)
        if (seconds := time.thread_time() - start) > MOST_SECONDS:
            raise ValueError(f"it takes {seconds:.1f} s for {len(text)} characters.")
    backend.encode(text, text)


def known_text(backend):
    """A text of one token or a few, to see what a tokenizer writes around texts; an empty one where it has none."""
    for text in ("a", *filter(None, map(backend.id_to_token, range(MOST_TRIED)))):
        try:
            if len(backend.encode(text, add_special_tokens=False)):
                return text
        except Exception as error:
            if not UNKNOWN.search(str(error)):
                raise
    return ""


def check_pattern(pattern):
    """Raise a `ValueError` for a regular expression that may take time exponential in the length of a text.

    That is one which repeats a group that repeats something itself, or refers back.
    """
    check_length("pattern", pattern)
    position, groups, last = 0, [False], False  # whether each open group, and the last part, repeat something
    while position < len(pattern):
        part = PARTS.match(pattern, position)
        position = part.end()
        kind = part.lastgroup
        if kind == "reference":
            raise ValueError(f"the pattern {shown(pattern)} must not refer back, with {part.group()!r}.")
        if kind == "open":
            groups.append(False)
        elif kind == "close":
            last = groups.pop() if len(groups) > 1 else False
            groups[-1] |= last
        elif kind == "repeat":
            least, most = _times(part.group())
            if most > 1 and last:
                raise ValueError(f"the pattern {shown(pattern)} must not repeat what repeats something itself.")
            groups[-1] |= most > 1 and least != most and not POSSESSIVE.match(pattern, position - 1)
            last = False
        else:
            last = False


# Oniguruma's, as far as repetitions go: https://github.com/kkos/oniguruma/blob/master/doc/RE
PARTS = re.compile(
    r"(?P<reference>\\[1-9]|\\[kg]<|\(\?[~(&R])|(?P<escape>\\.)|(?P<set>\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\])"
    r"|(?P<open>\((?:\?(?:[:=!>]|<[=!]|<\w+>|[a-z]*(?:-[a-z]+)?:))?)|(?P<close>\))"
    r"|(?P<repeat>[*+?][?+]?|\{\d*,?\d*\}[?+]?)|(?P<other>.)",
    re.DOTALL,
)
POSSESSIVE = re.compile(r"(?<=[*+?])\+")


def _times(repeat):
    if repeat[0] != "{":
        return {"*": (0, math.inf), "+": (1, math.inf), "?": (0, 1)}[repeat[0]]
    least, comma, most = repeat.rstrip("?+")[1:-1].partition(",")
    least = int(least[:9] or 0)
    return least, (int(most[:9]) if most else math.inf) if comma else least


def _check_model(model, added):
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        check_ids([*vocabulary.values(), *added])
    elif isinstance(vocabulary, list):
        for piece, score in vocabulary:
            check_length("piece", piece)
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise ValueError(f"the score {shown(score, 40)} of {shown(piece, 40)} must be a number.")
        check_ids([*range(len(vocabulary)), *added])
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name) is not None:
            check_length("prefix", model[name])
    if model.get("max_input_chars_per_word", 0) > MOST_WORD:
        raise ValueError(f"max_input_chars_per_word must be at most {MOST_WORD}.")


def _check_parts(kind, parts):
    if sum("type" in part for part in parts) > MOST_PARTS:
        raise ValueError(f"{kind} must have at most {MOST_PARTS} parts.")
    growth = 1
    for part in parts:
        if isinstance(part.get("Regex"), str):
            check_pattern(part["Regex"])
        if part.get("type") == "Precompiled":
            sentencepiece_model.check_charsmap(base64.b64decode(part["precompiled_charsmap"]))
        if "prepend" in part:
            check_length("prefix", part["prepend"])
        if part.get("type") == "Replace":
            string = part["pattern"].get("String")
            # A regular expression may fit between any two characters.
            growth *= max(1, len(part["content"]) / len(string) if string else len(part["content"]) + 1)
    if growth > MOST_GROWTH:
        raise ValueError(f"{kind} replaces a character by {growth:.3g} others, of {MOST_GROWTH} at most.")


def _dicts(value):
    """All dictionaries in a nest of lists and dictionaries."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _dicts(part)
