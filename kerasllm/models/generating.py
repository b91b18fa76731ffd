"""Models that write token after token: what `generate`, `translate`, streaming and scoring share."""

import dataclasses
import itertools

import numpy as np

from kerasllm import backend, checkpoints
from kerasllm.arguments import (
    check_boolean,
    check_from_zero,
    check_function,
    check_numbers,
    check_positive,
    read_sequence,
    shown,
)
from kerasllm.generation import generator, scoring, speculative
from kerasllm.generation.config import GenerationConfig, named
from kerasllm.generation.sharing import with_same_weights
from kerasllm.generation.task import Task
from kerasllm.models.base import Model, adopted
from kerasllm.tasks.completing import check_streamed, ends_and_writer, read_ids, with_text
from kerasllm.text import batches


class GeneratingModel(Model):
    """A model that writes token after token.

    A subclass offers the three methods that `kerasllm.generation` knows:

        start_decoding(inputs, prompt, capacity) -> state
        decode_step(token_ids (B, T), state, index) -> (logits (B, T, V), state)
        grow(state, capacity) -> state
    """

    default_max_length = 256
    """Tokens that a sequence may have where neither the model nor the call limits it."""
    _start_token_id = None  # set by models that have one: translators
    rewinds = False
    """Whether decoding may step back to an earlier slot: its state is a cache, and no recurrence."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.generation_defaults = GenerationConfig()
        self.end_token_ids = None
        object.__setattr__(self, "_file_token_ids", {})

    @property
    def generation_defaults(self):
        """The `GenerationConfig` that decides what a call leaves open; a preset's own `generation_config.json`."""
        return self._generation_defaults

    @generation_defaults.setter
    def generation_defaults(self, config):
        # Hidden from Keras's tracking.
        object.__setattr__(self, "_generation_defaults", GenerationConfig.merged(config))

    @property
    def end_token_ids(self):
        """The ids that end a sequence, a tuple.

        Default: those that the preset's generation_config.json names, else its config.json, until a tokenizer with
        another end token is set; else the end token of the tokenizer that writes the text.
        """
        if self._end_token_ids is not None:
            return self._end_token_ids
        tokenizer = self.output_tokenizer
        return () if tokenizer is None or tokenizer.eos_id is None else (tokenizer.eos_id,)

    @end_token_ids.setter
    def end_token_ids(self, ids):
        if ids is not None:  # () is no end
            ids = tuple(read_ids("end_token_ids", list(ids), self.output_vocabulary_size)) if ids else ()
        object.__setattr__(self, "_end_token_ids", ids)

    @property
    def output_tokenizer(self):
        """The tokenizer that writes the text, or None."""
        return self.tokenizers.get("tokenizer")

    @property
    def output_vocabulary_size(self):
        """The number of symbols that the model may write."""
        return self.arguments["vocabulary_size"]

    @property
    def max_sequence_length(self):
        """The longest sequence the model can hold, or None."""
        return self.arguments.get("max_sequence_length")

    def start_decoding(self, inputs, prompt, capacity):
        """The state after all but the last token of the prompts.

        Args:
            inputs: dict of tensors, batch axis first: what the text is conditioned on, for instance a source.
            prompt: dict of `token_ids` (B, P) int32 and `padding_mask` (B, P) bool, padded on the left.
            capacity: number of slots, at least P.

        Returns:
            A nest of tensors with the batch axis first.
        """
        raise NotImplementedError

    def decode_step(self, token_ids, state, index):
        """Read tokens (B, T) into the slots from `index` on: logits (B, T, V) and the new state.

        Args:
            token_ids: (B, T) int32.
            state: as `start_decoding` returns it.
            index: a scalar; or (B,) int32, a slot for each row, so that texts of different lengths go on together. From
                0 to S - T, for a state of S slots: a row beyond counts as one at the nearest end; what becomes of a
                scalar beyond depends on the backend. To recurrent states it does not matter.
        """
        raise NotImplementedError

    def grow(self, state, capacity):
        """The same state with room for `capacity` slots."""
        return state

    def save_assets(self, folder):
        """Write the tokenizers and the generation defaults; Keras calls this for a `.keras` file."""
        super().save_assets(folder)
        values = self.generation_defaults.given()
        if "bad_words" in values:
            values["bad_words"] = [ids for word in values["bad_words"] for ids in self._word_ids(word)]
        own = {name: i for name, i in self._file_token_ids.items() if name != "eos_token_id"}
        ids = {name: i for name, i in self.special_token_ids().items() if name in ("bos_token_id", "pad_token_id")}
        ids = {name: i for name, i in ids.items() if i is not None}
        says_more = bool(own.items() - ids.items())
        if values or says_more or self._end_token_ids is not None or self._start_token_id is not None:
            # Where there is this file, transformers looks for ids nowhere else.
            end_ids = self._end_token_ids if self._end_token_ids is not None else self.end_token_ids or None
            checkpoints.write_generation_config(folder, values, end_ids, self._start_token_id, ids | own)

    def load_defaults(self, folder):
        """Read the generation defaults that a folder holds."""
        values, end_ids = checkpoints.read_generation_config(folder, self.output_vocabulary_size)
        if self.max_sequence_length:  # a file may ask for more than the model can hold
            for name in {"max_length", "min_length", "min_new_tokens"} & set(values):
                values[name] = min(values[name], self.max_sequence_length)
        self.generation_defaults = GenerationConfig(**values)
        self.end_token_ids = end_ids
        ids = checkpoints.read_token_ids(folder, self.output_vocabulary_size)
        object.__setattr__(self, "_file_token_ids", ids | ({} if end_ids is None else {"eos_token_id": list(end_ids)}))

    def special_token_ids(self):
        ids = super().special_token_ids()
        ends = {"eos_token_id": self.end_token_ids[0]} if self.end_token_ids else {}
        return ids | ends if ids.get("eos_token_id") is None else ids

    def adopt_token_ids(self, tokenizer):
        super().adopt_token_ids(tokenizer)
        ends, ids = self._file_token_ids.get("eos_token_id"), adopted(self._file_token_ids, tokenizer)
        if ids.get("eos_token_id") != ends and self._end_token_ids == tuple(ends):
            self.end_token_ids = None
            del ids["eos_token_id"]
        object.__setattr__(self, "_file_token_ids", ids)

    def token_id(self, role):
        """The id of a role: the tokenizer's, else the one that the preset's files name, else None."""
        own = getattr(self.output_tokenizer, f"{role}_id", None)
        named = self.special_token_ids() | self._file_token_ids
        return named.get(f"{role}_token_id") if own is None else own

    @with_same_weights
    def complete(
        self,
        prompts,
        config,
        batch_size=32,
        read_inputs=lambda places: {},
        return_scores=False,
        processors=(),
        prefix_allowed_tokens=None,
        draft=None,
        num_draft_tokens=8,
        first_index=0,
    ):
        """Check the arguments, then generate, some prompts at a time.

        Args:
            prompts: non-empty lists of ids.
            config: a `GenerationConfig`.
            batch_size: the most prompts at a time.
            read_inputs: takes a list of places in `prompts` and returns what `start_decoding` reads beside them, a
                dict of arrays with one row for each.
            return_scores, processors, prefix_allowed_tokens, draft, num_draft_tokens, first_index: as for
                `LanguageModel.generate`.

        Returns:
            For each prompt a list of `num_return_sequences` `Generation`s, with their texts where there is a tokenizer.
        """
        check_positive("batch_size", batch_size)
        check_boolean("return_scores", return_scores)
        check_from_zero("first_index", first_index)
        for i, processor in enumerate(processors := read_sequence("processors", processors)):
            check_function(f"processors[{i}]", processor)
        if prefix_allowed_tokens is not None:
            check_function("prefix_allowed_tokens", prefix_allowed_tokens)
        config = self.task_config(config, prompts)
        end_ids, find_stop, writer = ends_and_writer(self, config)
        if draft is not None:
            self._check_draft(
                draft, num_draft_tokens, config, len(prompts), processors or prefix_allowed_tokens is not None
            )

        def of_batch(batch):
            places, least_rows = batch
            callbacks = list(processors)
            if prefix_allowed_tokens is not None:
                copies = max(config.num_beams, config.num_return_sequences)
                callbacks.append(_only_allowed(prefix_allowed_tokens, np.repeat(places, copies)))
            task = Task(
                model=self,
                inputs=read_inputs(places),
                prompts=[prompts[i] for i in places],
                config=config,
                end_ids=end_ids,
                first_index=first_index + places[0],
                find_stop=find_stop,
                scores=return_scores,
                processors=tuple(callbacks),
                least_rows=least_rows,
            )
            if draft is None:
                return generator.generate(task)
            return [[speculative.generate(task, draft, num_draft_tokens)]]

        results = backend.shared(of_batch, _batches(len(prompts), batch_size), prompts)
        rows = itertools.chain.from_iterable(results)
        return [[with_text(generation, writer, config.strip_prompt) for generation in row] for row in rows]

    def stream_text(self, prompt, config, inputs):
        """Generate from one list of ids, and yield the completion's text in pieces."""
        check_streamed(config)
        self.required_output_tokenizer()
        config = self.task_config(config, [prompt])
        end_ids, find_stop, writer = ends_and_writer(self, config)
        task = Task(model=self, inputs=inputs, prompts=[prompt], config=config, end_ids=end_ids, find_stop=find_stop)
        return writer.pieces(prompt, ((row.ids, row.finish_reason is not None) for row in generator.stream(task)))

    @with_same_weights
    def score_batches(self, name, rows, batch_size, read_inputs):
        """`Score`s of lists of ids, some at a time.

        Args:
            name: of the argument that the rows are, for errors.
            rows: lists of ids, what the model's logits belong to.
            batch_size: the most rows at a time.
            read_inputs: takes a list of places in `rows`, and their ids and mask (B, T), padded on the right, and
                returns the model's inputs.

        Raises:
            ValueError: a row is of one token, or longer than the model's `max_sequence_length`.
            FloatingPointError: a log-probability is NaN or infinite.
        """
        check_positive("batch_size", batch_size)
        for i, row in enumerate(rows):
            if len(row) < 2:
                raise ValueError(f"{name}[{i}] ({shown(row)}) must be of two tokens at least.")

        def of_batch(batch):
            places, least_rows = batch
            longest = max(len(rows[i]) for i in places)
            if self.max_sequence_length and longest > self.max_sequence_length:
                raise ValueError(
                    f"{name}: one of {longest} tokens is longer than max_sequence_length ({self.max_sequence_length})."
                )
            length = batches.bucket_length(longest, self.max_sequence_length)
            token_ids, padding_mask = batches.pad([rows[i] for i in places], length)
            inputs = read_inputs(places, token_ids, padding_mask)
            scores = scoring.score(self, inputs, token_ids, padding_mask, batches.bucket_rows(least_rows))
            for i, score in zip(places, scores, strict=True):
                check_numbers("log-probabilities", score.log_probs, f"for row {i}")
            return scores

        return list(itertools.chain.from_iterable(backend.shared(of_batch, _batches(len(rows), batch_size), rows)))

    def required_output_tokenizer(self):
        """The tokenizer that writes the text, or a `ValueError` that says how to give the model one."""
        return self.required_tokenizer()

    def task_config(self, config, prompts):
        """The `config` of a `Task`: with a length for these prompts and with words as ids, checked against the model.

        Raises:
            ValueError: a prompt or a length is above the model's; an id is outside the vocabulary; no token is left to
                choose; there are more beams than symbols; the defaults ask for what is `unsupported`.
        """
        if config.unsupported:
            fields = ", ".join(f"{name} ({shown(value)})" for name, value in config.unsupported.items())
            raise ValueError(
                f"generation_config.json asks for {fields}, which changes the text and which kerasllm does not do: say "
                "otherwise in the call, or leave it out with unsupported=None."
            )
        longest = max(map(len, prompts))
        config = config.limited(longest, self.max_sequence_length, max(self.default_max_length, 2 * longest))
        size = self.output_vocabulary_size
        words = tuple(dict.fromkeys(ids for word in config.bad_words for ids in self._word_ids(word)))
        for name, ids in [
            ("logit_bias", list(config.logit_bias or {})),
            ("bad_words", [i for word in words for i in word]),
            *((name, list(getattr(config, name) or ())) for name in ("suppress_tokens", "begin_suppress_tokens")),
            *((name, [getattr(config, name)]) for name in FORCED if getattr(config, name) is not None),
        ]:
            batches.check_ids(np.array(ids, "int64"), size, name)
        if config.num_beams > size:
            raise ValueError(f"num_beams ({config.num_beams}) must be at most the number of symbols ({size}).")
        self._check_choice_left(config, words)
        return dataclasses.replace(config, bad_words=words)

    def _check_choice_left(self, config, words):
        """Raise where every token is ruled out: `constrain`, which leaves one in any case, would take no notice."""
        bans = {
            "bad_words": {word[0] for word in words if len(word) == 1},
            "suppress_tokens": set(config.suppress_tokens or ()),
            "logit_bias": {i for i, bias in (config.logit_bias or {}).items() if bias == -np.inf},
        }
        early = {"begin_suppress_tokens": set(config.begin_suppress_tokens or ())}
        for name in ("min_new_tokens", "min_length"):
            early[name] = set(ends_and_writer(self, config)[0]) if getattr(config, name) else set()
        for at_once in (bans, bans | early):
            if len(set().union(*at_once.values())) >= self.output_vocabulary_size:
                names = " and ".join(f"{name} ({shown(getattr(config, name))})" for name, ids in at_once.items() if ids)
                raise ValueError(f"{names} must leave a token that may be chosen.")
        for forced in FORCED:
            token_id = getattr(config, forced)
            if ban := next((name for name, ids in bans.items() if token_id in ids), None):
                raise ValueError(f"{forced} ({token_id}) must not be ruled out: {ban} ({shown(getattr(config, ban))}).")

    def _word_ids(self, word):
        if not isinstance(word, str):
            return [word]
        tokenizer = self.required_output_tokenizer()
        return [tuple(tokenizer.encode(text, special_tokens=False)) for text in (word, f" {word}")]

    def _check_draft(self, draft, num_draft_tokens, config, num_prompts, has_callbacks):
        check_positive("num_draft_tokens", num_draft_tokens)
        if not (isinstance(draft, GeneratingModel) or isinstance(draft, str) and draft == "prompt"):
            raise ValueError(f"draft ({shown(draft)}) must be 'prompt' or a model that generates.")
        for role, model in (("this model", self), ("draft", draft)):
            if model != "prompt" and not model.rewinds:
                raise ValueError(f"draft: {role} ({type(model).__name__}) must be a Transformer, whose cache rewinds.")
        if draft != "prompt" and draft.output_vocabulary_size != self.output_vocabulary_size:
            raise ValueError(
                f"draft has {draft.output_vocabulary_size} symbols, the model {self.output_vocabulary_size}: "
                "they must have the same vocabulary."
            )
        if num_prompts > 1:
            raise ValueError(f"draft ({shown(draft)}) takes one prompt at a time, not {num_prompts}.")
        others = sorted(set(config.given()) - set(named("with_draft", True)))
        if config.sampling or others or has_callbacks:
            others = others or ["temperature" if config.sampling else "processors"]
            raise ValueError(f"draft ({shown(draft)}) is for plain greedy decoding: leave {', '.join(others)} out.")


# Fields of `GenerationConfig` that hold one id.
FORCED = ("forced_bos_token_id", "forced_eos_token_id")


def _batches(num_rows, batch_size):
    """The places of each batch, and its least rows, those of the first: a smaller one would be compiled anew."""
    starts, least_rows = range(0, num_rows, batch_size), min(batch_size, num_rows)
    return [(list(range(start, min(start + batch_size, num_rows))), least_rows) for start in starts]


def _only_allowed(prefix_allowed_tokens, places):
    """The processor that asks the caller which ids may follow; row r belongs to prompt `places[r]`."""

    def process(token_ids, logits):
        allowed = np.full_like(logits, -np.inf)
        for row, (place, tokens) in enumerate(zip(places, token_ids, strict=True)):
            ids = list(prefix_allowed_tokens(int(place), tokens))
            if not ids:
                raise ValueError(f"prefix_allowed_tokens: nothing may follow {tokens.tolist()} of prompt {place}.")
            batches.check_ids(np.array(ids), logits.shape[1], "prefix_allowed_tokens")
            allowed[row, ids] = logits[row, ids]
        return allowed

    return process
