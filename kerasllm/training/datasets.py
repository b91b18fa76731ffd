"""The base of the datasets: batches for `fit`.

All are `keras.utils.PyDataset`s that tokenize once, when they are made, and draw a batch by `(seed, epoch,
index)` alone. The batches are cheap, so one worker does.

Habits of Keras's `fit`: it shuffles the order of batches once more, with Python's `random`, unless it is given
`shuffle=False` (the datasets shuffle by themselves); that of kerasllm's models does so only with `shuffle=True`. With
`steps_per_epoch` it goes on in the middle of a dataset whose order has changed with the epoch, so that some batches
come twice and some not at all. And with two or more workers the first `fit` of a model that is not kerasllm's begins,
after `compile`, with batches that it fetched to build the model.
"""

import contextlib

import keras
import numpy as np

from kerasllm.arguments import check_boolean, check_from_zero, check_positive, check_seed, shown
from kerasllm.text import batches
from kerasllm.training.file_rows import FileRows
from kerasllm.training.shards import Shard


class BucketedDataset(keras.utils.PyDataset):
    """The base of the datasets: examples of like length in a batch, a new order in every epoch.

    `fit` of kerasllm's models begins with a check that they can read and learn all examples; the errors name one.

    Attributes:
        epoch: counts up at the end of each epoch, and once at the start of each `fit`: epoch e of the first `fit` has
            the order of `epoch` e + 1. A second `fit` goes on counting, unless it begins at an `initial_epoch` above 0,
            its own or that of `keras.callbacks.BackupAndRestore`: then it has the orders that the first would have had.
            Dropout and Keras's own shuffling draw anew all the same. Models that are not kerasllm's need
            `epoch_callback()` for that.

    Args:
        lengths: (N,) or (N, C) int, the lengths that decide an example's batch.
        batch_size: examples in a batch. Every batch is full but one. Default: `default_batch_size` of the class.
        multiple: batches are padded to multiples of it, but not beyond `max_length`; larger ones give fewer shapes
            to compile.
        max_length: the most tokens of an example.
        seed: a non-negative int.
        shuffle: draw a new order (and a new mask) in every epoch. False, for evaluation: the same every time.
        batch_tokens: in place of `batch_size` the most tokens of a batch, rows x width, padding included, of the wider
            side; see `kerasllm.text.batches.bucket_tokens`. Then batches differ in their rows too, a number for each
            width. With several `steps_per_execution` TensorFlow and JAX take each as a step of its own shape, too;
            Keras refuses them on PyTorch, for all data.
        **kwargs: `workers`, `use_multiprocessing`, `max_queue_size` of `keras.utils.PyDataset`.
    """

    default_batch_size = 32

    def __init__(self, lengths, batch_size, multiple, max_length, seed, shuffle, batch_tokens=None, **kwargs):
        super().__init__(**kwargs)
        if batch_size is None and batch_tokens is None:
            batch_size = self.default_batch_size
        if batch_tokens is None:
            check_positive("batch_size", batch_size)
        else:
            check_batch_tokens(batch_tokens, batch_size, lengths)
        check_positive("multiple", multiple)
        check_seed("seed", seed)
        check_boolean("shuffle", shuffle)
        self.lengths = lengths
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.multiple = multiple
        self.max_length = max_length
        self.seed = seed
        self.shuffle = shuffle
        self._limits = self._checked = self.accumulation = self._shard = None
        self.epoch = 0

    def make_batch(self, indices, widths, generator):
        """The batch of the examples at `indices`, padded to `widths`; all chance comes from `generator`."""
        raise NotImplementedError

    def plain_batch(self, indices, widths):
        """What `make_batch` gives as far as it can break a model's limits, which is checked ahead of `fit`."""
        return self.make_batch(indices, widths, np.random.default_rng(self.seed))

    def batches_ahead(self):
        """The indices of examples and their `plain_batch`, of all that may break a model's limits."""
        for indices, widths in self.plan_ahead():
            yield indices, self.plain_batch(indices, widths)

    def plan_ahead(self):
        """The batches, (indices, widths), that are checked ahead of `fit`: those of this epoch."""
        return self._plan

    def plan_of_largest(self, *sides):
        """As `plan_ahead`: of rows in files the widest batch and those with the largest ids, which stand for all."""
        largest = [side.holders_of_largest() if isinstance(side, FileRows) else None for side in sides]
        if None in largest:
            return self._plan
        indices = np.unique(np.concatenate(largest))
        return [self._plan[0], (indices, tuple(self.lengths[indices].reshape(len(indices), -1).max(axis=0)))]

    @property
    def epoch(self):
        """The epoch whose batches the dataset gives now."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch):
        self._epoch, self._plan, self._passed = epoch, self._plan_of(epoch), 0

    def _plan_of(self, epoch):
        """The batches of an epoch: a list of (indices, widths)."""
        generator = np.random.default_rng([self.seed, epoch]) if self.shuffle else None
        plan = self.draw(generator)
        # Keras on TensorFlow takes the shapes of the first two batches for those of all, and fixes an axis in
        # which they agree. So the widest and the narrowest come first, which are those of fewest and most rows.
        first, rest = plan[:1] + plan[1:][-1:], plan[1:-1]
        if self.shuffle:
            rest = [rest[i] for i in generator.permutation(len(rest))]
        return first + rest

    def draw(self, generator):
        """Batches for an epoch, a list of (indices, widths), of which the first and the last are most unlike."""
        how = self.multiple, generator, self.max_length
        if self.batch_tokens is None:
            return batches.bucket(self.lengths, self.batch_size, *how)
        return batches.bucket_tokens(self.lengths, self.batch_tokens, *how)

    def on_epoch_end(self):
        if self.shuffle:
            self.epoch += 1

    def epoch_callback(self):
        """A callback for `fit` that tells the dataset which epoch begins; kerasllm's models add it themselves."""
        return EpochCallback(self)

    def rows_of(self, indices):
        """The example of each row of the batch of the examples at `indices`, which errors name."""
        return indices

    def examples_of(self, index):
        """The places of the examples in the batch `index` of this epoch, among those that are kept: (B,) int."""
        return self._plan[index][0]

    def __len__(self):
        return len(self._plan)

    def pass_over(self, count):
        """Give one batch for so many times in this epoch, and not make those that a resumed run does not look at."""
        self._stand_in, self._passed = self[0], count

    def description(self):
        """Plain values and arrays that tell this dataset from others: its settings, lengths and some examples."""
        some = np.unique(np.linspace(0, len(self.lengths) - 1, 256).astype(int))
        ((_, widths),) = batches.bucket(self.lengths[some], len(some), self.multiple, None, self.max_length)
        size = "batch_size" if self.batch_tokens is None else "batch_tokens"
        settings = (size, "multiple", "max_length", "seed", "shuffle")
        return {
            "class": type(self).__name__,
            **{name: getattr(self, name) for name in settings},
            "lengths": self.lengths,
            "examples": self.plain_batch(some, widths),
        }

    def __getitem__(self, index):
        if self._passed:
            self._passed -= 1
            return self._stand_in
        indices, widths = self._plan[index]
        batch = self._batch(self._plan, self.epoch, index)
        if self._limits:
            self._limits.check(*keras.utils.unpack_x_y_sample_weight(batch), examples=self.rows_of(indices))
        batch = batch if self.accumulation is None else self.accumulation.weighed(self, batch, index)
        return batch if self._shard is None else self._shard.of(batch)

    def shard(self, index, count):
        """Give from now on the rows of each batch that one of several processes takes, for a loop of one's own.

        All processes have the same batches, in the same order, and together all rows of each: as many as the others, or
        one less. `fit` and `evaluate` of kerasllm's models do this by themselves.

        Args:
            index: which process this is, from 0.
            count: how many there are.

        Returns:
            The dataset.
        """
        check_positive("count", count)
        check_from_zero("index", index)
        if index >= count:
            raise ValueError(f"index ({index}) must be below count ({count}).")
        self._shard = Shard(index, count)
        return self

    @contextlib.contextmanager
    def sharded(self, shard):
        """Inside it, batches have the rows of one process, a `Shard`; kerasllm's models enter it."""
        before, self._shard = self._shard, shard
        try:
            yield
        finally:
            self._shard = before

    def _batch(self, plan, epoch, index):
        return self.make_batch(*plan[index], np.random.default_rng([self.seed, epoch, index]))

    def batch_of(self, epoch, index):
        """The batch that `self[index]` is, was or will be in an epoch."""
        return self._batch(self._plan if epoch == self.epoch else self._plan_of(epoch), epoch, index)

    @contextlib.contextmanager
    def accumulated(self, accumulation):
        """Inside it, batches carry their shares of an update: an `Accumulation`; kerasllm's models enter it."""
        self.accumulation = accumulation
        try:
            yield
        finally:
            self.accumulation = None

    @contextlib.contextmanager
    def kept_to(self, limits, ahead=False):
        """Inside it, a batch that a model cannot read or learn raises `ValueError`; kerasllm's models enter it.

        Args:
            limits: the model's, a `kerasllm.training.limits.Limits`.
            ahead: whether all batches of this epoch are checked now, unless they were for equal limits.
        """
        before, self._limits = self._limits, limits
        try:
            if ahead and limits != self._checked:
                for indices, batch in self.batches_ahead():
                    limits.check(*keras.utils.unpack_x_y_sample_weight(batch), examples=self.rows_of(indices))
                self._checked = limits
            yield
        finally:
            self._limits = before

    def arrays(self):
        """All examples in their order as one batch: plain arrays for `fit(x, y)`."""
        ((indices, widths),) = batches.bucket(self.lengths, len(self.lengths), self.multiple, None, self.max_length)
        order = np.argsort(indices)
        return self.make_batch(indices[order], widths, np.random.default_rng([self.seed, self.epoch]))


