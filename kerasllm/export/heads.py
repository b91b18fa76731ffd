"""What files of BERT's heads hold: beside `forward` a function for the head's task, from ids and from strings.

From ids, in a SavedModel and in TFLite, of any batch size B and length T. All take `token_ids` (B, T) int32,
`padding_mask` (B, T) bool, True = real, padded on the right, and where the model has it `segment_ids` (B, T) int32:

========= ===================================================== ====================================================
classify                                                        `scores` (B, L), in the order of the labels
fill_mask `masked_positions` (B, P) int32, `top_k` () int32     `token_ids`, `probabilities` (B, P, K), best first
tag                                                             `probabilities` (B, T, L), in the order of the labels
answer    `context_mask` (B, T) bool, `max_answer_length` () and `starts`, `ends` (B, K) int32, the first and last token
          `top_k` () int32                                      of a span, best first; `scores` (B, K);
                                                                `no_answer_scores` (B,)
embed                                                           `embeddings` (B, D)
========= ===================================================== ====================================================

What the model's methods return follows from these with a tokenizer: the labels and special tokens stand in `settings`.

From strings, in a SavedModel exported with `strings=True`; `texts` (B,), of at most `max_length` tokens each:

================== =================== ================================================================================
classify_text      `texts`             `labels` (B, L) strings and `scores` (B, L), best first
classify_pair_text `texts`, `pairs`    the same, of pairs of texts
fill_mask_text     `texts`, `top_k`    `masked_positions` (B, P), -1 where a text has fewer masks; `token_ids`, `tokens`
                                       (strings) and `probabilities`, (B, P, K) each, best first
tag_text           `texts`             `tokens` (B, T) strings, "" where padded; `labels` and `scores` of the best one
answer_text        `questions`,        `answers` (B, K) strings, best first, "" where there are fewer; `starts`, `ends`
                   `contexts`,         (B, K), between which characters of the context they stand, or -1; `scores`
                   `top_k`,            (B, K); `no_answer_scores` (B,)
                   `max_answer_length`
embed_text         `texts`             `embeddings` (B, D), of the texts after the model's default prompt
================== =================== ================================================================================

`answer_text` is for tokenizers by words and by WordPiece, whose tokens have their places in the text.
"""

import functools
import types

import numpy as np

from kerasllm.export import verification
from kerasllm.export.contents import Check, Signature
from kerasllm.export.head_contents import HeadContents, best, is_clear, model_inputs, pairs_of, strings
from kerasllm.tasks.answering import best_spans
from kerasllm.tasks.embedding import ARGUMENTS
from kerasllm.tasks.predicting import encode_texts, sigmoid, softmax
from kerasllm.text.prompts import find_prompt

LEAST = -1e9  # A logarithm of what cannot be.


class ClassifierContents(HeadContents):
    """What a file of a `BERTClassifier` holds."""

    task = "classify"
    truncates = True

    def settings(self):
        """Also the labels, and what the scores mean."""
        labels = list(self.model.arguments["labels"])
        return {**super().settings(), "labels": labels, "problem_type": self.model.problem_type}

    def from_strings(self):
        """Also for pairs of texts."""
        inputs = {name: ((None,), "string") for name in ("texts", "pairs")}
        pairs = Signature(inputs, self.call_text, proof=lambda: self.expected_text(**pairs_of(self._texts())))
        return {**super().from_strings(), "classify_pair_text": pairs}

    def results(self, outputs, **inputs):
        """Probabilities, or numbers where the model predicts these."""
        import tensorflow as tf

        functions = {"single_label": tf.nn.softmax, "multi_label": tf.sigmoid, "regression": tf.identity}
        return {"scores": functions[self.model.problem_type](outputs)}

    def call_text(self, texts, pairs=None):
        """The labels of texts, or pairs of texts, best first."""
        import tensorflow as tf

        scores = self.call(**self.encoded(texts, pairs))["scores"]
        scores, order = tf.math.top_k(scores, k=len(self.model.arguments["labels"]))
        return {"labels": tf.gather(tf.constant(self.model.arguments["labels"]), order), "scores": scores}

    def expected(self, inputs, outputs):
        """The model's scores."""
        convert = {"single_label": softmax, "multi_label": sigmoid, "regression": np.float64}
        return {}, {"scores": convert[self.model.problem_type](outputs["logits"])}

    def expected_text(self, texts, pairs=None):
        """What `classify` says."""
        answers = self.model.classify(texts, pairs, top_k=None, truncate=self.options.truncate, verbose=False)
        labels = strings([[entry["label"] for entry in answer] for answer in answers])
        scores = np.array([[entry["score"] for entry in answer] for answer in answers])
        expected = {"scores": scores} | ({"labels": labels} if is_clear(scores, np.abs(scores).max()) else {})
        if pairs is None:
            return [Check([("classify_text", {"texts": strings(texts)})], expected)]
        return [Check([("classify_pair_text", {"texts": strings(texts), "pairs": strings(pairs)})], expected)]


