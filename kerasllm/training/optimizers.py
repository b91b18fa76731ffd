"""AdamW and Muon as language models are trained with them: what multiplies decays, biases and norms do not."""

import re
from collections.abc import Mapping

import keras
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_part, check_positive_number, is_number, read_patterns, shown
from kerasllm.constructors import reading


class Sparing:
    """What goes before a class of optimizers that let neither vectors nor what `no_decay` names decay."""

    def build(self, variables):
        super().exclude_from_weight_decay(var_list=_not_decayed(variables, self.no_decay))
        super().build(variables)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        raise ValueError("Name the variables in no_decay instead: it is saved with the model.")

    def get_config(self):
        return {**super().get_config(), "no_decay": list(self.no_decay)}


@keras.saving.register_keras_serializable("kerasllm")
class AdamW(Sparing, backend.adamw_class()):
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
        learning_rate_factors: dict regular expression -> what the learning rate, and with it the decay, is times for
            the variables in whose paths it is found first; 1 for all others. `layerwise_decay` makes one.
        **kwargs: the other arguments of `keras.optimizers.AdamW`, for instance `weight_decay`, `global_clipnorm`.

    Raises:
        ValueError: `exclude_from_weight_decay` is called; a factor is negative.

    Example:
        >>> model.compile(AdamW(WarmupCosine(3e-4, 200, 5000), weight_decay=0.1, global_clipnorm=1.0), loss)
    """

    @reading
    def __init__(self, learning_rate=1e-3, no_decay=(), learning_rate_factors=None, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.no_decay = read_patterns("no_decay", no_decay, 0)
        self.learning_rate_factors = _read_factors(learning_rate_factors)

    def rate_factor(self, variable):
        """What the learning rate is times for a variable, a float."""
        factors = self.learning_rate_factors.items()
        return next((factor for pattern, factor in factors if re.search(pattern, variable.path)), 1.0)

    def get_config(self):
        return {**super().get_config(), "learning_rate_factors": self.learning_rate_factors}


def layerwise_decay(model, rate=0.9):
    """The `learning_rate_factors` of an `AdamW` under which a layer learns the less the farther it is from the output.

    Of L blocks number i, counted from 0, has the factor rate ** (L - i), the embeddings rate ** (L + 1), all else, such
    as a head, 1 (Clark et al. 2020, arXiv:2003.10555; as in BEiT, Bao et al. 2021, arXiv:2106.08254).

    Args:
        model: a model whose stacks have blocks, `encoder/block_0` and so on, or layers, `decoder/layer_0`.
        rate: in (0, 1].

    Returns:
        dict regular expression -> float.

    Raises:
        ValueError: the model has no blocks.

    Example:
        >>> model.compile(AdamW(1e-4, learning_rate_factors=layerwise_decay(model)), loss)
    """
    check_part("rate", rate)
    check_positive_number("rate", rate)
    found = [match for v in model.variables if (match := re.match(r"(?:(.*?)/)?(block|layer)_(\d+)/", v.path))]
    depths = {}
    for match in found:
        name = f"{match[1]}/{match[2]}" if match[1] else match[2]
        depths[name] = max(depths.get(name, 0), int(match[3]) + 1)
    if not depths:
        raise ValueError(f"model ({model.name!r}) has no blocks, whose rates would differ.")
    factors = {
        f"^{re.escape(name)}_{i}/": float(rate) ** (depth - i) for name, depth in depths.items() for i in range(depth)
    }
    return factors | {"(^|/)embeddings?/": float(rate) ** (max(depths.values()) + 1)}


@keras.saving.register_keras_serializable("kerasllm")
class Muon(Sparing, backend.muon_class()):
    """`keras.optimizers.Muon` (Jordan et al., 2024), set for the models of kerasllm; elsewhere AdamW's step.

    A matrix W of a hidden layer moves by its momentum made nearly orthogonal, in float32, and by a step of the size of
    AdamW's (Liu et al., 2025, arXiv:2502.16982), so that both sides take AdamW's learning rate:

        m = momentum * m + g
        W = W - learning_rate * (weight_decay * W + 0.2 * sqrt(max(W.shape)) * NS(g + momentum * m))

    where NS are five steps of Newton and Schulz. They cost about 5 * width / (tokens of a batch) times the products of
    the model itself: little in large batches, most of a step in small ones. AdamW's step, fused as in `AdamW`, have
    embeddings, heads (`head`, `classifier`, `answer_span`), vectors, biases, matrices of one row or column, and the
    factors of LoRA. The gates of a recurrent layer are one matrix to it.

    It counts updates, and measures `gradient_norm`, as `AdamW` does.

    Args:
        learning_rate: a number or a schedule, such as `WarmupStableDecay`, of the number of updates done.
        no_decay: as in `AdamW`. Vectors never decay.
        **kwargs: the other arguments of `keras.optimizers.Muon`: `weight_decay` of the matrices and `adam_weight_decay`
            of the other side, each times its side's learning rate; `adam_lr_ratio`, the other side's learning rate
            divided by `learning_rate`; `exclude_layers`, regular expressions, searched for in the paths of further
            variables for AdamW's step.

    Raises:
        ValueError: `exclude_from_weight_decay` is called, or a pattern is no regular expression.

    Example:
        >>> model.compile(Muon(WarmupStableDecay(1e-3, 200, 5000, 500), weight_decay=0.1, adam_weight_decay=0.1), loss)
    """

    @reading
    def __init__(self, learning_rate=1e-3, no_decay=(), **kwargs):
        excluded = kwargs.get("exclude_layers")
        kwargs["exclude_layers"] = list(read_patterns("exclude_layers", () if excluded is None else excluded, 0))
        super().__init__(learning_rate, **kwargs)
        self.no_decay = read_patterns("no_decay", no_decay, 0)

    def _should_use_adamw(self, variable):
        is_vector = len(variable.shape) != 2 or min(variable.shape) < 2
        return bool(is_vector or ADAMW_SIDE.search(variable.path)) or super()._should_use_adamw(variable)

    def _apply_weight_decay(self, variables):
        for variable in filter(self._use_weight_decay, variables):
            # Keras's lets AdamW's side decay without its ratio.
            on_adamw = self._should_use_adamw(variable)
            decay = self.adam_weight_decay if on_adamw else self.weight_decay
            if decay:
                rate = self.learning_rate * (self.adam_lr_ratio if on_adamw else 1)
                variable.assign(variable * (1 - ops.cast(rate * decay, variable.dtype)))


ADAMW_SIDE = re.compile(r"(^|/)(head|classifier|answer_span)/|(^|/|_)bias$|(^|/)lora_")


def _read_factors(factors):
    if factors is None:
        return {}
    if not isinstance(factors, Mapping):
        raise ValueError(f"learning_rate_factors ({shown(factors)}) must be a dict of patterns and numbers.")
    read_patterns("learning_rate_factors", list(factors), 0)
    for pattern, factor in factors.items():
        if not is_number(factor) or factor < 0:
            raise ValueError(f"learning_rate_factors[{pattern!r}] ({shown(factor)}) must be a number from 0 on.")
    return {pattern: float(factor) for pattern, factor in factors.items()}


def _not_decayed(variables, patterns):
    named = re.compile("|".join(("bias$", *patterns)))  # in keras.layers a bias may be a matrix
    return [v for v in variables if len(v.shape) < 2 or named.search(v.path)]
