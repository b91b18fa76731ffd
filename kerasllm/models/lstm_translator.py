"""The recurrent translator."""

import keras
from keras import ops

from kerasllm.arguments import check_boolean, check_positive
from kerasllm.layers.adapters import Dense
from kerasllm.layers.embeddings import TiedHead
from kerasllm.layers.encoder_decoder import (
    Bridge,
    RecurrentDecoder,
    RecurrentEncoder,
    check_sizes,
    reversible_embedding,
)
from kerasllm.models.base import resolved_dtype
from kerasllm.models.translator import Translator, translation_inputs


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
        name: of the model.
        share_embeddings: whether source and target, of one vocabulary, share their embeddings. They begin with standard
            deviation 1, or where they are the output layer too with D ** -0.25, D their width.
        input_feeding: whether the decoder reads the attentional vector of the step before, as for `RecurrentDecoder`.

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
        *,
        share_embeddings=False,
        input_feeding=False,
    ):
        check_positive("source_vocabulary_size", source_vocabulary_size)
        check_positive("target_vocabulary_size", target_vocabulary_size)
        check_boolean("share_embeddings", share_embeddings)
        if share_embeddings and source_vocabulary_size != target_vocabulary_size:
            raise ValueError(
                f"share_embeddings (True) needs one vocabulary: source_vocabulary_size ({source_vocabulary_size}) and "
                f"target_vocabulary_size ({target_vocabulary_size}) must be equal."
            )
        if isinstance(attention, str) and attention == "dot" and bidirectional:
            raise ValueError(
                "attention ('dot') takes a decoder as wide as the encoder's states, which are twice as wide with "
                "bidirectional (True): 'general' and 'additive' take any."
            )
        shared = {
            "num_layers": num_layers,
            "hidden_dim": hidden_dim,
            "embedding_dim": embedding_dim,
            "cell": cell,
            "dropout": dropout,
            "dtype": resolved_dtype(dtype),
        }
        if share_embeddings:
            check_sizes(source_vocabulary_size, num_layers, hidden_dim, embedding_dim, cell, dropout)
            width = embedding_dim or hidden_dim
            # From an output layer's width**-0.5 an encoder learns many times as slowly as from 1.
            stddev = width**-0.25 if tie_embeddings else 1.0
            shared["token_embedding"] = reversible_embedding(source_vocabulary_size, width, stddev, shared["dtype"])
        encoder = RecurrentEncoder(source_vocabulary_size, bidirectional=bidirectional, name="encoder", **shared)
        decoder = RecurrentDecoder(
            target_vocabulary_size,
            attention=attention,
            tie_embeddings=tie_embeddings,
            input_feeding=input_feeding,
            name="decoder",
            **shared,
        )
        bridge = Bridge(hidden_dim, dtype=decoder.dtype_policy, name="bridge")
        head = TiedHead(decoder.embedding, dtype=decoder.dtype_policy, name="head")
        if not tie_embeddings:
            head = Dense(target_vocabulary_size, dtype=decoder.dtype_policy, name="head")

        inputs = translation_inputs()
        memory, last_states = encoder(inputs["source_token_ids"], padding_mask=inputs["source_padding_mask"])
        hidden, _ = decoder(
            inputs["target_token_ids"],
            bridge(last_states),
            memory=memory,
            memory_padding_mask=inputs["source_padding_mask"],
        )
        super().__init__(inputs, head(hidden))
        self.encoder, self.bridge, self.decoder, self.head = encoder, bridge, decoder, head
        self.source_tokenizer, self.target_tokenizer = source_tokenizer, target_tokenizer

    def start_decoding(self, inputs, prompt, capacity):
        """Encode the sources and read all but the last token of the prompts."""
        padding_mask = inputs["source_padding_mask"]
        memory, last_states = self.encoder(inputs["source_token_ids"], padding_mask=padding_mask)
        state = {"states": self.decoder.first_states(ops.shape(memory)[0], self.bridge(last_states))}
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
