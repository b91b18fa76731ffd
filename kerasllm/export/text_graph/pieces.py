"""Words to ids by the pieces they are made of: WordLevel, WordPiece and Unigram.

A model takes words (W,), none of them empty, and gives their ids (int64) as `Rows`, one row for a word.
"""

import tensorflow as tf

from kerasllm.export.text_graph.normalization import id_table
from kerasllm.export.text_graph.rows import Rows, before, characters, from_table

NEVER = -float("inf")


class WordLevel(tf.Module):
    """Each word is one token, or the unknown one."""

    def __init__(self, vocabulary, unk_id):
        super().__init__()
        self.table, self.unk_id = id_table(list(vocabulary), list(vocabulary.values())), unk_id

    def __call__(self, words):
        ids = self.table.lookup(words)
        ids = tf.where(ids < 0, tf.constant(self.unk_id, tf.int64), ids)
        return Rows(ids, tf.range(tf.size(ids, tf.int64)))

    def sizes(self, ids, words):
        """How many characters each of the tokens has, `ids` as they were found for `words`: (N,)."""
        return tf.strings.length(words, unit="UTF8_CHAR")


class WordPiece(tf.Module):
    """From the left the longest piece that fits, again and again; a word with a rest is one unknown token.

    Args:
        vocabulary: dict piece -> id.
        unk_id: the id of the unknown token.
        prefix: what stands before pieces that continue a word.
        max_length: longer words, in characters, are unknown.
    """

    def __init__(self, vocabulary, unk_id, prefix, max_length):
        super().__init__()
        self.table = id_table(list(vocabulary), list(vocabulary.values()))
        self.unk_id, self.prefix, self.max_length = unk_id, prefix, max_length
        self.longest = max(map(len, vocabulary))
        sizes = {i: len(piece) - len(prefix) * piece.startswith(prefix) for piece, i in vocabulary.items()}
        self.piece_sizes = tf.constant([sizes.get(i, 0) for i in range(max(sizes) + 1)])

    def sizes(self, ids, words):
        """How many characters each of the tokens has, `ids` as they were found for `words`: (N,)."""
        whole = tf.gather(tf.strings.length(words, unit="UTF8_CHAR"), ids.rows)
        return tf.where(ids.values == self.unk_id, whole, tf.gather(self.piece_sizes, ids.values))

    def __call__(self, words):
        letters = characters(words)
        ids, sizes = self._longest_from(letters)  # (N,) both
        ids, sizes = (Rows(x, letters.rows).table(tf.size(words), 0) for x in (ids, sizes))  # (W, L) both
        lengths = tf.math.unsorted_segment_sum(tf.ones_like(letters.rows, tf.int32), letters.rows, tf.size(words))

        def step(position, size, taken):
            here = tf.one_hot(position, tf.shape(ids)[1], True, False, dtype=tf.bool)
            size = tf.reduce_sum(tf.where(here, sizes, 0), axis=1)
            # Behind the end of the word, or where no piece fits, a position stays as it is.
            return position + size, size, taken | (here & (size > 0)[:, None])

        start = tf.zeros_like(lengths), tf.ones_like(lengths), tf.zeros_like(sizes, tf.bool)
        position, _, taken = tf.while_loop(lambda _, size, __: tf.reduce_any(size > 0), step, start)
        is_known = ((position == lengths) & (lengths <= self.max_length))[:, None]
        taken = tf.where(is_known, taken, tf.range(tf.shape(ids)[1])[None] == 0)
        return from_table(tf.where(is_known, ids, tf.constant(self.unk_id, tf.int64)), taken)

    def _longest_from(self, letters):
        """From each character the longest piece that fits: its id, and its length or 0; (N,) both."""
        text = tf.where(letters.starts(), "", self.prefix)
        ids, sizes = tf.zeros_like(text, tf.int64), tf.zeros_like(text, tf.int32)

        def step(size, text, end, ids, sizes):
            is_inside = tf.gather(letters.rows, tf.minimum(end, last)) == letters.rows
            is_inside &= end <= last
            text = tf.strings.join([text, tf.gather(letters.values, tf.minimum(end, last))])
            found = tf.where(is_inside, self.table.lookup(text), -1)
            ids, sizes = tf.where(found < 0, ids, found), tf.where(found < 0, sizes, size)
            return size + 1, text, end + 1, ids, sizes

        last = tf.size(text) - 1
        limit = tf.where(last < 0, 0, self.longest)
        state = (1, text, tf.range(tf.size(text)), ids, sizes)
        *_, ids, sizes = tf.while_loop(lambda size, *_: size <= limit, step, state)
        return ids, sizes


