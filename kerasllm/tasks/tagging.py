"""Finding the entities in texts."""

import numpy as np

from kerasllm.arguments import check_choice, check_from_zero, check_positive, read_sequence, read_strings, shown
from kerasllm.tasks.predicting import answer_each, encode_texts, predict, softmax
from kerasllm.tasks.windows import each_text, in_windows, of_tokens
from kerasllm.text.words import first_tokens

AGGREGATIONS = ("none", "simple", "first", "average", "max")


class Tagging:
    """A model that scores the labels of each token."""

    def tag(self, texts, aggregation="simple", batch_size=32, verbose=True, stride=None):
        """Find the entities in texts.

        Args:
            texts: a string, a list or an iterable of strings.
            aggregation: "none" gives each token with its label. The others give entities, neighbours of the same
                label without "B-" and "I-", where "B-" begins a new one: "simple" of tokens, the rest of whole
                words, whose label is that of their "first" token, of their tokens' "average" probabilities, or of
                the token with the "max" probability.
            batch_size: the most texts that are computed at a time.
            verbose: whether a long list has a progress bar.
            stride: tokens that two windows share, where a text that does not fit is read in windows; each token has
                what the window says of it in which it has most context. Default: longer texts are errors.

        Returns:
            For a text a list of dicts, in its order: `entity`, the label; `score`, the mean probability; `word`, what
            stands in the text from `start` to `end`. The label "O" is left out. For a list a list of those, for an
            iterable an iterator.

        Raises:
            ValueError: there is no tokenizer; a text is empty, or longer than the model's `max_sequence_length`; a
                window has no room for `stride` + 1 tokens.
        """
        self.required_tokenizer()
        if stride is not None:
            check_from_zero("stride", stride)
        check_choice("aggregation", aggregation, AGGREGATIONS)
        check_positive("batch_size", batch_size)

        def answer(texts, verbose):
            encodings, logits = self._token_logits(texts, "texts", batch_size, verbose, stride)
            return [self._entities(t, e, x, aggregation) for t, e, x in zip(texts, encodings, logits, strict=True)]

        return answer_each("texts", texts, answer, verbose)

    def tag_words(self, words, batch_size=32, verbose=True, stride=None):
        """Say which label each word of texts has: that of its first token, as `TokenClassificationDataset` teaches it.

        Args:
            words: for each text its words, a list of strings; the text is their join by spaces.
            batch_size, verbose, stride: as for `tag`.

        Returns:
            For each text a list of labels, one for each word, such as "B-PER" or "O".

        Raises:
            ValueError: there is no tokenizer; a text has no words; a word is blank or has no tokens; a text is longer
                than the model's `max_sequence_length`.
        """
        self.required_tokenizer()
        if stride is not None:
            check_from_zero("stride", stride)
        check_positive("batch_size", batch_size)
        words = [_read_words(f"words[{i}]", row) for i, row in enumerate(read_sequence("words", words))]
        texts = [" ".join(row) for row in words]
        encodings, logits = self._token_logits(texts, "words", batch_size, verbose, stride)
        places = [first_tokens(encoding, row) for encoding, row in zip(encodings, words, strict=True)]
        for i, row in enumerate(places):
            if None in row:
                word = words[i][row.index(None)]
                raise ValueError(f"words[{i}][{row.index(None)}] ({shown(word)}) has no tokens.")
        names = self.arguments["labels"]
        return [[names[k] for k in np.argmax(x[row], -1)] for x, row in zip(logits, places, strict=True)]

    def _token_logits(self, texts, name, batch_size, verbose, stride):
        """Encodings of whole texts, and the logits of their tokens."""
        if stride is None:
            encodings = encode_texts(self, texts, name=name, hint="; stride=... reads it in windows")
            return encodings, predict(self, encodings, batch_size, verbose)
        windows = in_windows(self, texts, stride, name)
        outputs = predict(self, [e for its in windows for e in its.encodings], batch_size, verbose)
        logits = [of_tokens(its, rows) for its, rows in zip(windows, each_text(windows, outputs), strict=True)]
        return [its.whole for its in windows], logits

    def _entities(self, text, encoding, logits, aggregation):
        labels = self.arguments["labels"]
        groups = self._tokens(text, encoding, softmax(logits))
        if aggregation not in ("none", "simple"):
            groups = _words(groups, aggregation)
        tagged = []
        for probabilities, start, end, _ in groups:
            best = int(np.argmax(probabilities))
            tagged.append((labels[best], [float(probabilities[best])], start, end))
        if aggregation != "none":
            tagged = _joined(tagged)
        return [
            {"entity": entity, "score": float(np.mean(scores)), "word": text[start:end], "start": start, "end": end}
            for entity, scores, start, end in tagged
            if entity != "O"
        ]

    def _tokens(self, text, encoding, probabilities):
        """`(probabilities, start, end, whether a word starts)` of the tokens that stand for something in the text."""
        tokens = []
        for i, (start, end) in enumerate(encoding.offsets):
            # Some tokenizers count the space before a word as its own.
            while start < end and text[start].isspace():
                start += 1
            if start < end and not encoding.special_tokens_mask[i]:
                starts = self.tokenizer.word_starts[encoding.ids[i]] or start == 0 or text[start - 1].isspace()
                tokens.append((probabilities[i], start, end, starts))
        return tokens


def _read_words(name, words):
    words = read_strings(name, words)
    for i, word in enumerate(words):
        if not word.strip():
            raise ValueError(f"{name}[{i}] ({shown(word)}) must not be blank.")
    return words


def _words(tokens, aggregation):
    words = []
    for token in tokens:
        if token[3]:
            words.append([])
        words[-1].append(token)
    combine = {
        "first": lambda word: word[0][0],
        "average": lambda word: np.mean([token[0] for token in word], axis=0),
        "max": lambda word: max((token[0] for token in word), key=np.max),
    }[aggregation]
    return [(combine(word), word[0][1], word[-1][2], True) for word in words]


def _joined(tagged):
    """Neighbours of one entity as one: `(label without its letter, scores, start, end)`."""
    joined, last = [], None
    for label, scores, start, end in tagged:
        begins, entity = label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label
        if entity == last and not begins:
            joined[-1] = (entity, joined[-1][1] + scores, joined[-1][2], end)
        else:
            joined.append((entity, scores, start, end))
        last = entity
    return joined
