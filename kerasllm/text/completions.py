"""The text of a completion: what follows its prompt, up to a stop string; whole, or piece by piece as it grows."""

# What a decoder writes for bytes that are no character, or not yet a whole one.
REPLACEMENT = "\ufffd"


class CompletionWriter:
    """Writes completions as text.

    Args:
        tokenizer: a `Tokenizer`.
        stop: strings; a text ends before the first of them.
        min_tokens: a stop string counts if it ends with this token of the completion or a later one.
        end_ids: ids that end a completion; the last token is not written if it is one of them.
    """

    def __init__(self, tokenizer, stop=(), min_tokens=0, end_ids=()):
        self.tokenizer, self.stop, self.min_tokens, self.end_ids = tokenizer, tuple(stop), min_tokens, end_ids

    def write_prompt(self, prompt):
        """The text of a prompt, without the beginning of a character that its completion may end."""
        return self.tokenizer.decode(prompt).rstrip(REPLACEMENT)

    def write(self, prompt, completion):
        """The text of a completion without its end token, cut where a stop string begins.

        Args:
            prompt, completion: lists of ids.
        """
        if completion and completion[-1] in self.end_ids:
            completion = completion[:-1]
        text = self._whole(prompt, completion)
        place = self._stop_place(prompt, completion, text)
        return text if place is None else text[:place]

    def find_stop(self, prompt, completion, num_checked=0):
        """How many tokens of a completion it takes to a stop string's end, or None if there is no such string.

        Args:
            prompt, completion: lists of ids.
            num_checked: so many tokens of the completion are known to hold none.
        """
        if self._stop_place(prompt, completion, self._whole(prompt, completion)) is None:
            return None
        for n in range(num_checked + 1, len(completion)):
            if self._stop_place(prompt, completion[:n], self._whole(prompt, completion[:n])) is not None:
                return n
        return len(completion)

    def pieces(self, prompt, growth):
        """Yield the text of a completion while it grows; joined, the pieces are what `write` gives at its end.

        Characters that are not whole, and what may turn out to begin a stop string, wait for the next tokens.

        Args:
            prompt: list of ids.
            growth: iterable of (completion so far, whether it is finished).
        """
        written = ""
        for completion, is_finished in growth:
            text = self.write(prompt, completion)
            if not is_finished:
                text = text[: len(text) - self._open_stop(text)].rstrip(REPLACEMENT)
            if len(text) > len(written):
                yield text[len(written) :]
                written = text

    def _whole(self, prompt, completion):
        # Decoders treat the beginning of a text in a way of their own, so the completion is not decoded alone.
        before, whole = self.write_prompt(prompt), self.tokenizer.decode([*prompt, *completion])
        return whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(completion)

    def _stop_place(self, prompt, completion, text):
        """Where the first stop string begins, or None."""
        if not any(string in text for string in self.stop) or len(completion) < self.min_tokens:
            return None
        first_end = len(self._whole(prompt, completion[: self.min_tokens])) if self.min_tokens else 0
        places = [text.find(string, max(0, first_end - len(string))) for string in self.stop]
        return min((place for place in places if place >= 0), default=None)

    def _open_stop(self, text):
        """How many characters at the end may begin a stop string, or what decoding writes otherwise."""
        strings = (*self.stop, *self.tokenizer.clean_ups)
        sizes = [n for string in strings for n in range(1, len(string)) if text.endswith(string[:n])]
        return max(sizes, default=0)
