"""A tokenizer as TensorFlow operations."""

import json
import re

import tensorflow as tf

from kerasllm.export.text_graph import decoding, normalization, pairs, pieces, words
from kerasllm.export.text_graph.normalization import flattened, id_table
from kerasllm.export.text_graph.rows import CUT, Rows, characters, cut, from_table, merged

TOKEN = b"\xfe"  # no byte of UTF-8; stands before a token that was found in a text


class GraphTokenizer(tf.Module):
    """What a `kerasllm.Tokenizer` does, as TensorFlow operations.

    It is saved with the module that has it as an attribute, and needs nothing but TensorFlow then.

        tokenizer = graph_tokenizer(model.tokenizer)
        batch = tokenizer.encode(tf.constant(["The cat sat.", "Why?"]))
        tokenizer.decode(batch["token_ids"], batch["padding_mask"])  # [b"The cat sat.", b"Why?"]

    Args:
        tokenizer: a `kerasllm.Tokenizer`.

    Raises:
        ValueError: there are no operations for a part of it; the error says for which.
    """

    def __init__(self, tokenizer):
        super().__init__()
        if tokenizer.backend.encode_special_tokens:
            raise ValueError("there are no operations for split_special_tokens (True) of the tokenizer's config.")
        if tokenizer.clean_ups:
            raise ValueError(
                "there are no operations for clean_up_tokenization_spaces (True) of the tokenizer's config."
            )
        spec = json.loads(tokenizer.backend.to_str())
        self.added = AddedTokens(spec["added_tokens"], spec["normalizer"])
        self.normalization = normalization.normalization(spec["normalizer"])
        self.words = words.pre_tokenization(spec["pre_tokenizer"])
        self.model = _model(spec["model"], spec["pre_tokenizer"])
        tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.vocabulary_size)]
        self.decoder = decoding.decoding(spec["decoder"], [token or "" for token in tokens])
        special = set(tokenizer.special_ids)
        self.is_silent = tf.constant([i in special or token is None for i, token in enumerate(tokens)])
        self.pad_id = tokenizer.pad_id or 0
        self.templates = [[_template(tokenizer, is_pair, special) for special in (0, 1)] for is_pair in (0, 1)]

    def encode(self, texts, pairs=None, add_special_tokens=True, with_places=False, max_length=None):
        """Token ids of texts, or of pairs of texts, with the special tokens that the tokenizer adds.

        Args:
            texts: (B,) strings in UTF-8.
            pairs: (B,) strings, or None.
            add_special_tokens: whether the special tokens of the tokenizer's template are added.
            with_places: whether it is wanted where the tokens of the pairs stand.
            max_length: what has more tokens is cut to so many, as `Tokenizer.encodings` cuts it.

        Returns:
            A dict of `token_ids` (B, T), int32; `padding_mask` (B, T), bool, True where a token is real; and
            `segment_ids` (B, T), int32. They are padded on the right. With places also `places` (B, T, 2), int32:
            between which characters of its pair a token stands, (0, 0) where it is of no pair.
        """
        count = tf.size(texts, tf.int64)
        ids, _ = self._tokens(texts if pairs is None else tf.concat([texts, pairs], axis=0))
        ids = {"A": ids.kept(ids.rows < count), "B": ids._replace(rows=ids.rows - count).kept(ids.rows >= count)}
        every = tf.range(count)
        places = {"B": self._places(pairs)} if with_places else {}
        template = self.templates[pairs is not None][add_special_tokens]
        if max_length is not None:
            room = max_length - sum(item not in ids for item, _ in template)
            sizes = {item: part.sizes(count) for item, part in ids.items()}
            # Of a text and its pair the longer one is cut first.
            half = room // 2 if pairs is not None else 0
            most = {"A": room - tf.minimum(sizes["B"], half), "B": room - tf.minimum(sizes["A"], room - half)}
            ids = {item: part.shortened(most[item], sizes[item]) for item, part in ids.items()}
            places = {item: part.shortened(most[item], sizes[item]) for item, part in places.items()}
        token_ids, segments, placed = [], [], []
        for item, segment in template:
            part = ids[item] if item in ids else Rows(tf.fill([count], tf.constant(item, tf.int64)), every)
            token_ids.append(part)
            segments.append(Rows(tf.fill(tf.shape(part.rows), segment), part.rows))
            placed.append(places.get(item, Rows(tf.zeros([tf.size(part.rows), 2], tf.int32), part.rows)))
        token_ids, segments = merged(*token_ids), merged(*segments)
        lengths = tf.math.unsorted_segment_sum(tf.ones_like(token_ids.rows), token_ids.rows, count)
        return {
            "token_ids": tf.cast(token_ids.table(count, self.pad_id), tf.int32),
            "padding_mask": tf.sequence_mask(lengths),
            "segment_ids": segments.table(count, 0),
            **({"places": merged(*placed).table(count, 0)} if with_places else {}),
        }

    def decode(self, token_ids, padding_mask):
        """The texts of token ids, special tokens and ids without a token left out.

        Args:
            token_ids: (B, T) integers.
            padding_mask: (B, T) bools, True where a token is real.

        Returns:
            (B,) strings.
        """
        is_known = token_ids < tf.cast(tf.size(self.is_silent), token_ids.dtype)
        token_ids = tf.where(is_known, token_ids, 0)
        kept = tf.cast(padding_mask, tf.bool) & is_known & ~tf.gather(self.is_silent, token_ids)
        return self.decoder(from_table(token_ids, kept), tf.shape(token_ids)[0])

    def _tokens(self, texts, with_sizes=False):
        """The ids of texts (B,) without the tokens of the template, and of how many characters each is, if wanted."""
        stretches = self.added.cut(texts)
        token_ids, between = self.added.lookup(stretches.values)
        for step in self.normalization:
            between = step(between)
        found = words.cut_into_words(self.words, between, stretches.starts())
        ids = self.model(found.values)
        every = tf.range(tf.size(token_ids, tf.int64))

        def in_order(of_added, of_words):
            added = Rows(of_added, every).kept(token_ids >= 0)
            return merged(added, ids._replace(values=of_words).within(found)).within(stretches)

        if not with_sizes:
            return in_order(token_ids, ids.values), None
        texts = tf.where(token_ids < 0, "", tf.strings.regex_replace(stretches.values, rb"^\C", b""))
        sizes = in_order(self._num_read(texts), self.model.sizes(ids, found.values))
        return in_order(token_ids, ids.values), sizes

    def _num_read(self, texts):
        """How many characters of each of the texts (N,) get into words, once they are normalised."""
        letters = characters(texts)
        images = letters.values
        for step in self.normalization:
            images = step(images)
        found = words.cut_into_words(self.words, images, tf.zeros_like(letters.rows, tf.bool)).within(letters)
        sizes = tf.strings.length(found.values, unit="UTF8_CHAR")
        return tf.math.unsorted_segment_sum(sizes, found.rows, tf.size(texts))

    def _places(self, texts):
        """Between which characters of its text each token stands: (N, 2), as `Rows`.

        A token holds so many of the characters that get into words as it is long, and tokens leave none out.
        """
        _, sizes = self._tokens(texts, with_sizes=True)
        letters = characters(texts)
        read = tf.cumsum(self._num_read(letters.values))
        ends = tf.cumsum(sizes.values)
        places = [tf.searchsorted(read, ends - sizes.values, "right"), tf.searchsorted(read, ends, "left") + 1]
        return Rows(tf.stack(places, axis=1) - tf.searchsorted(letters.rows, sizes.rows)[:, None], sizes.rows)


