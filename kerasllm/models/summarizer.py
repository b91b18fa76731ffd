"""A summariser made of two BERTs: one reads, one writes."""

from typing import Unpack

import keras

from kerasllm import text
from kerasllm.arguments import check_boolean
from kerasllm.constructors import takes
from kerasllm.generation.config import GenerationConfig
from kerasllm.layers.embeddings import TiedHead
from kerasllm.layers.transformer import SharedEncoder, TransformerDecoder, TransformerEncoder
from kerasllm.models.base import carried_tokenizer, resolved_dtype
from kerasllm.models.bert import BERT, DEFAULTS, check_floats
from kerasllm.models.transformer_translator import EncoderDecoder
from kerasllm.models.translator import translation_inputs
from kerasllm.stack import SegmentedStackArguments


@keras.saving.register_keras_serializable("kerasllm")
class Summarizer(EncoderDecoder):
    """A BERT that reads a text and a BERT with cross-attention that writes a shorter one (Rothe et al. 2020).

    `Summarizer.from_bert` begins with the weights of a BERT on both sides; only the cross-attention is fresh.
    Source: "Leveraging pre-trained checkpoints for sequence generation tasks", arXiv:1907.12461.

    Inputs and outputs: as for `TransformerTranslator`.

    Args:
        vocabulary_size, num_layers, num_heads, hidden_dim: sizes of either side.
        share: whether both sides have the same weights but for the cross-attention.
        dtype: dtype policy.
        tokenizer: a `kerasllm.Tokenizer`, for strings. Where it has no bos and eos, cls and sep are taken: `tokenizer`
            of the model has the roles that `kerasllm.training.TranslationDataset` needs.
        name: of the model.
        **arguments: those of `kerasllm.stack.StackArguments`, and `num_segments`, of either side.

    Unless told otherwise it writes with 4 beams and repeats no three tokens (`generation_defaults`).

    Example:
        >>> model = Summarizer.from_bert("bert-base-uncased", share=True)
        >>> model.compile("adamw", loss=kerasllm.training.TokenCrossentropy())
        >>> pairs = [("Police arrested two men on Monday after ...", "two arrested after robbery"), ...]
        >>> model.fit(kerasllm.training.TranslationDataset(pairs, model.tokenizer, model.tokenizer))
        >>> model.summarize(text, max_new_tokens=24)
    """

    tokenizer_prefixes = {"tokenizer": ""}
    _carried_tokenizer = carried_tokenizer("tokenizer", "vocabulary_size")

    @takes(
        SegmentedStackArguments,
        """
        intermediate_dim max_sequence_length num_segments dropout activation norm_epsilon initializer_range share dtype
        tokenizer name
        """,
        **DEFAULTS,
    )
    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        *,
        share=False,
        dtype=None,
        tokenizer=None,
        name="summarizer",
        **arguments: Unpack[SegmentedStackArguments],
    ):
        check_boolean("share", share)
        sizes, arguments["dtype"] = (vocabulary_size, num_layers, num_heads, hidden_dim), resolved_dtype(dtype)
        decoder = TransformerDecoder(*sizes, **arguments, cross_attention=True, name="decoder")
        if share:
            decoder.build((None, None))  # under its own name, which is that of its weights
            encoder = SharedEncoder(decoder, dtype=decoder.dtype_policy, name="encoder")
        else:
            encoder = TransformerEncoder(*sizes, **arguments, name="encoder")
        head = TiedHead(decoder.embeddings.token, dtype=decoder.dtype_policy, name="head")

        inputs = translation_inputs()
        hidden = decoder(
            inputs["target_token_ids"],
            padding_mask=inputs["target_padding_mask"],
            memory=encoder(inputs["source_token_ids"], padding_mask=inputs["source_padding_mask"]),
            memory_padding_mask=inputs["source_padding_mask"],
        )
        super().__init__(inputs, head(hidden))
        self.encoder, self.decoder, self.head = encoder, decoder, head
        self.generation_defaults = GenerationConfig(num_beams=4, no_repeat_ngram_size=3)
        self.tokenizer = tokenizer

    @classmethod
    def from_bert(cls, source, share=False, **arguments):
        """A summariser whose two sides begin with the weights of a BERT; the cross-attention is fresh.

        Args:
            source: path of a BERT's folder, as for `BERT.from_preset`.
            share: whether both sides keep having the same weights but for the cross-attention.
            **arguments: of the constructor, in place of the BERT's own, for instance `dropout` or `dtype`.

        Raises:
            ValueError: as `BERT.from_preset`; or the BERT's embeddings are narrower than its layers (ELECTRA).
        """
        bert = BERT.from_preset(source, **{name: arguments.pop(name) for name in ("tokenizer",) if name in arguments})
        check_floats(source, bert)
        shared = {name: value for name, value in bert.arguments.items() if name not in ("pooler", "family")}
        if shared.pop("embedding_dim") not in (None, shared["hidden_dim"]):
            raise ValueError(f"source ({str(source)!r}) has embeddings narrower than its layers, which cannot write.")
        model = cls(share=share, **{**shared, "tokenizer": bert.tokenizer, **arguments})
        weights = {v.path: v for v in bert.encoder.weights}
        for variable in model.weights:
            side, _, path = variable.path.partition("/")
            if side != "head" and "/cross_attention" not in variable.path:
                variable.assign(weights[f"encoder/{path}"])
        return model

    @property
    def tokenizer(self):
        """The model's tokenizer, with a start token (bos) and an end token (eos), or None."""
        return self._carried_tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer):
        if tokenizer is not None:
            roles = {role: tokenizer.roles.get(like) for role, like in (("bos", "cls"), ("eos", "sep"))}
            tokenizer = text.Tokenizer(tokenizer.backend, **roles | tokenizer.roles, config=tokenizer.config)
        self._carried_tokenizer = tokenizer

    @property
    def source_tokenizer(self):
        """The tokenizer, of either side."""
        return self.tokenizer

    target_tokenizer = source_tokenizer

    @property
    def source_vocabulary_size(self):
        return self.arguments["vocabulary_size"]

    output_vocabulary_size = source_vocabulary_size

    def required_tokenizer(self, name="tokenizer"):
        """The tokenizer, or a `ValueError` that says how to give the model one."""
        return super().required_tokenizer("tokenizer")
