"""What the contents of all of BERT's heads share (`heads.py`): signatures, texts, and calls that prove them."""

import functools

import numpy as np

from kerasllm.export import verification
from kerasllm.export.contents import Check, Contents, Signature
from kerasllm.text import batches

TEXTS = ["The cat sat on the mat.", "A naïve café, isn't it?", "No"]


class HeadContents(Contents):
    """The base of the heads' contents.

    A subclass names its task, says what the function takes beside the model's inputs, what it computes of the model's
    outputs, and what the model's own method computes of them.
    """

    task = None
    inputs = {}
    defaults = {}

    def __init__(self, model, options):
        if options.max_length is not None or options.batch_size != 1:
            raise ValueError(
                f"max_length ({options.max_length}) and batch_size ({options.batch_size}) must be left out: a file of "
                f"a {type(model).__name__} takes any sizes, or those that input_signature fixes."
            )
        if options.strings:
            if options.static:
                raise ValueError("strings (True) must be False in this format: its operations know no strings.")
            model.required_tokenizer()
        self.truncate_at = model.arguments.get("truncate_at")
        super().__init__(model, options)

    def available(self):
        """`forward`, the task, and the task from strings."""
        defaults = {} if self.options.static else self.defaults
        limit = self.model.arguments["max_sequence_length"]
        inputs = {**self.forward_inputs(), **self.inputs}
        task = Signature(inputs, self.call, defaults, limit, self.prove_task)
        return {**super().available(), self.task: task, **(self.from_strings() if self.options.strings else {})}

    def from_strings(self):
        """The functions that take strings, by their names."""
        inputs = {"texts": ((None,), "string")}
        return {f"{self.task}_text": Signature(inputs, self.call_text, proof=self.prove_text)}

    @property
    def text_signature(self):
        """The task of texts."""
        return f"{self.task}_text"

    def call(self, **inputs):
        """The task's function."""
        given = {name: inputs.pop(name) for name in self.inputs}
        return self.results(self.model(inputs, training=False), **inputs, **given)

    def call_text(self, texts):
        """The task's function of strings."""
        return self.call(**self.encoded(texts))

    def results(self, outputs, **inputs):
        """What the function gives, from the model's outputs."""
        raise NotImplementedError

    def expected(self, inputs, outputs):
        """Further inputs of the function for a check, and what it must give: two dicts of arrays."""
        raise NotImplementedError

    def expected_text(self, texts):
        """What the function of strings must give: a list of `Check`."""
        raise NotImplementedError

    def settings(self):
        """What to give to the functions: the longest text, whether there are segments, ids of special tokens."""
        tokenizer = self.model.tokenizer
        ids = {} if tokenizer is None else {role: tokenizer.token_to_id(t) for role, t in tokenizer.roles.items()}
        return {
            "task": self.task,
            "max_length": self.model.arguments["max_sequence_length"],
            "segment_ids": "segment_ids" in self.model.input,
            "special_token_ids": ids,
        }

    def tables(self):
        """The tokenizer's tables."""
        return [self.tokenizer] if self.text_signatures() else []

    def text_signatures(self):
        """The names of the wanted functions that take strings."""
        return [name for name in self.signatures if name.endswith("_text")]

    @property
    def num_compared(self):
        """How many of the best choices must be the model's own: of a quantised file the first one."""
        return 3 if self.options.exact else 1

    @functools.cached_property
    def tokenizer(self):
        """The tokenizer as a part of the graph."""
        from kerasllm.export.text_ops import graph_tokenizer

        return graph_tokenizer(self.model.tokenizer)

    def encoded(self, texts, pairs=None, **options):
        """The model's inputs from strings (B,), and the places if wanted. Long texts are cut, or errors."""
        import tensorflow as tf

        limit = self.model.arguments["max_sequence_length"]
        if self.options.truncate or self.truncate_at:
            limit = self.truncate_at or limit
            options["max_length"] = limit
        encoded = self.tokenizer.encode(texts, pairs, **options)
        length = tf.shape(encoded["token_ids"])[1]
        hint = "; exported with truncate=True they are cut" if self.truncates else ""
        message = f"texts must have at most {limit} tokens{hint}."
        with tf.control_dependencies([tf.debugging.assert_less_equal(length, limit, message)]):
            return {name: tf.identity(encoded[name]) for name in (*self.model.input, "places") if name in encoded}

    @functools.cached_property
    def _answered(self):
        """Random inputs with the model's outputs."""
        examples = self.examples()
        return list(zip(examples, verification.model_outputs(self.model, examples), strict=True))

    def prove_forward(self):
        """The model's outputs for random inputs."""
        return [Check([("forward", inputs)], outputs) for inputs, outputs in self._answered]

    def prove_task(self):
        """What the model's method makes of these outputs."""
        checks = []
        for inputs, outputs in self._answered:
            given, expected = self.expected(inputs, outputs)
            checks.append(Check([(self.task, {**inputs, **given})], expected))
        return checks

    def prove_text(self):
        """What the model's method says of sentences."""
        return self.expected_text(self._texts())

    def _texts(self):
        limit = self.model.arguments["max_sequence_length"]
        texts = [text for text in TEXTS if len(self.model.tokenizer.encode(text, text)) < limit]
        return texts + ([" ".join(TEXTS * limit)] if self.options.truncate else [])


def strings(nest):
    """A nest of lists of strings as an array of UTF-8."""
    return np.vectorize(str.encode, otypes=[object])(np.array(nest, dtype=object))


def pairs_of(texts):
    """Each text with the next one."""
    return {"texts": texts, "pairs": texts[1:] + texts[:1]}


def model_inputs(model, encodings):
    """A model's inputs of encodings."""
    token_ids, padding_mask = batches.pad([encoding.ids for encoding in encodings])
    segment_ids, _ = batches.pad([encoding.type_ids for encoding in encodings])
    inputs = {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": padding_mask}
    return {name: inputs[name] for name in model.input if name in inputs}


def best(logits, count):
    """The `count` largest of the last axis: their places, and whether the file's small differences leave the order."""
    order = np.argsort(-logits, axis=-1, kind="stable")
    ranked = np.take_along_axis(logits, order[..., : count + 1], axis=-1)
    return order[..., :count], is_clear(ranked, np.abs(logits).max())


def is_clear(ranked, largest):
    """Whether scores, best first along the last axis, lie further apart than a file's may differ."""
    return bool((-np.diff(ranked, axis=-1) > 2 * verification.TOLERANCE * largest).all())
