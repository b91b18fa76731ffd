"""What a file of a model holds: functions with names, and the calls that prove them.

A kind of model says it in a subclass of `Contents` (see `contents_by_model.py`). Its object is made twice: where the
model lives, on any backend, to say which functions there are and what they must give; and in the process with the
tensorflow backend, which traces them.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from kerasllm.arguments import MOST, check_positive, is_whole, shown
from kerasllm.export import verification


@dataclasses.dataclass(frozen=True)
class Options:
    """What the caller wants in the file.

    Attributes:
        static: whether the batch size is fixed, as TFLite wants it.
        signatures: the names of the wanted functions. Default: all that there are.
        inputs: dict input name -> shape, with the sizes of `forward` that the caller fixes.
        max_length: the slots of caches that have a fixed size.
        prefill_lengths: numbers of tokens that one call of a `prefill_N` reads.
        batch_size: rows of each call, where it is fixed.
        num_beams: the number of beams of `translate_beams`.
        strings: whether functions that take and give strings are wanted.
        truncate: whether functions of strings cut texts that are too long; otherwise they refuse them.
        default_signature: the name of the function that `serving_default` is. Default: `Contents.default_signature`.
        quantize: how weights are kept: None (float32), or one of the format's QUANTIZATIONS.
        calibration_data: inputs of `forward`, dicts of nested lists (see `calibration.read`).
        rounded: whether the model rounds what its layers read to whole numbers, as `quantize("int8")` makes it do.
    """

    static: bool = False
    signatures: tuple | None = None
    inputs: dict | None = None
    max_length: int | None = None
    prefill_lengths: tuple = (16, 64, 256)
    batch_size: int = 1
    num_beams: int = 4
    strings: bool = False
    truncate: bool = False
    default_signature: str | None = None
    quantize: str | None = None
    calibration_data: tuple = ()
    rounded: bool = False

    def __post_init__(self):
        check_positive("batch_size", self.batch_size)
        if not is_whole(self.num_beams) or not 2 <= self.num_beams < MOST:
            raise ValueError(f"num_beams ({shown(self.num_beams)}) must be an integer >= 2; `translate` is greedy.")
        if self.max_length is not None:
            check_positive("max_length", self.max_length)
        for length in self.prefill_lengths:
            check_positive("prefill_lengths", length)

    @property
    def exact(self):
        """Whether the file gives what the model gives, and not only nearly: roundings fall otherwise here and there."""
        return self.quantize is None and not self.rounded

    @property
    def batch(self):
        """The batch size of a function's inputs: None where any will do."""
        return self.batch_size if self.static else None


@dataclasses.dataclass(frozen=True)
class Signature:
    """A function of a file.

    Attributes:
        inputs: dict name -> (shape, dtype); None is any size.
        function: takes tensors by these names and returns a dict of tensors by name. It is traced by TensorFlow.
        defaults: the options among the inputs, which have one value for all rows: dict name -> the value that stands
            where a caller of a SavedModel gives none; None is an integer drawn at random.
        limit: the most tokens of a row, None where any number will do.
        proof: () -> the calls that prove it, a list of `Check`; none where those of another function prove it too.
        is_exact: whether it is proved only in files that give what the model gives, not in quantised ones.
    """

    inputs: dict
    function: Callable
    defaults: dict = dataclasses.field(default_factory=dict)
    limit: int | None = None
    proof: Callable = list
    is_exact: bool = False


@dataclasses.dataclass(frozen=True)
class Check:
    """Calls of a file, and what the last of them must give.

    Attributes:
        calls: list of (signature, dict of arrays). An input that a call leaves out is the output of the same name of
            the call before.
        expected: dict output name -> array, the model's own. Whole numbers and strings must be equal, others equal to
            1e-5 of the largest.
        labels: the tokens that `logits` predict, whose perplexity is reported: (B, T) int, -1 where there is none.
    """

    calls: list
    expected: dict
    labels: np.ndarray | None = None


