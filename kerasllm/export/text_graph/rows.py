"""Values in rows of different lengths."""

from typing import NamedTuple

import tensorflow as tf

CUT = b"\xff"  # no byte of UTF-8, so that no regular expression reaches across it


class Rows(NamedTuple):
    """Values (N,), each with the number (N,) of its row, in order; some rows may have none.

    `tf.RaggedTensor` does the same with many more operations, most of them checks.
    """

    values: tf.Tensor
    rows: tf.Tensor

    def kept(self, mask):
        """The values where a mask (N,) is True."""
        places = tf.where(mask)[:, 0]
        return Rows(tf.gather(self.values, places), tf.gather(self.rows, places))

    def within(self, outer):
        """The same values in the rows of `outer`; their own rows are its values."""
        return Rows(self.values, tf.gather(outer.rows, self.rows))

    def starts(self):
        """Whether a value is the first of its row: (N,)."""
        return self.rows != before(self.rows, -1)

    def sizes(self, num_rows):
        """How many values each row has: (num_rows,)."""
        return tf.math.unsorted_segment_sum(tf.ones_like(self.rows), self.rows, num_rows)

    def shortened(self, most, sizes):
        """The first values of each row, so many as `most` (num_rows,) says; the rows have `sizes` (num_rows,)."""
        firsts = tf.cumsum(sizes, exclusive=True)
        return self.kept(
            tf.range(tf.size(self.rows, tf.int64)) - tf.gather(firsts, self.rows) < tf.gather(most, self.rows)
        )

    def table(self, num_rows, default):
        """The rows as (num_rows, T), or of values (N, K) as (num_rows, T, K), with `default` behind their ends."""
        return tf.raw_ops.RaggedTensorToTensor(
            shape=tf.constant(-1, tf.int64),
            values=self.values,
            default_value=tf.constant(default, self.values.dtype),
            row_partition_tensors=[tf.cast(num_rows, tf.int64), self.rows],
            row_partition_types=["FIRST_DIM_SIZE", "VALUE_ROWIDS"],
        )


def merged(*parts):
    """Rows that hold in turn the values of each part."""
    values, rows = (tf.concat(tensors, axis=0) for tensors in zip(*parts, strict=True))
    order = tf.argsort(rows, stable=True)
    return Rows(tf.gather(values, order), tf.gather(rows, order))


def from_table(table, mask):
    """The values of a matrix (B, T) where a mask is True."""
    places = tf.where(mask)
    return Rows(tf.gather_nd(table, places), places[:, 0])


def characters(texts):
    """The characters of texts (N,)."""
    return _from_ragged(tf.strings.unicode_split(texts, "UTF-8"))


def cut(texts):
    """What is between the cuts in texts (N,), without empty strings."""
    split = tf.raw_ops.StringSplitV2(input=texts, sep=CUT)
    return Rows(split.values, split.indices[:, 0]).kept(split.values != "")


def octets(texts):
    """The bytes of texts (N,), as strings."""
    return _from_ragged(tf.strings.bytes_split(texts))


def _from_ragged(ragged):
    places = tf.range(tf.size(ragged.values, tf.int64))
    return Rows(ragged.values, tf.searchsorted(ragged.row_splits, places, "right", tf.int64) - 1)


def before(values, default):
    """To values (N,), the value before each."""
    return tf.concat([tf.constant([default], values.dtype), values[:-1]], axis=0)[: tf.size(values)]
