"""What the translators share: from strings to strings, a source in, a target out."""

import keras

from kerasllm import checkpoints  # a package, whose files are imported when first used
from kerasllm.arguments import read_texts, shown
from kerasllm.generation.config import GenerationConfig
from kerasllm.models.base import carried_tokenizer
from kerasllm.models.generating import GeneratingModel
from kerasllm.tasks.completing import ids_of, read_ids, read_rows, read_sources, texts_of, unnested
from kerasllm.text import batches


class Translator(GeneratingModel):
    """The base of the translators: a source in, a target out."""

    tokenizer_prefixes = {"source_tokenizer": "source_", "target_tokenizer": "target_"}
    source_tokenizer = carried_tokenizer("source_tokenizer", "source_vocabulary_size")
    target_tokenizer = carried_tokenizer("target_tokenizer", "target_vocabulary_size")
    _file_start_token_id = None

    @property
    def output_tokenizer(self):
        """The tokenizer of the target."""
        return self.target_tokenizer

    @property
    def source_vocabulary_size(self):
        """The number of source symbols."""
        return self.arguments["source_vocabulary_size"]

    @property
    def output_vocabulary_size(self):
        """The number of target symbols."""
        return self.arguments["target_vocabulary_size"]

    def required_output_tokenizer(self):
        """The target tokenizer, or a `ValueError` that says how to give the model one."""
        return self.required_tokenizer("target_tokenizer")

    @property
    def start_token_id(self):
        """The id that a target begins with. Default: the start token (bos) of the target tokenizer, or the preset's."""
        if self._start_token_id is not None:
            return self._start_token_id
        named = (self.named_token_ids or {}).get("decoder_start_token_id")
        return self.token_id("bos") if named is None else named

    @start_token_id.setter
    def start_token_id(self, token_id):
        self._start_at(token_id)

    def _start_at(self, token_id):
        if token_id is not None:
            [token_id] = read_ids("start_token_id", [token_id], self.output_vocabulary_size)
        # Hidden from Keras's tracking.
        object.__setattr__(self, "_start_token_id", token_id)

    def special_token_ids(self):
        ids, tokenizer = super().special_token_ids(), self.target_tokenizer
        start, named = self._start_token_id, ids.get("decoder_start_token_id")
        if named is not None and start == self._file_start_token_id:
            return ids
        if start is None and tokenizer:
            start = tokenizer.bos_id
        return ids if start is None else {**ids, "decoder_start_token_id": start}

    def load_defaults(self, folder):
        """Read the generation defaults and the start token that a folder holds."""
        super().load_defaults(folder)
        # Not by the property, which Keras does not set on TensorFlow to what it seems to be already.
        self._start_at(checkpoints.read_start_token_id(folder, self.output_vocabulary_size))
        object.__setattr__(self, "_file_start_token_id", self._start_token_id)

    def save_tokenizers(self, folder):
        """Write the tokenizers into a folder; one that serves both sides is written once, without a prefix."""
        if self.tokenizers and self.source_tokenizer == self.target_tokenizer:
            self.source_tokenizer.save(folder)
        else:
            super().save_tokenizers(folder)

    def translate(self, texts, config=None, batch_size=32, *, return_scores=False, **arguments):
        """Translate texts.

        Args:
            texts: a string or a list of strings.
            config: a `GenerationConfig`. What it leaves at its default, `model.generation_defaults` decides.
            batch_size: number of texts decoded at a time. It does not change the translations.
            return_scores: whether to return `Generation`s instead of strings: text, ids, the log-probability of each
                token, the reason of the end, and the score of beam search.
            **arguments: `processors`, `prefix_allowed_tokens`, `draft`, `num_draft_tokens`, `first_index`, as for
                `LanguageModel.generate`; and fields of `GenerationConfig` that replace `config`'s, where `max_length`
                and `max_new_tokens` count target tokens.

        Returns:
            The translation, or a list of them; with `num_return_sequences` n > 1 each is a list of n.

        Raises:
            ValueError: a text is empty or too long; an argument is out of range; a tokenizer is missing or has no
                start token.

        Example:
            >>> model.translate(["I am hungry.", "Where is the station?"], num_beams=4)
        """
        sources, unlist = read_sources(self, "texts", texts)
        config, options = self._config_and_options(config, arguments)
        results = self._generations(sources, None, config, batch_size, return_scores, options)
        return unlist((unnested if return_scores else texts_of)(results, config.num_return_sequences))

    def summarize(self, texts, config=None, batch_size=32, *, return_scores=False, **arguments):
        """Summarise texts: `translate` by the word for models that were taught to (BART, T5, `Summarizer`)."""
        return self.translate(texts, config, batch_size, return_scores=return_scores, **arguments)

    def generate(self, sources, prompts=None, config=None, batch_size=32, *, return_scores=False, **arguments):
        """Generate target ids from source ids.

        Args:
            sources: non-empty lists of source ids; an int array (B, S); or a mapping of ids and mask, as for
                `LanguageModel.generate`.
            prompts: for each source the ids its target begins with, the start token first. Default: `start_token_id`.
            config, batch_size, return_scores, **arguments: as for `translate`.

        Returns:
            For each source the list of its target's ids, prompt and end token included; with `num_return_sequences`
            n > 1 a list of n such lists.
        """
        config, options = self._config_and_options(config, arguments)
        results = self._generations(sources, prompts, config, batch_size, return_scores, options)
        if return_scores:
            return unnested(results, config.num_return_sequences)
        return ids_of(results, config.num_return_sequences, config.strip_prompt)

    def stream(self, text, config=None, **overrides):
        """Translate a text, and yield the translation in pieces as it is made.

        Args:
            text: a string.
            config, **overrides: as for `translate`; one translation, without beams.

        Returns:
            An iterator of strings; joined, they are what `translate` returns.
        """
        if not isinstance(text, str):
            raise ValueError(f"text ({shown(text)}) must be a string.")
        config, _ = self._config_and_options(config, overrides)
        sources, [prompt] = self._read(read_sources(self, "text", text)[0], None)
        return self.stream_text(prompt, config, self._source_inputs(sources))

    def score(self, sources, targets, batch_size=8):
        """Say how probable given translations are, by the chain rule.

        Args:
            sources, targets: a string each, or lists of strings of the same length; or lists of lists of ids, the
                targets with their start token.
            batch_size: number of pairs scored at a time.

        Returns:
            A `Score` for strings, a list of them for lists: `log_probs` of all target tokens after the start token, the
            end token included, their sum `log_probability`, and `perplexity`.
        """
        if isinstance(sources, str) and isinstance(targets, str):
            return self.score([sources], [targets], batch_size)[0]
        if isinstance(sources, list | tuple) and sources and all(isinstance(text, str) for text in sources):
            sources = read_sources(self, "sources", sources)[0]
            ids = self.required_output_tokenizer().encode_batch(read_texts("targets", targets)[0])
            targets = [
                [start, *batches.stripped(row, start, self.end_token_ids), *self.end_token_ids[:1]]
                for [start], row in zip(self._starts(ids), ids, strict=True)
            ]
        sources, targets = self._read(sources, targets, "targets")

        def read_inputs(places, token_ids, padding_mask):
            target = {"target_token_ids": token_ids, "target_padding_mask": padding_mask}
            return self._source_inputs([sources[i] for i in places]) | target

        return self.score_batches("targets", targets, batch_size, read_inputs)

    def _generations(self, sources, prompts, config, batch_size, return_scores, options):
        sources, prompts = self._read(sources, prompts)

        def read_inputs(places):
            return self._source_inputs([sources[i] for i in places])

        return self.complete(prompts, config, batch_size, read_inputs, return_scores, **options)

    def _config_and_options(self, config, arguments):
        """The `GenerationConfig`, and the arguments that are none of its fields."""
        names = ("processors", "prefix_allowed_tokens", "draft", "num_draft_tokens", "first_index")
        options = {name: arguments[name] for name in names if name in arguments}
        overrides = {name: value for name, value in arguments.items() if name not in names}
        return GenerationConfig.merged(config, defaults=self.generation_defaults, **overrides), options

    def _read(self, sources, prompts, name="prompts"):
        """Sources and what their targets begin with, as checked lists of ids."""
        sources = read_rows("sources", sources, self.source_vocabulary_size)
        longest = max(map(len, sources))
        if self.max_sequence_length and longest > self.max_sequence_length:
            raise ValueError(
                f"sources: one of {longest} tokens is longer than max_sequence_length ({self.max_sequence_length})."
            )
        prompts = self._starts(sources) if prompts is None else prompts
        prompts = read_rows(name, prompts, self.output_vocabulary_size)
        if len(prompts) != len(sources):
            raise ValueError(f"{name} ({len(prompts)} of them) must be as many as sources ({len(sources)}).")
        return sources, prompts

    def _starts(self, rows):
        if self.start_token_id is None:
            raise ValueError(
                "prompts (None) must be given where target_tokenizer has no start token (bos) and there is no "
                "start_token_id."
            )
        return [[self.start_token_id]] * len(rows)

    def _source_inputs(self, rows):
        length = batches.bucket_length(max(map(len, rows)), self.max_sequence_length)
        token_ids, padding_mask = batches.pad(rows, length)
        return {"source_token_ids": token_ids, "source_padding_mask": padding_mask}


def translation_inputs():
    """The symbolic inputs of a translator."""
    return {
        f"{side}_{name}": keras.Input((None,), dtype=dtype, name=f"{side}_{name}")
        for side in ("source", "target")
        for name, dtype in (("token_ids", "int32"), ("padding_mask", "bool"))
    }
