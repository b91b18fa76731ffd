"""SentencePiece models: their files, and the same segmentation as a tokenizer of the `tokenizers` package."""

import dataclasses
import itertools
import math
import os
import struct

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from kerasllm.arguments import shown
from kerasllm.text.panics import refused

# sentencepiece_model.proto: TrainerSpec.model_type and SentencePiece.type.
ALGORITHMS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"
# What no honest file comes near, and what takes as long as it is large.
MOST_BYTES, MOST_PIECES, MOST_FIELDS = 2**26, 2**20, 1000
MOST_PIECE = 1024  # characters


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """What a SentencePiece model (Kudo and Richardson, 2018, https://arxiv.org/abs/1808.06226) knows.

    Args:
        pieces: list of strings, in the order of their ids.
        scores: list of floats: a piece's log probability ("unigram"), or the smaller the later it is merged ("bpe").
        types: list of ints, as in SentencePiece's files and in GGUF's `tokenizer.ggml.token_type`: 1 normal, 2
            unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
        algorithm: "unigram" or "bpe".
        charsmap: bytes, the compiled rules of the normalisation; none for "identity".
        add_dummy_prefix: whether a text begins with a space.
        remove_extra_whitespaces: whether spaces around a text go, and runs of them become one.

    Raises:
        ValueError: the lists differ in length, hold a piece twice, a piece of more than 1,024 characters, a score that
            is no number or an unknown type, or have not exactly one unknown piece.
    """

    pieces: list
    scores: list
    types: list
    algorithm: str
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True

    def __post_init__(self):
        if self.algorithm not in ("unigram", "bpe"):
            raise ValueError(f"algorithm ({shown(self.algorithm)}) must be 'unigram' or 'bpe'.")
        if not len(self.pieces) == len(self.scores) == len(self.types):
            raise ValueError(f"{len(self.pieces)} pieces, {len(self.scores)} scores, {len(self.types)} types differ.")
        if len(set(self.pieces)) < len(self.pieces):
            raise ValueError("pieces must not hold a piece twice.")
        for piece, score, kind in zip(self.pieces, self.scores, self.types, strict=True):
            if len(piece) > MOST_PIECE:
                raise ValueError(f"the piece {shown(piece, 40)} has {len(piece)} characters, of {MOST_PIECE} at most.")
            if not math.isfinite(score) or not NORMAL <= kind <= BYTE:
                raise ValueError(f"the piece {shown(piece, 40)} has the score {score} and the type {kind}.")
        if self.types.count(UNKNOWN) != 1:
            raise ValueError(f"pieces must hold one unknown piece, not {self.types.count(UNKNOWN)}.")

    @property
    def unk_id(self):
        """The id of the unknown piece."""
        return self.types.index(UNKNOWN)

    def of_type(self, *types):
        """The pieces of these types."""
        return [piece for piece, kind in zip(self.pieces, self.types, strict=True) if kind in types]


def read(path):
    """Read a `.model` or `.spm` file; the sentencepiece package is not needed.

    Raises:
        ValueError: the file is no SentencePiece model, or one of a kind that has no counterpart in `tokenizers`.
    """
    try:
        if os.path.getsize(path) > MOST_BYTES:
            raise ValueError(f"it is longer than {MOST_BYTES} bytes.")
        with open(path, "rb") as file:
            return _parse(file.read())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a SentencePiece model: {error}") from error


def to_tokenizer(model, prefix_after_special_tokens=True, normalizer=None):
    """A `tokenizers.Tokenizer` that segments as the model does; its control tokens are special tokens.

    Where the two differ: characters with marks that no rule composes are normalised as one (SentencePiece takes the
    longest rule that fits), and of two segmentations with the same score the other one may come out ("#" * 70).

    Args:
        model: a `SentencePieceModel`.
        prefix_after_special_tokens: whether text after a special token begins with a space too, like the text before
            it. The two agree where a special token stands at the beginning only, but for a text that begins with a
            space by itself: if this is False it gets no second one, as in transformers' Llama with `legacy=False`.
        normalizer: a `tokenizers` normalizer that goes first.
    """
    normalizer = [normalizer] if normalizer else []
    if model.charsmap:
        normalizer.append(normalizers.Precompiled(model.charsmap))
    with refused("pieces"):
        backend = tokenizers.Tokenizer(_unigram(model) if model.algorithm == "unigram" else _bpe(model))
    scheme = ("always" if prefix_after_special_tokens else "first") if model.add_dummy_prefix else "never"
    if model.remove_extra_whitespaces:
        if scheme != "always":
            raise ValueError("remove_extra_whitespaces needs add_dummy_prefix, and the space after special tokens.")
        # Words without the spaces before them, so that their offsets hold no space.
        words = pre_tokenizers.CharDelimiterSplit(" ")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Metaspace(prepend_scheme=scheme)])
    elif scheme == "always":
        # Metaspace would give no second space to a text that begins with one.
        normalizer += [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    if normalizer:
        backend.normalizer = normalizers.Sequence(normalizer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(tokenizers.Regex("^ "), "")] * (UNUSED in model.types)  # as `_unigram` writes these
        + [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Strip(" ", left=1)] * model.add_dummy_prefix
    )
    special = [tokenizers.AddedToken(t, special=True, normalized=False) for t in model.of_type(CONTROL, UNKNOWN)]
    backend.add_special_tokens(special)
    if model.algorithm == "bpe":
        symbols = model.of_type(USER_DEFINED)
        backend.add_tokens([tokenizers.AddedToken(symbol, normalized=False) for symbol in symbols])
    return backend


