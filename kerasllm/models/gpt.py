"""GPT: a decoder-only Transformer language model, GPT-2 by default; Llama, Mistral or Qwen by its arguments."""

import keras

from kerasllm.arguments import check_boolean, check_choice
from kerasllm.layers.adapters import Dense
from kerasllm.layers.transformer import TransformerDecoder
from kerasllm.models.base import resolved_dtype
from kerasllm.models.language_model import LanguageModel

SIZES = {  # Radford et al. 2019, table 2
    "small": {"num_layers": 12, "num_heads": 12, "hidden_dim": 768},
    "medium": {"num_layers": 24, "num_heads": 16, "hidden_dim": 1024},
    "large": {"num_layers": 36, "num_heads": 20, "hidden_dim": 1280},
    "xl": {"num_layers": 48, "num_heads": 25, "hidden_dim": 1600},
}


@keras.saving.register_keras_serializable("kerasllm")
class GPT(LanguageModel):
    """A causal language model: token ids in, logits of each next token out.

    The defaults make a GPT-2 (Radford et al. 2019); `GPT(..., norm="rms", positions="rotary", gated=True,
    activation="silu", use_bias=False, num_key_value_heads=..., tie_embeddings=False)` a Llama (Touvron et al. 2023,
    arXiv:2302.13971).

    Inputs:
        token_ids: (B, T) int32.
        padding_mask: (B, T) bool or int, True = real; padding stands on the right, unless positions are "rotary",
            "relative", "alibi" or None.

    Outputs:
        Logits (B, T, V): at t the scores of token t + 1.

    Args:
        vocabulary_size: number of symbols V.
        num_layers, num_heads, hidden_dim: size of the stack; see `GPT.from_size` for GPT-2's own.
        intermediate_dim: width of the feed-forward. Default: 4 `hidden_dim`.
        max_sequence_length: the longest sequence.
        dropout: rate in training.
        activation: of the feed-forward.
        norm: "layer" or "rms".
        norm_epsilon: added to the variance.
        positions: "learned", "sinusoidal", "rotary", "relative", "alibi" or None.
        gated: whether the feed-forward has a gate.
        num_key_value_heads: fewer than `num_heads` for grouped-query attention.
        head_dim: width of a head. Default: `hidden_dim` / `num_heads`.
        use_bias: whether the projections have a bias.
        use_qkv_bias: whether those to queries, keys and values have one. Default: `use_bias`.
        query_key_norm: whether queries and keys are normed (Qwen3).
        sliding_window: each token sees itself and the `sliding_window` - 1 before it (Mistral). Default: all.
        tie_embeddings: whether the token embeddings, transposed, are the output layer.
        rope_base: base of rotary positions.
        rope_scaling: how rotary positions are stretched, as for `kerasllm.layers.RotaryPositions`.
        initializer_range: standard deviation of the initial weights.
        dtype: dtype policy, for instance "mixed_bfloat16".
        tokenizer: a `kerasllm.Tokenizer` of `vocabulary_size` symbols, for strings.

    Example:
        >>> model = GPT.from_size("small", vocabulary_size=tokenizer.vocabulary_size, tokenizer=tokenizer)
        >>> model.compile("adamw", loss=kerasllm.training.TokenCrossentropy())
        >>> model.fit(kerasllm.training.LanguageModelDataset(texts, tokenizer, sequence_length=256, batch_size=16))
        >>> model.generate("The meaning of life is", max_new_tokens=30)
    """

    rewinds = True

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim=None,
        max_sequence_length=1024,
        dropout=0.1,
        activation="gelu_tanh",
        norm="layer",
        norm_epsilon=1e-5,
        positions="learned",
        gated=False,
        num_key_value_heads=None,
        head_dim=None,
        use_bias=True,
        use_qkv_bias=None,
        query_key_norm=False,
        sliding_window=None,
        tie_embeddings=True,
        rope_base=10000.0,
        rope_scaling=None,
        initializer_range=0.02,
        dtype=None,
        tokenizer=None,
        name="gpt",
    ):
        stack_arguments = {
            "vocabulary_size": vocabulary_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "max_sequence_length": max_sequence_length,
            "dropout": dropout,
            "activation": activation,
            "norm": norm,
            "norm_epsilon": norm_epsilon,
            "positions": positions,
            "gated": gated,
            "num_key_value_heads": num_key_value_heads,
            "head_dim": head_dim,
            "use_bias": use_bias,
            "use_qkv_bias": use_qkv_bias,
            "query_key_norm": query_key_norm,
            "sliding_window": sliding_window,
            "rope_base": rope_base,
            "rope_scaling": rope_scaling,
            "initializer_range": initializer_range,
            "dtype": resolved_dtype(dtype),
        }
        check_boolean("tie_embeddings", tie_embeddings)
        decoder = TransformerDecoder(**stack_arguments, name="decoder")
        head = decoder.logits
        if not tie_embeddings:
            head = Dense(vocabulary_size, use_bias=False, dtype=decoder.dtype_policy, name="head")
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input((None,), dtype="bool", name="padding_mask")
        logits = head(decoder(token_ids, padding_mask=padding_mask))
        inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
        super().__init__(inputs, logits, {**stack_arguments, "tie_embeddings": tie_embeddings}, name)
        self.decoder, self.head = decoder, head
        self.tokenizer = tokenizer

    @classmethod
    def from_size(cls, size, **arguments):
        """A fresh model of one of GPT-2's sizes.

        Args:
            size: "small" (124 million weights), "medium", "large" or "xl".
            **arguments: of the constructor; they win over the size's own.
        """
        check_choice("size", size, SIZES)
        return cls(**{**SIZES[size], **arguments})

    def start_decoding(self, inputs, prompt, capacity):
        """Read all but the last token of the prompts into a cache."""
        return self.decoder.start(prompt["token_ids"], prompt["padding_mask"], capacity)

    def decode_step(self, token_ids, state, index):
        """Read tokens (B, T) into the slots from `index` on: logits (B, T, V) and the new cache."""
        hidden, state = self.decoder.step(token_ids, state, index)
        return self.head(hidden), state

    def grow(self, state, capacity):
        """The same cache with room for `capacity` tokens."""
        return self.decoder.grow(state, capacity)
