"""Learning rates that rise in a straight line, then fall: `AdamW(WarmupCosine(3e-4, 200, 5000))`.

A schedule gets the number of updates done, 0 at the first, whose learning rate is therefore 0 (as with transformers'
schedules). With `gradient_accumulation_steps` kerasllm's optimizers count updates; Keras's own hand it the number of
batches, in which `warmup_steps` and `total_steps` must then be counted.

Given a number in place of a tensor a schedule returns a float: `keras.callbacks.LearningRateScheduler(schedule)` hands
it the epoch, in which `warmup_steps` and `total_steps` are then counted.
"""

import math

import keras
import numpy as np
from keras import ops

from kerasllm.arguments import (
    LARGEST,
    check_choice,
    check_from_zero,
    check_positive,
    check_positive_number,
    is_number,
    shown,
)
from kerasllm.constructors import reading


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Base class: `peak_learning_rate * step / warmup_steps`, then `peak_learning_rate * decay(step)`."""

    @reading
    def __init__(self, peak_learning_rate, warmup_steps):
        check_positive_number("peak_learning_rate", peak_learning_rate)
        check_from_zero("warmup_steps", warmup_steps)
        self.peak_learning_rate = peak_learning_rate
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        is_number = isinstance(step, int | float | np.number)
        step = float(step) if is_number else ops.cast(step, "float32")
        rise = step / max(self.warmup_steps, 1)
        rate = self.peak_learning_rate * _of(step).where(step < self.warmup_steps, rise, self.decay(step))
        return float(rate) if is_number else rate

    def decay(self, step):
        """Share of the peak from `warmup_steps` on: scalar float32 -> scalar float32, or float -> float."""
        raise NotImplementedError

    def get_config(self):
        return {"peak_learning_rate": self.peak_learning_rate, "warmup_steps": self.warmup_steps}


@keras.saving.register_keras_serializable("kerasllm")
class WarmupLinear(Warmup):
    """Up to the peak, then down to zero, in straight lines (Devlin et al., 2018).

    Args:
        peak_learning_rate: highest learning rate.
        warmup_steps: number of steps on the way up, or 0.
        total_steps: step from which on the learning rate is zero.
    """

    @reading
    def __init__(self, peak_learning_rate, warmup_steps, total_steps):
        super().__init__(peak_learning_rate, warmup_steps)
        _check_total_steps(total_steps, warmup_steps)
        self.total_steps = total_steps

    def decay(self, step):
        left = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
        return _of(step).maximum(left, 0.0)

    def get_config(self):
        return {**super().get_config(), "total_steps": self.total_steps}


@keras.saving.register_keras_serializable("kerasllm")
class WarmupCosine(Warmup):
    """Up to the peak in a straight line, down on half a cosine (Loshchilov & Hutter, 2016).

    Args:
        peak_learning_rate: highest learning rate.
        warmup_steps: number of steps on the way up, or 0.
        total_steps: step from which on the learning rate is `final_learning_rate`.
        final_learning_rate: lowest learning rate after the peak.
    """

    @reading
    def __init__(self, peak_learning_rate, warmup_steps, total_steps, final_learning_rate=0.0):
        super().__init__(peak_learning_rate, warmup_steps)
        _check_total_steps(total_steps, warmup_steps)
        if not is_number(final_learning_rate) or not 0 <= final_learning_rate <= LARGEST:
            raise ValueError(f"final_learning_rate ({shown(final_learning_rate)}) must be a non-negative number.")
        self.total_steps = total_steps
        self.final_learning_rate = final_learning_rate

    def decay(self, step):
        done = _of(step).minimum((step - self.warmup_steps) / (self.total_steps - self.warmup_steps), 1.0)
        final = self.final_learning_rate / self.peak_learning_rate
        return final + (1 - final) * 0.5 * (1 + _of(step).cos(math.pi * done))

    def get_config(self):
        own = {"total_steps": self.total_steps, "final_learning_rate": self.final_learning_rate}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasllm")
class WarmupStableDecay(Warmup):
    """Up to the peak in a straight line, constant, then down (WSD; Hu et al., 2024, MiniCPM, arXiv:2404.06395).

    Weights saved in the constant part can be trained on, for any number of steps, or go down at once.

    Args:
        peak_learning_rate: highest learning rate.
        warmup_steps: number of steps on the way up, or 0.
        total_steps: step from which on the learning rate is `final_learning_rate`.
        decay_steps: number of steps on the way down, which are the last of `total_steps`. Hu et al. take a tenth.
        shape: of the way down: "linear", or "sqrt", 1 - sqrt(done / decay_steps), which Haegele et al. (2024,
            arXiv:2405.18392) found better than a line.
        final_learning_rate: lowest learning rate after the peak, at most `peak_learning_rate`.

    Example:
        >>> AdamW(WarmupStableDecay(3e-4, warmup_steps=200, total_steps=5000, decay_steps=500))
    """

    @reading
    def __init__(
        self, peak_learning_rate, warmup_steps, total_steps, decay_steps, shape="linear", final_learning_rate=0.0
    ):
        super().__init__(peak_learning_rate, warmup_steps)
        _check_total_steps(total_steps, warmup_steps)
        check_positive("decay_steps", decay_steps)
        if decay_steps > total_steps - warmup_steps:
            raise ValueError(
                f"decay_steps ({decay_steps}) must be at most total_steps - warmup_steps "
                f"({total_steps - warmup_steps})."
            )
        check_choice("shape", shape, ("linear", "sqrt"))
        if not is_number(final_learning_rate) or not 0 <= final_learning_rate <= peak_learning_rate:
            raise ValueError(
                f"final_learning_rate ({shown(final_learning_rate)}) must be a number from 0 to peak_learning_rate "
                f"({shown(peak_learning_rate)})."
            )
        self.total_steps = total_steps
        self.decay_steps = decay_steps
        self.shape = shape
        self.final_learning_rate = final_learning_rate

    def decay(self, step):
        of = _of(step)
        done = (step - (self.total_steps - self.decay_steps)) / self.decay_steps
        done = of.minimum(of.maximum(done, 0.0), 1.0)
        final = self.final_learning_rate / self.peak_learning_rate
        return final + (1 - final) * (1 - (done if self.shape == "linear" else of.sqrt(done)))

    def get_config(self):
        names = ("total_steps", "decay_steps", "shape", "final_learning_rate")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("kerasllm")
class InverseSquareRoot(Warmup):
    """Up to the peak in a straight line, down as peak * sqrt(warmup_steps / step), without end.

    `InverseSquareRoot.noam(hidden_dim, warmup_steps)` takes the peak from the width of the model.

    Args:
        peak_learning_rate: highest learning rate.
        warmup_steps: number of steps on the way up, at least 1.
    """

    @reading
    def __init__(self, peak_learning_rate, warmup_steps):
        check_positive("warmup_steps", warmup_steps)
        super().__init__(peak_learning_rate, warmup_steps)

    @classmethod
    def noam(cls, hidden_dim, warmup_steps=4000, scale=1.0):
        """The schedule of Vaswani et al. (2017), 5.3.

        scale * hidden_dim**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)
        """
        check_positive("hidden_dim", hidden_dim)
        check_positive("warmup_steps", warmup_steps)
        check_positive_number("scale", scale)
        return cls(scale * (hidden_dim * warmup_steps) ** -0.5, warmup_steps)

    def decay(self, step):
        return _of(step).sqrt(self.warmup_steps / _of(step).maximum(step, 1.0))


def _of(step):
    """The functions for a number, or for a tensor."""
    return np if isinstance(step, float) else ops


def _check_total_steps(total_steps, warmup_steps):
    check_positive("total_steps", total_steps)
    if total_steps <= warmup_steps:
        raise ValueError(f"total_steps ({total_steps}) must be greater than warmup_steps ({warmup_steps}).")
