"""The Transformer translator; Marian, BART and T5 by its arguments."""

from typing import Unpack

import keras

from kerasllm.arguments import check_boolean, check_positive
from kerasllm.constructors import takes
from kerasllm.layers.adapters import Dense
from kerasllm.layers.embeddings import TiedHead
from kerasllm.layers.transformer import TransformerDecoder, TransformerEncoder
from kerasllm.models.base import resolved_dtype
from kerasllm.models.translator import Translator, translation_inputs
from kerasllm.stack import StackArguments


class EncoderDecoder(Translator):
    """The base of translators of a Transformer `encoder`, a `decoder` with a cache, and a `head`."""

    rewinds = True

    def start_decoding(self, inputs, prompt, capacity):
        """Encode the sources and read all but the last token of the prompts into a cache."""
        padding_mask = inputs["source_padding_mask"]
        memory = self.encoder(inputs["source_token_ids"], padding_mask=padding_mask)
        return self.decoder.start(prompt["token_ids"], prompt["padding_mask"], capacity, memory, padding_mask)

    def decode_step(self, token_ids, state, index):
        """Read tokens (B, T) into the slots from `index`, scalar or (B,), on: logits (B, T, V) and the new cache."""
        hidden, state = self.decoder.step(token_ids, state, index)
        return self.head(hidden), state

    def grow(self, state, capacity):
        """The same cache with room for `capacity` tokens."""
        return self.decoder.grow(state, capacity)


@keras.saving.register_keras_serializable("kerasllm")
class TransformerTranslator(EncoderDecoder):
    """The Transformer of "Attention is all you need" (Vaswani et al. 2017, arXiv:1706.03762).

    Its arguments make a Marian (Junczys-Dowmunt et al. 2018, arXiv:1804.00344), a BART (Lewis et al. 2019,
    arXiv:1910.13461) or a T5 (Raffel et al. 2019, arXiv:1910.10683) as well, and `from_preset` opens theirs. A T5 is
    told what to do by the text: "translate English to German: ...", "summarize: ...".

    Inputs:
        source_token_ids: (B, S) int32.
        source_padding_mask: (B, S) bool or int, True = real; padding stands on the right, unless positions are
            "rotary", "relative", "alibi" or None.
        target_token_ids: (B, T) int32, the start token first.
        target_padding_mask: (B, T) bool or int, True = real; padding stands on the right.

    Outputs:
        Logits (B, T, V): at t the scores of target token t + 1.

    Args:
        source_vocabulary_size, target_vocabulary_size: numbers of symbols.
        num_layers: blocks of encoder and of decoder.
        num_heads: heads of each attention.
        hidden_dim: width D.
        **arguments: those of `kerasllm.stack.StackArguments`, of encoder and decoder.
        tie_embeddings: whether the target embeddings, transposed, are the output layer.
        share_embeddings: whether source and target, of one vocabulary, share their embeddings.
        num_decoder_layers, num_decoder_heads, decoder_intermediate_dim: the decoder's, where they differ.
        use_head_bias: whether the output layer has a bias (Marian, BART).
        scale_head: whether the tied output layer multiplies what it reads by 1 / sqrt(D) (T5).
        dtype: dtype policy.
        source_tokenizer, target_tokenizer: `kerasllm.Tokenizer`s, for strings.
        name: of the model.

    Example:
        >>> model = TransformerTranslator.from_preset("opus-mt-en-de")
        >>> model.translate("I am hungry.")
        >>> model = TransformerTranslator.from_preset("bart-large-cnn")
        >>> model.summarize(article, max_new_tokens=80)
    """

    @takes(
        StackArguments,
        """
        intermediate_dim max_sequence_length dropout activation residual positions tie_embeddings share_embeddings
        scale_embeddings norm_embeddings num_decoder_layers num_decoder_heads decoder_intermediate_dim head_dim
        attention_scale gated norm norm_epsilon use_bias use_head_bias scale_head num_buckets max_distance
        initializer_range dtype source_tokenizer target_tokenizer name
        """,
        dropout=0.1,
        activation="relu",
        residual="post",
        positions="sinusoidal",
        scale_embeddings=True,
    )
    def __init__(
        self,
        source_vocabulary_size,
        target_vocabulary_size,
        num_layers=6,
        num_heads=8,
        hidden_dim=512,
        *,
        tie_embeddings=True,
        share_embeddings=False,
        num_decoder_layers=None,
        num_decoder_heads=None,
        decoder_intermediate_dim=None,
        use_head_bias=False,
        scale_head=False,
        dtype=None,
        source_tokenizer=None,
        target_tokenizer=None,
        name="transformer_translator",
        **arguments: Unpack[StackArguments],
    ):
        for argument, value in {
            "tie_embeddings": tie_embeddings,
            "share_embeddings": share_embeddings,
            "use_head_bias": use_head_bias,
            "scale_head": scale_head,
        }.items():
            check_boolean(argument, value)
        for argument, value in {
            "num_decoder_layers": num_decoder_layers,
            "num_decoder_heads": num_decoder_heads,
            "decoder_intermediate_dim": decoder_intermediate_dim,
        }.items():
            if value is not None:
                check_positive(argument, value)
        if share_embeddings and source_vocabulary_size != target_vocabulary_size:
            raise ValueError(
                f"share_embeddings (True) needs one vocabulary: source_vocabulary_size ({source_vocabulary_size}) and "
                f"target_vocabulary_size ({target_vocabulary_size}) must be equal."
            )
        if scale_head and not tie_embeddings:
            raise ValueError("scale_head (True) is for an output layer that is tied: tie_embeddings must be True.")
        shared = arguments | {"hidden_dim": hidden_dim, "dtype": resolved_dtype(dtype)}
        encoder = TransformerEncoder(source_vocabulary_size, num_layers, num_heads, name="encoder", **shared)
        if decoder_intermediate_dim is not None:
            shared["intermediate_dim"] = decoder_intermediate_dim
        decoder = TransformerDecoder(
            target_vocabulary_size,
            num_layers if num_decoder_layers is None else num_decoder_layers,
            num_heads if num_decoder_heads is None else num_decoder_heads,
            cross_attention=True,
            token_embedding=encoder.embeddings.token if share_embeddings else None,
            name="decoder",
            **shared,
        )
        policy = {"dtype": decoder.dtype_policy, "name": "head"}
        if tie_embeddings:
            scale = hidden_dim**-0.5 if scale_head else 1.0
            head = TiedHead(decoder.embeddings.token, use_head_bias, scale, **policy)
        else:
            head = Dense(target_vocabulary_size, use_bias=use_head_bias, **policy)

        inputs = translation_inputs()
        hidden = decoder(
            inputs["target_token_ids"],
            padding_mask=inputs["target_padding_mask"],
            memory=encoder(inputs["source_token_ids"], padding_mask=inputs["source_padding_mask"]),
            memory_padding_mask=inputs["source_padding_mask"],
        )
        super().__init__(inputs, head(hidden))
        self.encoder, self.decoder, self.head = encoder, decoder, head
        self.source_tokenizer, self.target_tokenizer = source_tokenizer, target_tokenizer
