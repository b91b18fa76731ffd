"""Words to ids by merging pairs: byte-level BPE (GPT-2) and BPE of characters (Llama)."""

import tensorflow as tf

from kerasllm.export.text_graph.normalization import id_table
from kerasllm.export.text_graph.pieces import fused
from kerasllm.export.text_graph.rows import Rows, characters, merged, octets

NONE = 2**63 - 1


class BPE(tf.Module):
    """Merges the pair of the lowest rank, the leftmost of equal ones, again and again (Sennrich et al., 2016).

    Args:
        vocabulary: dict token -> id; tokens are bytes if `byte_level`.
        merges: list of (left id, right id, new id), in the order of their ranks.
        byte_level: whether a word is merged from its bytes; else from its characters.
        unk_id: of characters outside the vocabulary, or None: they are left out.
        fuse_unk: whether neighbouring unknown characters are one token.
        byte_ids: the ids of the 256 bytes that stand for a character outside the vocabulary, or None.
        whole_words: whether a word of the vocabulary is not cut at all.
    """

    def __init__(self, vocabulary, merges, byte_level, unk_id, fuse_unk, byte_ids, whole_words):
        super().__init__()
        self.size = 1 + max(vocabulary.values())
        symbols = {t: i for t, i in vocabulary.items() if len(t) == 1}
        self.symbols = id_table(list(symbols), list(symbols.values()))
        pairs = {left * self.size + right: (rank, new) for rank, (left, right, new) in enumerate(merges)}
        ranks = [rank * self.size + new for rank, new in pairs.values()]
        initializer = tf.lookup.KeyValueTensorInitializer(
            tf.constant(list(pairs), tf.int64), tf.constant(ranks, tf.int64)
        )
        self.merges = tf.lookup.StaticHashTable(initializer, NONE)
        self.words = id_table(list(vocabulary), list(vocabulary.values())) if whole_words else None
        self.byte_level, self.unk_id, self.fuse_unk = byte_level, unk_id, fuse_unk
        self.byte_ids = byte_ids

    def __call__(self, words):
        ids = self._merged(self._symbols(words))
        if self.words is None:
            return ids
        whole = self.words.lookup(words)
        places = tf.range(tf.size(words, tf.int64))
        return merged(Rows(whole, places).kept(whole >= 0), ids.kept(tf.gather(whole, ids.rows) < 0))

    def _symbols(self, words):
        """The ids to begin with: of bytes or characters, as `Rows`."""
        symbols, words = octets(words) if self.byte_level else characters(words)
        ids = self.symbols.lookup(symbols)
        if self.byte_ids is not None:
            places = Rows(ids, tf.range(tf.size(ids, tf.int64)))
            unknown, places_of_unknown = octets(tf.where(ids < 0, symbols, ""))
            codes = tf.cast(tf.io.decode_raw(unknown, tf.uint8)[:, 0], tf.int32)
            as_bytes = Rows(tf.gather(tf.constant(self.byte_ids, tf.int64), codes), places_of_unknown)
            return merged(places.kept(ids >= 0), as_bytes).within(Rows(ids, words))
        if self.unk_id is None:
            return Rows(ids, words).kept(ids >= 0)
        ids = Rows(tf.where(ids < 0, tf.constant(self.unk_id, tf.int64), ids), words)
        return fused(ids, self.unk_id) if self.fuse_unk else ids

    def _merged(self, ids):
        """Merge the ids of words, `Rows` both before and after; in each round one pair of each word."""

        def step(ids, rows, ranks):
            best = tf.gather(tf.math.unsorted_segment_min(ranks, rows, 1 + rows[-1]), rows)
            places = Rows(tf.range(tf.size(ids)), rows).kept((ranks == best) & (ranks < NONE))
            places = places.kept(places.starts()).values[:, None]  # the leftmost ones
            ids = tf.tensor_scatter_nd_update(ids, places, tf.gather_nd(ranks, places) % self.size)
            is_left = tf.tensor_scatter_nd_update(tf.ones_like(ids, tf.bool), places + 1, places[:, 0] < 0)
            ids, rows = Rows(ids, rows).kept(is_left)
            return ids, rows, self._ranks(ids, rows)

        shapes = (tf.TensorShape([None]),) * 3
        state = (*ids, self._ranks(*ids))
        *ids, _ = tf.while_loop(lambda _, __, ranks: tf.reduce_any(ranks < NONE), step, state, shapes)
        return Rows(*ids)

    def _ranks(self, ids, rows):
        """The rank of each id's pair with the next one, and the id that they become: rank * size + id, or `NONE`."""
        ranks = self.merges.lookup(ids[:-1] * self.size + ids[1:])
        ranks = tf.where(rows[:-1] == rows[1:], ranks, tf.constant(NONE, tf.int64))
        return tf.concat([ranks, tf.fill([tf.size(ids) - tf.size(ranks)], tf.constant(NONE, tf.int64))], axis=0)
