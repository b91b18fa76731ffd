"""Translators: the recurrent encoder-decoder and the Transformer, from strings to strings."""

import keras

from kerasllm.generation.config import GenerationConfig
from kerasllm.layers.encoder_decoder import Bridge, RecurrentDecoder, RecurrentEncoder, TiedHead
from kerasllm.layers.transformer import TransformerDecoder, TransformerEncoder
from kerasllm.models.base import carried_tokenizer, read_texts, resolved_dtype
from kerasllm.models.generating import GeneratingModel, read_token_ids, unnested
from kerasllm.text import batches


class Translator(GeneratingModel):
    """The base of the translators: a source in, a target out."""

    tokenizer_prefixes = {"source_tokenizer": "source_", "target_tokenizer": "target_"}
    source_tokenizer = carried_tokenizer("source_tokenizer", "source_vocabulary_size")
    target_tokenizer = carried_tokenizer("target_tokenizer", "target_vocabulary_size")

    @property
    def output_tokenizer(self):
        """The tokenizer of the target."""
        return self.tokenizers.get("target_tokenizer")

    @property
    def output_vocabulary_size(self):
        """The number of target symbols."""
        return self.arguments["target_vocabulary_size"]

    def required_output_tokenizer(self):
        """The target tokenizer, or a `ValueError` that says how to give the model one."""
        return self.required_tokenizer("target_tokenizer")

    def translate(self, texts, config=None, batch_size=32, *, return_scores=False, **arguments):
        """Translate texts.

        Args:
            texts: a string or a list of strings.
            config: a `GenerationConfig`. What it leaves at its default, `model.generation_defaults` decides.
            batch_size: number of texts decoded at a time. It does not change the translations.
            return_scores: whether to return `Generation`s instead of strings: text, ids, the log-probability of each
                token, the reason of the end, and the score of beam search.
            **arguments: `processors`, `prefix_allowed_tokens`, `draft`, `num_draft_tokens`, as for
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
        texts, unlist = read_texts("texts", texts)
        source = self.required_tokenizer("source_tokenizer")
        self.required_output_tokenizer()
        config, options = self._merged(config, arguments)
        ids = source.encode_batch(texts)
        results = self._generations(ids, None, config, batch_size, return_scores, options)
        if not return_scores:
            results = [[g.text for g in row] for row in results]
        return unlist(unnested(results, config.num_return_sequences))

    def generate(self, sources, prompts=None, config=None, batch_size=32, *, return_scores=False, **arguments):
        """Generate target ids from source ids.

        Args:
            sources: non-empty lists of source ids.
            prompts: for each source the ids its target begins with, the start token first. Default: the start token
                of the target tokenizer.
            config, batch_size, return_scores, **arguments: as for `translate`.

        Returns:
            For each source the list of its target's ids, prompt and end token included; with `num_return_sequences`
            n > 1 a list of n such lists.
        """
        config, options = self._merged(config, arguments)
        results = self._generations(sources, prompts, config, batch_size, return_scores, options)
        if not return_scores:
            strip = config.strip_prompt
            results = [[(g.completion if strip else g.token_ids).tolist() for g in row] for row in results]
        return unnested(results, config.num_return_sequences)

    def stream(self, text, config=None, **overrides):
        """Translate a text, and yield the translation in pieces as it is made.

        Args:
            text: a string.
            config, **overrides: as for `translate`; one translation, without beams.

        Returns:
            An iterator of strings; joined, they are what `translate` returns.
        """
        if not isinstance(text, str):
            raise ValueError(f"text ({text!r}) must be a string.")
        config, _ = self._merged(config, overrides)
        texts, _ = read_texts("text", text)
        sources, [prompt] = self._read(self.required_tokenizer("source_tokenizer").encode_batch(texts), None)
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
        if sources and all(isinstance(text, str) for text in sources):
            sources = self.required_tokenizer("source_tokenizer").encode_batch(read_texts("sources", sources)[0])
            ids = self.required_output_tokenizer().encode_batch(targets)
            targets = [
                [*start, *row, *self.end_token_ids[:1]] for start, row in zip(self._starts(ids), ids, strict=True)
            ]
        sources, targets = self._read(sources, targets, "targets")
        for i, row in enumerate(targets):
            if len(row) < 2:
                raise ValueError(f"targets[{i}] ({row!r}) must be of two tokens at least.")

        def read_inputs(places, token_ids, padding_mask):
            target = {"target_token_ids": token_ids, "target_padding_mask": padding_mask}
            return self._source_inputs([sources[i] for i in places]) | target

        return self.score_batches(targets, batch_size, read_inputs)

    def _generations(self, sources, prompts, config, batch_size, return_scores, options):
        sources, prompts = self._read(sources, prompts)

        def read_inputs(places):
            return self._source_inputs([sources[i] for i in places])

        return self.complete(prompts, config, batch_size, read_inputs, return_scores, **options)

    def _merged(self, config, arguments):
        """The `GenerationConfig`, and the arguments that are none of its fields."""
        names = ("processors", "prefix_allowed_tokens", "draft", "num_draft_tokens")
        options = {name: arguments[name] for name in names if name in arguments}
        overrides = {name: value for name, value in arguments.items() if name not in names}
        return GenerationConfig.merged(config, defaults=self.generation_defaults, **overrides), options

    def _read(self, sources, prompts, name="prompts"):
        """Sources and what their targets begin with, as checked lists of ids."""
        sources = read_token_ids("sources", sources, self.arguments["source_vocabulary_size"])
        longest = max(map(len, sources))
        if self.max_sequence_length and longest > self.max_sequence_length:
            raise ValueError(
                f"sources: one of {longest} tokens is longer than max_sequence_length ({self.max_sequence_length})."
            )
        prompts = self._starts(sources) if prompts is None else prompts
        prompts = read_token_ids(name, prompts, self.output_vocabulary_size)
        if len(prompts) != len(sources):
            raise ValueError(f"{name} ({len(prompts)} of them) must be as many as sources ({len(sources)}).")
        return sources, prompts

    def _starts(self, rows):
        tokenizer = self.target_tokenizer
        if tokenizer is None or tokenizer.bos_id is None:
            raise ValueError("prompts (None) must be given where target_tokenizer has no start token (bos).")
        return [[tokenizer.bos_id]] * len(rows)

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


@keras.saving.register_keras_serializable("kerasllm")
class LSTMTranslator(Translator):
    """A recurrent encoder-decoder with attention (Bahdanau et al. 2015, arXiv:1409.0473; Luong et al. 2015).

        memory, states = encoder(source)          a bidirectional LSTM
        hidden = decoder(target, bridge(states), memory)
        logits = head(hidden)

    Inputs:
        source_token_ids: (B, S) int32.
        source_padding_mask: (B, S) bool or int, True = real.
        target_token_ids: (B, T) int32, the start token first.
        target_padding_mask: (B, T) bool or int, True = real; padding stands on the right.

    Outputs:
        Logits (B, T, V): at t the scores of target token t + 1.

    Args:
        source_vocabulary_size, target_vocabulary_size: numbers of symbols.
        num_layers: layers of encoder and decoder.
        hidden_dim: width of a layer.
        embedding_dim: width of the embeddings. Default: `hidden_dim`.
        cell: "lstm", "gru" or "simple".
        attention: "additive", "dot", "general" or None; None leaves only the encoder's last states.
        bidirectional: whether the encoder walks in both directions.
        dropout: rate in training.
        tie_embeddings: whether the target embeddings, transposed, are the output layer.
        dtype: dtype policy.
        source_tokenizer, target_tokenizer: `kerasllm.Tokenizer`s, for strings.

    Example:
        >>> model = LSTMTranslator(3000, 3000, hidden_dim=256, source_tokenizer=english, target_tokenizer=spanish)
        >>> model.compile("adamw", loss=kerasllm.training.TokenCrossentropy())
        >>> model.fit(kerasllm.training.TranslationDataset(pairs, english, spanish, batch_size=64))
        >>> model.translate("I am hungry.")
    """

    def __init__(
        self,
        source_vocabulary_size,
        target_vocabulary_size,
        num_layers=1,
        hidden_dim=256,
        embedding_dim=None,
        cell="lstm",
        attention="additive",
        bidirectional=True,
        dropout=0.1,
        tie_embeddings=False,
        dtype=None,
        source_tokenizer=None,
        target_tokenizer=None,
        name="lstm_translator",
    ):
        dtype = resolved_dtype(dtype)
        shared = {
            "num_layers": num_layers,
            "hidden_dim": hidden_dim,
            "embedding_dim": embedding_dim,
            "cell": cell,
            "dropout": dropout,
            "dtype": dtype,
        }
        encoder = RecurrentEncoder(source_vocabulary_size, bidirectional=bidirectional, name="encoder", **shared)
        decoder = RecurrentDecoder(
            target_vocabulary_size,
            attention=attention,
            tie_embeddings=tie_embeddings,
            name="decoder",
            **shared,
        )
        bridge = Bridge(hidden_dim, dtype=decoder.dtype_policy, name="bridge")
        head = TiedHead(decoder.embedding, dtype=decoder.dtype_policy, name="head")
        if not tie_embeddings:
            head = keras.layers.Dense(target_vocabulary_size, dtype=decoder.dtype_policy, name="head")

        inputs = translation_inputs()
        memory, last_states = encoder(inputs["source_token_ids"], padding_mask=inputs["source_padding_mask"])
        hidden, _ = decoder(
            inputs["target_token_ids"],
            bridge(last_states),
            memory=memory,
            memory_padding_mask=inputs["source_padding_mask"],
        )
        arguments = {
            "source_vocabulary_size": source_vocabulary_size,
            "target_vocabulary_size": target_vocabulary_size,
            **shared,
            "attention": attention,
            "bidirectional": bidirectional,
            "tie_embeddings": tie_embeddings,
        }
        super().__init__(inputs, head(hidden), arguments, name)
        self.encoder, self.bridge, self.decoder, self.head = encoder, bridge, decoder, head
        self.source_tokenizer, self.target_tokenizer = source_tokenizer, target_tokenizer

    def start_decoding(self, inputs, prompt, capacity):
        """Encode the sources and read all but the last token of the prompts."""
        padding_mask = inputs["source_padding_mask"]
        memory, last_states = self.encoder(inputs["source_token_ids"], padding_mask=padding_mask)
        state = {"states": self.bridge(last_states)}
        if self.decoder.attention:
            state |= {
                "memory": memory,
                "keys": self.decoder.attention.project(memory),
                "padding_mask": padding_mask,
            }
        if prompt["token_ids"].shape[1] > 1:
            state = self._step(prompt["token_ids"][:, :-1], state, prompt["padding_mask"][:, :-1])[1]
        return state

    def decode_step(self, token_ids, state, index):
        """Read tokens (B, T): logits (B, T, V) and the new state. `index` does not matter to a recurrence."""
        hidden, state = self._step(token_ids, state)
        return self.head(hidden), state

    def _step(self, token_ids, state, padding_mask=None):
        hidden, states = self.decoder(
            token_ids,
            state["states"],
            padding_mask=padding_mask,
            memory=state.get("memory"),
            memory_padding_mask=state.get("padding_mask"),
            keys=state.get("keys"),
            training=False,
        )
        return hidden, {**state, "states": states}


@keras.saving.register_keras_serializable("kerasllm")
class TransformerTranslator(Translator):
    """The Transformer of "Attention is all you need" (Vaswani et al. 2017, arXiv:1706.03762).

    Inputs and outputs: as for `LSTMTranslator`.

    Args:
        source_vocabulary_size, target_vocabulary_size: numbers of symbols.
        num_layers: blocks of encoder and of decoder.
        num_heads: heads of each attention.
        hidden_dim: width D.
        intermediate_dim: width of the feed-forward. Default: 4 `hidden_dim`.
        max_sequence_length: the longest source and the longest target.
        dropout: rate in training.
        activation: of the feed-forward.
        norm_first: True for pre-norm, False for post-norm as in the paper.
        positions: "sinusoidal", "learned", "rotary", "relative", "alibi" or None.
        tie_embeddings: whether the target embeddings, transposed, are the output layer.
        dtype: dtype policy.
        source_tokenizer, target_tokenizer: `kerasllm.Tokenizer`s, for strings.
    """

    rewinds = True

    def __init__(
        self,
        source_vocabulary_size,
        target_vocabulary_size,
        num_layers=6,
        num_heads=8,
        hidden_dim=512,
        intermediate_dim=None,
        max_sequence_length=512,
        dropout=0.1,
        activation="relu",
        norm_first=False,
        positions="sinusoidal",
        tie_embeddings=True,
        dtype=None,
        source_tokenizer=None,
        target_tokenizer=None,
        name="transformer_translator",
    ):
        shared = {
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "max_sequence_length": max_sequence_length,
            "dropout": dropout,
            "activation": activation,
            "norm_first": norm_first,
            "positions": positions,
            "dtype": resolved_dtype(dtype),
        }
        encoder = TransformerEncoder(source_vocabulary_size, scale_embeddings=True, name="encoder", **shared)
        decoder = TransformerDecoder(
            target_vocabulary_size, scale_embeddings=True, cross_attention=True, name="decoder", **shared
        )
        head = decoder.logits
        if not tie_embeddings:
            head = keras.layers.Dense(target_vocabulary_size, use_bias=False, dtype=decoder.dtype_policy, name="head")

        inputs = translation_inputs()
        hidden = decoder(
            inputs["target_token_ids"],
            padding_mask=inputs["target_padding_mask"],
            memory=encoder(inputs["source_token_ids"], padding_mask=inputs["source_padding_mask"]),
            memory_padding_mask=inputs["source_padding_mask"],
        )
        arguments = {
            "source_vocabulary_size": source_vocabulary_size,
            "target_vocabulary_size": target_vocabulary_size,
            **shared,
            "tie_embeddings": tie_embeddings,
        }
        super().__init__(inputs, head(hidden), arguments, name)
        self.encoder, self.decoder, self.head = encoder, decoder, head
        self.source_tokenizer, self.target_tokenizer = source_tokenizer, target_tokenizer

    def start_decoding(self, inputs, prompt, capacity):
        """Encode the sources and read all but the last token of the prompts into a cache."""
        padding_mask = inputs["source_padding_mask"]
        memory = self.encoder(inputs["source_token_ids"], padding_mask=padding_mask)
        return self.decoder.start(prompt["token_ids"], prompt["padding_mask"], capacity, memory, padding_mask)

    def decode_step(self, token_ids, state, index):
        """Read tokens (B, T) into the slots from `index` on: logits (B, T, V) and the new cache."""
        hidden, state = self.decoder.step(token_ids, state, index)
        return self.head(hidden), state

    def grow(self, state, capacity):
        """The same cache with room for `capacity` tokens."""
        return self.decoder.grow(state, capacity)
