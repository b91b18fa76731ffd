"""GPT: a decoder-only Transformer language model, GPT-2 by default; Llama, Qwen or Gemma 2 by its arguments."""

from typing import Unpack

import keras

from kerasllm.arguments import check_boolean, check_choice, check_positive_number
from kerasllm.constructors import takes
from kerasllm.layers.adapters import Dense
from kerasllm.layers.attention import SoftCap, capped
from kerasllm.layers.transformer import TransformerDecoder
from kerasllm.models.base import resolved_dtype
from kerasllm.models.language_model import LanguageModel
from kerasllm.stack import StackArguments

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
        position_ids: (B, T) int32, if they are given: wherever a position is not one more than that before, a document
            begins, and no token sees another document (`LanguageModelDataset(..., packing="best_fit")`).

    Outputs:
        Logits (B, T, V): at t the scores of token t + 1.

    Args:
        vocabulary_size: number of symbols V.
        num_layers, num_heads, hidden_dim: size of the stack; see `GPT.from_size` for GPT-2's own.
        **arguments: those of `kerasllm.stack.StackArguments`.
        tie_embeddings: whether the token embeddings, transposed, are the output layer.
        logit_softcap: logits y become c tanh(y / c) with this c (Gemma 2: 30). Default: they do not.
        dtype: dtype policy, for instance "mixed_bfloat16".
        tokenizer: a `kerasllm.Tokenizer` of `vocabulary_size` symbols, for strings.
        name: of the model.

    Example:
        >>> model = GPT.from_size("small", vocabulary_size=tokenizer.vocabulary_size, tokenizer=tokenizer)
        >>> model.compile("adamw", loss=kerasllm.training.TokenCrossentropy())
        >>> model.fit(kerasllm.training.LanguageModelDataset(texts, tokenizer, sequence_length=256, batch_size=16))
        >>> model.generate("The meaning of life is", max_new_tokens=30)
    """

    rewinds = reads_documents = True

    @takes(
        StackArguments,
        """
        intermediate_dim max_sequence_length dropout activation norm norm_epsilon positions gated num_key_value_heads
        head_dim use_bias use_qkv_bias query_key_norm sliding_window tie_embeddings rope_base rope_scaling
        initializer_range dtype tokenizer name
        """,
        max_sequence_length=1024,
        dropout=0.1,
        activation="gelu_tanh",
        initializer_range=0.02,
    )
    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        *,
        tie_embeddings=True,
        logit_softcap=None,
        dtype=None,
        tokenizer=None,
        name="gpt",
        **arguments: Unpack[StackArguments],
    ):
        check_boolean("tie_embeddings", tie_embeddings)
        if logit_softcap is not None:
            check_positive_number("logit_softcap", logit_softcap)
        decoder = TransformerDecoder(
            vocabulary_size, num_layers, num_heads, hidden_dim, **arguments, dtype=resolved_dtype(dtype), name="decoder"
        )
        head = decoder.logits
        if not tie_embeddings:
            head = Dense(vocabulary_size, use_bias=False, dtype=decoder.dtype_policy, name="head")
        inputs = {
            "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
            "padding_mask": keras.Input((None,), dtype="bool", name="padding_mask"),
        }
        super().__init__(inputs, _logits(decoder, head, logit_softcap, inputs))
        self.decoder, self.head = decoder, head
        self.tokenizer = tokenizer

    def packed_graph(self):
        """A graph for rows of several documents: the model's own with `position_ids` among its inputs."""
        inputs = {**self.input, "position_ids": keras.Input((None,), dtype="int32", name="position_ids")}
        return keras.Model(inputs, _logits(self.decoder, self.head, self.arguments["logit_softcap"], inputs))

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
        """Read tokens (B, T) into the slots from `index`, scalar or (B,), on: logits (B, T, V) and the new cache."""
        hidden, state = self.decoder.step(token_ids, state, index)
        logits, softcap = self.head(hidden), self.arguments["logit_softcap"]
        return (logits if softcap is None else capped(logits, softcap)), state

    def grow(self, state, capacity):
        """The same cache with room for `capacity` tokens."""
        return self.decoder.grow(state, capacity)


def _logits(decoder, head, logit_softcap, inputs):
    """The graph from inputs, by their names, to logits."""
    logits = head(decoder(**inputs))
    if logit_softcap is None:
        return logits
    return SoftCap(logit_softcap, dtype=decoder.dtype_policy, name="logit_softcap")(logits)
