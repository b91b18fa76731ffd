"""AdamW with the backend's fused update."""

import keras

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


def _is_changed(optimizer, *methods):
    """Whether some of the methods are not those of Keras's AdamW."""
    return any(
        getattr(getattr(optimizer, m), "__func__", None) is not getattr(keras.optimizers.AdamW, m) for m in methods
    )


def _adamw():
    return type("CountingAdamW", (Updates, keras.optimizers.AdamW), {})


def _tensorflow_adamw():
    import tensorflow as tf

    class FusedAdamW(Updates, keras.optimizers.AdamW):
        @property
        def _is_fused(self):
            return not self.amsgrad and not _is_changed(self, "assign", "assign_add", "assign_sub")

        def update_step(self, gradient, variable, learning_rate):
            if not self._is_fused:
                return super().update_step(gradient, variable, learning_rate)
            index, dtype = self._get_variable_index(variable), variable.dtype
            step, lr = tf.cast(self.iterations + 1, dtype), tf.cast(learning_rate, dtype)
            if self.weight_decay and self._use_weight_decay(variable):
                variable.assign(variable * (1 - lr * tf.cast(self.weight_decay, dtype)))
            return tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._momentums[index].value.handle,
                v=self._velocities[index].value.handle,
                beta1_power=tf.cast(self.beta_1, dtype) ** step,
                beta2_power=tf.cast(self.beta_2, dtype) ** step,
                lr=lr,
                beta1=tf.cast(self.beta_1, dtype),
                beta2=tf.cast(self.beta_2, dtype),
                epsilon=tf.cast(self.epsilon, dtype),
                grad=tf.cast(gradient, dtype),
            )

        def _apply_weight_decay(self, variables):
            if not self._is_fused or type(self).update_step is not FusedAdamW.update_step:
                super()._apply_weight_decay(variables)

        def _global_norm(self, grads):
            return tf.sqrt(2.0 * tf.add_n([tf.nn.l2_loss(tf.cast(g, "float32")) for g in grads]))

    return FusedAdamW


def _torch_adamw():
    import torch
    from torch.optim.adam import adam

    # What `keras.optimizers.AdamW(...)` makes under torch; a subclass of that name would miss it.
    torch_adamw = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))

    class FusedAdamW(Updates, torch_adamw):
        @torch.no_grad()
        def _step(self, grads, variables):
            if self.amsgrad or _is_changed(self, "update_step", "assign", "assign_add", "assign_sub"):
                return super()._step(grads, variables)
            scale = None
            if self._clips_together:
                norm = self._measured(grads)
                # The kernel divides by it; nan, as in Keras, where the norm is not finite.
                scale = norm.clamp(min=self.global_clipnorm) / self.global_clipnorm + (norm - norm)
            else:
                grads = self._clip_gradients(grads)
            decays = [bool(self.weight_decay) and self._use_weight_decay(v) for v in variables]
            pairs = list(zip(grads, variables, strict=True))
            for decay in (True, False):
                group = [pair for pair, d in zip(pairs, decays, strict=True) if d == decay]
                if group:
                    self._fused_step(*zip(*group, strict=True), scale, self.weight_decay if decay else 0.0)

        def _fused_step(self, grads, variables, scale, weight_decay):
            indices = [self._get_variable_index(v) for v in variables]
            done = float(self.iterations)
            adam(
                [v.value for v in variables],
                [g.to(v.value.dtype) for g, v in zip(grads, variables, strict=True)],
                [self._momentums[i].value for i in indices],
                [self._velocities[i].value for i in indices],
                max_exp_avg_sqs=[],
                state_steps=list(torch.full((len(grads),), done, device=grads[0].device)),
                fused=True,
                grad_scale=scale,
                decoupled_weight_decay=True,
                amsgrad=False,
                beta1=self.beta_1,
                beta2=self.beta_2,
                lr=float(self.learning_rate),
                weight_decay=weight_decay,
                # torch adds epsilon after the correction of the velocities' bias, Keras before it.
                eps=self.epsilon / (1 - self.beta_2 ** (done + 1)) ** 0.5,
                maximize=False,
            )

        def _backend_update_step(self, grads, trainable_variables, learning_rate):
            if not _is_changed(self, "update_step", "assign", "assign_add", "assign_sub"):
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