class MaskedLMContents(HeadContents):
    """What a file of a `BERTMaskedLM` holds."""

    task = "fill_mask"
    inputs = {"top_k": ((), "int32")}
    defaults = {"top_k": 5}

    def from_strings(self):
        """Also with the number of proposals."""
        if self.model.tokenizer.mask_id is None:
            raise ValueError("strings (True): the tokenizer must have a mask token.")
        inputs = {"texts": ((None,), "string"), **self.inputs}
        return {"fill_mask_text": Signature(inputs, self.call_text, self.defaults, proof=self.prove_text)}

    def results(self, outputs, top_k, **inputs):
        """The best tokens (B, P, K) and their probabilities."""
        import tensorflow as tf

        logits, token_ids = tf.math.top_k(outputs, k=tf.minimum(top_k, outputs.shape[-1]))
        best = tf.reduce_max(outputs, axis=-1, keepdims=True)
        sums = tf.reduce_sum(tf.exp(outputs - best), axis=-1, keepdims=True)
        return {"token_ids": token_ids, "probabilities": tf.exp(logits - best) / sums}

    def call_text(self, texts, top_k):
        """Proposals for the masks that stand in texts."""
        import tensorflow as tf

        tokenizer = self.model.tokenizer
        inputs = self.encoded(texts)
        is_mask = tf.equal(inputs["token_ids"], tokenizer.mask_id)
        counts = tf.reduce_sum(tf.cast(is_mask, tf.int32), axis=1)
        message = f"texts must hold {tokenizer.id_to_token(tokenizer.mask_id)!r}."
        with tf.control_dependencies([tf.debugging.assert_positive(counts, message)]):
            positions = tf.range(tf.shape(is_mask)[1])[None]
            order = tf.sort(tf.where(is_mask, positions, tf.int32.max), axis=1)[:, : tf.reduce_max(counts)]
        filled = order < tf.int32.max
        given = {"masked_positions": tf.where(filled, order, 0), "top_k": top_k}
        found = self.call(**inputs, **given)
        tokens = tf.gather(tf.constant(self._tokens()), found["token_ids"])
        return {"masked_positions": tf.where(filled, order, -1), "tokens": tokens, **found}

    def _tokens(self):
        tokenizer = self.model.tokenizer
        tokens = [tokenizer.decode([i], skip_special_tokens=False) for i in range(tokenizer.vocabulary_size)]
        return tokens + [""] * (self.model.arguments["vocabulary_size"] - len(tokens))

    def expected(self, inputs, outputs):
        """The best tokens, where the logits are not nearly equal."""
        top_k = min(self.num_compared, self.model.arguments["vocabulary_size"])
        token_ids, clear = best(outputs["logits"], top_k)
        probabilities = np.take_along_axis(softmax(outputs["logits"]), token_ids, axis=-1)
        expected = {"probabilities": probabilities} | ({"token_ids": token_ids.astype("int32")} if clear else {})
        return {"top_k": np.array(top_k, "int32")}, expected

    def expected_text(self, texts):
        """What `fill_mask` says."""
        tokenizer = self.model.tokenizer
        texts = [f"{text} {tokenizer.id_to_token(tokenizer.mask_id)}" for text in texts]
        answers = self.model.fill_mask(texts, top_k=1, verbose=False)
        positions = [encoding.ids.index(tokenizer.mask_id) for encoding in encode_texts(self.model, texts)]
        expected = {
            "masked_positions": np.array(positions, "int32")[:, None],
            "token_ids": np.array([[[entry["token"] for entry in answer]] for answer in answers], "int32"),
            "tokens": strings([[[entry["token_str"] for entry in answer]] for answer in answers]),
            "probabilities": np.array([[[entry["score"] for entry in answer]] for answer in answers]),
        }
        return [Check([("fill_mask_text", {"texts": strings(texts), "top_k": np.array(1, "int32")})], expected)]


