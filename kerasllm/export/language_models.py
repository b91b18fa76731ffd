"""What a file of a language model holds: the steps of decoding, generation and scoring."""

import functools

import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.arguments import shown
from kerasllm.export import states
from kerasllm.export.contents import Contents, Signature
from kerasllm.export.language_model_checks import LanguageModelChecks
from kerasllm.export.runtime import sampling_inputs
from kerasllm.generation.config import GenerationConfig, named
from kerasllm.generation.generator import advance, chooser
from kerasllm.generation.processors import FILTERS, constrain, constraint_tensors
from kerasllm.generation.programs import prefill
from kerasllm.generation.samplers import uniform, wrap_seed
from kerasllm.generation.scoring import token_log_probs
from kerasllm.tasks.completing import ends_and_writer
from kerasllm.text.batches import pad

SAMPLING = {
    name: ((), "float32" if GenerationConfig.__annotations__[name] == float | None else "int32")
    for name in named("exported", "choice")
}
"""What decides how a token is chosen; temperature 0, top_k 0, top_p 1 and repetition_penalty 1 switch it off."""
LENGTHS = {"max_new_tokens": ((), "int32"), "stop_token_ids": ((None,), "int32")}
"""What decides where a text ends, beside the model's own end tokens; the id -1 is none."""
# What the file's inputs decide, in place of `generation_defaults`; those end a text too.
RUN_TIME = {
    name: getattr(GenerationConfig, name) for name in named("exported", "any", "text", "choice") if name != "stop"
}


