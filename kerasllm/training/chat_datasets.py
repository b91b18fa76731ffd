"""Batches for `fit` on chats: supervised fine-tuning of language models."""

import numpy as np

from kerasllm.arguments import check_choice, check_positive
from kerasllm.text import batches
from kerasllm.text.packing import best_fit
from kerasllm.training import chat_rows
from kerasllm.training.datasets import BucketedDataset, check_tokenizer

PACKINGS = (None, "best_fit")


class ChatDataset(BucketedDataset):
    """Chats for a causal language model, which learns what the assistant says in them (Ouyang et al. 2022).

    A batch is `(inputs, labels)`: `inputs` has `token_ids` and `padding_mask` (B, T), the labels (B, T) are the next
    tokens where those are an answer's, its end token included, and -1 elsewhere. The tokenizer's chat template writes
    the chats, as `generate` and `stream` write theirs.

        chats = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]]
        dataset = ChatDataset(chats, model.tokenizer, max_length=512, packing="best_fit")
        model.compile(AdamW(2e-5), TokenCrossentropy(chunk_size=256), metrics=[Perplexity()])
        model.fit(dataset)

    Which tokens are an answer's the template says by `{% generation %}`; of others it is told by rendering the chat up
    to the answer and up to its end.

    Args:
        chats: sequence of chats; or a path of a JSONL file with one on each line (.gz too), or several. A chat is a
            list of messages, dicts of `role` and `content`; or a dict with `messages`, or with `prompt` and
            `completion`, both texts (no template is used then, bos and eos are added) or both lists of messages; and
            perhaps `tools`, `documents` and `chat_template_kwargs`, what the template reads besides.
        tokenizer: the model's, with its chat template.
        max_length: T, the most tokens of a row.
        packing: None, a chat in each row, rows of like length in a batch; or "best_fit", several whole chats in a row
            of T tokens, which do not see one another, with `position_ids` (B, T) that begin anew with each: for a
            `GPT`.
        loss_on: "assistant", all its answers; "last", the last answer of each chat; "all", every token.
        too_long: what is done with chats of more tokens: "error" raises, "drop" leaves them out, "truncate" cuts
            their end, and leaves out those of which no answer is left; `num_too_long` counts them.
        chat_template: the name of one of the tokenizer's templates, or another template.
        batch_size, batch_tokens, multiple, seed, shuffle, **kwargs: see `BucketedDataset`; 8 rows by default.

    Raises:
        ValueError: names the chat, or file and line: a role is unknown, an answer empty, none is there, the template
            refuses it or does not tell the answers, it is too long.
    """

    default_batch_size = 8

    def __init__(
        self,
        chats,
        tokenizer,
        batch_size=None,
        max_length=1024,
        packing=None,
        loss_on="assistant",
        too_long="error",
        chat_template=None,
        multiple=32,
        seed=0,
        shuffle=True,
        batch_tokens=None,
        **kwargs,
    ):
        check_positive("max_length", max_length)
        check_tokenizer("tokenizer", tokenizer)
        check_choice("packing", packing, PACKINGS)
        check_choice("too_long", too_long, ("error", "drop", "truncate"))
        found = chat_rows.read_chats("chats", chats)
        rows = [chat_rows.encode_chat(*chat, tokenizer, loss_on, chat_template) for chat in found]
        # A row of T inputs predicts T tokens, of T + 1.
        over = [len(row.ids) > max_length + 1 for row in rows]
        self.num_too_long = sum(over)
        if any(over) and too_long == "error":
            place, row = found[over.index(True)][0], rows[over.index(True)]
            raise ValueError(
                f"{place} has {len(row.ids)} tokens, more than max_length ({max_length}) and one, as have "
                f"{sum(over)} of {len(rows)}: raise max_length, or say with too_long what to do."
            )
        if too_long == "truncate":
            rows = [chat_rows.Row(*(array[: max_length + 1] for array in row)) for row in rows]
        kept = [row for row in rows if len(row.ids) <= max_length + 1 and row.learnt.any()]
        if not kept:
            raise ValueError(f"chats ({len(rows)} of them) are all too long for max_length ({max_length}).")
        self.chats, self.num_tokens = kept, sum(int(row.learnt.sum()) for row in kept)
        sizes = np.array([len(row.ids) - 1 for row in kept])
        self.packing = packing
        self.pieces, self.starts = np.arange(len(kept)), np.arange(len(kept) + 1)
        if packing:
            self.pieces, self.starts = best_fit(sizes, max_length)
        lengths = np.add.reduceat(sizes[self.pieces], self.starts[:-1])
        super().__init__(lengths, batch_size, multiple, max_length, seed, shuffle, batch_tokens, **kwargs)

    def make_batch(self, indices, widths, generator):
        rows = [[self.chats[i] for i in self.pieces[self.starts[n] : self.starts[n + 1]]] for n in indices]
        token_ids, padding_mask = batches.pad([np.concatenate([c.ids[:-1] for c in row]) for row in rows], *widths)
        labels = [
            np.concatenate([np.where(c.learnt[1:], c.ids[1:], batches.IGNORED) for c in row]).astype("int32")
            for row in rows
        ]
        inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
        if self.packing:
            positions = [np.concatenate([np.arange(len(c.ids) - 1, dtype="int32") for c in row]) for row in rows]
            inputs["position_ids"] = batches.pad(positions, *widths)[0]
        return inputs, batches.pad(labels, *widths, value=batches.IGNORED)[0]
