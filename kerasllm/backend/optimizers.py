"""AdamW and Muon with the backend's fused update of Adam."""

import functools

import keras
from keras import ops

from kerasllm.backend.compilation import name
from kerasllm.backend.updates import Updates


def adamw_class():
    """The class to derive an AdamW from: Keras's that counts as `Updates` does, with the backend's kernels in it.

    They follow Keras's formula and move fewer bytes: 36 a weight under tensorflow (a kernel a variable) and 28 under
    torch (one for all variables), decay of the weights included. On jax Keras's own formula is compiled to three loops
    of 40 together, which XLA spreads over the cores. Under torch `global_clipnorm` scales the gradients in place, as
    `torch.nn.utils.clip_grad_norm_` does. Where a subclass has its own `update_step` or `assign...`, Keras's steps call
    these.
    """
    return {"tensorflow": _tensorflow_adamw, "torch": _torch_adamw}.get(name(), _adamw)()


def muon_class():
    """The class to derive a Muon from: Keras's that counts as `Updates` does, its AdamW side fused like AdamW."""
    return {"tensorflow": _tensorflow_muon, "torch": _torch_muon}.get(name(), _muon)()


ASSIGNMENTS = ("assign", "assign_add", "assign_sub")


def _is_changed(optimizer, *methods, of=keras.optimizers.AdamW):
    """Whether some of the methods are not those of Keras's class."""
    return any(getattr(getattr(optimizer, m), "__func__", None) is not getattr(of, m) for m in methods)


class Rates:
    """What goes before an AdamW of Keras's that has a learning rate for each variable."""

    def rate_factor(self, variable):
        """What the learning rate is times for a variable, a float."""
        return 1.0

    def build(self, variables):
        super().build(variables)
        if not self.has_rates and any(self.rate_factor(v) != 1 for v in variables):
            raise ValueError(
                "learning_rate_factors: this backend has them for AdamW's own step alone, without amsgrad, other steps "
                "of a subclass or a distribution strategy."
            )

    @property
    def has_rates(self):
        """Whether the steps that are taken look at the factors."""
        return True


def _adamw():
    class CountingAdamW(Rates, Updates, keras.optimizers.AdamW):
        def update_step(self, gradient, variable, learning_rate):
            factor = self.rate_factor(variable)
            super().update_step(gradient, variable, learning_rate if factor == 1 else learning_rate * factor)

        def _apply_weight_decay(self, variables):
            for variable in filter(self._use_weight_decay, variables) if self.weight_decay else ():
                decay = self.learning_rate * self.rate_factor(variable) * self.weight_decay
                variable.assign(variable - variable * ops.cast(decay, variable.dtype))

    return CountingAdamW


def _muon():
    return type("CountingMuon", (Updates, keras.optimizers.Muon), {})


def _tensorflow_adamw():
    import tensorflow as tf

    class FusedAdamW(Rates, Updates, keras.optimizers.AdamW):
        @property
        def _is_fused(self):
            return not self.amsgrad and not _is_changed(self, *ASSIGNMENTS)

        @property
        def _steps_are_fused(self):
            return self._is_fused and type(self).update_step is FusedAdamW.update_step

        @property
        def has_rates(self):
            return self._steps_are_fused and not tf.distribute.has_strategy()

        def _step(self, grads, variables):
            if not self._steps_are_fused or tf.distribute.has_strategy():
                return super()._step(grads, variables)
            scale = None
            if self._clips_together:
                scale = self._clip_scale(self._measured(grads))
            else:
                grads = self._clip_gradients(grads)
            numbers = functools.cache(lambda factor, dtype: self._numbers(self.learning_rate * factor, dtype))
            last = []
            for gradient, variable in zip(grads, variables, strict=True):
                # One after the other, or all scaled gradients are there at once.
                with tf.control_dependencies(last):
                    if scale is not None:
                        gradient = gradient * tf.cast(scale, gradient.dtype)
                    update = self._fused_step(gradient, variable, numbers(self.rate_factor(variable), variable.dtype))
                last = [] if update is None else [update]

        def update_step(self, gradient, variable, learning_rate):
            if not self._is_fused:
                return super().update_step(gradient, variable, learning_rate)
            self._fused_step(gradient, variable, self._numbers(learning_rate, variable.dtype))

        def _numbers(self, learning_rate, dtype):
            return _adam_numbers(self, learning_rate, dtype, self.beta_1, self.beta_2)

        def _fused_step(self, gradient, variable, numbers):
            index = self._get_variable_index(variable)
            if self.weight_decay and self._use_weight_decay(variable):
                decay = tf.cast(self.weight_decay, variable.dtype)
                variable.assign(variable * (1 - numbers["lr"] * decay))
            return _tensorflow_adam(variable, self._momentums[index], self._velocities[index], gradient, numbers)

        def _apply_weight_decay(self, variables):
            if not self._steps_are_fused:
                super()._apply_weight_decay(variables)

        def _global_norm(self, grads):
            return tf.sqrt(2.0 * tf.add_n([tf.nn.l2_loss(tf.cast(g, "float32")) for g in grads]))

    return FusedAdamW


def _tensorflow_muon():
    class FusedMuon(Updates, keras.optimizers.Muon):
        def _adamw_update_step(self, gradient, variable, learning_rate, m, v):
            if _is_changed(self, *ASSIGNMENTS, of=keras.optimizers.Muon):
                return super()._adamw_update_step(gradient, variable, learning_rate, m, v)
            numbers = _adam_numbers(self, learning_rate, variable.dtype, self.adam_beta_1, self.adam_beta_2)
            _tensorflow_adam(variable, m, v, gradient, numbers)

    return FusedMuon