def with_fairseq_ids(model):
    """The model with the ids of fairseq: `<s>`, `<pad>`, `</s>`, `<unk>`, then the pieces, from 4 on."""
    if model.pieces[:3] != ["<unk>", "<s>", "</s>"]:
        raise ValueError(f"pieces ({model.pieces[:3]} ...) must begin with '<unk>', '<s>', '</s>'.")
    return dataclasses.replace(
        model,
        pieces=["<s>", "<pad>", "</s>", "<unk>"] + model.pieces[3:],
        scores=[0.0] * 4 + model.scores[3:],
        types=[CONTROL, CONTROL, CONTROL, UNKNOWN] + model.types[3:],
    )


def with_camembert_ids(model):
    """The model with CamemBERT's ids: tokens of fairseq before the pieces, of which the first is never written."""
    if model.pieces[:3] != ["<unk>", "<s>", "</s>"]:
        raise ValueError(f"pieces ({model.pieces[:3]} ...) must begin with '<unk>', '<s>', '</s>'.")
    return dataclasses.replace(
        model,
        pieces=["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", *model.pieces[1:], "<mask>"],
        scores=[0.0] * 5 + model.scores[1:] + [0.0],
        types=[UNUSED, CONTROL, UNUSED, UNKNOWN, UNUSED, *model.types[1:], CONTROL],
    )


def with_vocabulary(model, vocabulary, unk, special, symbols=()):
    """The model with the ids of `vocabulary`, as Marian has them: one list of tokens for two models.

    Marian looks up by their text the characters too that the model does not know. Its longer tokens which the model
    does not know are decoded but never encoded; pieces outside the vocabulary are gone.

    Args:
        model: a `SentencePieceModel`.
        vocabulary: dict token -> id, of all ids from 0 on.
        unk: the unknown token.
        special: the other special tokens.
        symbols: tokens that are whole wherever they stand.
    """
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ValueError(f"vocabulary must hold each id from 0 to {len(vocabulary) - 1} once.")
    pieces = {p: (s, t) for p, s, t in zip(model.pieces, model.scores, model.types, strict=True)}
    known = {p: (s, t) for p, (s, t) in pieces.items() if t in (NORMAL, USER_DEFINED, BYTE)}
    worst = min((score for score, kind in known.values() if kind == NORMAL), default=0.0)
    known = {token: (worst - 10, NORMAL) for token in vocabulary if len(token) == 1} | known  # as if unknown
    known |= {token: (0.0, kind) for kind, tokens in ((USER_DEFINED, symbols), (CONTROL, special)) for token in tokens}
    known[unk] = (0.0, UNKNOWN)
    tokens = sorted(vocabulary, key=vocabulary.get)
    scores, types = zip(*(known.get(token, (0.0, UNUSED)) for token in tokens), strict=True)
    return dataclasses.replace(model, pieces=tokens, scores=list(scores), types=list(types))


def _unigram(model):
    scores = dict(zip(model.pieces, model.scores, strict=True))
    best = max((scores[piece] for piece in model.of_type(NORMAL)), default=0.0)
    vocabulary = []
    for piece, kind in zip(model.pieces, model.types, strict=True):
        if kind == UNUSED:
            # Words hold no spaces, so nothing matches a piece with one.
            vocabulary.append((" " + piece, 0.0))
        elif kind == USER_DEFINED:
            # SentencePiece's own rule: hardly any path through other pieces is better.
            vocabulary.append((piece, len(piece.encode()) * best - 0.1))
        else:
            vocabulary.append((piece, scores[piece]))
    return models.Unigram(vocabulary, unk_id=model.unk_id, byte_fallback=BYTE in model.types)


