"""Batches for `fit`: sentence pairs, and texts for masked language modelling.

All are `keras.utils.PyDataset`s that tokenize once, when they are made, and draw a batch by `(seed, epoch,
index)` alone. The batches are cheap, so one worker does.

Texts are an iterable of strings, or of token ids: a list, a generator, or anything with a length and entries. It is
read once, from its beginning to its end, and what is held of it are token ids; strings are encoded some at a time, and
those of a generator are not held. Those of a `TokenFile` stay in it: what is held of them are their lengths. (The
datasets of labelled texts hold texts and labels in lists while they are made.)

Habits of Keras's `fit`: it shuffles the order of batches once more, with Python's `random`, unless it is given
`shuffle=False` (the datasets shuffle by themselves); that of kerasllm's models does so only with `shuffle=True`. With
`steps_per_epoch` it goes on in the middle of a dataset whose order has changed with the epoch, so that some batches
come twice and some not at all. And with two or more workers the first `fit` of a model that is not kerasllm's begins,
after `compile`, with batches that it fetched to build the model.
"""

import contextlib
from collections.abc import Sequence

import keras
import numpy as np

from kerasllm.arguments import (
    check_boolean,
    check_choice,
    check_positive,
    check_rate,
    check_seed,
    check_sequence,
    shown,
)
from kerasllm.text import batches, tokenizer_json
from kerasllm.text.limits import as_array
from kerasllm.text.token_files import CHUNK
from kerasllm.training.file_rows import FileRows, check_parallel, is_of_files, read_files


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
        self._limits = self._checked = self.accumulation = None
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
        how = self.multiple, generator, self.max_length
        if self.batch_tokens is None:
            plan = batches.bucket(self.lengths, self.batch_size, *how)
        else:
            plan = batches.bucket_tokens(self.lengths, self.batch_tokens, *how)
        # Keras on TensorFlow takes the shapes of the first two batches for those of all, and fixes an axis in
        # which they agree. So the widest and the narrowest come first, which are those of fewest and most rows.
        first, rest = plan[:1] + plan[1:][-1:], plan[1:-1]
        if self.shuffle:
            rest = [rest[i] for i in generator.permutation(len(rest))]
        return first + rest

    def on_epoch_end(self):
        if self.shuffle:
            self.epoch += 1

    def epoch_callback(self):
        """A callback for `fit` that tells the dataset which epoch begins; kerasllm's models add it themselves."""
        return EpochCallback(self)

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
            self._limits.check(*keras.utils.unpack_x_y_sample_weight(batch), examples=indices)
        return batch if self.accumulation is None else self.accumulation.weighed(self, batch, index)

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
                    limits.check(*keras.utils.unpack_x_y_sample_weight(batch), examples=indices)
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


