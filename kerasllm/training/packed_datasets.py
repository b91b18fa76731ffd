"""Batches for `fit` of causal language models: blocks of running text, made when they are asked for."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kerasllm.arguments import check_positive, check_positive_number, shown
from kerasllm.text import batches
from kerasllm.text.shuffling import permuted
from kerasllm.text.token_files import TokenFile, id_dtype
from kerasllm.training.datasets import BucketedDataset, check_tokenizer, tokenize


class LanguageModelDataset(BucketedDataset):
    """Documents for a causal language model, packed into blocks: every token is predicted once an epoch.

    A batch is `(inputs, labels)`: `inputs` has `token_ids` and `padding_mask` (B, T), the labels (B, T) are
    the next tokens. Only the last block is padded, with label -1.

        tokens = TokenFile.write("wiki.tokens", "wiki/", tokenizer)  # once
        dataset = LanguageModelDataset(tokens, tokenizer, sequence_length=1024)

        code, prose = TokenFile("code.tokens"), TokenFile("prose.tokens")
        dataset = LanguageModelDataset([code, prose], tokenizer, weights=[0.3, 0.7])

    An epoch's order is computed from `(seed, epoch)`, one batch at a time; of a `TokenFile` no more is read than the
    batches that are asked for.

    Args:
        documents: sequence of strings, or of token ids; or a `TokenFile`, or a sequence of those.
        tokenizer: its bos and eos, as far as it has them, are put round each document; where both are one
            token it stands once between two documents. A `TokenFile` must have been written with it.
        sequence_length: T.
        weights: for each of several `TokenFile`s its share of the blocks of an epoch, which has as many as all of them
            together; they need not add up to 1. A file whose share is smaller than it is goes on in the next epoch
            with what it had not given, one whose share is larger begins anew, in another order. Default: each file's
            size, so that every block comes once.
        batch_size, seed, shuffle, **kwargs: see `BucketedDataset`.

    Attributes:
        sources: list of what blocks are cut from, each with `ids` (N,), the running text.

    Raises:
        ValueError: a file is of another tokenizer, there are fewer than two tokens, or weights are not positive.
    """

    def __init__(
        self,
        documents,
        tokenizer,
        batch_size=32,
        sequence_length=128,
        seed=0,
        shuffle=True,
        weights=None,
        **kwargs,
    ):
        check_positive("sequence_length", sequence_length)
        check_tokenizer("tokenizer", tokenizer)
        self.sources = _sources(documents, tokenizer)
        sizes = [-(-(len(source.ids) - 1) // sequence_length) for source in self.sources]
        for source, size in zip(self.sources, sizes, strict=True):
            if size < 1:
                raise ValueError(f"documents hold {len(source.ids)} tokens; there must be at least 2.")
        self.shares = Shares(sizes, _counts(sizes, weights))
        lengths = np.broadcast_to(sequence_length, (sum(sizes),))
        super().__init__(lengths, batch_size, sequence_length, sequence_length, seed, shuffle, **kwargs)

    def make_batch(self, indices, widths, generator):
        (length,) = widths
        rows = [self._block(*self.shares.place(index), length + 1) for index in indices]
        token_ids, padding_mask = batches.pad([row[:-1] for row in rows], length)
        labels, _ = batches.pad([row[1:] for row in rows], length, value=batches.IGNORED)
        return {"token_ids": token_ids, "padding_mask": padding_mask}, labels

    def _block(self, source, number, length):
        start = number * (length - 1)
        return self.sources[source].ids[start : start + length].astype("int32")

    def _plan_of(self, epoch):
        return Plan(self.shares, self.batch_size, self.max_length, self.seed if self.shuffle else None, epoch)

    def batches_ahead(self):
        """Of each source the block with the first of its largest ids: if a model can read it, it can read all."""
        for number, source in enumerate(self.sources):
            index = self.shares.first_of(number) + max(source.largest_at - 1, 0) // self.max_length
            yield [index], self.make_batch([index], (self.max_length,), None)

    def description(self):
        """Plain values and arrays that tell this dataset from others, as those of its base; and its shares."""
        return {**super().description(), "counts": self.shares.counts}


@dataclasses.dataclass(frozen=True)
class Shares:
    """Which blocks of several sources an epoch has.

    Blocks are numbered through all sources, those of the first before those of the second.

    Args:
        sizes: list of the numbers of blocks that sources have.
        counts: list of the numbers of blocks that an epoch has of each.
    """

    sizes: list
    counts: list

    def first_of(self, source):
        """The number of a source's first block."""
        return sum(self.sizes[:source])

    def place(self, index):
        """The source of a block, and its number there."""
        source = 0
        while index >= self.sizes[source]:
            index, source = index - self.sizes[source], source + 1
        return source, int(index)

    def blocks(self, places, epoch, seed=None):
        """The blocks at some places (b,) of an epoch: (b,) int; in their order where there is no seed."""
        if seed is not None:
            places = permuted(places, sum(self.counts), seed, epoch)
        sources = np.searchsorted(np.cumsum(self.counts), places, side="right")
        found = np.empty(len(places), int)
        for source in np.unique(sources):
            # The source's blocks follow one another through all epochs, each time it begins anew in another order.
            size, count = self.sizes[source], self.counts[source]
            numbers = places[sources == source] - sum(self.counts[:source]) + epoch * count * (seed is not None)
            inside = numbers % size
            for turn in np.unique(numbers // size) if seed is not None else ():
                now = numbers // size == turn
                inside[now] = permuted(inside[now], size, seed, source, turn)
            found[sources == source] = self.first_of(source) + inside
        return found


@dataclasses.dataclass(frozen=True)
class Plan(Sequence):
    """The batches of an epoch, each made when it is asked for: (indices (b,), (T,)).

    The last, which may have fewer rows, comes second, as `BucketedDataset` has it.
    """

    shares: Shares
    batch_size: int
    length: int
    seed: int | None
    epoch: int

    def __len__(self):
        return -(-sum(self.shares.counts) // self.batch_size)

    def __getitem__(self, index):
        index = range(len(self))[index]
        index = len(self) - 1 if index == 1 else max(index - 1, 0)
        end = min((index + 1) * self.batch_size, sum(self.shares.counts))
        places = np.arange(index * self.batch_size, end)
        return self.shares.blocks(places, self.epoch, self.seed), (self.length,)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids in memory, as far as they are like a `TokenFile`'s."""

    ids: np.ndarray

    @property
    def largest_at(self):
        """The place of the first of the largest ids."""
        return int(self.ids.argmax())


def _sources(documents, tokenizer):
    """What blocks are cut from: `TokenFile`s, or documents one after the other."""
    files = [documents] if isinstance(documents, TokenFile) else documents
    if not isinstance(files, list | tuple) or not any(isinstance(file, TokenFile) for file in files):
        rows = tokenize(documents, tokenizer, "documents")
        return [Tokens(batches.stream(rows, tokenizer.bos_id, tokenizer.eos_id, id_dtype(tokenizer)))]
    for index, file in enumerate(files):
        if not isinstance(file, TokenFile):
            raise ValueError(f"documents[{index}] ({shown(file)}) must be a TokenFile where others are.")
        file.check_tokenizer("tokenizer", tokenizer)
    return list(files)


def _counts(sizes, weights):
    """How many blocks an epoch has of each source: whole numbers, as nearly as can be in proportion to the weights."""
    if weights is None:
        return sizes
    weights = list(weights)
    if len(weights) != len(sizes):
        raise ValueError(f"weights ({shown(weights)}) must be as many as there are TokenFiles, {len(sizes)}.")
    for index, weight in enumerate(weights):
        check_positive_number(f"weights[{index}]", weight)
    exact = np.array(weights) / sum(weights) * sum(sizes)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: sum(sizes) - counts.sum()]] += 1
    if not counts.all():
        raise ValueError(
            f"weights[{counts.argmin()}] ({weights[counts.argmin()]}) is less than a block's share of an epoch."
        )
    return counts.tolist()