class LanguageModelContents(Contents):
    """What a file of a `GPT` or an `RNNLanguageModel` holds.

    Beside `forward`, a SavedModel has

        generate(token_ids (B, T), padding_mask (B, T), SAMPLING, LENGTHS, num_return_sequences ())
            -> token_ids (B n, L), lengths (B n,)
        score(token_ids (B, T), padding_mask (B, T)) -> log_probs (B, T - 1)
        generate_text(texts (B,), SAMPLING, LENGTHS, num_return_sequences ()) -> texts (B n,)
        tokenize(texts (B,)) -> token_ids (B, T), padding_mask (B, T)
        detokenize(token_ids (B, T), padding_mask (B, T)) -> texts (B,)

    where `max_new_tokens` -1 is as many as there is room for,

    and a TFLite file of batch size b

        generate(token_ids (b, T), SAMPLING, LENGTHS, row ()) -> token_ids (b, max_length), lengths (b,)
        prefill_N(tokens (b, N), input_pos (N,), state) -> state
        decode(tokens (b, 1), input_pos (1,), state) -> logits (b, 1, V), state
        sample(logits (b, V), token_ids (b, max_length), count (), SAMPLING, row ()) -> token_ids (b,)

    They do what `LanguageModel.generate` and `score` do, with the same tokens for the same seed. What else
    `generation_defaults` say (bans, penalties, least lengths) is built in.

    The state of decoding is zero before the first token: `kv_cache_k_i` and `kv_cache_v_i`, whose slots are positions,
    and of recurrent layers `state_0`, `state_1` and so on.

    Raises:
        ValueError: an option does not suit the model, or its `generation_defaults` say what a file cannot do.
    """

    def __init__(self, model, options):
        limit = model.max_sequence_length
        if options.max_length is not None and limit is not None and options.max_length > limit:
            raise ValueError(
                f"max_length ({options.max_length}) must be at most the model's max_sequence_length ({limit})."
            )
        if options.strings:
            if options.static:
                raise ValueError("strings (True) are for a SavedModel: TFLite's builtin operations have none.")
            model.required_tokenizer()
        self.max_length = limit
        if options.static:
            self.max_length = options.max_length or limit or model.default_max_length
        # A recurrent state has no slots that filled-up tokens could leave: such models read by `decode` alone.
        lengths = options.prefill_lengths if options.static and model.rewinds else ()
        self.prefill_lengths = [length for length in lengths if length <= self.max_length]
        super().__init__(model, options)
        for name in ("generate", "generate_text", "sample"):
            if name in self.signatures:
                self._check_defaults(name)
        self._check_steps()

    def available(self):
        """The functions of this format."""
        functions, proofs = super().available(), LanguageModelChecks(self)
        tokens, scalar = ((self.options.batch, None), "int32"), ((), "int32")
        if self.options.static:
            inputs = {"token_ids": tokens, **SAMPLING, **LENGTHS, "row": scalar}
            functions["generate"] = Signature(inputs, self.generate_rows, proof=proofs.generate)
            return {**functions, **self._steps(proofs)}
        inputs = {"token_ids": tokens, "padding_mask": (tokens[0], "bool")}
        options = {**SAMPLING, **LENGTHS, "num_return_sequences": scalar}
        defaults = self._option_defaults()
        functions["generate"] = Signature({**inputs, **options}, self.generate, defaults, proof=proofs.generate)
        functions["score"] = Signature(inputs, self.score, limit=self.max_length, proof=proofs.score, is_exact=True)
        if self.options.strings:
            texts = {"texts": ((None,), "string")}
            functions["generate_text"] = Signature(
                {**texts, **options}, self.generate_text, defaults, proof=proofs.generate_text, is_exact=True
            )
            functions["tokenize"] = Signature(texts, self.tokenize, proof=proofs.tokenize, is_exact=True)
            functions["detokenize"] = Signature(inputs, self.detokenize, proof=proofs.detokenize, is_exact=True)
        return functions

    def _option_defaults(self):
        """The options of `generate` as `generation_defaults` have them."""
        config = self.model.generation_defaults
        return {
            **sampling_inputs(config),
            "seed": None if config.seed is None else wrap_seed(config.seed),
            "max_new_tokens": config.max_new_tokens or -1,
            "stop_token_ids": (-1,),
            "num_return_sequences": config.num_return_sequences,
        }

    @property
    def text_signature(self):
        """The completion of texts."""
        return "generate_text"

    def examples(self):
        """Random tokens; for a quantised file the model's own text after a random token.

        After random tokens many are about as likely, and each rounding chooses another.
        """
        examples = super().examples()
        return examples if self.options.exact else [self._own_text(**x) for x in examples]

    def _own_text(self, token_ids, padding_mask):
        length = token_ids.shape[1]
        if length > 1:
            prompts = token_ids[:, :1].tolist()
            rows = self.model.generate(prompts, max_new_tokens=min(length - 1, 31), temperature=0)
            token_ids, padding_mask = pad(rows, length)
        return {"token_ids": token_ids.astype("int32"), "padding_mask": padding_mask.astype("bool")}

    def labels(self, inputs):
        """The token after each."""
        is_real = np.asarray(inputs["padding_mask"], bool)
        labels = np.full(is_real.shape, -1)
        labels[:, :-1] = np.where(is_real[:, :-1] & is_real[:, 1:], inputs["token_ids"][:, 1:], -1)
        return labels

    def calibration(self):
        """Also the data's sequences, read by each `prefill_N` from the start and by `decode`."""
        rows = [
            np.array(ids, "int32")[np.array(mask, bool)]
            for x in self.calibration_inputs()
            for ids, mask in zip(x["token_ids"], x["padding_mask"], strict=True)
        ]
        return super().calibration() + [calls for ids in rows for calls in self._reading(ids[: self.max_length])]

    def _reading(self, ids):
        """Calls of each step function that is wanted, which read ids (T,)."""
        for name, signature in self.signatures.items():
            if "input_pos" in signature.inputs:
                first = {key: np.zeros(shape, dtype) for key, (shape, dtype) in signature.inputs.items()}
                length = len(first["input_pos"])
                batch = np.repeat(np.pad(ids, (0, -len(ids) % length))[None], self.options.batch_size, axis=0)
                places = np.arange(batch.shape[1], dtype="int32")
                ends = [length] if length > 1 else range(1, len(ids) + 1)
                pieces = [slice(end - length, end) for end in ends]
                calls = [(name, {"tokens": batch[:, p], "input_pos": places[p]}) for p in pieces]
                yield [(name, {**first, **calls[0][1]}), *calls[1:]]

    def settings(self):
        """The limits of the functions, and the ids that end a text and that fill up arrays."""
        return {
            "max_length": self.max_length,
            "end_token_ids": list(self.model.end_token_ids),
            "pad_token_id": self.model.token_id("pad"),
            "prefill_lengths": self.prefill_lengths,
            "vocabulary_size": self.model.output_vocabulary_size,
        }

    def tables(self):
        """The tokenizer, where there are strings."""
        return [self._tokenizer] if self.options.strings else []

    def _check_defaults(self, name):
        defaults = self.model.generation_defaults
        strings = [stop for stop in defaults.stop if isinstance(stop, str)]
        beams = defaults.num_beams if defaults.num_beams > 1 else None
        for field, value in [("num_beams", beams), ("stop", strings), ("unsupported", defaults.unsupported)]:
            if value:
                raise ValueError(
                    f"signatures: {name} cannot hold generation_defaults.{field} ({shown(value)}); change it, or leave "
                    f"{name} out of the signatures."
                )
        if name == "sample" and defaults.forced_eos_token_id is not None:
            raise ValueError(
                f"signatures: sample cannot hold generation_defaults.forced_eos_token_id "
                f"({defaults.forced_eos_token_id}), as it is not told where the text is to end."
            )

    def _check_steps(self):
        rotary = getattr(getattr(self.model, "decoder", None), "rotary", [])
        limit = min((r.follows_beyond for r in rotary if r.follows_beyond is not None), default=None)
        steps = [name for name, signature in self.signatures.items() if "input_pos" in signature.inputs]
        if steps and limit is not None and self.max_length > limit:
            raise ValueError(
                f"max_length ({self.max_length}) must be at most {limit} for {', '.join(steps)}: beyond it the model's "
                "rotary positions follow the length of a prompt, which these functions are not told. Or leave them out "
                "of the signatures."
            )

    # Whole texts

    def generate(self, token_ids, padding_mask, stop_token_ids, max_new_tokens, seed, num_return_sequences, **sampling):
        """Continue prompts that are padded on either side."""
        import tensorflow as tf

        counts = tf.reduce_sum(tf.cast(padding_mask, tf.int32), axis=1)
        longest = tf.reduce_max(counts)
        most = min(filter(None, (self.model.generation_defaults.max_length, self.max_length)), default=None)
        most = tf.maximum(self.model.default_max_length, 2 * longest) if most is None else most
        limits = tf.where(max_new_tokens < 0, most - counts, max_new_tokens)
        checks = _sampling_checks(max_new_tokens, num_return_sequences, **sampling)
        checks.append(tf.debugging.assert_positive(counts, "padding_mask: each prompt must hold at least one token"))
        if self.max_length is not None:
            room = f"max_sequence_length ({self.max_length})"
            message = f"max_new_tokens after the longest prompt exceeds {room}"
            checks += [
                tf.debugging.assert_less(counts, self.max_length, f"a prompt is as long as {room} or longer"),
                tf.debugging.assert_less_equal(longest + tf.maximum(max_new_tokens, 0), self.max_length, message),
            ]
        checks.append(
            tf.debugging.assert_positive(limits, "a prompt leaves no room below generation_defaults.max_length")
        )
        with tf.control_dependencies(checks):
            limits = tf.identity(limits)
            limit, longest = tf.reduce_max(limits), tf.identity(longest)
        # Prompts end in the last slot. A padded slot before the longest keeps at least two, as decoding asks for.
        order = tf.argsort(tf.cast(padding_mask, tf.int32), axis=1, stable=True)
        token_ids, padding_mask = (
            tf.pad(tf.gather(x, order, batch_dims=1), [[0, 0], [1, 0]])[:, -longest - 1 :]
            for x in (token_ids, padding_mask)
        )
        prompt = {"token_ids": token_ids, "padding_mask": padding_mask}
        state = prefill(self.model, {}, prompt, longest + limit, num_copies=1, has_history=True)
        state, token, limits = tf.nest.map_structure(
            lambda x: tf.repeat(x, num_return_sequences, axis=0), (state, token_ids[:, -1], limits)
        )
        rows = tf.range(tf.shape(token)[0])
        uniforms = uniform(
            seed,
            rows // num_return_sequences,
            rows % num_return_sequences,
            tf.range(limit)[:, None],
        )
        return self._completed(state, token, longest, limit, limits, stop_token_ids, uniforms, sampling)

    def generate_rows(self, token_ids, stop_token_ids, max_new_tokens, seed, row, **sampling):
        """Continue prompts of one length, in TFLite.

        `max_new_tokens` ends where `max_length` does.
        """
        batch_size, length = self.options.batch_size, ops.shape(token_ids)[1]
        history = ops.full((batch_size, self.max_length), -1, dtype="int32")
        history = ops.slice_update(history, (0, 0), token_ids)
        state, slot = self._read(token_ids), length - 1
        token = ops.reshape(ops.take(history, ops.reshape(slot, (1,)), axis=1), (batch_size,))
        counts = ops.arange(self.max_length, dtype="int32")[:, None]
        uniforms = uniform(seed, ops.arange(batch_size, dtype="int32"), row, counts)
        limit = ops.minimum(max_new_tokens, self.max_length - length)
        limits = ops.ones_like(token) * limit
        return self._completed((state, history), token, slot, limit, limits, stop_token_ids, uniforms, sampling)

    def _read(self, token_ids):
        """The state after prompts (b, T), all but the last token of which are read."""
        state = self._first_state()
        if self.model.rewinds:  # The last token will be read once more.
            return self.model.decode_step(token_ids, state, 0)[1]

        def step(carry, token_ids):
            slot, state = carry
            token = ops.take(token_ids, ops.reshape(slot, (1,)), axis=1)
            token = ops.reshape(token, (self.options.batch_size, 1))
            return slot + 1, self.model.decode_step(token, state, slot)[1]

        length = ops.shape(token_ids)[1]
        return backend.while_loop(lambda carry, _: carry[0] < length - 1, step, (0, state), token_ids)[1]

    def _completed(self, state, token, slot, limit, limits, stop_token_ids, uniforms, sampling):
        """The completions of prompts that end in a slot, and lengths: at most `limits` (R,), none above `limit`."""
        penalty = sampling.pop("repetition_penalty")
        constraints = self._constraints(repetition_penalty=penalty)
        if "forced_eos_token_id" in constraints:
            constraints["forced_eos_token_id"] = (constraints["forced_eos_token_id"][0], 0, limits[:, None])
        end_ids = ops.concatenate([self._end_ids, stop_token_ids])
        where, choice = (slot, slot + 1, limits, end_ids), (uniforms, constraints, self._chooser(**sampling))
        ids, *_ = advance(self.model, state, token, limits <= 0, limit, where, choice, scores=False)
        ids = ops.transpose(ids)  # (R, L)
        steps = ops.arange(ops.shape(ids)[1], dtype="int32")[None]
        is_end = ops.logical_or(ids < 0, ops.any(ids[:, :, None] == end_ids[None, None], axis=-1))
        lengths = ops.min(ops.where(is_end, ops.minimum(steps + 1, limits[:, None]), limits[:, None]), axis=-1)
        ids = ops.where(steps < lengths[:, None], ids, 0)
        return {"token_ids": ids if self.options.static else ids[:, : ops.max(lengths)], "lengths": lengths}

    def sample(self, logits, token_ids, count, seed, row, repetition_penalty, **sampling):
        """Choose the next tokens as `generate` does, from the logits and the tokens so far."""
        slot = ops.sum(ops.cast(token_ids[0] >= 0, "int32")) - 1
        constraints = self._constraints(repetition_penalty=repetition_penalty)
        logits = constrain(logits, token_ids, slot, slot + 1 - count, self._end_ids, constraints)
        prompts = ops.arange(self.options.batch_size, dtype="int32")
        return {"token_ids": self._chooser(**sampling)(logits, uniform(seed, prompts, row, count))}

    @functools.cached_property
    def _defaults(self):
        """The `GenerationConfig` of what is built in, words as ids, and the end ids."""
        config = GenerationConfig.merged(None, defaults=self.model.generation_defaults, **RUN_TIME)
        return self.model.task_config(config, [[0]]), ends_and_writer(self.model, config)[0]

    def _constraints(self, **given):
        return {**constraint_tensors(self._defaults[0]), **given}

    @property
    def _end_ids(self):
        return np.array(self._defaults[1] or [-1], "int32")

    def _chooser(self, temperature, top_k, top_p):
        built_in = {name: getattr(self._defaults[0], name) for name in FILTERS if name not in SAMPLING}
        return chooser(temperature, top_k, top_p, **built_in)

    def score(self, token_ids, padding_mask):
        """Log-probabilities of tokens after those before them, 0 where padded; padding stands on the right."""
        import tensorflow as tf

        real = tf.cast(padding_mask, tf.int32)
        tf.debugging.assert_non_positive(real[:, 1:] - real[:, :-1], "padding_mask: padding must stand on the right")
        log_probs = token_log_probs(self.model, {"token_ids": token_ids, "padding_mask": padding_mask}, token_ids)
        return {"log_probs": tf.where(padding_mask[:, 1:], log_probs, 0.0)}

    # Strings

    @functools.cached_property
    def _tokenizer(self):
        from kerasllm.export.text_ops import graph_tokenizer

        return graph_tokenizer(self.model.required_tokenizer())

    def tokenize(self, texts):
        """The ids of texts, padded on the right."""
        encoded = self._tokenizer.encode(texts)
        return {name: encoded[name] for name in ("token_ids", "padding_mask")}

    def detokenize(self, token_ids, padding_mask):
        """The texts of ids."""
        return {"texts": self._tokenizer.decode(token_ids, padding_mask)}

    def generate_text(self, texts, stop_token_ids, num_return_sequences, **options):
        """The completions of texts, without the prompts."""
        import tensorflow as tf

        encoded = self._tokenizer.encode(texts)
        # An empty text stands for the start token.
        start, is_empty = self.model.tokenizer.bos_id, ~tf.reduce_any(encoded["padding_mask"], axis=1, keepdims=True)
        can_start = is_empty if start is not None else tf.zeros_like(is_empty)
        prompts = tf.concat([tf.fill(tf.shape(is_empty), start or 0), encoded["token_ids"]], axis=1)
        real = tf.concat([can_start, encoded["padding_mask"]], axis=1)
        outputs = self.generate(prompts, real, stop_token_ids, num_return_sequences=num_return_sequences, **options)
        ids, lengths = outputs["token_ids"], outputs["lengths"]
        # The end token is no part of the text.
        end_ids = tf.concat([self._end_ids, stop_token_ids], axis=0)
        last = tf.gather(ids, lengths[:, None] - 1, batch_dims=1)
        is_written = tf.sequence_mask(
            lengths - tf.cast(tf.reduce_any(last == end_ids, axis=1), tf.int32), tf.shape(ids)[1]
        )
        prompts, real = (tf.repeat(x, num_return_sequences, axis=0) for x in (prompts, real))
        # Decoders treat the beginning of a text in a way of their own, so the completion is not decoded alone.
        before = tf.strings.regex_replace(self._tokenizer.decode(prompts, real), "\ufffd+$", "")
        whole = self._tokenizer.decode(tf.concat([prompts, ids], axis=1), tf.concat([real, is_written], axis=1))
        size = tf.strings.length(before)
        rest = tf.strings.substr(whole, size, tf.maximum(tf.strings.length(whole) - size, 0))
        goes_on = tf.strings.substr(whole, tf.zeros_like(size), size) == before
        return {"texts": tf.where(goes_on, rest, self._tokenizer.decode(ids, is_written))}

    # Steps

    def _steps(self, proofs):
        batch_size, scalar = self.options.batch_size, ((), "int32")
        state = states.inputs(self._first_state())

        def signature(length, function, **more):
            inputs = {"tokens": ((batch_size, length), "int32"), "input_pos": ((length,), "int32")}
            return Signature({**inputs, **state}, function, **more)

        functions = {f"prefill_{length}": signature(length, self.prefill) for length in self.prefill_lengths}
        functions["decode"] = signature(1, self.decode, proof=proofs.decode)
        inputs = {
            "logits": ((batch_size, self.model.output_vocabulary_size), "float32"),
            "token_ids": ((batch_size, self.max_length), "int32"),
            "count": scalar,
            "row": scalar,
        }
        functions["sample"] = Signature({**inputs, **SAMPLING}, self.sample, proof=proofs.sample, is_exact=True)
        return functions

    def decode(self, tokens, input_pos, **state):
        """Read tokens (b, T) at the positions `input_pos` (T,): logits (b, T, V), and the new state."""
        logits, state = self.model.decode_step(tokens, states.nested(state, like=self._first_state()), input_pos[0])
        return {"logits": logits, **states.named(state)}

    def prefill(self, tokens, input_pos, **state):
        """`decode`, without logits.

        A prompt that is shorter than T is filled up with any ids: later steps overwrite their slots before they look at
        them.
        """
        outputs = self.decode(tokens, input_pos, **state)
        return {name: x for name, x in outputs.items() if name != "logits"}

    def _first_state(self):
        """The state before the first token: zeros."""
        shape = (self.options.batch_size, 1)
        prompt = {"token_ids": ops.zeros(shape, "int32"), "padding_mask": ops.ones(shape, "bool")}
        return self.model.start_decoding({}, prompt, self.max_length)


def _sampling_checks(max_new_tokens, num_return_sequences, temperature, top_k, top_p, repetition_penalty):
    """Operations of TensorFlow's graph that raise unless the options are in their ranges: a list."""
    import tensorflow as tf

    is_length = (max_new_tokens > 0) | (max_new_tokens == -1)
    return [
        tf.debugging.Assert(is_length, ["max_new_tokens must be at least 1, or -1 for as many as there is room for"]),
        tf.debugging.assert_positive(num_return_sequences, "num_return_sequences must be at least 1"),
        tf.debugging.assert_non_negative(temperature, "temperature must be at least 0"),
        tf.debugging.assert_non_negative(top_k, "top_k must be at least 0"),
        tf.debugging.Assert((top_p > 0) & (top_p <= 1), ["top_p must be in (0, 1]"]),
        tf.debugging.assert_positive(repetition_penalty, "repetition_penalty must be greater than 0"),
    ]