class TranslationDataset(BucketedDataset):
    """Sentence pairs for a translator, with teacher forcing.

    A batch is `(inputs, labels)`: `inputs` has `source_token_ids` and `source_padding_mask` (B, S),
    `target_token_ids` and `target_padding_mask` (B, T). The target is `[bos, *target]`, the labels (B, T) are
    `[*target, eos]` with -1 at the padding.

        dataset = TranslationDataset([("Go.", "Ve."), ...], english, spanish, batch_size=64, max_length=32)
        model.fit(dataset, epochs=5)

        files = TokenFile("train.en.tokens"), TokenFile("train.es.tokens")  # written with blank_lines="keep"
        dataset = TranslationDataset(files, english, spanish, batch_tokens=4096, empty="drop")

    Args:
        pairs: iterable of (source, target). Sources are strings, or token ids as `source_tokenizer.encode`
            gives them; targets are strings, or token ids without bos and eos. Or a pair of `TokenFile`s, written
            with these tokenizers from the lines of parallel text: document i of the one is the translation of document
            i of the other. The batches are those of their texts.
        source_tokenizer, target_tokenizer: the target's needs bos and eos.
        start_token_id: `start_token_id` of a model from elsewhere (Marian, BART, T5), in place of bos. Then special
            tokens that the tokenizer adds to a target are part of it, as in their training.
        max_length: the most tokens of a source, and of a target with its bos.
        too_long: what is done with longer pairs: "error" raises, "drop" leaves them out, "truncate" cuts
            them; `num_too_long` counts them.
        empty: what is done with pairs of which a side is blank or has no tokens: "error", or "drop" leaves them out;
            `num_empty` counts them.
        batch_size, batch_tokens, multiple, seed, shuffle, **kwargs: see `BucketedDataset`; 64 pairs by default.
    """

    default_batch_size = 64

    def __init__(
        self,
        pairs,
        source_tokenizer,
        target_tokenizer,
        batch_size=None,
        max_length=64,
        too_long="error",
        multiple=8,
        seed=0,
        shuffle=True,
        start_token_id=None,
        batch_tokens=None,
        empty="error",
        **kwargs,
    ):
        check_positive("max_length", max_length)
        check_tokenizer("source_tokenizer", source_tokenizer)
        check_tokenizer("target_tokenizer", target_tokenizer)
        if start_token_id is not None:
            batches.check_ids([start_token_id], target_tokenizer.vocabulary_size, "start_token_id")
        for role in ("bos", "eos") if start_token_id is None else ("eos",):
            if role not in target_tokenizer.roles:
                raise ValueError(f"target_tokenizer ({target_tokenizer}) must have a token for {role}.")
        check_choice("too_long", too_long, ("error", "drop", "truncate"))
        check_choice("empty", empty, ("error", "drop"))
        self.start = target_tokenizer.bos_id if start_token_id is None else start_token_id
        self.end = target_tokenizer.eos_id
        tokenizers = {"source_tokenizer": source_tokenizer, "target_tokenizer": target_tokenizer}
        read = pairs_of_files if is_of_files(pairs) else pairs_of_texts
        kept, lengths, is_empty = read(pairs, tokenizers, start_token_id, max_length, empty)
        self.num_empty = int(is_empty.sum())
        longest = np.where(is_empty, 0, lengths.max(axis=1))
        self.num_too_long = int((longest > max_length).sum())
        keep = fitting(longest, max_length, too_long, "pairs")
        keep = keep[~is_empty[keep]]
        if not len(keep):
            raise ValueError(f"pairs ({len(longest)} of them) all have an empty side, or are too long.")
        self.sources, self.targets = kept(keep)
        lengths = np.minimum(lengths[keep], max_length)
        super().__init__(lengths, batch_size, multiple, max_length, seed, shuffle, batch_tokens, **kwargs)

    def make_batch(self, indices, widths, generator):
        source_token_ids, source_padding_mask = batches.pad([self.sources[i] for i in indices], widths[0])
        target_inputs, labels = batches.shift([self.targets[i] for i in indices], self.start, self.end)
        target_token_ids, target_padding_mask = batches.pad(target_inputs, widths[1])
        labels, _ = batches.pad(labels, widths[1], value=batches.IGNORED)
        inputs = {
            "source_token_ids": source_token_ids,
            "source_padding_mask": source_padding_mask,
            "target_token_ids": target_token_ids,
            "target_padding_mask": target_padding_mask,
        }
        return inputs, labels

    def plan_ahead(self):
        return self.plan_of_largest(self.sources, self.targets)


