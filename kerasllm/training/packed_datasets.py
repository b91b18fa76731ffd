"""Batches for `fit` of causal language models: rows of running text or of documents, made when they are asked for."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kerasllm.arguments import check_choice, check_positive, check_positive_number, shown
from kerasllm.text import batches
from kerasllm.text.packing import best_fit
from kerasllm.text.shuffling import permuted
from kerasllm.text.token_files import id_dtype
from kerasllm.training.datasets import BucketedDataset, check_tokenizer
from kerasllm.training.file_rows import is_of_files, read_files
from kerasllm.training.text_rows import tokenize


class LanguageModelDataset(BucketedDataset):
    """Documents for a causal language model, packed into rows: every token is predicted once an epoch.

    A batch is `(inputs, labels)`: `inputs` has `token_ids` and `padding_mask` (B, T), the labels (B, T) are
    the next tokens, -1 at padding. How documents share rows is `packing`:

    - "wrapped": rows are cut from the running text, and only the last is padded. A token sees what stands before it in
      its row, of whichever document; documents are cut where a row ends.
    - "best_fit": whole documents, each put where it fits best (Ding et al. 2024, arXiv:2404.10830); only one that is
      longer than a row is cut. `inputs` has `position_ids` (B, T) as well, which begin anew with each document; no
      token sees another document, which is for a `GPT` alone. Few rows are padded.

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
        packing: "wrapped" or "best_fit".
        weights: for each of several `TokenFile`s its share of the rows of an epoch, which has as many as all of them
            together; they need not add up to 1. A file whose share is smaller than it is goes on in the next epoch
            with what it had not given, one whose share is larger begins anew, in another order. Default: each file's
            size, so that every row comes once.
        batch_size, seed, shuffle, **kwargs: see `BucketedDataset`.

    Attributes:
        sources: list of what rows are made of, a `Wrapped` or `Packed` for each file.

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
        packing="wrapped",
        **kwargs,
    ):
        check_positive("batch_size", batch_size)
        check_positive("sequence_length", sequence_length)
        check_tokenizer("tokenizer", tokenizer)
        check_choice("packing", packing, PACKINGS)
        self.sources = [PACKINGS[packing](tokens, sequence_length) for tokens in _all_tokens(documents, tokenizer)]
        sizes = list(map(len, self.sources))
        self.shares = Shares(sizes, _counts(sizes, weights))
        lengths = np.broadcast_to(sequence_length, (sum(sizes),))
        super().__init__(lengths, batch_size, sequence_length, sequence_length, seed, shuffle, **kwargs)

    def make_batch(self, indices, widths, generator):
        rows = [self.sources[source].row(number) for source, number in map(self.shares.place, indices)]
        inputs, mask = {}, None
        for name in rows[0]:
            value = batches.IGNORED if name == "labels" else 0
            inputs[name], mask = batches.pad([row[name] for row in rows], *widths, value=value)
        labels = inputs.pop("labels")
        return inputs | {"padding_mask": mask}, labels

    def _plan_of(self, epoch):
        return Plan(self.shares, self.batch_size, self.max_length, self.seed if self.shuffle else None, epoch)

    def batches_ahead(self):
        """Of each source the row with the first of its largest ids: if a model can read it, it can read all."""
        for number, source in enumerate(self.sources):
            index = self.shares.first_of(number) + source.largest()
            yield [index], self.make_batch([index], (self.max_length,), None)

    def description(self):
        """Plain values and arrays that tell this dataset from others, as those of its base; and its shares."""
        return {**super().description(), "counts": self.shares.counts}


