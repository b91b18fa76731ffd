"""AdamW as language models are trained with it: what multiplies decays, biases and norms do not."""

import re

import keras

from kerasllm import backend


def adamw(
    learning_rate=1e-3,
    weight_decay=0.01,
    *,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-8,
    global_clipnorm=1.0,
    decay_embeddings=True,
    **kwargs,
):
    """Make an AdamW that decays kernels and embeddings, but neither biases nor the scales of norms.

    Args:
        learning_rate: a number or a schedule, such as `WarmupCosine`. Also with `gradient_accumulation_steps`
            Keras hands a schedule the number of batches, not that of updates.
        weight_decay: share of the learning rate by which a weight shrinks at each update.
        beta_1: decay of the mean of the gradients.
        beta_2: decay of the mean of their squares; 0.95 to 0.99 is usual for large batches.
        epsilon: what is added to the root of that mean.
        global_clipnorm: largest norm of all gradients together, or `None`.
        decay_embeddings: whether embeddings decay as well.
        **kwargs: the other arguments of `keras.optimizers.AdamW`.
    """
    no_decay = ["bias$", "(gamma|beta|scale)$"] + ([] if decay_embeddings else ["embeddings"])
    return AdamW(
        learning_rate,
        no_decay=no_decay,
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        global_clipnorm=global_clipnorm,
        **kwargs,
    )


@keras.saving.register_keras_serializable("kerasllm")
class AdamW(backend.adamw_class()):
    """`keras.optimizers.AdamW` that decays neither vectors nor the variables that `no_decay` names.

    `no_decay` is saved with a model; what `exclude_from_weight_decay` excludes is not. Faster under torch.

    Args:
        learning_rate: a number or a schedule.
        no_decay: regular expressions, searched for in the paths of variables.
        **kwargs: the other arguments of `keras.optimizers.AdamW`.
    """

    def __init__(self, learning_rate=1e-3, no_decay=(), **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.no_decay = tuple(no_decay)

    def build(self, variables):
        named = re.compile("|".join(self.no_decay) or "(?!)")  # (?!) is nowhere
        excluded = [v for v in variables if len(v.shape) < 2 or named.search(v.path)]
        super().exclude_from_weight_decay(var_list=excluded)
        super().build(variables)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        raise ValueError("Name the variables in no_decay instead: it is saved with the model.")

    def get_config(self):
        return {**super().get_config(), "no_decay": list(self.no_decay)}
