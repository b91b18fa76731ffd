"""BERT and its relatives: the bidirectional Transformer encoder, and what all its heads share."""

import contextlib
import sys
import threading
from typing import Annotated, Any, Unpack

import keras

from kerasllm import backend
from kerasllm.arguments import check_boolean, check_choice
from kerasllm.checkpoints.bert import FAMILIES
from kerasllm.constructors import Argument, arguments_of, takes
from kerasllm.generation.programs import Programs
from kerasllm.layers.adapters import Dense
from kerasllm.layers.embeddings import kernel_initializer
from kerasllm.layers.feedforward import get_activation
from kerasllm.layers.transformer import TransformerEncoder
from kerasllm.models.base import Model, carried_tokenizer, resolved_dtype
from kerasllm.stack import SegmentedStackArguments

SIZES = {  # Devlin et al. 2019; the smaller ones Turc et al. 2019, arXiv:1908.08962
    "tiny": {"num_layers": 2, "num_heads": 2, "hidden_dim": 128},
    "mini": {"num_layers": 4, "num_heads": 4, "hidden_dim": 256},
    "small": {"num_layers": 4, "num_heads": 8, "hidden_dim": 512},
    "medium": {"num_layers": 8, "num_heads": 8, "hidden_dim": 512},
    "base": {"num_layers": 12, "num_heads": 12, "hidden_dim": 768},
    "large": {"num_layers": 24, "num_heads": 16, "hidden_dim": 1024},
}
DEFAULTS = {  # of the constructors; Devlin et al. 2019
    "num_segments": 2,
    "dropout": 0.1,
    "residual": "post",
    "norm_embeddings": True,
    "norm_epsilon": 1e-12,
    "initializer_range": 0.02,
}
# Two threads that each put another standard output in its place would put back the other's.
_PRINTING = threading.Lock()


def _check_family(name, value):
    check_choice(name, value, [family.MODEL_TYPE for family in FAMILIES])


class BERTArguments(SegmentedStackArguments, total=False):
    """What BERT and its heads take beside the encoder's sizes, and the heads beside what is their own."""

    family: Annotated[
        str,
        Argument(
            "bert",
            _check_family,
            'whose relative the model is: "bert", "roberta", "xlm-roberta", "camembert", "distilbert" or "electra". '
            "`save_to_preset` writes this family's layout, or our own where the family has no such model.",
        ),
    ]
    dtype: Annotated[str | None, Argument(None, lambda name, value: resolved_dtype(value), "dtype policy.")]
    tokenizer: Annotated[
        Any, Argument(None, lambda *_: None, "a `kerasllm.Tokenizer` of `vocabulary_size` symbols, for strings.")
    ]


def takes_encoder(own=""):
    """The decorator of the constructors of BERT and its heads; `own` are the arguments that only this one has."""
    first = "intermediate_dim max_sequence_length num_segments dropout activation norm_epsilon initializer_range"
    return takes(BERTArguments, f"{first} embedding_dim {own} family dtype tokenizer name", **DEFAULTS)


class BERTModel(Model):
    """The base of BERT and its heads."""

    tokenizer = carried_tokenizer("tokenizer", "vocabulary_size")

    @classmethod
    def from_size(cls, size, **arguments):
        """A fresh model of one of BERT's sizes.

        Args:
            size: "tiny", "mini", "small", "medium", "base" (110 million weights) or "large".
            **arguments: of the constructor; they win over the size's own.
        """
        check_choice("size", size, SIZES)
        return cls(**{**SIZES[size], **arguments})

    @classmethod
    def from_preset(cls, source, fresh_head=False, **arguments):
        """Build the model that a preset holds, with its weights and tokenizer.

        Args:
            source: as for every model: a folder of BERT, RoBERTa, XLM-R, CamemBERT, DistilBERT or ELECTRA that
                Hugging Face transformers has written, or one of our own.
            fresh_head: whether the head starts anew, for training: only the encoder, and a pooler if both have one,
                come from the preset, which may hold any model of these families. Otherwise it must hold this head.
            **arguments: of the constructor, in place of the preset's own, for instance `dropout`, `dtype`, or the
                `labels` of a fresh head.

        Raises:
            ValueError: as for every model; or the preset holds another head.

        Example:
            >>> model = BERTClassifier.from_preset("bert-base-uncased", fresh_head=True, labels=["bad", "good"])
        """
        if not fresh_head:
            return super().from_preset(source, **arguments)
        names = {"vocabulary_size", "num_layers", "num_heads", "hidden_dim", *arguments_of(BERTArguments)} - {"family"}
        encoder = BERT.from_preset(source, **{name: arguments[name] for name in names & set(arguments)})
        check_floats(source, encoder)
        arguments.pop("tokenizer", None)
        shared = {name: value for name, value in encoder.arguments.items() if name != "pooler"}
        model = cls(**{**shared, **arguments})
        values = {variable.path: variable.value for variable in encoder.weights}
        for variable in model.weights:
            if variable.path in values:
                variable.assign(values[variable.path])
        object.__setattr__(model, "named_token_ids", encoder.named_token_ids)
        model.tokenizer = encoder.tokenizer
        return model

    def outputs_function(self):
        """The function from arrays, the model's inputs, to its outputs, with the weights that are there now.

        Raises:
            RuntimeError: another thread changes the weights, or has changed them when the function is called.
        """
        return Programs.of(self).outputs

    def each_batch(self, work, batches, rows):
        """What a function makes of each batch: see `backend.shared`."""
        return backend.shared(work, batches, rows)

    def progress_bar(self, num_batches):
        """A progress bar on the standard error: a function to call after each batch."""
        bar = keras.utils.Progbar(num_batches, unit_name="batch")

        def advance():
            with _PRINTING, contextlib.redirect_stdout(sys.stderr):
                bar.add(1)

        return advance