class MaskedLMDataset(BucketedDataset):
    """Texts for a masked language model, with new masks in every epoch.

    A batch is `(inputs, labels)`: `inputs` has `token_ids`, `segment_ids` (all 0) and `padding_mask` (B, T),
    and `masked_positions` (B, P); the labels (B, P) are the true ids there, -1 where a row has fewer.

    Args:
        texts: iterable of strings, or of token ids; or a `TokenFile`, or a sequence of those, written with this
            tokenizer. [CLS] and [SEP] are put round each.
        tokenizer: needs cls, sep and mask. Special tokens are neither masked nor drawn as random tokens.
        max_length: the most tokens of a row, [CLS] and [SEP] included.
        too_long: what is done with longer texts: "error" raises, "drop" leaves them out, "truncate" cuts
            them, "split" makes several rows of one; `num_too_long` counts them.
        rate: share of the tokens to mask; see `kerasllm.text.batches.mask_tokens`.
        whole_words: mask all pieces of a word or none.
        segments: whether there are `segment_ids`: for models with two `num_segments` or more.
        batch_size, batch_tokens, multiple, seed, shuffle, **kwargs: see `BucketedDataset`; 32 rows by default.
    """

    def __init__(
        self,
        texts,
        tokenizer,
        batch_size=None,
        max_length=128,
        too_long="error",
        rate=0.15,
        whole_words=False,
        segments=True,
        multiple=32,
        seed=0,
        shuffle=True,
        batch_tokens=None,
        **kwargs,
    ):
        check_positive("max_length", max_length)
        check_rate("rate", rate)
        check_boolean("whole_words", whole_words)
        check_boolean("segments", segments)
        check_choice("too_long", too_long, ("error", "drop", "truncate", "split"))
        check_tokenizer("tokenizer", tokenizer)
        for role in ("cls", "sep", "mask"):
            if role not in tokenizer.roles:
                raise ValueError(f"tokenizer ({tokenizer}) must have a token for {role}.")
        space = max_length - 2
        check_positive("max_length - 2", space)
        files = read_files("texts", texts, ["tokenizer"], [tokenizer]) if is_of_files(texts) else None
        rows = tokenize(texts, tokenizer, "texts") if files is None else None
        sizes = np.array([len(row) for row in rows]) if files is None else np.concatenate([f.lengths for f in files])
        for index in np.flatnonzero(sizes == 0)[:1]:
            raise ValueError(f"texts[{index}] has no tokens: write TokenFiles for this with blank_lines='skip'.")
        keep = fitting(sizes, space, too_long, "texts")
        self.num_too_long = int((sizes > space).sum())
        # Each text has rows that start at multiples of `space`, one where it is not split.
        counts = -(-sizes[keep] // space) if too_long == "split" else np.ones(len(keep), int)
        documents = np.repeat(keep, counts)
        starts = (np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)) * space
        lengths = np.minimum(sizes[documents] - starts, space) + 2
        cls_id, sep_id = tokenizer.cls_id, tokenizer.sep_id
        if files is None:
            parts = ((rows[d], s) for d, s in zip(documents, starts, strict=True))
            self.rows = [np.array([cls_id, *row[s : s + space], sep_id], "int32") for row, s in parts]
        else:
            self.rows = FileRows(files, documents, [cls_id], [sep_id], starts, space)
        self.mask_id = tokenizer.mask_id
        self.rate, self.segments = rate, segments
        self.ordinary = np.ones(tokenizer.vocabulary_size, dtype=bool)
        self.ordinary[tokenizer.special_ids] = False
        self.word_starts = tokenizer.word_starts if whole_words else None
        super().__init__(lengths, batch_size, multiple, max_length, seed, shuffle, batch_tokens, **kwargs)

    def make_batch(self, indices, widths, generator):
        token_ids, padding_mask = batches.pad([self.rows[i] for i in indices], widths[0])
        token_ids, masked_positions, labels = batches.mask_tokens(
            token_ids,
            padding_mask & self.ordinary[token_ids],
            self.mask_id,
            np.flatnonzero(self.ordinary),
            generator,
            self.rate,
            word_starts=None if self.word_starts is None else self.word_starts[token_ids],
            num_positions=max(1, round(self.rate * widths[0])),
        )
        inputs = {
            "token_ids": token_ids,
            "segment_ids": np.zeros_like(token_ids),
            "padding_mask": padding_mask,
            "masked_positions": masked_positions,
        }
        if not self.segments:
            del inputs["segment_ids"]
        return inputs, labels

    def plain_batch(self, indices, widths):
        """Without masks, which take ten times as long: the largest ids are the labels."""
        token_ids, padding_mask = batches.pad([self.rows[i] for i in indices], widths[0])
        inputs = {"token_ids": token_ids, "segment_ids": np.zeros_like(token_ids), "padding_mask": padding_mask}
        if not self.segments:
            del inputs["segment_ids"]
        return inputs | {"masked_positions": token_ids[:, :1] * 0}, token_ids.max(axis=1, keepdims=True)

    def plan_ahead(self):
        return self.plan_of_largest(self.rows)


def pairs_of_texts(pairs, tokenizers, start_token_id, max_length, empty):
    """The rows of (source, target)s, read one after the other.

    Args:
        tokenizers: dict of their arguments' names -> the source's and the target's.
        start_token_id, max_length, empty: as for `TranslationDataset`.

    Returns:
        A function (indices (n,)) -> the sources and the targets of these pairs, no row longer than it may be; the
        lengths of all pairs (N, 2), the target's with its start; and which have an empty side, (N,) bool.
    """
    source, target = tokenizers.values()
    sources = Rows(source, "sources", special_tokens=True, blank_is_empty=True)
    targets = Rows(target, "targets", special_tokens=start_token_id is not None, blank_is_empty=True)
    for index, pair in enumerate(iterated("pairs", pairs)):
        if not isinstance(pair, Sequence | np.ndarray) or isinstance(pair, str | bytes) or len(pair) != 2:
            raise ValueError(f"pairs[{index}] ({shown(pair)}) must be a (source, target).")
        for side, text in zip((sources, targets), pair, strict=True):
            side.add(text)
    rows = [side.read(empty) for side in (sources, targets)]
    if start_token_id is not None:
        rows[1] = [batches.stripped(row, start_token_id, [target.eos_id]) for row in rows[1]]
        rows[1] = [np.array(row, "int32") for row in rows[1]]
    lengths = np.array([(len(a), len(b) + 1) for a, b in zip(*rows, strict=True)])
    is_empty = np.zeros(len(lengths), bool)
    is_empty[[*sources.empty, *targets.empty]] = True

    def kept(keep):
        return [rows[0][i][:max_length] for i in keep], [rows[1][i][: max_length - 1] for i in keep]

    return kept, lengths, is_empty


