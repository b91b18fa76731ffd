"""Batches for `fit` of translators: sentence pairs with teacher forcing."""

from collections.abc import Sequence

import numpy as np

from kerasllm.arguments import check_choice, check_positive, shown
from kerasllm.text import batches
from kerasllm.training.datasets import BucketedDataset, check_tokenizer, fitting
from kerasllm.training.file_rows import FileRows, check_parallel, is_of_files, read_files
from kerasllm.training.text_rows import TextRows, iterated


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
    sources = TextRows(source, "sources", special_tokens=True, blank_is_empty=True)
    targets = TextRows(target, "targets", special_tokens=start_token_id is not None, blank_is_empty=True)
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
    from kerasllm.text import tokenizer_json  # it imports tokenizers, and `import kerasllm` this module

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
