"""Distillation: a student learns from the logits of a teacher, and from the labels."""

import contextlib
import contextvars

import keras
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_part, check_positive_number, check_text, shown
from kerasllm.constructors import reading
from kerasllm.training.losses import TokenCrossentropy

_inputs = contextvars.ContextVar("inputs_of_the_loss", default=None)


@keras.saving.register_keras_serializable("kerasllm")
class DistillationLoss(TokenCrossentropy):  # What counts, the means and the weights are its own, to the last line.
    """The loss of a student that learns what a teacher says of the same batch (Hinton et al. 2015, arXiv:1503.02531).

        loss = alpha T^2 KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) crossentropy(labels, student)

    of each token that counts, averaged over those as by `TokenCrossentropy`: padding and unmasked words, of label
    `ignore_class`, are in neither part. It is for `compile` of kerasllm's models: of a GPT, a translator, a masked
    language model, a tagger; of a classifier with one label of several, whose rows are what counts.

    The teacher reads the student's inputs without dropout, in training and in `evaluate`, and is not changed. A
    file of the student does not hold it: to train a loaded one, `compile` again. The teacher's weights are constants
    of a compiled step on JAX; where they change, the next `fit` or `evaluate` compiles another.

    `keras.distillation.Distiller` with `LogitsDistillation(loss=keras.losses.KLDivergence())` is this loss where all
    tokens count alike (its default, "kl_divergence", compares logits without softmax in Keras 3.15). It counts padding
    too, passes `sample_weight` over, freezes the teacher for good, and what `fit` of kerasllm's models checks, averages
    and resumes is not there. Its `FeatureDistillation` compares layers of a graph, which this loss does not.

    Args:
        teacher: a model of kerasllm with the student's outputs; its inputs are among the student's.
        temperature: T, above 0; above 1 the teacher's less likely classes weigh more.
        alpha: in [0, 1], the share of the teacher; 1 does not look at labels but for what counts.
        output: of models with several outputs, the name of the one that this loss is given for.
        ignore_class, label_smoothing, reduction, name, class_weight: as for `TokenCrossentropy`; `label_smoothing` is
            of the labels' part alone.

    Call arguments: as for `TokenCrossentropy`, in a step of `fit` or `evaluate` alone.

    Example:
        >>> student = kerasllm.student_of(teacher, layers=[0, 2, 4])
        >>> student.compile(AdamW(1e-4), DistillationLoss(teacher, temperature=2.0, alpha=0.5))
        >>> student.fit(dataset, epochs=3)
    """

    @reading
    def __init__(
        self,
        teacher,
        temperature=2.0,
        alpha=0.5,
        output=None,
        ignore_class=-1,
        label_smoothing=0.0,
        reduction="sum_over_batch_size",
        name="distillation_loss",
        class_weight=None,
    ):
        super().__init__(ignore_class, label_smoothing, reduction, name, class_weight=class_weight)
        check_positive_number("temperature", temperature)
        check_part("alpha", alpha)
        if output is not None:
            check_text("output", output)
        if teacher is not None and not hasattr(teacher, "arguments"):
            raise ValueError(f"teacher ({shown(teacher)}) must be a model of kerasllm.")
        self.temperature, self.alpha, self.output = float(temperature), float(alpha), output
        self._taught = _Taught(teacher)

    def call(self, y_true, y_pred):
        taught = self._taught.logits(self.output, y_pred) / self.temperature
        log_p = ops.log_softmax(taught)
        log_q = ops.log_softmax(ops.cast(y_pred, "float32") / self.temperature)
        soft = self.temperature**2 * ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)
        return soft if self.alpha == 1 else self.alpha * soft + (1 - self.alpha) * super().call(y_true, y_pred)

    def teacher_has_changed(self):
        """Whether the teacher's weights are others than those that a step was compiled with; asked once a change."""
        return self._taught.has_changed()

    def get_config(self):
        config = super().get_config()
        own = {"temperature": self.temperature, "alpha": self.alpha, "output": self.output}
        return {"teacher": None, **own, **config}


@contextlib.contextmanager
def inputs_of_loss(inputs):
    """Inside it, a loss may ask a teacher about these inputs of the student, a dict."""
    token = _inputs.set((inputs, {}))
    try:
        yield
    finally:
        _inputs.reset(token)


class _Taught:
    """A teacher, hidden from Keras, which would save it with the student."""

    def __init__(self, teacher):
        self.teacher, self.values = teacher, None

    def logits(self, output, student):
        """The teacher's logits (M, V) of the student's inputs, in float32."""
        teacher = self.teacher
        if teacher is None:
            raise ValueError("teacher (None) is in no file: compile again with DistillationLoss(teacher).")
        if _inputs.get() is None:
            raise ValueError("DistillationLoss is for fit and evaluate of a model of kerasllm, which knows its inputs.")
        inputs, answers = _inputs.get()
        if id(teacher) not in answers:  # once for all outputs
            names = [*teacher.input, *(["position_ids"] if "position_ids" in inputs else [])]
            missing = sorted(set(names) - set(inputs))
            if missing:
                raise ValueError(f"teacher ({teacher.name!r}) reads {', '.join(missing)}; the student's data has none.")
            self.values = [v.value for v in teacher.variables]
            answers[id(teacher)] = backend.without_gradient(
                lambda: teacher({name: inputs[name] for name in names}, training=False)
            )
        logits = answers[id(teacher)]
        if isinstance(logits, dict) != (output is not None) or isinstance(logits, dict) and output not in logits:
            of = f"one of {', '.join(map(repr, logits))}" if isinstance(logits, dict) else "None"
            raise ValueError(f"output ({output!r}) must be {of}, as the teacher's outputs are.")
        logits = logits if output is None else logits[output]
        if len(logits.shape) > 2:  # labels and the student's are flat where the loss looks at them
            logits = ops.reshape(logits, (-1, logits.shape[-1]))
        if None not in (logits.shape[-1], student.shape[-1]) and logits.shape[-1] != student.shape[-1]:
            raise ValueError(
                f"teacher ({teacher.name!r}) has {logits.shape[-1]} outputs, the student {student.shape[-1]}: they "
                "must be of the same symbols or labels."
            )
        return ops.cast(logits, "float32")

    def has_changed(self):
        """Whether it has other weights than a step was traced with; on TensorFlow and torch a step reads them anew."""
        if self.values is None:
            return False
        pairs = zip(self.values, self.teacher.variables, strict=True)
        changed = any(before is not v.value for before, v in pairs)
        if changed:
            self.values = None
        return changed