class TokenClassifierContents(HeadContents):
    """What a file of a `BERTTokenClassifier` holds."""

    task = "tag"

    def settings(self):
        """Also the labels."""
        return {**super().settings(), "labels": list(self.model.arguments["labels"])}

    def results(self, outputs, **inputs):
        """Probabilities (B, T, L)."""
        import tensorflow as tf

        return {"probabilities": tf.nn.softmax(outputs)}

    def call_text(self, texts):
        """The tokens of texts, each with its label."""
        import tensorflow as tf

        inputs, tokenizer = self.encoded(texts), self.model.tokenizer
        probabilities = self.call(**inputs)["probabilities"]
        tokens = tf.constant([tokenizer.id_to_token(i) or "" for i in range(tokenizer.vocabulary_size)])
        labels = tf.gather(tf.constant(self.model.arguments["labels"]), tf.argmax(probabilities, axis=-1))
        is_real = inputs["padding_mask"]
        return {
            "tokens": tf.where(is_real, tf.gather(tokens, inputs["token_ids"]), ""),
            "labels": tf.where(is_real, labels, ""),
            "scores": tf.where(is_real, tf.reduce_max(probabilities, axis=-1), 0.0),
        }

    def expected(self, inputs, outputs):
        """The model's probabilities."""
        return {}, {"probabilities": softmax(outputs["logits"])}

    def expected_text(self, texts):
        """What the model says of each text."""
        checks = []
        for text in texts:
            [encoding] = encode_texts(self.model, [text])
            [outputs] = verification.model_outputs(self.model, [model_inputs(self.model, [encoding])])
            [probabilities] = softmax(outputs["logits"])
            expected = {
                "tokens": strings([encoding.tokens]),
                "labels": strings([[self.model.arguments["labels"][i] for i in probabilities.argmax(axis=-1)]]),
                "scores": probabilities.max(axis=-1)[None],
            }
            checks.append(Check([("tag_text", {"texts": strings([text])})], expected))
        return checks


