"""Batches for `fit` of masked language models."""

import numpy as np

from kerasllm.arguments import check_boolean, check_choice, check_positive, check_rate
from kerasllm.text import batches
from kerasllm.training.datasets import BucketedDataset, check_tokenizer, fitting
from kerasllm.training.file_rows import FileRows, is_of_files, read_files
from kerasllm.training.text_rows import tokenize


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