def pairs_of_files(pairs, tokenizers, start_token_id, max_length, empty):
    """As `pairs_of_texts`, of two `TokenFile`s, whose rows stay in them."""
    files = read_files("pairs", pairs, list(tokenizers), list(tokenizers.values()))
    check_parallel(*files)
    # What tokenizers put round a text is not in the files, but bos and eos, which a `TokenFile` leaves out.
    around = [tokenizer_json.ends(tokenizer.backend)[:2] for tokenizer in tokenizers.values()]
    if start_token_id is None:
        around[1] = [], []
    else:
        before, after = around[1]
        end = tokenizers["target_tokenizer"].eos_id
        around[1] = before[before[:1] == [start_token_id] :], after[:-1] if after[-1:] == [end] else after
    sizes = np.stack([file.lengths for file in files], axis=1)  # (N, 2)
    is_empty = (sizes == 0).any(axis=1)
    for index in np.flatnonzero(is_empty)[:1] if empty == "error" else ():
        side, file = ("source", files[0]) if sizes[index, 0] == 0 else ("target", files[1])
        raise ValueError(
            f"pairs[{index}]: the {side}, document {index} of {str(file.folder)!r}, has no tokens; empty='drop' leaves "
            "such pairs out."
        )
    sizes += np.array([sum(map(len, ends)) for ends in around], sizes.dtype) + np.array([0, 1], sizes.dtype)

    def kept(keep):
        limits = max_length, max_length - 1
        return [FileRows([f], keep, *a, longest=n) for f, a, n in zip(files, around, limits, strict=True)]

    return kept, sizes, is_empty


def tokenize(texts, tokenizer, name, special_tokens=False):
    """Token ids (int32 arrays) of strings; token ids are checked against the vocabulary and kept.

    Args:
        texts: iterable of either, which is read once.
        tokenizer: a `kerasllm.Tokenizer`.
        name: of the argument, for errors.
        special_tokens: whether those of the tokenizer are put round strings.
    """
    rows = Rows(tokenizer, name, special_tokens)
    for text in iterated(name, texts):
        rows.add(text)
    return rows.read()


class Rows:
    """Token ids of texts that come one after the other: strings are encoded some at a time, and not held."""

    def __init__(self, tokenizer, name, special_tokens=False, blank_is_empty=False):
        self.tokenizer, self.name, self.special_tokens = tokenizer, name, special_tokens
        self.blank_is_empty = blank_is_empty
        self.rows, self.empty = [], {}  # and the place of each text that has no tokens -> it
        self.waiting, self.size, self.of_strings = [], 0, None

    def add(self, text):
        """Take a string, or its token ids where those before it were ids."""
        place = len(self.rows) + len(self.waiting)
        self.of_strings = isinstance(text, str) if self.of_strings is None else self.of_strings
        if self.of_strings != isinstance(text, str):
            kind = "a string" if self.of_strings else "token ids"
            raise ValueError(f"{self.name}[{place}] ({shown(text)}) must be {kind} where others are.")
        if self.of_strings:
            self.waiting.append(text)
            self.size += len(text)
            if self.size >= CHUNK:
                self._encode()
            return
        if as_array(f"{self.name}[{place}]", text).ndim != 1:
            raise ValueError(f"{self.name}[{place}] ({shown(text)}) must be a string or a flat list of token ids.")
        batches.check_ids(text, self.tokenizer.vocabulary_size, f"{self.name}[{place}]")
        if len(text) == 0:
            self.empty[place] = text
        self.rows.append(np.asarray(text, dtype="int32"))

    def _encode(self):
        rows = self.tokenizer.encode_batch(self.waiting, special_tokens=self.special_tokens)
        for text, row in zip(self.waiting, rows, strict=True):
            if len(row) == 0 or self.blank_is_empty and not text.strip():
                self.empty[len(self.rows)] = text
            self.rows.append(np.asarray(row, dtype="int32"))
        self.waiting, self.size = [], 0

    def read(self, empty="error"):
        """All rows: a list of (T,) int32. Of texts without tokens the first is named, unless `empty` is "drop"."""
        if self.waiting:
            self._encode()
        if not self.rows:
            raise ValueError(f"{self.name} must not be empty.")
        for place, text in self.empty.items() if empty == "error" else ():
            raise ValueError(f"{self.name}[{place}] ({shown(text)}) has no tokens.")
        return self.rows


def iterated(name, values):
    """An iterator over an argument; what has a length and entries, and does not say how to iterate, ends at its length.

    Raises:
        ValueError: it is a string, a mapping, a set, or no iterable.
    """
    check_sequence(name, values)
    if not hasattr(values, "__iter__") and hasattr(values, "__len__"):
        return (values[index] for index in range(len(values)))
    return iter(values)


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