@keras.saving.register_keras_serializable("kerasllm")
class BERT(BERTModel):
    """The BERT encoder (Devlin et al. 2019, arXiv:1810.04805), also of RoBERTa, DistilBERT and ELECTRA.

    Inputs:
        token_ids: (B, T) int32.
        segment_ids: (B, T) int32, 0 for the first text, 1 for the second; where `num_segments` is 2 or more.
        padding_mask: (B, T) bool or int, True = real; padding stands on the right.

    Outputs:
        A dict: `sequence_output` (B, T, D), and with a pooler `pooled_output` (B, D), a tanh layer over the first
        token.

    Args:
        vocabulary_size: number of symbols V.
        num_layers, num_heads, hidden_dim: size of the stack; see `BERT.from_size` for the published ones.
        pooler: whether there is a pooler.
        name: of the model.
        **arguments: those of `kerasllm.stack.StackArguments`, `num_segments`, `family`, `dtype` and `tokenizer`. Of
            segments BERT and ELECTRA have 2, RoBERTa 1, DistilBERT 0.
    """

    @takes_encoder("pooler")
    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        *,
        pooler=True,
        name="bert",
        **arguments: Unpack[BERTArguments],
    ):
        check_boolean("pooler", pooler)
        encoder, inputs, sequence = encode(vocabulary_size, num_layers, num_heads, hidden_dim, **arguments)
        outputs = {"sequence_output": sequence}
        if pooler:
            outputs["pooled_output"] = make_pooler(encoder, "tanh")(sequence[:, 0])
        super().__init__(inputs, outputs)
        self.encoder = encoder
        self.tokenizer = arguments["tokenizer"]


def check_floats(source, model):
    """Raise `ValueError` where the weights of a model that others begin with are quantised."""
    if any(layer.quantization_mode for layer in model._flatten_layers()):
        raise ValueError(f"source ({str(source)!r}) has quantised weights: begin with those from before `quantize`.")


def encode(vocabulary_size, num_layers, num_heads, hidden_dim, *, family, dtype, tokenizer, **stack):
    """What the constructor of every head begins with.

    Args:
        vocabulary_size, num_layers, num_heads, hidden_dim: the encoder's sizes.
        family, dtype, tokenizer, **stack: of `BERTArguments`, all of them.

    Returns:
        `(encoder, inputs, sequence)`: the `TransformerEncoder`, its symbolic inputs, its output (B, T, D).
    """
    sizes = (vocabulary_size, num_layers, num_heads, hidden_dim)
    encoder = TransformerEncoder(*sizes, **stack, dtype=resolved_dtype(dtype), name="encoder")
    names = ["token_ids", "segment_ids"] if stack["num_segments"] > 1 else ["token_ids"]
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    inputs["padding_mask"] = keras.Input((None,), dtype="bool", name="padding_mask")
    return encoder, inputs, encoder(**inputs)


def make_pooler(encoder, activation):
    """The dense layer over the first token of an encoder."""
    return make_dense(encoder, encoder.hidden_dim, "pooler", get_activation(activation))


def make_dense(encoder, units, name, activation=None):
    """A dense layer, initialised as the encoder is."""
    initializer = kernel_initializer(encoder.initializer_range)
    return Dense(units, activation, kernel_initializer=initializer, dtype=encoder.dtype_policy, name=name)
