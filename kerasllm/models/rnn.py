"""The recurrent language model of the textbooks."""

import keras
from keras import ops

from kerasllm.arguments import check_positive
from kerasllm.layers.adapters import Dense
from kerasllm.layers.attention import MultiHeadAttention
from kerasllm.layers.embeddings import TiedHead
from kerasllm.layers.encoder_decoder import RecurrentDecoder
from kerasllm.layers.masks import padding_attention_mask
from kerasllm.models.base import resolved_dtype
from kerasllm.models.language_model import LanguageModel


@keras.saving.register_keras_serializable("kerasllm")
class RNNLanguageModel(LanguageModel):
    """A recurrent language model (Mikolov et al. 2010; Sundermeyer et al. 2012), perhaps with attention on top.

    Inputs:
        token_ids: (B, T) int32.
        padding_mask: (B, T) bool or int, True = real.

    Outputs:
        Logits (B, T, V): at t the scores of token t + 1.

    Args:
        vocabulary_size: number of symbols V.
        num_layers: number of recurrent layers.
        hidden_dim: width of a layer.
        embedding_dim: width of the embeddings. Default: `hidden_dim`.
        cell: "lstm", "gru" or "simple".
        num_attention_heads: heads of a causal self-attention over the last layer's outputs, added to them. Default:
            none.
        dropout: rate in training.
        tie_embeddings: whether the embeddings, transposed, are the output layer.
        dtype: dtype policy.
        tokenizer: a `kerasllm.Tokenizer` of `vocabulary_size` symbols, for strings.

    Example:
        >>> model = RNNLanguageModel(5000, cell="gru", hidden_dim=256, tokenizer=tokenizer)
        >>> model.generate("", max_new_tokens=40, temperature=0.8, seed=1)  # unconditional: from the start token
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers=1,
        hidden_dim=256,
        embedding_dim=None,
        cell="lstm",
        num_attention_heads=None,
        dropout=0.1,
        tie_embeddings=False,
        dtype=None,
        tokenizer=None,
        name="rnn_language_model",
    ):
        shared = {
            "vocabulary_size": vocabulary_size,
            "num_layers": num_layers,
            "hidden_dim": hidden_dim,
            "embedding_dim": embedding_dim,
            "cell": cell,
            "dropout": dropout,
            "dtype": resolved_dtype(dtype),
        }
        decoder = RecurrentDecoder(**shared, tie_embeddings=tie_embeddings, name="decoder")
        policy = {"dtype": decoder.dtype_policy}
        attention = None
        if num_attention_heads is not None:
            check_positive("num_attention_heads", num_attention_heads)
            attention = MultiHeadAttention(num_attention_heads, dropout=dropout, name="attention", **policy)
        if tie_embeddings:
            head = TiedHead(decoder.embedding, name="head", **policy)
        else:
            head = Dense(vocabulary_size, name="head", **policy)

        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input((None,), dtype="bool", name="padding_mask")
        hidden, _ = decoder(token_ids, padding_mask=padding_mask)
        if attention:
            attention_mask = padding_attention_mask(padding_mask)
            hidden = hidden + attention(hidden, attention_mask=attention_mask, use_causal_mask=True)
        super().__init__({"token_ids": token_ids, "padding_mask": padding_mask}, head(hidden))
        self.decoder, self.attention, self.head = decoder, attention, head
        self.tokenizer = tokenizer

    def start_decoding(self, inputs, prompt, capacity):
        """Read all but the last token of the prompts."""
        token_ids, padding_mask = prompt["token_ids"], ops.cast(prompt["padding_mask"], "bool")
        batch_size, length = ops.shape(token_ids)[:2]
        zeros = ops.zeros((batch_size, self.arguments["hidden_dim"]), self.compute_dtype)
        num_states = self.decoder.layers[0].cell.num_states
        state = {"states": [[zeros] * num_states for _ in self.decoder.layers]}
        if self.attention:
            shape = (batch_size, self.attention.num_heads, length - 1, self.attention.head_dim)
            state["cache"] = (ops.zeros(shape, self.compute_dtype),) * 2
            state["padding"] = length - ops.sum(ops.cast(padding_mask, "int32"), axis=1)
        if token_ids.shape[1] != 1:
            _, state = self._step(token_ids[:, :-1], state, 0, padding_mask[:, :-1])
        return self.grow(state, capacity)

    def decode_step(self, token_ids, state, index):
        """Read tokens (B, T) into the slots from `index`, scalar or (B,), on: logits (B, T, V) and the new state.

        The slots are those of the attention's cache; without one `index` does not matter.
        """
        hidden, state = self._step(token_ids, state, index)
        return self.head(hidden), state

    def _step(self, token_ids, state, index, padding_mask=None):
        hidden, states = self.decoder(token_ids, state["states"], padding_mask=padding_mask, training=False)
        state = {**state, "states": states}
        if self.attention:
            slots = ops.arange(ops.shape(state["cache"][0])[2], dtype="int32")
            is_real = padding_attention_mask(ops.expand_dims(slots, 0) >= ops.expand_dims(state["padding"], 1))
            attended, cache = self.attention(
                hidden,
                attention_mask=is_real,
                use_causal_mask=True,
                cache=state["cache"],
                index=index,
                training=False,
            )
            hidden, state["cache"] = hidden + attended, cache
        return hidden, state

    def grow(self, state, capacity):
        """The same state with room for `capacity` tokens in the attention's cache."""
        if not self.attention:
            return state
        pad = capacity - ops.shape(state["cache"][0])[2]
        return {
            **state,
            "cache": tuple(ops.pad(c, ((0, 0), (0, 0), (0, pad), (0, 0))) for c in state["cache"]),
        }