def _bpe(model):
    """Merges in the order of the merged pieces' scores: each way to cut a piece into two others is one."""
    # Runs of spaces that the user defined, as Gemma's: added tokens are looked for where spaces are no ▁ yet.
    scores = {piece: float("inf") for piece in model.of_type(USER_DEFINED) if not piece.strip(SPACE)}
    scores |= {p: s for p, s, t in zip(model.pieces, model.scores, model.types, strict=True) if t == NORMAL}
    merges, most = [], 16 * len(scores) + 4096
    if sum(map(len, scores)) > 64 * len(scores) + 2**16:
        raise ValueError("pieces must have at most 64 characters on average.")
    # Python's sort is stable: ids, then the place of the cut, decide between equal scores.
    for piece in sorted(scores, key=scores.get, reverse=True):
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        merges += [(left, right) for left, right in cuts if left in scores and right in scores]
        if len(merges) > most:  # twice the pieces are usual
            raise ValueError(f"{len(scores)} pieces can be cut into two others in more than {most} ways.")
    return models.BPE(
        {piece: i for i, piece in enumerate(model.pieces)},
        merges,
        unk_token=model.pieces[model.unk_id],
        fuse_unk=True,
        byte_fallback=BYTE in model.types,
    )


def _parse(data):
    """The fields that matter here of sentencepiece_model.proto's ModelProto."""
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(data, MOST_PIECES):
        if number == 1:
            pieces.append(dict(_fields(value, 16)))
        elif number == 2:
            trainer = dict(_fields(value, MOST_FIELDS))
        elif number == 3:
            normalizer = dict(_fields(value, MOST_FIELDS))
    algorithm = ALGORITHMS.get(_value(trainer, 3, 1), "unknown")
    if not pieces:
        raise ValueError("it holds no pieces.")
    if algorithm not in ("unigram", "bpe"):
        raise ValueError(f"its algorithm is {algorithm}; 'unigram' and 'bpe' are supported.")
    if _value(trainer, 24, 0) or not _value(normalizer, 5, 1):
        raise ValueError("it writes spaces otherwise than as ▁ before a word.")
    charsmap = _value(normalizer, 2, b"")
    if charsmap:
        check_charsmap(charsmap)
    return SentencePieceModel(
        pieces=[_value(piece, 1, b"").decode() for piece in pieces],
        scores=[_score(_value(piece, 2, bytes(4))) for piece in pieces],
        types=[_value(piece, 3, NORMAL) for piece in pieces],
        algorithm=algorithm,
        charsmap=charsmap,
        add_dummy_prefix=bool(_value(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_value(normalizer, 4, 1)),
    )


def _value(fields, number, default):
    value = fields.get(number, default)
    if type(value) is not type(default):
        raise ValueError(f"its field {number} has {shown(value, 20)}, of the wrong type.")
    return value


def _score(data):
    if len(data) != 4:
        raise ValueError(f"it has a score of {len(data)} bytes.")
    # Nine digits tell all float32 apart, and are the same number when read from a tokenizer.json.
    return float(f"{struct.unpack('<f', data)[0]:.9g}")


def check_charsmap(data):
    """Raise a `ValueError` for rules that lead out of their own tables: `tokenizers` would crash on those.

    They are the size of a trie in bytes, the trie as a double array (darts-clone), and the strings it points to.
    """
    size = int.from_bytes(data[:4], "little")
    units = np.frombuffer(data[4 : 4 + size - size % 4], "<u4")
    strings = np.frombuffer(data[4 + size :], "uint8")
    strings.tobytes().decode()
    nodes = np.flatnonzero(units >> 31 == 0)
    offsets = (units >> 10) << ((units & 1 << 9) >> 6)
    children = (np.arange(len(units), dtype="uint32") ^ offsets)[nodes]  # of character 0; of others, in the same 256
    if not size or len(units) * 4 != size or (children | 255 >= len(units)).any():
        raise ValueError("its rules of normalisation are damaged.")
    values = units[children[units[nodes] >> 8 & 1 == 1]] & 0x7FFFFFFF
    # A value is where a string begins, so not inside a character.
    if (values >= len(strings)).any() or (strings[values] >> 6 == 0b10).any():
        raise ValueError("its rules of normalisation are damaged.")


def _fields(data, most):
    """The fields of a protobuf message, `most` at most: pairs of number and value, an int or the bytes of other types.

    https://protobuf.dev/programming-guides/encoding
    """
    if not isinstance(data, bytes):
        raise ValueError(f"it has a number ({data}) in the place of a message.")
    position, count = 0, 0
    while position < len(data):
        count += 1
        if count > most:
            raise ValueError(f"it has more than {most} fields in one message.")
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
        else:
            size, position = _varint(data, position) if wire == 2 else ({1: 8, 5: 4}.get(wire), position)
            if size is None or position + size > len(data):
                raise ValueError("it is no protobuf message, or cut off.")
            value = data[position : position + size]
            position += size
        yield key >> 3, value


def _varint(data, position):
    """Seven bits a byte, the lowest first; the eighth says whether more follow."""
    value = 0
    for i in itertools.count(position):
        if i == len(data) or i > position + 9:
            raise ValueError("it is no protobuf message, or cut off.")
        value |= (data[i] & 127) << 7 * (i - position)
        if data[i] < 128:
            return value, i + 1
