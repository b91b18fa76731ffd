"""Batches for `fit` on pairs of answers, of which one is preferred."""

import numpy as np

from kerasllm.arguments import check_choice, check_positive, shown
from kerasllm.text import batches
from kerasllm.training import chat_rows
from kerasllm.training.datasets import BucketedDataset, check_tokenizer, fitting
from kerasllm.training.preference_losses import CHOSEN, REJECTED

ANSWERS = {"chosen": CHOSEN, "rejected": REJECTED}


class PreferenceDataset(BucketedDataset):
    """Prompts with a better and a worse answer, for `DPOLoss`.

    A batch of B pairs is `(inputs, labels)` of 2B rows, chosen and rejected one after the other: `inputs` has
    `token_ids` and `padding_mask` (2B, T); the labels are as `DPOLoss` takes them, the log-probabilities of the
    reference in them, which are computed once, when the dataset is made.

        pairs = [{"prompt": "Greet me.", "chosen": "Hello!", "rejected": "No."}]
        dataset = PreferenceDataset(pairs, model.tokenizer, reference=model)

    Args:
        pairs: sequence of dicts, or a path of a JSONL file or several: `prompt`, `chosen` and `rejected`, all texts, or
            all lists of messages (the tokenizer's template writes them); or `chosen` and `rejected` alone, whole chats
            that differ in their last message. And perhaps `tools`, `documents` and `chat_template_kwargs`.
        tokenizer: the model's.
        reference: the model before it is trained, a `GPT` or `RNNLanguageModel`; `dataset.reference` (N, 2) keeps what
            it says. Or such an array.
        max_length: the most tokens of a row.
        too_long: what is done with pairs that have longer rows: "error" raises, "drop" leaves them out;
            `num_too_long` counts them.
        chat_template: as for `ChatDataset`.
        chunk_size: tokens whose logits the reference makes at a time.
        batch_size, batch_tokens, multiple, seed, shuffle, **kwargs: see `BucketedDataset`; 4 pairs by default.

    Raises:
        ValueError: names the pair, or file and line: an answer is missing, empty or both are the same, it is too long.
    """

    default_batch_size = 4

    def __init__(
        self,
        pairs,
        tokenizer,
        reference,
        batch_size=None,
        max_length=1024,
        too_long="error",
        chat_template=None,
        chunk_size=256,
        multiple=32,
        seed=0,
        shuffle=True,
        batch_tokens=None,
        **kwargs,
    ):
        check_positive("max_length", max_length)
        check_positive("chunk_size", chunk_size)
        check_tokenizer("tokenizer", tokenizer)
        check_choice("too_long", too_long, ("error", "drop"))
        found = chat_rows.read_chats("pairs", pairs)
        rows = [_rows_of(place, entry, tokenizer, chat_template) for place, entry in found]
        lengths = np.array([[len(row.ids) - 1 for row in pair] for pair in rows])
        longest = lengths.max(axis=1)
        self.num_too_long = int((longest > max_length).sum())
        keep = fitting(longest, max_length, too_long, "pairs")
        self.pairs, longest = [rows[i] for i in keep], longest[keep]
        super().__init__(longest, batch_size, multiple, max_length, seed, shuffle, batch_tokens, **kwargs)
        if hasattr(reference, "row_log_probs"):
            self.reference = np.zeros((len(keep), 2), "float32")
            for indices, widths in batches.bucket(longest, self.batch_size or 4, multiple, None, max_length):
                inputs, labels = self._padded(indices, widths)
                values = reference.row_log_probs(inputs, labels, chunk_size)
                self.reference[indices] = values.reshape(-1, 2)
        else:
            self.reference = np.asarray(reference)
            if self.reference.shape != (len(rows), 2) or not np.isfinite(self.reference.astype("float64")).all():
                raise ValueError(
                    f"reference ({shown(reference)}) must be a language model of kerasllm, or log-probabilities of "
                    f"shape {(len(rows), 2)}."
                )
            self.reference = self.reference[keep].astype("float32")

    def _padded(self, indices, widths):
        rows = [row for i in indices for row in self.pairs[i]]
        token_ids, padding_mask = batches.pad([row.ids[:-1] for row in rows], *widths)
        labels = [np.where(row.learnt[1:], row.ids[1:], batches.IGNORED).astype("int32") for row in rows]
        inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
        return inputs, batches.pad(labels, *widths, value=batches.IGNORED)[0]

    def make_batch(self, indices, widths, generator):
        inputs, labels = self._padded(indices, widths)
        first = [np.repeat(np.arange(len(indices)), 2), np.tile([CHOSEN, REJECTED], len(indices))]
        first.append(self.reference[indices].reshape(-1))
        return inputs, np.concatenate([np.stack(first, axis=1), labels], axis=1).astype("float32")

    def rows_of(self, indices):
        return np.repeat(indices, 2)


def _rows_of(place, entry, tokenizer, chat_template):
    """The rows of a pair: chosen and rejected."""
    if not isinstance(entry, dict):
        raise ValueError(f"{place} ({shown(entry)}) must be a dict of prompt, chosen and rejected.")
    missing = [name for name in ANSWERS if not entry.get(name)]
    if missing:
        raise ValueError(f"{place} ({shown(entry)}) has no {missing[0]} answer.")
    if entry["chosen"] == entry["rejected"]:
        raise ValueError(f"{place} ({shown(entry)}): its answers are the same.")
    rest = {name: value for name, value in entry.items() if name not in (*ANSWERS, "prompt", "messages", "completion")}
    rows = []
    for name in ANSWERS:
        if entry.get("prompt") is None:
            said, on = {"messages": entry[name]}, "last"
        else:
            said, on = {"prompt": entry["prompt"], "completion": entry[name]}, "assistant"
        rows.append(chat_rows.encode_chat(f"{place}, {name}", rest | said, tokenizer, on, chat_template))
    return rows