def _adam_numbers(optimizer, learning_rate, dtype, beta_1, beta_2):
    """The numbers of a step of Adam, as TensorFlow's kernel calls them."""
    import tensorflow as tf

    step = tf.cast(optimizer.iterations + 1, dtype)
    beta1, beta2 = tf.cast(beta_1, dtype), tf.cast(beta_2, dtype)
    powers = {"beta1_power": beta1**step, "beta2_power": beta2**step}
    rates = {"lr": tf.cast(learning_rate, dtype), "epsilon": tf.cast(optimizer.epsilon, dtype)}
    return {"beta1": beta1, "beta2": beta2, **powers, **rates}


def _tensorflow_adam(variable, momentum, velocity, gradient, numbers):
    """Keras's step of Adam on one variable of TensorFlow's: the operation, or None where it is done at once."""
    import tensorflow as tf

    return tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=momentum.value.handle,
        v=velocity.value.handle,
        grad=tf.cast(gradient, variable.dtype),
        **numbers,
    )


def _torch_adamw():
    import torch

    # What `keras.optimizers.AdamW(...)` makes under torch; a subclass of that name would miss it.
    torch_adamw = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))

    class FusedAdamW(Rates, Updates, torch_adamw):
        @torch.no_grad()
        def _step(self, grads, variables):
            if not self.has_rates:
                return super()._step(grads, variables)
            scale = None
            if self._clips_together:
                norm = self._measured(grads)
                # The kernel divides by it; nan, as in Keras, where the norm is not finite.
                scale = norm.clamp(min=self.global_clipnorm) / self.global_clipnorm + (norm - norm)
            else:
                grads = self._clip_gradients(grads)
            groups = {}  # of one decay and one rate
            for gradient, variable in zip(grads, variables, strict=True):
                decay = self.weight_decay if self.weight_decay and self._use_weight_decay(variable) else 0.0
                groups.setdefault((decay, self.rate_factor(variable)), []).append((gradient, variable))
            for (decay, factor), group in groups.items():
                self._fused_step(*zip(*group, strict=True), scale, decay, self.learning_rate * factor)

        @property
        def has_rates(self):
            return not (self.amsgrad or _is_changed(self, "update_step", *ASSIGNMENTS))

        def _fused_step(self, grads, variables, scale, weight_decay, learning_rate):
            indices = [self._get_variable_index(v) for v in variables]
            _torch_adam(
                variables,
                [self._momentums[i] for i in indices],
                [self._velocities[i] for i in indices],
                grads,
                self.iterations,
                learning_rate,
                self.beta_1,
                self.beta_2,
                self.epsilon,
                weight_decay=weight_decay,
                grad_scale=scale,
            )

        def _backend_update_step(self, grads, trainable_variables, learning_rate):
            if not _is_changed(self, "update_step", *ASSIGNMENTS):
                return super()._backend_update_step(grads, trainable_variables, learning_rate)
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                self.update_step(gradient, variable, learning_rate)

        def _apply_weight_decay(self, variables):
            # Keras's fails where there is nothing to decay.
            if any(self._use_weight_decay(v) for v in variables):
                super()._apply_weight_decay(variables)

        def _global_norm(self, grads):
            return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)).float())

    return FusedAdamW


def _torch_muon():
    import torch

    class FusedMuon(Updates, keras.optimizers.Muon):
        @torch.no_grad()
        def _step(self, grads, variables):
            super()._step(grads, variables)

        def _backend_update_step(self, grads, trainable_variables, learning_rate):
            is_fused = not _is_changed(
                self, *ASSIGNMENTS, "update_step", "_adamw_update_step", of=keras.optimizers.Muon
            )
            fused = []
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                index = self._get_variable_index(variable)
                if is_fused and self.adam_velocities[index] is not None:
                    fused.append((variable, self.momentums[index], self.adam_velocities[index], gradient))
                else:
                    self.update_step(gradient, variable, learning_rate)
            if fused:
                rate, betas = learning_rate * self.adam_lr_ratio, (self.adam_beta_1, self.adam_beta_2)
                _torch_adam(*zip(*fused, strict=True), self.iterations, rate, *betas, self.epsilon)

    return FusedMuon


def _torch_adam(
    variables, momentums, velocities, grads, done, learning_rate, beta_1, beta_2, epsilon, weight_decay=0.0, **options
):
    """Keras's step of Adam, after `done` ones, on all variables of torch's."""
    import torch
    from torch.optim.adam import adam

    done, weights = float(done), [v.value for v in variables]
    adam(
        weights,
        [g.to(v.value.dtype) for g, v in zip(grads, variables, strict=True)],
        [m.value for m in momentums],
        [v.value for v in velocities],
        max_exp_avg_sqs=[],
        state_steps=list(torch.full((len(grads),), done, device=grads[0].device)),
        fused=True,
        decoupled_weight_decay=True,
        amsgrad=False,
        beta1=beta_1,
        beta2=beta_2,
        lr=float(learning_rate),
        weight_decay=weight_decay,
        # torch adds epsilon after the correction of the velocities' bias, Keras before it.
        eps=epsilon / (1 - beta_2 ** (done + 1)) ** 0.5,
        maximize=False,
        **options,
    )
    # By its versions `backend.recording` knows that a weight has changed; torch 2.13's fused kernels do not count them.
    torch.autograd.graph.increment_version(weights)