class Contents:
    """What a file of any model holds: its forward pass.

    Args:
        model: a `kerasllm` model.
        options: `Options`.

    Raises:
        ValueError: an option does not suit the model.
    """

    truncates = False
    """Whether the model's own method cuts texts that are too long, where it is told to."""

    def __init__(self, model, options):
        self.model, self.options = model, options
        if options.truncate and not (self.truncates and options.strings):
            raise ValueError(
                f"truncate (True) must be False: it is for functions of strings of classifiers and embedders, not of a "
                f"{type(model).__name__}{'' if options.strings else ' without strings=True'}."
            )
        wanted, available = options.signatures, self.available()
        of_strings = [s for s in available.values() if "string" in {dtype for _, dtype in s.inputs.values()}]
        if options.strings and not of_strings:
            raise ValueError(f"strings (True) must be False: no function of a {type(model).__name__} takes strings.")
        if wanted == ():
            raise ValueError(f"signatures ([]) must be among {', '.join(available)}.")
        for name in wanted or ():
            if name not in available:
                raise ValueError(f"signatures ({shown(name)}) must be among {', '.join(available)}.")
        self.signatures = {name: available[name] for name in (available if wanted is None else wanted)}
        if options.default_signature not in (None, *self.signatures):
            raise ValueError(
                f"default_signature ({shown(options.default_signature)}) must be among {', '.join(self.signatures)}."
            )

    def available(self):
        """All functions that a file of this model may hold, a dict name -> `Signature`."""
        arguments = self.model.arguments
        is_table = arguments.get("positions", "learned") == "learned"
        limit = arguments.get("max_sequence_length") if is_table else None
        return {"forward": Signature(self.forward_inputs(), self.forward, limit=limit, proof=self.prove_forward)}

    @property
    def default_signature(self):
        """The name of the function that a SavedModel is asked for where none is named, as `serving_default`."""
        names = [self.options.default_signature, self.text_signature, "forward", *self.signatures]
        return next(name for name in names if name in self.signatures)

    @property
    def text_signature(self):
        """The name of the function that does from strings what the model is for, or None."""
        return None

    def checks(self):
        """The calls that prove the wanted functions: a list of `Check`."""
        proved = [s for s in self.signatures.values() if self.options.exact or not s.is_exact]
        return [check for signature in proved for check in signature.proof()]

    def prove_forward(self):
        """The model's outputs for examples, and for the caller's data."""
        examples, data = self.examples(), self.calibration_inputs()
        labels = [None] * len(examples) if data else [self.labels(x) for x in examples]
        labels += [self.labels(x) for x in data]
        outputs = verification.model_outputs(self.model, examples + data)
        return [
            Check([("forward", x)], y, tokens) for x, y, tokens in zip(examples + data, outputs, labels, strict=True)
        ]

    def examples(self):
        """Inputs of `forward` to compare a file on: a list of dicts of arrays."""
        return verification.example_inputs(self.model, self.forward_inputs())

    def labels(self, inputs):
        """The tokens that the logits of `forward` predict, (B, T), -1 where there is none; or None."""
        return None

    def calibration(self):
        """Lists of calls, as those of a `Check`, that reach what the functions compute in use."""
        return [[("forward", x)] for x in self.calibration_inputs()] if "forward" in self.signatures else []

    def calibration_inputs(self):
        """The inputs of `forward` that the caller gave: a list of dicts of arrays."""
        dtypes = {name: dtype for name, (_, dtype) in self.forward_inputs().items()}
        return [
            {name: np.array(x, dtypes[name]) for name, x in inputs.items()} for inputs in self.options.calibration_data
        ]

    def settings(self):
        """What a program that runs the file should know beside the signatures: a dict for JSON."""
        return {}

    def tables(self):
        """TensorFlow's resources that the functions use, such as the tables of a tokenizer: a list."""
        return []

    def forward_inputs(self):
        """The model's own inputs: dict name -> (shape, dtype)."""
        fixed = self.options.inputs or {}
        return {name: (tuple(fixed.get(name, x.shape)), x.dtype) for name, x in self.model.input.items()}

    def forward(self, **inputs):
        """The model's outputs by name."""
        return verification.forward(self.model, inputs)
