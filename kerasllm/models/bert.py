"""BERT and its relatives: the bidirectional Transformer encoder, and what all its heads share."""

import contextlib
import sys
import threading

import keras

from kerasllm.arguments import check_boolean, check_choice
from kerasllm.checkpoints.bert import FAMILIES
from kerasllm.generation.programs import Programs
from kerasllm.layers.adapters import Dense
from kerasllm.layers.feedforward import get_activation
from kerasllm.layers.transformer import TransformerEncoder
from kerasllm.models.base import Model, carried_tokenizer, resolved_dtype

SIZES = {  # Devlin et al. 2019; the smaller ones Turc et al. 2019, arXiv:1908.08962
    "tiny": {"num_layers": 2, "num_heads": 2, "hidden_dim": 128},
    "mini": {"num_layers": 4, "num_heads": 4, "hidden_dim": 256},
    "small": {"num_layers": 4, "num_heads": 8, "hidden_dim": 512},
    "medium": {"num_layers": 8, "num_heads": 8, "hidden_dim": 512},
    "base": {"num_layers": 12, "num_heads": 12, "hidden_dim": 768},
    "large": {"num_layers": 24, "num_heads": 16, "hidden_dim": 1024},
}
ENCODER_ARGUMENTS = (
    "vocabulary_size",
    "num_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "max_sequence_length",
    "num_segments",
    "dropout",
    "activation",
    "norm_epsilon",
    "initializer_range",
    "embedding_dim",
    "dtype",
)
# Two threads that each put another standard output in its place would put back the other's.
_PRINTING = threading.Lock()


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
        given = {name: arguments[name] for name in (*ENCODER_ARGUMENTS, "tokenizer") if name in arguments}
        encoder = BERT.from_preset(source, **given)
        check_floats(source, encoder)
        arguments.pop("tokenizer", None)
        shared = {name: encoder.arguments[name] for name in (*ENCODER_ARGUMENTS, "family")}
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
        intermediate_dim: width of the feed-forward. Default: 4 `hidden_dim`.
        max_sequence_length: the longest sequence.
        num_segments: number of segments: 2 for BERT and ELECTRA, 1 for RoBERTa, 0 (no table) for DistilBERT.
        dropout: rate in training.
        activation: of the feed-forward.
        norm_epsilon: added to the variance.
        initializer_range: standard deviation of the initial weights.
        embedding_dim: width of the embeddings, where a dense layer widens them (ELECTRA). Default: `hidden_dim`.
        pooler: whether there is a pooler.
        family: whose relative the model is: "bert", "roberta", "xlm-roberta", "camembert", "distilbert" or "electra".
            `save_to_preset` writes this family's layout, or our own where the family has no such model.
        dtype: dtype policy.
        tokenizer: a `kerasllm.Tokenizer` of `vocabulary_size` symbols, for strings.
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim=None,
        max_sequence_length=512,
        num_segments=2,
        dropout=0.1,
        activation="gelu",
        norm_epsilon=1e-12,
        initializer_range=0.02,
        embedding_dim=None,
        pooler=True,
        family="bert",
        dtype=None,
        tokenizer=None,
        name="bert",
    ):
        arguments, encoder, inputs, sequence = encode(locals())
        check_boolean("pooler", pooler)
        outputs = {"sequence_output": sequence}
        if pooler:
            outputs["pooled_output"] = make_pooler(arguments, "tanh")(sequence[:, 0])
        super().__init__(inputs, outputs, {**arguments, "pooler": pooler}, name)
        self.encoder = encoder
        self.tokenizer = tokenizer


def check_floats(source, model):
    """Raise `ValueError` where the weights of a model that others begin with are quantised."""
    if any(layer.quantization_mode for layer in model._flatten_layers()):
        raise ValueError(f"source ({str(source)!r}) has quantised weights: begin with those from before `quantize`.")


def encode(given):
    """What the constructor of every head begins with.

    Args:
        given: the constructor's `locals()`.

    Returns:
        `(arguments, encoder, inputs, sequence)`: those of `given` that the encoder and all heads share, as
        `get_config` keeps them; the `TransformerEncoder`; its symbolic inputs; its output (B, T, D).
    """
    check_choice("family", given["family"], [family.MODEL_TYPE for family in FAMILIES])
    arguments = {name: given[name] for name in ENCODER_ARGUMENTS}
    arguments["dtype"] = resolved_dtype(given["dtype"])
    encoder = TransformerEncoder(**arguments, norm_first=False, norm_embeddings=True, name="encoder")
    names = ["token_ids", "segment_ids"] if given["num_segments"] > 1 else ["token_ids"]
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    inputs["padding_mask"] = keras.Input((None,), dtype="bool", name="padding_mask")
    return {**arguments, "family": given["family"]}, encoder, inputs, encoder(**inputs)


def make_pooler(arguments, activation):
    """The dense layer over the first token of an encoder with these arguments."""
    return make_dense(arguments, arguments["hidden_dim"], "pooler", get_activation(activation))


def make_dense(arguments, units, name, activation=None):
    """A dense layer, initialised as the encoder with these arguments is."""
    initializer = keras.initializers.RandomNormal(stddev=arguments["initializer_range"])
    return Dense(units, activation, kernel_initializer=initializer, dtype=arguments["dtype"], name=name)