class AddedTokens(tf.Module):
    """Tokens that are whole wherever they stand in a text, such as [MASK].

    Args:
        tokens: list of dicts, as in a tokenizer.json.
        normalizer: the normaliser of that file.
    """

    def __init__(self, tokens, normalizer):
        super().__init__()
        groups = {(False, False): [], (True, False): [], (False, True): [], (True, True): []}
        for token in tokens:
            if token["single_word"] or (token["normalized"] and normalizer is not None):
                how = "as a word of its own" if token["single_word"] else "after it is normalised"
                raise ValueError(f"it finds {token['content']!r} in a text {how}, for which there are no operations")
            groups[token["lstrip"], token["rstrip"]].append(token["content"])
        # The longest one that fits at a place; of RE2's alternatives the first one.
        alternatives = []
        spaces = words.translated(r"\s*")
        for (left, right), contents in groups.items():
            if contents:
                contents = sorted(contents, key=len, reverse=True)
                alternatives.append(f"{spaces * left}({'|'.join(map(re.escape, contents))}){spaces * right}")
        self.pattern = "|".join(alternatives)
        self.content = CUT + TOKEN + b"".join(b"\\%d" % (i + 1) for i in range(len(alternatives))) + CUT
        keys = [TOKEN + token["content"].encode() for token in tokens]
        self.table = id_table(keys, [token["id"] for token in tokens]) if tokens else None

    def cut(self, texts):
        """Cut texts (B,) before and after the tokens, as `Rows`."""
        if self.table is not None:
            texts = tf.strings.regex_replace(texts, self.pattern, self.content)
        return cut(texts)

    def lookup(self, stretches):
        """The ids of stretches (N,) that are tokens, elsewhere -1; and the stretches, "" where they are tokens."""
        if self.table is None:
            return tf.fill(tf.shape(stretches), tf.constant(-1, tf.int64)), stretches
        ids = self.table.lookup(stretches)
        return ids, tf.where(ids < 0, stretches, "")


