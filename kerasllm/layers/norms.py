"""Norms by their kinds."""

import keras
from keras import ops

from kerasllm.arguments import check_choice, check_positive_number
from kerasllm.layers.base import Layer
from kerasllm.stack import NORMS


@keras.saving.register_keras_serializable("kerasllm")
class UnitOffsetRMSNormalization(Layer):
    """y = x / sqrt(mean(x^2) + epsilon) * (1 + w): an RMS norm whose scale w begins at 0 (Gemma).

    It computes in float32. Source: Gemma's released code; RMS norms: Zhang & Sennrich 2019, arXiv:1910.07467.

    Args:
        epsilon: added to the mean square.

    Call arguments:
        x: (..., D).

    Returns:
        (..., D).
    """

    def __init__(self, epsilon=1e-6, **kwargs):
        super().__init__(**kwargs)
        check_positive_number("epsilon", epsilon)
        self.epsilon = epsilon
        self.supports_masking = True

    def build(self, x_shape):
        """Create the scale (D,)."""
        self.scale = self.add_weight((x_shape[-1],), initializer="zeros", name="scale")

    def call(self, x):
        """Norm the last axis."""
        return ops.cast(
            ops.rms_normalization(ops.cast(x, "float32"), 1 + ops.cast(self.scale, "float32"), epsilon=self.epsilon),
            x.dtype,
        )

    def compute_output_shape(self, x_shape):
        """The shape of x: (..., D)."""
        return x_shape


LAYERS = dict(
    zip(
        NORMS, (keras.layers.LayerNormalization, keras.layers.RMSNormalization, UnitOffsetRMSNormalization), strict=True
    )
)


def make_norm(kind, epsilon, dtype, name):
    """The norm of a kind, one of `kerasllm.stack.NORMS`, over the last axis."""
    check_choice("norm", kind, NORMS)
    check_positive_number("norm_epsilon", epsilon)
    norm = LAYERS[kind](epsilon=float(epsilon), dtype=dtype, name=name)  # jax takes no whole numbers above int64
    norm.supports_masking = True  # which Keras forgets of RMSNormalization
    return norm
