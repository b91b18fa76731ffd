"""What a file of a translator holds: greedy and beam search from end to end, and encoder and decoder by themselves."""

import functools
import itertools

import keras
import numpy as np
from keras import ops

from kerasllm.export import states, verification
from kerasllm.export.contents import Check, Contents, Signature
from kerasllm.generation import beam, generator
from kerasllm.generation.config import GenerationConfig
from kerasllm.generation.processors import constraint_tensors, needs_history
from kerasllm.generation.programs import prefill, tensors
from kerasllm.tasks.completing import ends_and_writer
from kerasllm.text import batches

# What is compared: sources of these lengths, and so many tokens of their targets.
SOURCE_LENGTHS = (7, 3, 5)
NUM_TOKENS = 12


class TranslatorContents(Contents):
    """What a file of a translator or a `Summarizer` holds, beside `forward`.

        translate(source_token_ids (B, S), source_padding_mask (B, S), max_new_tokens ())
            -> token_ids (B, L), lengths (B,)
        translate_beams(the same, length_penalty ()) -> the same, scores (B,)

    in a SavedModel with `strings` also

        translate_text(texts (B,), max_new_tokens ()), translate_beams_text(the same, length_penalty ()) -> texts (B,)

    and in TFLite

        encode(source_token_ids (B, S), source_padding_mask (B, S)) -> state
        decode(tokens (B, 1), input_pos (1,), state) -> logits (B, 1, V), state

    `token_ids` are what follows the start token, with the end token, filled up with 0. What `generation_defaults` say
    of forced and forbidden tokens, least lengths and penalties is built in. No target is longer than `max_length`,
    start token included. A model without a `start_token_id` has `encode` and `decode` alone.

    The state of a Transformer is `kv_cache_k_i` and `kv_cache_v_i`, whose slots are positions, and `memory_k_i`,
    `memory_v_i` and `source_padding_mask`, which never change; of a recurrent translator `state_0`, `state_1`, ..., the
    last what `input_feeding` feeds, and with attention `memory`, `keys` and `source_padding_mask`.
    """

    def __init__(self, model, options):
        limit = model.max_sequence_length
        if options.max_length is not None and not 2 <= options.max_length <= (limit or options.max_length):
            accepted = "at least 2" if limit is None else f"in [2, {limit}], the model's max_sequence_length"
            raise ValueError(f"max_length ({options.max_length}) must be {accepted}.")
        self.max_length = options.max_length or limit
        if options.static:
            self.max_length = self.max_length or model.default_max_length
        if options.strings:
            self._check_strings(model, options)
        super().__init__(model, options)
        for name in self.signatures:
            if name.startswith("translate"):
                self.config_and_ends(name)

    @staticmethod
    def _check_strings(model, options):
        if options.static:
            raise ValueError("strings (True) must be False in TFLite, whose builtin operations have none.")
        for name in ("source_tokenizer", "target_tokenizer"):
            if getattr(model, name) is None:
                raise ValueError(f"strings (True) need a tokenizer: the model's {name} is None.")
        if model.start_token_id is None:
            raise ValueError("strings (True) need a start token: the model's start_token_id is None.")

    def available(self):
        """The functions of this format."""
        functions = super().available()
        if self.options.static:
            functions |= {"encode": Signature(self._source(), self.encode), "decode": self._decode_signature()}
        if self.model.start_token_id is None:
            return functions
        length, penalty = {"max_new_tokens": ((), "int32")}, {"length_penalty": ((), "float32")}
        defaults = {} if self.options.static else self._option_defaults()
        source, limit = self._source(), self.model.max_sequence_length
        searches = {"translate": (self.translate, length), "translate_beams": (self.translate_beams, length | penalty)}
        for name, (function, inputs) in searches.items():
            options = {key: value for key, value in defaults.items() if key in inputs}
            proof = functools.partial(self._prove_ids, name)
            functions[name] = Signature(source | inputs, function, options, limit, proof)
        for name, (function, inputs) in searches.items() if self.options.strings else ():
            texts, options = {"texts": ((None,), "string")}, functions[name].defaults
            of_texts = functools.partial(self.translate_text, function)
            proof = functools.partial(self._prove_texts, f"{name}_text")
            functions[f"{name}_text"] = Signature(texts | inputs, of_texts, options, proof=proof)
        return functions

    def _option_defaults(self):
        """The options as `generation_defaults` have them."""
        config = self.model.generation_defaults
        limit = config.max_length or self.max_length or self.model.default_max_length
        return {"max_new_tokens": config.max_new_tokens or limit - 1, "length_penalty": float(config.length_penalty)}

    @property
    def text_signature(self):
        """The translation of texts, by beams where the model's defaults have some."""
        return "translate_text" if self.model.generation_defaults.num_beams == 1 else "translate_beams_text"

    def settings(self):
        """The limit of targets, start token included, and the ids that begin and end them."""
        return {
            "max_length": self.max_length,
            "start_token_id": self.model.start_token_id,
            "end_token_ids": list(self.model.end_token_ids),
            "num_beams": self.options.num_beams,
        }

    def _source(self):
        shape = (self.options.batch, None)
        return {"source_token_ids": (shape, "int32"), "source_padding_mask": (shape, "bool")}

    # Translations.

    def config_and_ends(self, name):
        """How a function generates: the `GenerationConfig` with words as ids, and the end ids (E,).

        Raises:
            ValueError: the model's defaults ask for what a file cannot do.
        """
        config = GenerationConfig.merged(None, defaults=self.model.generation_defaults, **self._overrides(name))
        strings = [stop for stop in config.stop if isinstance(stop, str)]
        if strings:
            raise ValueError(f"generation_defaults.stop ({strings}) must be token ids for {name}.")
        end_ids = np.array(ends_and_writer(self.model, config)[0] or [-1], "int32")
        return self.model.task_config(config, [[self.model.start_token_id]]), end_ids

    def _overrides(self, name):
        """What decides between greedy and beam search, whatever the model's defaults."""
        choice = {"num_beams": self.options.num_beams} if "beams" in name else {"num_beams": 1, "temperature": 0}
        return {**choice, "num_return_sequences": 1}

    def translate(self, source_token_ids, source_padding_mask, max_new_tokens):
        """Translate greedily; the arguments are in the class docstring."""
        config, end_ids = self.config_and_ends("translate")
        begin = self._begin(source_token_ids, source_padding_mask, max_new_tokens, config)
        total, limits, capacity, constraints, state, token = begin
        # Nothing is drawn: the numbers' shape says how many tokens there may be.
        uniforms = ops.zeros((capacity, ops.shape(token)[0]))
        where, choice = (0, 1, limits, end_ids), (uniforms, constraints, ())
        token_ids = generator.advance(self.model, state, token, limits <= 0, total, where, choice, scores=False)[0]
        token_ids = ops.transpose(token_ids)
        # -1 stands where the model's logits are not numbers.
        is_end = ops.logical_or(ops.any(ops.expand_dims(token_ids, 2) == end_ids, axis=-1), token_ids < 0)
        counts = ops.expand_dims(ops.arange(capacity, dtype="int32"), 0) + 1
        lengths = ops.minimum(ops.min(ops.where(is_end, counts, capacity), axis=-1), limits)
        return _completions(token_ids, lengths)

    def translate_beams(self, source_token_ids, source_padding_mask, max_new_tokens, length_penalty):
        """Translate by beam search; the arguments are in the class docstring. A score is nan where the logits are."""
        config, end_ids = self.config_and_ends("translate_beams")
        begin = self._begin(source_token_ids, source_padding_mask, max_new_tokens, config)
        total, limits, capacity, constraints, state, token = begin
        _, _, beams = beam.advance(
            self.model,
            state,
            token,
            beam.first_beams(self.model, limits, config.num_beams, capacity),
            total,
            (0, 1, limits, end_ids, length_penalty),
            constraints,
            early_stopping=config.early_stopping,
            renormalize_logits=config.renormalize_logits,
        )
        token_ids = beams["finished_sequences"][:, 0]
        lengths = ops.sum(ops.cast(token_ids >= 0, "int32"), axis=-1)
        scores = ops.where(beams["is_nan"], float("nan"), beams["finished_scores"][:, 0])
        return {**_completions(token_ids, lengths), "scores": scores}

    def _begin(self, source_token_ids, source_padding_mask, max_new_tokens, config):
        """What both searches begin with.

        Returns:
            The most tokens of a completion; the same for each row (B,); the slots; parameters of `constrain`; what
            `prefill` returns for R = B K rows; the start token (R,).
        """
        model, batch_size = self.model, ops.shape(source_token_ids)[0]
        if not self.options.static:
            max_new_tokens = self._checked_length(max_new_tokens)
        total = max_new_tokens if self.max_length is None else ops.minimum(max_new_tokens, self.max_length - 1)
        capacity = self.max_length if self.options.static else ops.maximum(total, 1)
        constraints = constraint_tensors(config)
        if "forced_eos_token_id" in constraints:
            constraints["forced_eos_token_id"] = (constraints["forced_eos_token_id"][0], 0, total)
        start = ops.full((batch_size, 1), model.start_token_id, dtype="int32")
        prompt = {"token_ids": start, "padding_mask": ops.ones_like(start, dtype="bool")}
        inputs = {"source_token_ids": source_token_ids, "source_padding_mask": source_padding_mask}
        state, history = prefill(model, inputs, prompt, capacity, config.num_beams, needs_history(constraints))
        if self.options.static:
            state = self._with_sizes(state, config.num_beams)
        token = ops.full((batch_size * config.num_beams,), model.start_token_id, dtype="int32")
        limits = ops.full((batch_size,), total, dtype="int32")
        return total, limits, capacity, constraints, (state, history), token

    @staticmethod
    def _checked_length(max_new_tokens):
        import tensorflow as tf

        check = tf.debugging.assert_non_negative(max_new_tokens, "max_new_tokens must be at least 0")
        with tf.control_dependencies([check]):
            return tf.identity(max_new_tokens)

    # Texts.

    def translate_text(self, translate, texts, **inputs):
        """Translate texts (B,) by one of the functions above."""
        import tensorflow as tf

        source, target = self._graph_tokenizers
        encoded = source.encode(texts)
        limit = self.model.max_sequence_length or tf.int32.max
        message = f"texts must have at most {limit} tokens"
        check = tf.debugging.assert_less_equal(tf.shape(encoded["token_ids"])[1], limit, message)
        with tf.control_dependencies([check]):
            outputs = translate(tf.identity(encoded["token_ids"]), encoded["padding_mask"], **inputs)
        token_ids, (config, end_ids) = outputs["token_ids"], self.config_and_ends("translate")
        is_text = tf.sequence_mask(outputs["lengths"], tf.shape(token_ids)[1])
        is_text &= tf.reduce_all(token_ids[:, :, None] != end_ids, axis=-1)
        # Decoders treat the beginning of a text in a way of their own: the start token stands before it.
        start = tf.fill((tf.shape(token_ids)[0], 1), self.model.start_token_id)
        texts = target.decode(tf.concat([start, token_ids], 1), tf.pad(is_text, [[0, 0], [1, 0]], constant_values=True))
        if config.strip_prompt:
            before = self.model.target_tokenizer.decode([self.model.start_token_id])
            texts = tf.strings.substr(texts, len(before.encode()), 2**31 - 1)
        return {"texts": texts}

    def tables(self):
        """The tokenizers' tables."""
        return list(self._graph_tokenizers) if self.options.strings else []

    @functools.cached_property
    def _graph_tokenizers(self):
        from kerasllm.export.text_ops import graph_tokenizer

        source = graph_tokenizer(self.model.source_tokenizer)
        if self.model.target_tokenizer == self.model.source_tokenizer:
            return source, source
        return source, graph_tokenizer(self.model.target_tokenizer)

    # Steps.

    def encode(self, source_token_ids, source_padding_mask):
        """The state before the start token."""
        inputs = {"source_token_ids": source_token_ids, "source_padding_mask": source_padding_mask}
        return states.named(self.model.start_decoding(inputs, self._any_prompt, self.max_length))

    def decode(self, tokens, input_pos, **state):
        """Read one token of each row at the position `input_pos`."""
        logits, state = self.model.decode_step(tokens, states.nested(state, like=self._example), input_pos[0])
        return {"logits": logits, **states.named(state)}

    def _decode_signature(self):
        batch_size = self.options.batch_size
        inputs = {"tokens": ((batch_size, 1), "int32"), "input_pos": ((1,), "int32")}
        return Signature({**inputs, **states.inputs(self._example)}, self.decode, proof=self._prove_steps)

    @property
    def _any_prompt(self):
        """A prompt of one token, which `start_decoding` does not read."""
        shape = (self.options.batch_size, 1)
        return {"token_ids": np.zeros(shape, "int32"), "padding_mask": np.ones(shape, "bool")}

    @functools.cached_property
    def _example(self):
        """The state after a source of two tokens, a nest of arrays."""
        shape = (self.options.batch_size, 2)
        inputs = {"source_token_ids": np.zeros(shape, "int32"), "source_padding_mask": np.ones(shape, "bool")}
        state = self.model.start_decoding(*tensors((inputs, self._any_prompt)), self.max_length)
        return keras.tree.map_structure(ops.convert_to_numpy, state)

    def _with_sizes(self, state, num_copies):
        """The same state with all sizes that are known, which TFLite's loops ask for."""
        import tensorflow as tf

        leaves = []
        for (batch_size, *sizes), x in zip(states.sizes(self._example), keras.tree.flatten(state), strict=True):
            sizes = (batch_size * num_copies, *sizes)
            leaves.append(tf.reshape(x, [tf.shape(x)[i] if n is None else n for i, n in enumerate(sizes)]))
        return keras.tree.pack_sequence_as(state, leaves)

    # Proofs: what the functions give is what the model generates, translates and scores.

    def _random_sources(self, count):
        rng = np.random.default_rng(0)
        longest = self.model.max_sequence_length or max(SOURCE_LENGTHS)
        lengths = itertools.islice(itertools.cycle(SOURCE_LENGTHS), count)
        return [rng.integers(0, self.model.source_vocabulary_size, min(n, longest)).tolist() for n in lengths]

    def _variants(self, name):
        """Inputs beside the source, each with the arguments of `generate` that are the same."""
        least = self.model.generation_defaults.min_new_tokens or 0
        longest = max(NUM_TOKENS, least)
        length = {"max_new_tokens": min(longest, self.max_length - 1) if self.max_length else longest}
        penalties = [{"length_penalty": penalty} for penalty in (1.0, 0.5)] if "beams" in name else [{}]
        for penalty in penalties:
            inputs = {key: np.array(value, "int32") for key, value in length.items()}
            inputs |= {key: np.array(value, "float32") for key, value in penalty.items()}
            yield inputs, {**self._overrides(name), **length, **penalty}

    def _prove_ids(self, name):
        batch_size, checks = self.options.batch or len(SOURCE_LENGTHS), []
        sources = self._random_sources(max(2, batch_size) // batch_size * batch_size)
        for inputs, arguments in self._variants(name):
            # Without beams scores are left out, as for texts: they would be another compilation.
            has_scores = "beams" in name
            results = self.model.generate(sources, return_scores=has_scores, strip_prompt=True, **arguments)
            for i in range(0, len(sources), batch_size):
                token_ids, padding_mask = batches.pad(sources[i : i + batch_size])
                call = {"source_token_ids": token_ids, "source_padding_mask": padding_mask, **inputs}
                rows = results[i : i + batch_size]
                completions = [g.completion for g in rows] if has_scores else rows
                expected = {"token_ids": batches.pad(completions)[0]}
                expected["lengths"] = np.array([len(row) for row in completions], "int32")
                if has_scores:
                    expected["scores"] = np.array([g.score for g in rows], "float32")
                checks.append(Check([(name, call)], expected))
        return checks

    def _prove_texts(self, name):
        texts = map(self.model.source_tokenizer.decode, self._random_sources(2 * len(SOURCE_LENGTHS)))
        texts = [text for text in texts if text.strip()][: len(SOURCE_LENGTHS)]
        if not texts:
            return []
        checks = []
        for inputs, arguments in self._variants(name):
            expected = [text.encode() for text in self.model.translate(texts, **arguments)]
            call = {"texts": np.array([text.encode() for text in texts], object), **inputs}
            checks.append(Check([(name, call)], {"texts": np.array(expected, object)}))
        return checks

    def _prove_steps(self):
        """Encode, then decode some tokens: the last logits are those of `forward`."""
        if "encode" not in self.signatures:
            return []
        batch_size, rng = self.options.batch_size, np.random.default_rng(1)
        token_ids, padding_mask = batches.pad(self._random_sources(batch_size))
        source = {"source_token_ids": token_ids, "source_padding_mask": padding_mask}
        shape = (batch_size, min(3, self.max_length))
        target = rng.integers(0, self.model.output_vocabulary_size, shape, dtype="int32")
        inputs = {**source, "target_token_ids": target, "target_padding_mask": np.ones(shape, "bool")}
        [expected] = verification.model_outputs(self.model, [inputs])
        steps = [
            ("decode", {"tokens": target[:, i : i + 1], "input_pos": np.array([i], "int32")}) for i in range(shape[1])
        ]
        return [Check([("encode", source), *steps], {"logits": expected["logits"][:, -1:]})]


def _completions(token_ids, lengths):
    """The outputs of a search from ids (B, C): `token_ids`, as many as the longest has, and `lengths`."""
    slots = ops.expand_dims(ops.arange(ops.shape(token_ids)[1], dtype="int32"), 0)
    token_ids = ops.where(slots < ops.expand_dims(lengths, 1), token_ids, 0)
    return {"token_ids": token_ids[:, : ops.max(lengths)], "lengths": lengths}
