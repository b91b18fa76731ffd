"""Magnitude pruning: the smallest weights of a model become 0 while it is trained, and stay 0."""

import re

import keras
import numpy as np
from keras import ops

from kerasllm.arguments import check_from_zero, check_positive, check_rate, read_patterns, shown
from kerasllm.constructors import reading

KERNELS = r"^(encoder|decoder)/.*kernel$"  # all matrices but those of heads and tables


class MagnitudePruning(keras.callbacks.Callback):
    """Sets the smallest weights of each kernel to 0, more of them as training goes on (Zhu and Gupta 2017).

        s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^3      of each kernel, arXiv:1710.01878

    after every `every` steps from t_0 to t_1; the others learn to do without. What is 0 when `fit` begins, or becomes
    it, is 0 after each step, whatever the optimizer's moments say. So the weights alone hold what is pruned: files have
    it, a run resumed by `ResumableTraining` goes on with it, and to train a pruned model further give `fit` the
    callback again, with `final_sparsity` 0 to prune no more.

    A file of zeros is smaller where it is compressed; products of matrices are no faster for it in Keras or TFLite.

    The epochs' logs have `sparsity`. Steps are counted over all `fit`s of the callback. On JAX it waits for each step.

    Args:
        final_sparsity: s_f in [0, 1), the share of weights that are 0 in the end.
        end_step: t_1, in steps.
        begin_step: t_0, at most t_1.
        initial_sparsity: s_i, at most s_f.
        every: number of steps from one pruning to the next.
        targets: regular expression, or a list of them, found in the paths of the kernels that are pruned. Default:
            those inside encoder and decoder, without heads and tables.

    Raises:
        ValueError: an argument is none of these; at `fit`: no trained kernel has such a path, or one is all 0;
            `steps_per_execution` is not 1.

    Example:
        >>> model.fit(dataset, epochs=3, callbacks=[MagnitudePruning(0.5, end_step=2 * len(dataset))])
    """

    writes_logs = True
    not_resumed = ("_masks",)

    @reading
    def __init__(self, final_sparsity, end_step, begin_step=0, initial_sparsity=0.0, every=100, targets=KERNELS):
        super().__init__()
        check_rate("final_sparsity", final_sparsity)
        check_rate("initial_sparsity", initial_sparsity)
        check_from_zero("begin_step", begin_step)
        check_from_zero("end_step", end_step)
        check_positive("every", every)
        read_patterns("targets", targets)
        if initial_sparsity > final_sparsity:
            raise ValueError(
                f"initial_sparsity ({initial_sparsity}) must be at most final_sparsity ({final_sparsity})."
            )
        if begin_step > end_step:
            raise ValueError(f"begin_step ({begin_step}) must be at most end_step ({end_step}).")
        self.final_sparsity, self.initial_sparsity = final_sparsity, initial_sparsity
        self.begin_step, self.end_step, self.every, self.targets = begin_step, end_step, every, targets
        self.num_steps = 0
        self._masks = None  # pairs of a kernel and its mask, of the `fit` that runs

    def sparsity_at(self, step):
        """The share of weights that are 0 after so many steps: s_t."""
        if step < self.begin_step:
            return 0.0
        span = self.end_step - self.begin_step
        rest = max(0.0, 1 - (step - self.begin_step) / span) if span else 0.0
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * rest**3

    def on_train_begin(self, logs=None):
        self._masks = None  # taken at the first step, when a resumed run has its weights
        if getattr(self.model, "steps_per_execution", 1) != 1:
            raise ValueError(
                f"steps_per_execution ({self.model.steps_per_execution}) must be 1: MagnitudePruning acts after a step."
            )
        _found(self.model.trainable_variables, self.targets)

    def on_train_batch_begin(self, batch, logs=None):
        if self._masks is None:
            self._masks = [(v, _nonzero(v)) for v in _found(self.model.trainable_variables, self.targets)]
            if self.num_steps == 0:
                self._prune()

    def on_train_batch_end(self, batch, logs=None):
        self.num_steps += 1
        _ = self.model  # on JAX the variables have their values when it has been asked for
        self._apply()
        self._prune()

    def on_epoch_end(self, epoch, logs=None):
        if self._masks and logs is not None:
            logs["sparsity"] = sparsity(self.model, self.targets)

    def on_train_end(self, logs=None):
        if self._masks:  # for an optimizer's mean of weights, which has come last
            _ = self.model
            self._apply()
        self._masks = None

    def _prune(self):
        """Choose the weights that are 0 from now on, where it is time."""
        since = self.num_steps - self.begin_step
        is_last = self.num_steps == self.end_step
        if not 0 <= since <= self.end_step - self.begin_step or since % self.every and not is_last:
            return
        share = self.sparsity_at(self.num_steps)
        self._masks = [(v, _largest(v, mask, share)) for v, mask in self._masks]
        self._apply()

    def _apply(self):
        for v, mask in self._masks or ():
            v.assign(ops.where(mask, v.value, ops.zeros_like(v.value)))


def sparsity(model, targets=KERNELS):
    """The share of a model's weights that are 0, in [0, 1].

    Args:
        model: a built `keras.Model`.
        targets: as for `MagnitudePruning`, of the kernels that are counted.

    Raises:
        ValueError: no kernel has such a path.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"model ({shown(model)}) must be a keras.Model.")
    kernels = [ops.convert_to_numpy(v.value) for v in _found(model.weights, targets)]
    return float(sum((kernel == 0).sum() for kernel in kernels) / sum(kernel.size for kernel in kernels))


def _found(variables, targets):
    """The kernels among variables that are meant."""
    patterns = read_patterns("targets", targets)
    found = [v for v in variables if len(v.shape) > 1 and any(re.search(p, v.path) for p in patterns)]
    if not found:
        raise ValueError(
            f"targets ({shown(targets)}) is found in no path of a kernel, such as {shown(_some(variables))}."
        )
    return found


def _some(variables):
    return [v.path for v in variables if len(v.shape) > 1][-3:]


def _nonzero(variable):
    mask = ops.convert_to_numpy(variable.value) != 0
    if not mask.any():
        raise ValueError(f"model: {variable.path} is all 0, and what is 0 stays so.")
    return ops.convert_to_tensor(mask)


def _largest(variable, mask, share):
    """The mask of a kernel's largest weights, without those that are 0 already."""
    size = np.abs(ops.convert_to_numpy(variable.value).astype("float32"))
    count = round(share * size.size)
    kept = np.array(ops.convert_to_numpy(mask))
    if count:
        kept.reshape(-1)[np.argpartition(size.reshape(-1), count - 1)[:count]] = False
    return ops.convert_to_tensor(kept)