def _model(spec, pre_tokenizer):
    vocabulary, kind = spec["vocab"], spec["type"]
    if kind == "WordLevel":
        return pieces.WordLevel(vocabulary, vocabulary[spec["unk_token"]])
    if kind == "WordPiece":
        unk_id, prefix = vocabulary[spec["unk_token"]], spec["continuing_subword_prefix"]
        return pieces.WordPiece(vocabulary, unk_id, prefix, spec["max_input_chars_per_word"])
    if kind == "Unigram":
        if spec["byte_fallback"] or spec["unk_id"] is None:
            raise ValueError("its Unigram model writes unknown characters as bytes, for which there are no operations")
        return pieces.Unigram(spec["vocab"], spec["unk_id"])
    return _bpe(spec, [part["type"] for part in flattened(pre_tokenizer, "pretokenizers")])


def _bpe(spec, pre_tokenizers):
    if spec["dropout"] or spec["continuing_subword_prefix"] or spec["end_of_word_suffix"]:
        raise ValueError("its BPE model has dropout or marks parts of words, for which there are no operations")
    vocabulary, byte_level = spec["vocab"], pre_tokenizers[-1:] == ["ByteLevel"]
    if not byte_level and "ByteLevel" in pre_tokenizers:
        raise ValueError("its pre-tokenizer cuts bytes, for which there are no operations")
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in spec["merges"]]
    merges = [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in merges]
    byte_ids = None
    if spec["byte_fallback"]:
        byte_ids = [vocabulary.get(f"<0x{i:02X}>") for i in range(256)]
        if None in byte_ids:
            raise ValueError("its BPE model lacks tokens for some bytes")
    unk_id = None if spec["unk_token"] is None else vocabulary[spec["unk_token"]]
    if byte_level:
        letters = set(decoding.LETTERS)
        vocabulary = {decoding.as_bytes(token): i for token, i in vocabulary.items() if letters.issuperset(token)}
    return pairs.BPE(vocabulary, merges, byte_level, unk_id, spec["fuse_unk"], byte_ids, spec["ignore_merges"])


def _template(tokenizer, is_pair, special_tokens):
    """What an encoding is made of: pairs of "A", "B" or the id of a special token, and the segment."""
    for text in ("a", "1", "."):
        [encoding] = tokenizer.encodings([text], [text] if is_pair else None, special_tokens=bool(special_tokens))
        template = []
        for i, segment, sequence in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
            part = (i if sequence is None else "AB"[sequence], segment)
            if sequence is None or part not in template:
                template.append(part)
        if {"A", "B"} & {part for part, _ in template}:
            return template
    raise ValueError("it makes no tokens of 'a', '1' and '.'")
