"""Finding the answers to questions in texts."""

import numpy as np

from kerasllm.arguments import check_boolean, check_from_zero, check_positive, read_texts, shown
from kerasllm.tasks.predicting import predict, softmax


class Answering:
    """A model that scores where the answer to a question begins and ends."""

    def answer(
        self,
        question,
        context,
        top_k=1,
        max_answer_length=30,
        stride=128,
        allow_no_answer=False,
        batch_size=32,
        verbose=True,
    ):
        """Find the answer to a question in a context.

        A context that does not fit is read in windows. The score of an answer is the probability of its start times
        that of its end, among the tokens of its window's context and [CLS].

        Args:
            question: a string or a list of strings.
            context: a string or a list of strings, one for each question; one string serves a list of questions.
            top_k: the most answers for each question.
            max_answer_length: the most tokens of an answer.
            stride: tokens that two windows share.
            allow_no_answer: whether "" may be the answer. Its score is that of [CLS], in the window where this is
                least.
            batch_size: the most windows that are computed at a time.
            verbose: whether a long list has a progress bar.

        Returns:
            A dict with `score`, `answer`, and `start` and `end`, where it stands in the context; with `top_k` above 1 a
            list of different ones, best first, as many as there are. For a list of questions a list of those.

        Raises:
            ValueError: there is no tokenizer; a question or context is empty; a question leaves no room for
                `stride` + 1 tokens of the context where this does not fit.
        """
        self.required_tokenizer()
        for name, value in (("top_k", top_k), ("max_answer_length", max_answer_length), ("batch_size", batch_size)):
            check_positive(name, value)
        check_from_zero("stride", stride)
        check_boolean("allow_no_answer", allow_no_answer)
        questions, unlist = read_texts("question", question)
        contexts, _ = read_texts("context", context)
        if isinstance(context, str):
            contexts = contexts * len(questions)
        if len(contexts) != len(questions) or isinstance(question, str) and not isinstance(context, str):
            raise ValueError(f"context ({len(contexts)} of them) must be as many as question ({len(questions)}).")
        windows = [self._windows(i, q, c, stride) for i, (q, c) in enumerate(zip(questions, contexts, strict=True))]
        outputs = iter(predict(self, [w for row in windows for w in row], batch_size, verbose))
        results = []
        for text, row in zip(contexts, windows, strict=True):
            found, null = {}, 1.0
            for encoding in row:
                spans, none = best_spans(encoding, next(outputs), max_answer_length, top_k)
                null = min(null, none)
                for (start, end), score in spans:
                    # Some tokenizers count the space before a word as its own.
                    place = end - len(text[start:end].lstrip()), end
                    found[place] = max(score, found.get(place, 0.0))
            if allow_no_answer:
                found[0, 0] = null
            ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:top_k]
            answers = [
                {"score": float(score), "start": start, "end": end, "answer": text[start:end]}
                for (start, end), score in ranked
            ]
            results.append(answers if top_k > 1 else answers[0])
        return unlist(results)

    def _windows(self, index, question, context, stride):
        """Encodings of the question with each window of the context."""
        backend, limit = self.tokenizer.backend, self.arguments["max_sequence_length"]
        asked, read = self.tokenizer.encodings((question, context), special_tokens=False)
        room = limit - len(asked) - backend.num_special_tokens_to_add(True)
        if not len(read):
            raise ValueError(f"context[{index}] ({shown(context, 60)}) has no tokens.")
        if len(read) > room:
            if room <= stride:
                raise ValueError(
                    f"question[{index}] ({shown(question, 60)}) of {len(asked)} tokens leaves room for {max(room, 0)} "
                    f"of context[{index}] in max_sequence_length ({limit}); stride ({stride}) must be less."
                )
            read.truncate(room, stride=stride)
        return [backend.post_process(asked, window) for window in (read, *read.overflowing)]


def best_spans(encoding, outputs, longest, count):
    """The `count` best spans of a window, `((start, end), score)` each, and the score of no answer."""
    in_context = np.array([i == 1 for i in encoding.sequence_ids])
    allowed = in_context.copy()
    allowed[0] = True  # [CLS]: "no answer" in models that were taught so
    start, end = (
        softmax(np.where(allowed, outputs[name][: len(allowed)], -np.inf)) for name in ("start_logits", "end_logits")
    )
    lengths = 1 + np.arange(len(allowed)) - np.arange(len(allowed))[:, None]
    possible = np.outer(in_context, in_context) & (lengths >= 1) & (lengths <= longest)
    scores = np.where(possible, np.outer(start, end), -1.0)
    spans = []
    for place in np.argsort(-scores, axis=None, kind="stable")[: min(count, possible.sum())]:
        first, last = np.unravel_index(place, scores.shape)
        spans.append(((encoding.offsets[first][0], encoding.offsets[last][1]), scores[first, last]))
    return spans, start[0] * end[0]
