"""Tokenizers with other vocabularies: with further tokens, or without those that a corpus has no use for."""

import json
from typing import NamedTuple

import numpy as np
import tokenizers

from kerasllm.arguments import check_boolean, read_strings, shown
from kerasllm.text.tokenizers import Tokenizer

BATCH = 1000  # texts


class Pruned(NamedTuple):
    """A tokenizer with fewer tokens.

    Args:
        tokenizer: the `Tokenizer`.
        ids: (V,) int64, the id that each of its tokens had before, ascending.
    """

    tokenizer: Tokenizer
    ids: np.ndarray


def with_tokens(tokenizer, tokens, special=True):
    """A tokenizer that knows further tokens, each of which is one id wherever it stands in a text.

    Args:
        tokenizer: a `Tokenizer`; it stays as it is.
        tokens: list of strings, which get the next ids.
        special: whether `decode` leaves them out, as it leaves out "</s>".

    Returns:
        A `Tokenizer`.

    Raises:
        ValueError: a token is none, is there already, or is there twice.

    Example:
        >>> with_tokens(tokenizer, ["<tool>", "</tool>"]).encode("<tool>")
        [49152]
    """
    tokens = read_strings("tokens", tokens)
    check_boolean("special", special)
    for i, token in enumerate(tokens):
        if not token:
            raise ValueError(f"tokens[{i}] ('') must be a string of one character at least.")
        if tokenizer.token_to_id(token) is not None:
            raise ValueError(f"tokens[{i}] ({shown(token)}) is in the vocabulary already: {tokenizer!r}.")
        if token in tokens[:i]:
            raise ValueError(f"tokens[{i}] ({shown(token)}) is there twice.")
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    added = [tokenizers.AddedToken(token, special=special, normalized=False) for token in tokens]
    (backend.add_special_tokens if special else backend.add_tokens)(added)
    return Tokenizer(backend, **tokenizer.roles, config=tokenizer.config)


def pruned(tokenizer, texts):
    """A tokenizer without the tokens that texts have no use for: of the texts it makes the same tokens.

    Special and added tokens stay, and so do single characters and bytes, of which it makes other texts. Of a
    vocabulary of merges what is kept is that by which the tokens come about.

    Args:
        tokenizer: a `Tokenizer` of WordPiece, BPE or Unigram; it stays as it is.
        texts: iterable of strings, all that is to be read alike.

    Returns:
        A `Pruned`.

    Raises:
        ValueError: the tokenizer is of another kind, or no token is used.
    """
    state = json.loads(tokenizer.backend.to_str())
    kind = type(tokenizer.backend.model).__name__
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise ValueError(f"tokenizer ({tokenizer!r}) must be of WordPiece, BPE or Unigram.")
    texts, used = list(texts), np.zeros(tokenizer.vocabulary_size, bool)
    for start in range(0, len(texts), BATCH):
        for row in tokenizer.encode_batch(texts[start : start + BATCH]):
            used[row] = True
    if not used.any():
        raise ValueError("texts must have a token at least.")
    for token, i in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        used[i] |= _is_single(token, state["model"])
    added = {entry["id"]: entry for entry in state["added_tokens"]}
    used[list(added)] = True
    model = state["model"]
    if kind == "BPE":
        model["merges"] = _kept_merges(model, used)
    ids = np.flatnonzero(used)
    new = {int(old): i for i, old in enumerate(ids)}
    if kind == "Unigram":
        model["vocab"] = [piece for i, piece in enumerate(model["vocab"]) if used[i]]
        if model.get("unk_id") is not None:
            if model["unk_id"] not in new:  # which its algorithm cannot do without
                raise ValueError("tokenizer: its unknown token must be one of the special tokens.")
            model["unk_id"] = new[model["unk_id"]]
    else:
        kept = {token: i for token, i in model["vocab"].items() if used[i]}
        model["vocab"] = {token: new[i] for token, i in sorted(kept.items(), key=lambda item: item[1])}
    for entry in state["added_tokens"]:
        entry["id"] = new[entry["id"]]
    _renumber(state["post_processor"], new)
    result = Tokenizer(
        tokenizers.Tokenizer.from_str(json.dumps(state)), **tokenizer.roles, config=_config(tokenizer, new)
    )
    for start in range(0, len(texts), BATCH):  # what is said above, seen to
        some = texts[start : start + BATCH]
        for text, old, ours in zip(some, tokenizer.encode_batch(some), result.encode_batch(some), strict=True):
            if [new.get(i) for i in old] != ours:
                raise ValueError(f"tokenizer ({tokenizer!r}) cannot be pruned: {shown(text)} would be other tokens.")
    return Pruned(result, ids)


def _is_single(token, model):
    """Whether a token is one character, perhaps with the mark of a word's middle, or a byte that has no character."""
    bare = token.removeprefix(model.get("continuing_subword_prefix") or "")
    return len(bare) <= 1 or (len(token) == 6 and token.startswith("<0x") and token.endswith(">"))


def _kept_merges(model, used):
    """The merges by which used tokens come about; marks as used what these are of."""
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    prefix = model.get("continuing_subword_prefix") or ""
    ids = model["vocab"]
    made_of = {}
    for a, b in pairs:
        made_of.setdefault(ids[a + b.removeprefix(prefix)], []).append((ids[a], ids[b]))
    left = list(np.flatnonzero(used))
    while left:
        for parts in made_of.get(left.pop(), ()):
            for part in parts:
                if not used[part]:
                    used[part] = True
                    left.append(part)
    return [[a, b] for a, b in pairs if used[ids[a + b.removeprefix(prefix)]] and used[ids[a]] and used[ids[b]]]


def _renumber(part, new):
    """Give the ids that a post-processor writes their new numbers."""
    if isinstance(part, list):
        for entry in part:
            _renumber(entry, new)
    elif isinstance(part, dict):
        for name, value in part.items():
            if name == "ids":
                part[name] = [new[i] for i in value]
            elif name in ("cls", "sep") and isinstance(value, list):  # of BERT's and RoBERTa's: [token, id]
                part[name] = [value[0], new[value[1]]]
            else:
                _renumber(value, new)


def _config(tokenizer, new):
    """The tokenizer's config with the new ids of its added tokens."""
    config = dict(tokenizer.config)
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        config["added_tokens_decoder"] = {str(new[int(i)]): entry for i, entry in decoder.items() if int(i) in new}
    return config
