"""What our optimizers change in those of Keras: everything counts updates, and their gradients can be measured."""

import contextlib

import keras
from keras import ops

from kerasllm.arguments import check_boolean
from kerasllm.backend.compilation import name


class Updates:
    """What goes before a class of Keras's optimizers.

    With `gradient_accumulation_steps` a schedule and the moving average of the weights count updates, as the
    correction of Adam's moments does: Keras 3.15.1 hands a schedule the number of batches, moves the average at every
    batch, and on jax computes an update for every batch
    (https://github.com/keras-team/keras/blob/v3.15.1/keras/src/optimizers/base_optimizer.py).
    """

    @property
    def measures_gradient_norm(self):
        """Whether `gradient_norm`, a scalar float32 variable, is set at each update; it exists only then.

        It is the norm of all gradients together: unscaled, averaged over accumulated batches, before they are clipped.
        It is set before a step of training is compiled, is among `variables`, and is not saved.
        """
        return "gradient_norm" in vars(self)

    @measures_gradient_norm.setter
    def measures_gradient_norm(self, measures):
        check_boolean("measures_gradient_norm", measures)
        if not measures:
            vars(self).pop("gradient_norm", None)
        elif not self.measures_gradient_norm:
            # Past `__setattr__`, which would count it among what is saved.
            vars(self)["gradient_norm"] = keras.Variable(
                0.0, trainable=False, dtype="float32", aggregation="mean", name="gradient_norm"
            )

    @property
    def variables(self):
        return [*super().variables, *([self.gradient_norm] if self.measures_gradient_norm else ())]

    def save_own_variables(self, store):
        with self._as_saved():
            super().save_own_variables(store)

    def load_own_variables(self, store):
        with self._as_saved():
            super().load_own_variables(store)

    @contextlib.contextmanager
    def _as_saved(self):
        """Without the variable that is not saved."""
        norm = vars(self).pop("gradient_norm", None)
        try:
            yield
        finally:
            if norm is not None:
                vars(self)["gradient_norm"] = norm

    def _get_current_learning_rate(self):
        schedule = self._learning_rate
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            return schedule(self.iterations)
        return super()._get_current_learning_rate()

    def apply(self, grads, trainable_variables=None):
        return super().apply([_dense(g) for g in grads], trainable_variables)

    def _backend_apply_gradients(self, grads, trainable_variables):
        steps = self.gradient_accumulation_steps
        if not steps:
            return self._update(grads, trainable_variables)
        sums = [self._accumulated_gradients[self._get_variable_index(v)] for v in trainable_variables]

        self._backend_increment_gradient_accumulators(grads, sums)
        if self.use_ema:
            self._begin_average()

        def update():
            self._update([s.value / steps for s in sums], trainable_variables)
            self._backend_reset_gradient_accumulators()

        changed = {id(v): v for v in (*self._trainable_variables, *trainable_variables, *self.variables)}
        _run_if((self._iterations + 1) % steps == 0, update, list(changed.values()))

    def _update(self, grads, variables):
        self._step(grads, variables)
        if self.use_ema:
            self._move_average()

    def _step(self, grads, variables):
        """Keras's update: clipping, weight decay and `update_step`."""
        grads = self._clip_gradients(grads)
        self._apply_weight_decay(variables)
        self._backend_update_step(grads, variables, self.learning_rate)

    def _clip_gradients(self, grads):
        clips = self._clips_together
        if not clips and not self.measures_gradient_norm:
            return super()._clip_gradients(grads)
        norm = self._measured(grads)
        if not clips:
            return super()._clip_gradients(grads)
        scale = self._clip_scale(norm)
        return [g * ops.cast(scale, g.dtype) for g in grads]

    def _clip_scale(self, norm):
        """What gradients of this norm are multiplied by; nan, as in Keras, where it is not finite."""
        return self.global_clipnorm / ops.maximum(norm, self.global_clipnorm) + (norm - norm)

    @property
    def _clips_together(self):
        return bool(self.global_clipnorm) and self.global_clipnorm > 0

    def _measured(self, grads):
        """The norm of all gradients together, put into `gradient_norm` where that is wanted."""
        norm = self._global_norm(grads)
        if self.measures_gradient_norm:
            self.gradient_norm.assign(norm)
        return norm

    def _global_norm(self, grads):
        return ops.sqrt(sum(ops.sum(ops.square(ops.cast(g, "float32"))) for g in grads))

    def finalize_variable_values(self, var_list):
        super().finalize_variable_values(var_list)
        if self.use_ema and name() == "jax":
            # Keras gives both one array, and the next step of training, which takes the memory of each, then fails.
            for variable, average in self._averages():
                variable.assign(ops.copy(average.value))

    def _move_average(self):
        self._update_model_variables_moving_average(self._trainable_variables)
        if self.ema_overwrite_frequency:
            overwrites = (self.iterations + 1) % self.ema_overwrite_frequency == 0
            for variable, average in self._averages():
                variable.assign(ops.where(overwrites, average.value, variable.value))

    def _begin_average(self):
        """Until the first update the average of the weights is the weights: `fit` puts it into them at its end."""
        is_first = ops.equal(self.iterations, 0)
        for variable, average in self._averages():
            average.assign(ops.where(is_first, variable.value, average.value))

    def _averages(self):
        pairs = zip(self._trainable_variables, self._model_variables_moving_average, strict=True)
        return [(variable, average) for variable, average in pairs if average is not None]


def _dense(gradient):
    """A gradient as a tensor: TensorFlow's for an embedding has rows, a row for each time that an id is looked up."""
    if gradient is None or name() != "tensorflow":
        return gradient
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)


def _run_if(condition, function, variables):
    """Call a function that changes variables, or do not."""
    if name() != "jax":
        ops.cond(condition, function, lambda: None)
        return
    import jax

    def run(carry):
        values, _ = carry
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)) as scope:
            function()
        return [scope.get_current_value(v) for v in variables], False

    # A loop of one turn or none, for it changes what it carries in place: `jax.lax.cond` copies what a branch leaves.
    values, _ = jax.lax.while_loop(lambda carry: carry[1], run, ([v.value for v in variables], condition))
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
