"""What a model's loss takes as labels and weights, checked on the host with the inputs they belong to."""

import dataclasses

import keras
import numpy as np

from kerasllm.text.limits import InputLimits, as_array, check_finite, check_indices, place
from kerasllm.training.embedding_losses import CHECKS
from kerasllm.training.losses import TokenCrossentropy
from kerasllm.training.preference_losses import check_labels as check_preferences

KINDS = {
    "sparse_categorical_crossentropy": "classes",
    **dict.fromkeys(("binary_crossentropy", "binary_focal_crossentropy"), "probabilities"),
    **dict.fromkeys(("categorical_crossentropy", "categorical_focal_crossentropy"), "probabilities"),
    **dict.fromkeys(("mean_squared_error", "mean_absolute_error", "huber", "log_cosh"), "numbers"),
    **dict.fromkeys(("cosine_similarity", "kl_divergence", "poisson"), "numbers"),
}
LENGTHS = ("masked_positions", "target_token_ids", "token_ids")  # the input whose length an output has: the first


@dataclasses.dataclass(frozen=True)
class OutputLimits:
    """What the labels of one output may be.

    Attributes:
        shape: of the output, None where a size is open.
        kind: "classes", whole numbers; "probabilities", in [0, 1]; "numbers", finite; "pairs" or "scored pairs", the
            `label_kind` of losses of vectors; "preferences", of `DPOLoss`; None, which no one knows.
        ignored: the class that does not count, or None.
    """

    shape: tuple
    kind: str | None
    ignored: int | None

    @classmethod
    def of(cls, shape, loss):
        """Those of an output of this shape for what `compile` was given as its loss."""
        loss = keras.losses.get(loss) if isinstance(loss, str | dict) else loss
        function = getattr(loss, "fn", loss)
        kind = "classes" if isinstance(loss, TokenCrossentropy) else KINDS.get(getattr(function, "__name__", None))
        kind = getattr(loss, "label_kind", kind)
        return cls(tuple(shape), kind, getattr(loss, "ignore_class", None))

    def check(self, name, labels, sizes, examples):
        """Raise `ValueError` where `labels` of this output, of `sizes` (B, T), are none."""
        if self.kind is None:
            return
        if self.kind == "preferences":
            check_preferences(name, labels, sizes[:2], self.shape[-1], examples)
            return
        if self.kind in CHECKS:
            if labels.shape != (sizes[0], 2) or labels.dtype.kind not in "iuf":
                raise ValueError(
                    f"{name} {labels.shape} must be of shape {(sizes[0], 2)}, a group and what it is in it."
                )
            CHECKS[self.kind](name, labels, examples)
            return
        shape = tuple(sizes[i] if size is None and i < 2 else size for i, size in enumerate(self.shape))
        shape, count = (shape[:-1], shape[-1]) if self.kind == "classes" else (shape, None)
        if labels.shape not in (shape, (*shape, 1), shape[:-1] if shape[-1:] == (1,) else shape):
            raise ValueError(f"{name} {labels.shape} must be of shape {shape}, as the model's outputs are.")
        if labels.dtype.kind == "b":
            labels = labels.astype("int8")
        if self.kind == "classes":
            ignored = () if self.ignored is None else (self.ignored,)
            reason = f"there are {count} classes, and ignore_class of the loss is {self.ignored}"
            if self.ignored != -100 and (labels == -100).any():
                reason += "; TokenCrossentropy(ignore_class=-100) takes no notice of -100"
            check_indices(name, labels, count, reason, examples, ignored)
            return
        check_finite(name, labels, examples)
        if self.kind == "probabilities":
            for where in np.argwhere((labels < 0) | (labels > 1))[:1]:
                raise ValueError(f"{name}{place(examples, *where)} ({labels[tuple(where)]}) must be from 0 to 1.")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What batches of a model may hold: plain values, which go with a dataset into other processes.

    Attributes:
        inputs: `InputLimits`.
        names: of the inputs, in the model's order.
        outputs: dict name of the output (None of the only one) -> `OutputLimits`; empty before `compile`.
    """

    inputs: InputLimits
    names: tuple
    outputs: dict

    @classmethod
    def of(cls, model):
        """Those of a model of ours, for the losses that it is compiled with."""
        outputs = model.output if isinstance(model.output, dict) else {None: model.output}
        loss = model.loss if model.compiled else None
        losses = dict.fromkeys(outputs, loss)
        if isinstance(loss, dict) and "class_name" not in loss:
            losses = loss if len(outputs) > 1 else dict.fromkeys(outputs, *loss.values())
        elif isinstance(loss, list | tuple):
            losses = dict(zip(outputs, loss, strict=False))
        limits = {name: OutputLimits.of(x.shape, losses.get(name)) for name, x in outputs.items()}
        names = *model.input, *(["position_ids"] if model.reads_documents else [])
        return cls(InputLimits.of(model.arguments), names, limits if loss is not None else {})

    def check(self, inputs, labels=None, sample_weight=None, examples=None):
        """Raise `ValueError` where a batch, or whole arrays for `fit`, hold what the model cannot read or learn.

        Args:
            inputs: dict input name -> array (B, T).
            labels: an array, or a dict of them by the names of the outputs.
            sample_weight: likewise, (B,), (B, 1) or of the shape of labels.
            examples: (B,) ints that errors name in place of the rows.
        """
        inputs = {name: inputs[name] for name in self.names if name in inputs}
        self.inputs.check(inputs, examples)
        like = next((inputs[name] for name in LENGTHS if name in inputs), None)
        if labels is None or like is None or not self.outputs:
            return
        sizes = np.shape(like)
        labels, weights = self._by_output(labels), self._by_output(sample_weight)
        labels = {name: as_array(_called("labels", name), y) for name, y in labels.items()}
        for name, y in labels.items():
            self.outputs[name].check(_called("labels", name), y, sizes, examples)
        for name, weight in weights.items():
            name_, weight = _called("sample_weight", name), as_array("sample_weight", weight)
            _check_weight(name_, weight, {sizes[:1], (*sizes[:1], 1), np.shape(labels.get(name, like))}, examples)
        if {"start_logits", "end_logits"} <= set(labels) and self.outputs["start_logits"].kind == "classes":
            _check_spans(labels["start_logits"].reshape(-1), labels["end_logits"].reshape(-1), inputs, examples)

    def _by_output(self, values):
        """What was given for each output, as far as the names are known."""
        if isinstance(values, list | tuple) and 1 < len(self.outputs) == len(values):
            values = dict(zip(self.outputs, values, strict=True))
        if isinstance(values, dict) and len(self.outputs) == len(values) == 1:
            values = next(iter(values.values()))
        if isinstance(values, dict):
            return {name: values[name] for name in self.outputs if values.get(name) is not None}
        if values is None or len(self.outputs) > 1:
            return {}
        return {next(iter(self.outputs)): values}


def _check_weight(name, weight, shapes, examples):
    if weight.shape not in shapes:
        raise ValueError(f"{name} {weight.shape} must be of shape {' or '.join(map(str, sorted(shapes)))}.")
    check_finite(name, weight, examples)


def _check_spans(starts, ends, inputs, examples):
    """An answer ends behind its start, both in the second text where segments tell; none is 0 and 0."""
    for row in np.flatnonzero(starts > ends)[:1]:
        raise ValueError(
            f"labels{place(examples, row)}: start_logits ({starts[row]}) must not be above end_logits ({ends[row]})."
        )
    seen = np.asarray(inputs["padding_mask"]).astype("bool")
    if "segment_ids" in inputs:
        seen = seen & (np.asarray(inputs["segment_ids"]) > 0)
    for name, places in (("start_logits", starts), ("end_logits", ends)):
        is_answer = seen[np.arange(len(places)), np.maximum(places, 0).astype("int64")] & (places > 0)
        for row in np.flatnonzero(~is_answer & (ends > 0) & (places >= 0))[:1]:
            raise ValueError(
                f"labels[{name!r}]{place(examples, row)} ({places[row]}) must be a token of the context, or both 0."
            )


def _called(kind, name):
    return kind if name is None else f"{kind}[{name!r}]"
