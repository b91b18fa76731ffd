"""Proposing tokens for the masks in texts."""

import numpy as np

from kerasllm.arguments import check_positive, shown
from kerasllm.tasks.predicting import answer_each, encode_texts, predict, softmax


class MaskFilling:
    """A model that scores all tokens at masked positions."""

    def fill_mask(self, texts, top_k=5, batch_size=32, verbose=True):
        """Propose tokens for the masks in texts, each mask on its own.

        Args:
            texts: a string, a list or an iterable of strings, each with the tokenizer's mask token once or more.
            top_k: number of proposals for each mask.
            batch_size: the most texts that are computed at a time.
            verbose: whether a long list has a progress bar.

        Returns:
            For a text with one mask a list of `top_k` dicts, best first: `score`, the probability; `token`, the id;
            `token_str`; `sequence`, the text with the mask filled. For a text with several masks a list of such
            lists. For a list of texts a list of those, for an iterable an iterator.

        Raises:
            ValueError: there is no tokenizer or it has no mask token; a text is empty, has no mask, or is longer than
                the model's `max_sequence_length`; `top_k` is not in 1 .. V.
        """
        tokenizer = self.required_tokenizer()
        if tokenizer.mask_id is None:
            raise ValueError("tokenizer must have a mask token for fill_mask.")
        check_positive("top_k", top_k)
        check_positive("batch_size", batch_size)
        if top_k > self.arguments["vocabulary_size"]:
            raise ValueError(f"top_k ({top_k}) must be at most vocabulary_size ({self.arguments['vocabulary_size']}).")

        def answer(texts, verbose):
            encodings = encode_texts(self, texts)
            positions = [[p for p, token in enumerate(e.ids) if token == tokenizer.mask_id] for e in encodings]
            for i, masks in enumerate(positions):
                if not masks:
                    mask = tokenizer.id_to_token(tokenizer.mask_id)
                    raise ValueError(f"texts[{i}] ({shown(texts[i])}) must hold {mask!r}.")
            logits = predict(self, encodings, batch_size, verbose, {"masked_positions": positions})
            return [
                self._filled(e.ids, masks, softmax(scores[: len(masks)]), top_k)
                for e, masks, scores in zip(encodings, positions, logits, strict=True)
            ]

        return answer_each("texts", texts, answer, verbose)

    def _filled(self, row, positions, probabilities, top_k):
        proposals = [self._proposals(row, p, s, top_k) for p, s in zip(positions, probabilities, strict=True)]
        return proposals if len(positions) > 1 else proposals[0]

    def _proposals(self, row, position, probabilities, top_k):
        tokenizer = self.tokenizer
        hidden = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
        proposals = []
        for token in np.argsort(-probabilities, kind="stable")[:top_k].tolist():
            filled = [token if p == position else t for p, t in enumerate(row) if t not in hidden]
            proposals.append(
                {
                    "score": float(probabilities[token]),
                    "token": token,
                    "token_str": tokenizer.decode([token], skip_special_tokens=False),
                    "sequence": tokenizer.decode(filled, skip_special_tokens=False),
                }
            )
        return proposals