class Unigram(tf.Module):
    """The pieces whose scores have the largest sum (Kudo, 2018, https://arxiv.org/abs/1804.10959).

    Of equal sums the one with the longer last piece wins, at every place: as in the `tokenizers` package.

    Args:
        pieces: list of (piece, score), in the order of ids.
        unk_id: the id of the unknown piece; runs of unknown characters are one token.
    """

    def __init__(self, pieces, unk_id):
        super().__init__()
        ids = {piece: i for i, (piece, _) in enumerate(pieces)}
        scores = [score for _, score in pieces]
        self.table = id_table(list(ids), list(ids.values()))
        self.scores = tf.constant([*scores, min(scores) - 10.0], tf.float64)  # the last one: of the unknown
        self.unk_id = unk_id
        self.longest = max(map(len, ids))

    def __call__(self, words):
        letters = characters(words)
        ids, scores = self._pieces_to(letters)  # (N, K) both
        sizes = self._best_sizes(Rows(scores, letters.rows).table(tf.size(words), 0.0))  # (W, L)
        lengths = tf.math.unsorted_segment_sum(tf.ones_like(letters.rows, tf.int32), letters.rows, tf.size(words))

        def step(end, taken):
            here = tf.one_hot(end - 1, tf.shape(sizes)[1], True, False, dtype=tf.bool)
            return end - tf.reduce_sum(tf.where(here, sizes, 0), axis=1), taken | here

        start = lengths, tf.zeros_like(sizes, tf.bool)
        _, taken = tf.while_loop(lambda end, _: tf.reduce_any(end > 0), step, start)
        is_inside = tf.sequence_mask(lengths)
        best = tf.gather(ids, tf.boolean_mask(sizes, is_inside) - 1, axis=1, batch_dims=1)  # (N,)
        return fused(Rows(best, letters.rows).kept(tf.boolean_mask(taken, is_inside)), self.unk_id)

    def _pieces_to(self, letters):
        """The pieces of each size that end with each character: ids and scores, (N, K) both.

        A single character that is no piece is the unknown one.
        """
        unknown = tf.shape(self.scores, tf.int64)[0] - 1

        def step(size, text, start, ids, scores):
            is_inside = tf.gather(letters.rows, tf.maximum(start, 0)) == letters.rows
            is_inside &= start >= 0
            text = tf.strings.join([tf.gather(letters.values, tf.maximum(start, 0)), text])
            id_ = tf.where(is_inside, self.table.lookup(text), -1)
            is_unknown = (id_ < 0) & (size == 0)
            score = tf.gather(self.scores, tf.where(is_unknown, unknown, tf.maximum(id_, 0)))
            score = tf.where((id_ < 0) & ~is_unknown, tf.constant(NEVER, tf.float64), score)
            id_ = tf.where(is_unknown, tf.constant(self.unk_id, tf.int64), id_)
            return size + 1, text, start - 1, ids.write(size, id_), scores.write(size, score)

        count = tf.size(letters.values)
        longest = tf.reduce_max(tf.math.unsorted_segment_sum(tf.ones_like(letters.rows), letters.rows, count + 1))
        sizes = tf.clip_by_value(tf.cast(longest, tf.int32), 1, self.longest)
        arrays = [tf.TensorArray(dtype, sizes, element_shape=[None]) for dtype in (tf.int64, tf.float64)]
        state = (0, tf.zeros_like(letters.values), tf.range(count), *arrays)
        *_, ids, scores = tf.while_loop(lambda size, *_: size < sizes, step, state)
        return tf.transpose(ids.stack()), tf.transpose(scores.stack())

    def _best_sizes(self, scores):
        """The size of the last piece of the best segmentation up to each position: (W, L)."""
        words, length, count = tf.unstack(tf.shape(scores))
        scores = tf.reverse(scores, [2])  # the longest piece first, which argmax then prefers
        best = tf.concat(
            [tf.fill([words, count - 1], tf.constant(NEVER, tf.float64)), tf.zeros([words, 1], tf.float64)], 1
        )  # up to each of the last `count` positions

        def step(end, best, sizes):
            sums = scores[:, end] + best  # (W, K)
            size = count - tf.argmax(sums, axis=1, output_type=tf.int32)
            best = tf.concat([best[:, 1:], tf.reduce_max(sums, axis=1)[:, None]], axis=1)
            return end + 1, best, tf.concat([sizes, size[:, None]], axis=1)

        *_, sizes = tf.while_loop(
            lambda end, *_: end < length,
            step,
            (0, best, tf.zeros([words, 0], tf.int32)),
            (tf.TensorShape([]), tf.TensorShape([None, None]), tf.TensorShape([None, None])),
        )
        return sizes


def fused(ids, unk_id):
    """Of neighbouring unknown tokens in a word only the first, in `Rows`."""
    is_unknown = ids.values == unk_id
    return ids.kept(~(is_unknown & before(is_unknown, False)) | ids.starts())
