"""AdamW as language models are trained with it: what multiplies decays, biases and norms do not."""

import re

import keras

from kerasllm import backend
from kerasllm.arguments import read_strings, shown
from kerasllm.constructors import reading


@keras.saving.register_keras_serializable("kerasllm")
class AdamW(backend.adamw_class()):
    """`keras.optimizers.AdamW` (Loshchilov & Hutter 2019) that decays neither biases nor the scales of norms.

    Faster than Keras's under torch and tensorflow. `no_decay` is saved with a model; Keras forgets what
    `exclude_from_weight_decay` excludes. With `gradient_accumulation_steps` N batches of equal weight make one update,
    equal to that of one batch of all their rows: a schedule and `use_ema` count updates too (with Keras's: batches).

    Where `measures_gradient_norm` is set, before training, each update sets the variable `gradient_norm`, scalar
    float32: the norm of all gradients together, unscaled, averaged over the accumulated batches, before clipping.

    Args:
        learning_rate: a number or a schedule, such as `WarmupCosine`, of the number of updates done.
        no_decay: regular expressions, searched for in the paths of further variables that do not decay, for instance
            `["embeddings"]`. Vectors never decay.
        **kwargs: the other arguments of `keras.optimizers.AdamW`, for instance `weight_decay`, `global_clipnorm`.

    Raises:
        ValueError: `exclude_from_weight_decay` is called.

    Example:
        >>> model.compile(AdamW(WarmupCosine(3e-4, 200, 5000), weight_decay=0.1, global_clipnorm=1.0), loss)
    """

    @reading
    def __init__(self, learning_rate=1e-3, no_decay=(), **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.no_decay = tuple(read_strings("no_decay", [no_decay] if isinstance(no_decay, str) else no_decay, 0))
        for pattern in self.no_decay:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"no_decay ({shown(pattern)}) must be a regular expression: {error}.") from error

    def build(self, variables):
        named = re.compile("|".join(("bias$", *self.no_decay)))  # in keras.layers a bias may be a matrix
        excluded = [v for v in variables if len(v.shape) < 2 or named.search(v.path)]
        super().exclude_from_weight_decay(var_list=excluded)
        super().build(variables)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        raise ValueError("Name the variables in no_decay instead: it is saved with the model.")

    def get_config(self):
        return {**super().get_config(), "no_decay": list(self.no_decay)}