class Wrapped:
    """Rows that are cut from running text, one after the other.

    Args:
        tokens: `TokenFile`, or what is like it.
        length: T.
    """

    def __init__(self, tokens, length):
        self.tokens, self.length = tokens, length
        if len(tokens.ids) < 2:
            raise ValueError(f"documents hold {len(tokens.ids)} tokens; there must be at least 2.")

    def __len__(self):
        return -(-(len(self.tokens.ids) - 1) // self.length)

    def row(self, number):
        """A row: dict of `token_ids` and `labels`, (T,) or fewer."""
        start = number * self.length
        ids = self.tokens.ids[start : start + self.length + 1].astype("int32")
        return {"token_ids": ids[:-1], "labels": ids[1:]}

    def largest(self):
        """The number of the row with the first of the largest ids."""
        return max(self.tokens.largest_at - 1, 0) // self.length


class Packed:
    """Rows of whole documents, or of pieces of one that is longer than a row.

    A piece begins with the token that the one before has predicted last, so that each token is predicted once.

    Args:
        tokens: `TokenFile`, or what is like it.
        length: T.
    """

    def __init__(self, tokens, length):
        self.tokens = tokens
        starts = np.asarray(tokens.starts).astype("int64")
        # Where one token is bos and eos, a document's end is the beginning of the next.
        predicted = np.maximum(np.diff(starts) - (not tokens.share_ends), 0)  # (D,)
        counts = -(-predicted // length)
        if not counts.any():
            raise ValueError(f"documents hold {len(tokens.ids)} tokens, none of which follows one of its own document.")
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # within its document
        self.begins = np.repeat(starts[:-1], counts) + number * length  # (P,)
        self.sizes = np.minimum(np.repeat(predicted, counts) - number * length, length).astype("int32")
        self.pieces, self.starts = best_fit(self.sizes, length)

    def __len__(self):
        return len(self.starts) - 1

    def row(self, number):
        """A row: dict of `token_ids`, `labels` and `position_ids`, (T,) or fewer."""
        pieces = self.pieces[self.starts[number] : self.starts[number + 1]]
        sizes = self.sizes[pieces]
        ids = [self.tokens.ids[b : b + n + 1].astype("int32") for b, n in zip(self.begins[pieces], sizes, strict=True)]
        return {
            "token_ids": np.concatenate([piece[:-1] for piece in ids]),
            "labels": np.concatenate([piece[1:] for piece in ids]),
            "position_ids": np.concatenate([np.arange(n, dtype="int32") for n in sizes]),
        }

    def largest(self):
        """The number of the row with the first of the largest ids."""
        piece = max(int(np.searchsorted(self.begins, self.tokens.largest_at, side="right")) - 1, 0)
        return int(np.searchsorted(self.starts, int(np.flatnonzero(self.pieces == piece)[0]), side="right")) - 1


PACKINGS = {"wrapped": Wrapped, "best_fit": Packed}


@dataclasses.dataclass(frozen=True)
class Shares:
    """Which rows of several sources an epoch has.

    Rows are numbered through all sources, those of the first before those of the second.

    Args:
        sizes: list of the numbers of rows that sources have.
        counts: list of the numbers of rows that an epoch has of each.
    """

    sizes: list
    counts: list

    def first_of(self, source):
        """The number of a source's first row."""
        return sum(self.sizes[:source])

    def place(self, index):
        """The source of a row, and its number there."""
        source = 0
        while index >= self.sizes[source]:
            index, source = index - self.sizes[source], source + 1
        return source, int(index)

    def rows(self, places, epoch, seed=None):
        """The rows at some places (b,) of an epoch: (b,) int; in their order where there is no seed."""
        if seed is not None:
            places = permuted(places, sum(self.counts), seed, epoch)
        sources = np.searchsorted(np.cumsum(self.counts), places, side="right")
        found = np.empty(len(places), int)
        for source in np.unique(sources):
            # The source's rows follow one another through all epochs, each time it begins anew in another order.
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
        return self.shares.rows(places, self.epoch, self.seed), (self.length,)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids in memory, as far as they are like a `TokenFile`'s."""

    ids: np.ndarray
    starts: np.ndarray
    share_ends: bool

    @property
    def largest_at(self):
        """The place of the first of the largest ids."""
        return int(self.ids.argmax())


def _all_tokens(documents, tokenizer):
    """What rows are made of: `TokenFile`s, or documents one after the other."""
    if is_of_files(documents):
        return read_files("documents", documents, ["tokenizer"], [tokenizer])
    rows, (bos, eos) = tokenize(documents, tokenizer, "documents"), (tokenizer.bos_id, tokenizer.eos_id)
    share_ends = bos is not None and bos == eos
    more = (bos is not None) + (eos is not None and not share_ends)
    starts = np.cumsum([0, *(len(row) + more for row in rows)])
    return [Tokens(batches.stream(rows, bos, eos, id_dtype(tokenizer)), starts, share_ends)]


def _counts(sizes, weights):
    """How many rows an epoch has of each source: whole numbers, as nearly as can be in proportion to the weights."""
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
            f"weights[{counts.argmin()}] ({weights[counts.argmin()]}) is less than a row's share of an epoch."
        )
    return counts.tolist()