class EpochCallback(keras.callbacks.Callback):
    """Sets a dataset's epoch at the beginning of each epoch of `fit`: before workers fetch the first batch."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset, self.before = dataset, None

    def on_train_begin(self, logs=None):
        self.before = None  # the number of epochs in earlier fits

    def on_epoch_begin(self, epoch, logs=None):
        if self.before is None:
            self.before = 0 if epoch else self.dataset.epoch - 1
        current = self.before + epoch + 1
        if self.dataset.shuffle and self.dataset.epoch != current:
            self.dataset.epoch = current
        if self.dataset.accumulation is not None:
            self.dataset.accumulation.begin(self.model.optimizer)


def check_batch_tokens(batch_tokens, batch_size, lengths):
    """Raise `ValueError` unless batches of at most so many tokens hold every example, and nothing else is said."""
    check_positive("batch_tokens", batch_tokens)
    if batch_size is not None:
        raise ValueError(
            f"batch_tokens ({batch_tokens}) takes the place of batch_size ({shown(batch_size)}): give one of the two."
        )
    longest = lengths.reshape(len(lengths), -1).max(axis=1)
    if longest.max() > batch_tokens:
        raise ValueError(
            f"batch_tokens ({batch_tokens}) must be as many as the longest example has: of those that are kept example "
            f"{longest.argmax()} has {longest.max()} tokens."
        )


def check_tokenizer(name, tokenizer):
    """Raise `ValueError` for what encodes no texts, such as None or a path."""
    if not hasattr(tokenizer, "encode_batch"):
        raise ValueError(f"{name} ({shown(tokenizer)}) must be a kerasllm.Tokenizer.")


def fitting(lengths, limit, too_long, name):
    """The indices of the examples to keep: all, or with `too_long="drop"` those of at most `limit` tokens."""
    over = np.flatnonzero(lengths > limit)
    if too_long == "error" and len(over):
        raise ValueError(
            f"{name}[{over[0]}] has {lengths[over[0]]} tokens, more than {limit}, as have {len(over)} of "
            f"{len(lengths)}: raise max_length, or say with too_long what to do."
        )
    keep = np.flatnonzero(lengths <= limit) if too_long == "drop" else np.arange(len(lengths))
    if not len(keep):
        raise ValueError(f"{name} all have more than {limit} tokens; raise max_length or truncate.")
    return keep
