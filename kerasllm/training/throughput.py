"""How training goes: tokens a second, share of the machine's peak, learning rate, gradient norm."""

import collections
import time

import keras
from keras import ops

from kerasllm.arguments import check_boolean, check_positive, check_positive_number
from kerasllm.backend import aside, feeding
from kerasllm.constructors import reading
from kerasllm.training import flops


class Throughput(keras.callbacks.Callback):
    """Puts figures of the running training into the logs: for the progress line, `CSVLogger`, TensorBoard, `History`.

    - `tokens_per_second`: real tokens, as padding masks say, or all positions where inputs have none; of translators
      those of source and target. While an epoch runs it is that of the last 20 steps, at its end that of all its steps.
      The first step of `fit`, which compiles, does not count, nor do `EvaluateEvery`, `GenerateExamples` and
      `TranslationQuality`.
    - `mfu`: model FLOPs utilisation, the share of the machine's peak that the products of the model use: 6 N + 12 L D T
      operations for each real token (Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, appendix B), over `peak_flops`.
      N: weights, without tables that are looked up and with the head's product; L: layers; D: width of all heads; T:
      tokens of the row. For models of `kerasllm.models`, or with `flops_per_token`.
    - `learning_rate`: the one that the step used, of a schedule too.
    - `gradient_norm`: of all gradients of the last update together, before clipping, for `kerasllm.training.AdamW` and
      other optimizers that have `measures_gradient_norm`, where the loss is not scaled (mixed_float16). It costs a
      pass over the gradients, which clipping by `global_clipnorm` makes anyway.

    What is not known is left out of the logs, and a line says so once. kerasllm's models call it before callbacks that
    read the logs; in `fit` of another `keras.Model` it must be listed before them.

    On JAX, as with all callbacks that look at each step, Keras then waits for a step before it begins the next.

    Args:
        peak_flops: the most floating-point operations a second of the machine, as its maker says, of all devices
            together. Default: what square products of this machine reach, in the model's compute dtype, by
            `keras.ops.matmul` on one device, measured when `fit` begins (about a second).
        flops_per_token: operations of one token in training, for models that are not kerasllm's.
        every: number of steps between two readings of the last two figures.
        gradient_norm: whether it is measured.

    Example:
        >>> model.fit(dataset, callbacks=[kerasllm.training.Throughput(), keras.callbacks.CSVLogger("log.csv")])
    """

    writes_logs = True
    num_steps_shown = 20

    @reading
    def __init__(self, peak_flops=None, flops_per_token=None, every=1, gradient_norm=True):
        super().__init__()
        for name, value in (("peak_flops", peak_flops), ("flops_per_token", flops_per_token)):
            if value is not None:
                check_positive_number(name, value)
        check_positive("every", every)
        check_boolean("gradient_norm", gradient_norm)
        self.peak_flops, self.flops_per_token = peak_flops, flops_per_token
        self.every, self.gradient_norm = every, gradient_norm

    def on_train_begin(self, logs=None):
        self._said, self._read, self._num_steps = set(), {}, 0
        optimizer = self.model.optimizer
        if self.gradient_norm and hasattr(optimizer, "inner_optimizer"):
            self._say("no gradient_norm: the loss is scaled (mixed_float16)")
        elif self.gradient_norm and hasattr(optimizer, "measures_gradient_norm"):
            if not optimizer.measures_gradient_norm:
                optimizer.measures_gradient_norm = True
                feeding.retrace(self.model)
        elif self.gradient_norm:
            self._say(f"no gradient_norm: {type(optimizer).__name__} does not measure it, kerasllm.training.AdamW does")
        self._watcher = feeding.Watcher(max(1, getattr(self.model, "steps_per_execution", 1)))
        feeding.watch_batches(self.model, self._watcher)
        self._peak = self.peak_flops or flops.measured_peak(self.model.compute_dtype)

    def on_train_end(self, logs=None):
        feeding.unwatch(self.model, self._watcher)

    def on_epoch_begin(self, epoch, logs=None):
        # (seconds, tokens, operations) since the beginning of the epoch, after each step.
        self._done = [0.0, 0.0, 0.0]
        self._last = collections.deque([tuple(self._done)], maxlen=self.num_steps_shown + 1)
        self._start_clock()

    def on_train_batch_begin(self, batch, logs=None):
        self._watcher.batches = []
        if self._num_steps % self.every == 0:
            self._read["learning_rate"] = _number(self.model.optimizer.learning_rate)

    def on_train_batch_end(self, batch, logs=None):
        self._count()
        if self._num_steps % self.every == 0:
            self._read_norm()
        self._num_steps += 1
        logs |= self._rates(self._last[0], self._last[-1]) | self._read

    def on_epoch_end(self, epoch, logs=None):
        logs |= self._rates((0.0, 0.0, 0.0), self._done) | self._read

    def _start_clock(self):
        self._time, self._aside = time.perf_counter(), aside.seconds_aside(self.model)

    def _count(self):
        """Add what the step has taken and done, but for the first, which compiles."""
        seconds = time.perf_counter() - self._time - (aside.seconds_aside(self.model) - self._aside)
        self._start_clock()
        if self._num_steps == 0:
            return
        self._done[0] += seconds
        for batch in self._watcher.batches:
            inputs = keras.utils.unpack_x_y_sample_weight(batch)[0]
            lengths = flops.real_lengths(inputs)
            if lengths is None:
                self._say("no tokens_per_second: the inputs are no dict with token_ids")
                continue
            tokens = float(sum(n.sum() for n in lengths.values()))
            operations = self.flops_per_token and self.flops_per_token * tokens
            operations = operations or flops.step_flops(self.model, inputs, lengths)
            if operations is None:
                self._say(f"no mfu: what a {type(self.model).__name__} computes is not known; give flops_per_token")
            self._done[1] += tokens
            self._done[2] += operations or 0.0
        if not self._watcher.batches:
            self._say("no tokens_per_second: this data cannot be seen")
        self._last.append(tuple(self._done))

    def _read_norm(self):
        norm = getattr(self.model.optimizer, "gradient_norm", None)
        if self.gradient_norm and norm is not None:
            self._read["gradient_norm"] = _number(norm)

    def _rates(self, before, after):
        seconds, tokens, operations = (b - a for a, b in zip(before, after, strict=True))
        rates = {}
        if tokens:
            rates["tokens_per_second"] = tokens / seconds
        if operations:
            rates["mfu"] = operations / seconds / self._peak
        return rates

    def _say(self, words):
        if words not in self._said:
            self._said.add(words)
            print(f"\nThroughput: {words}.", flush=True)


def _number(x):
    """A scalar tensor or variable as a float."""
    return float(ops.convert_to_numpy(ops.convert_to_tensor(x)))