class QuestionAnswererContents(HeadContents):
    """What a file of a `BERTQuestionAnswerer` holds."""

    task = "answer"
    defaults = {"max_answer_length": 30, "top_k": 1}

    @property
    def inputs(self):
        """Which tokens are the context's, and which spans are wanted."""
        shape = self.forward_inputs()["token_ids"][0]
        return {"context_mask": (shape, "bool"), "max_answer_length": ((), "int32"), "top_k": ((), "int32")}

    @functools.cached_property
    def tokenizer(self):
        """The tokenizer as a part of the graph, with the places of tokens."""
        from kerasllm.export.text_ops import graph_tokenizer

        return graph_tokenizer(self.model.tokenizer, with_places=True)

    def from_strings(self):
        """Questions with the contexts that answer them."""
        inputs = {name: ((None,), "string") for name in ("questions", "contexts")}
        inputs |= {name: ((), "int32") for name in ("max_answer_length", "top_k")}
        return {"answer_text": Signature(inputs, self.call_text, self.defaults, proof=self.prove_text)}

    def call_text(self, questions, contexts, max_answer_length, top_k):
        """The parts of contexts that answer questions, best first."""
        import tensorflow as tf

        encoded = self.encoded(questions, contexts, with_places=True)
        starts, ends = tf.unstack(encoded.pop("places"), axis=-1)
        spans = self.call(**encoded, context_mask=ends > 0, max_answer_length=max_answer_length, top_k=top_k)
        found = spans["starts"] >= 0
        starts, ends = (
            tf.where(found, tf.gather(places, tf.maximum(spans[name], 0), batch_dims=1), -1)
            for name, places in (("starts", starts), ("ends", ends))
        )
        contexts = tf.where(found, contexts[:, None], "")
        answers = tf.strings.substr(contexts, tf.maximum(starts, 0), ends - starts, unit="UTF8_CHAR")
        return {**spans, "answers": answers, "starts": starts, "ends": ends}

    def results(self, outputs, context_mask, max_answer_length, top_k, **inputs):
        """The best spans, and the score of [CLS], which stands for no answer."""
        import tensorflow as tf

        length = tf.shape(context_mask)[1]
        positions = tf.range(length)
        allowed = context_mask | tf.expand_dims(positions == 0, 0)
        start, end = (
            tf.nn.log_softmax(tf.where(allowed, outputs[name], LEAST)) for name in ("start_logits", "end_logits")
        )
        extent = tf.expand_dims(positions, 0) - tf.expand_dims(positions, 1)  # (T, T)
        possible = tf.expand_dims((extent >= 0) & (extent < max_answer_length), 0)
        possible &= tf.expand_dims(context_mask, 2) & tf.expand_dims(context_mask, 1)  # (B, T, T)
        scores = tf.where(possible, tf.expand_dims(start, 2) + tf.expand_dims(end, 1), LEAST)
        scores = tf.reshape(scores, [tf.shape(scores)[0], length * length])
        scores, places = tf.math.top_k(scores, k=tf.minimum(top_k, length * length))
        found = scores > LEAST / 2
        return {
            "starts": tf.where(found, places // length, -1),
            "ends": tf.where(found, places % length, -1),
            "scores": tf.where(found, tf.exp(scores), -1.0),
            "no_answer_scores": tf.exp(start[:, 0] + end[:, 0]),
        }

    def expected(self, inputs, outputs):
        """The spans that the model's method finds, taken for each token's place in its text its number."""
        context_mask = inputs["padding_mask"] & (np.arange(inputs["padding_mask"].shape[1]) > 0)
        encodings = [
            types.SimpleNamespace(
                sequence_ids=[1 if is_context else None for is_context in mask],
                offsets=[(i, i) for i in range(len(mask))],
            )
            for mask in context_mask
        ]
        given, expected = self._spans(encodings, outputs)
        return {"context_mask": context_mask, **given}, expected

    def expected_text(self, texts):
        """The spans that the model's method finds, and what stands there."""
        questions, contexts = pairs_of(texts).values()
        encodings = encode_texts(self.model, questions, contexts)
        [outputs] = verification.model_outputs(self.model, [model_inputs(self.model, encodings)])
        given, expected = self._spans(encodings, outputs)
        if "starts" in expected:
            places = zip(contexts, expected["starts"], expected["ends"], strict=True)
            answers = [[text[a:b] for a, b in zip(starts, ends, strict=True)] for text, starts, ends in places]
            expected["answers"] = strings(answers)
        inputs = {"questions": strings(questions), "contexts": strings(contexts)}
        return [Check([("answer_text", {**inputs, **given})], expected)]

    def _spans(self, encodings, outputs):
        """How many spans a check asks for, and which the model's method finds: two dicts of arrays."""
        longest, width = 4, outputs["start_logits"].shape[1]
        count = min(self.num_compared, width**2)
        expected, clear = {"starts": [], "ends": [], "scores": [], "no_answer_scores": []}, True
        for row, encoding in enumerate(encodings):
            logits = {name: y[row] for name, y in outputs.items()}
            spans, no_answer = best_spans(encoding, logits, longest, count + 1)
            clear &= is_clear(np.log([score for _, score in spans]), max(np.abs(y).max() for y in logits.values()))
            spans = spans[:count] + [((-1, -1), -1.0)] * (count - len(spans))
            expected["starts"].append([start for (start, _), _ in spans])
            expected["ends"].append([end for (_, end), _ in spans])
            expected["scores"].append([score for _, score in spans])
            expected["no_answer_scores"].append(no_answer)
        dtypes = {"starts": "int32", "ends": "int32"}
        expected = {name: np.array(rows, dtypes.get(name, "float64")) for name, rows in expected.items()}
        if not clear:
            del expected["starts"], expected["ends"]
        return {"max_answer_length": np.array(longest, "int32"), "top_k": np.array(count, "int32")}, expected


class EmbedderContents(HeadContents):
    """What a file of a `BERTEmbedder` holds."""

    task = "embed"
    truncates = True

    def __init__(self, model, options):
        super().__init__(model, options)
        if not model.arguments["include_prompt"]:
            raise ValueError("include_prompt (False) must be True in a file, whose functions know no prompt's end.")

    def settings(self):
        """Also how vectors are made, where texts are cut, and what is set before them."""
        return {**super().settings(), **{name: self.model.arguments[name] for name in ARGUMENTS}}

    def results(self, outputs, **inputs):
        """The vectors."""
        return {"embeddings": outputs}

    def encoded(self, texts, pairs=None, **options):
        """The model's inputs from strings (B,) after the default prompt."""
        import tensorflow as tf

        prompt = find_prompt(self.model.arguments)
        return super().encoded(tf.strings.join([prompt, texts]) if prompt else texts, pairs, **options)

    def expected(self, inputs, outputs):
        """The vectors."""
        return {}, {"embeddings": outputs["logits"]}

    def expected_text(self, texts):
        """What `embed` says."""
        vectors = self.model.embed(texts, truncate=self.options.truncate)
        return [Check([("embed_text", {"texts": strings(texts)})], {"embeddings": vectors})]
