"""AdamW with the backend's fused update."""

import keras

from kerasllm.backend.compilation import name


def adamw_class():
    """The class to derive an AdamW from: Keras's own; under tensorflow and torch with their fused kernels in it.

    They follow Keras's formula, in two fifths (tensorflow: a kernel a variable) or a fifth (torch: one for all) of
    the time. Under torch `global_clipnorm` scales the gradients in place, as `torch.nn.utils.clip_grad_norm_` does.
    Where a subclass has its own `update_step` or `assign...`, Keras's steps call these.
    """
    return {"tensorflow": _tensorflow_adamw, "torch": _torch_adamw}.get(name(), lambda: keras.optimizers.AdamW)()


def _is_changed(optimizer, *methods):
    """Whether some of the methods are not those of Keras's AdamW."""
    return any(
        getattr(getattr(optimizer, m), "__func__", None) is not getattr(keras.optimizers.AdamW, m) for m in methods
    )


def _tensorflow_adamw():
    import tensorflow as tf

    class FusedAdamW(keras.optimizers.AdamW):
        def update_step(self, gradient, variable, learning_rate):
            if self.amsgrad or _is_changed(self, "assign", "assign_add", "assign_sub"):
                return super().update_step(gradient, variable, learning_rate)
            index, dtype = self._get_variable_index(variable), variable.dtype
            step = tf.cast(self.iterations + 1, dtype)
            return tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._momentums[index].value.handle,
                v=self._velocities[index].value.handle,
                beta1_power=tf.cast(self.beta_1, dtype) ** step,
                beta2_power=tf.cast(self.beta_2, dtype) ** step,
                lr=tf.cast(learning_rate, dtype),
                beta1=tf.cast(self.beta_1, dtype),
                beta2=tf.cast(self.beta_2, dtype),
                epsilon=tf.cast(self.epsilon, dtype),
                grad=tf.cast(tf.convert_to_tensor(gradient), dtype),  # an embedding's is sparse
            )

    return FusedAdamW


def _torch_adamw():
    import torch
    from torch.optim.adam import adam

    # What `keras.optimizers.AdamW(...)` makes under torch; a subclass of that name would miss it.
    torch_adamw = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))

    class FusedAdamW(torch_adamw):
        def _backend_update_step(self, grads, trainable_variables, learning_rate):
            if not _is_changed(self, "update_step", "assign", "assign_add", "assign_sub"):
                return super()._backend_update_step(grads, trainable_variables, learning_rate)
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                self.update_step(gradient, variable, learning_rate)

        def _parallel_update_step(self, grads, variables, learning_rate):
            if self.amsgrad:
                return super()._parallel_update_step(grads, variables, learning_rate)
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
                amsgrad=False,
                beta1=self.beta_1,
                beta2=self.beta_2,
                lr=float(learning_rate),
                weight_decay=0.0,  # Keras has decayed the variables already.
                # torch adds epsilon after the correction of the velocities' bias, Keras before it.
                eps=self.epsilon / (1 - self.beta_2 ** (done + 1)) ** 0.5,
                maximize=False,
            )

        def _apply_weight_decay(self, variables):
            # Keras's fails where there is nothing to decay.
            if any(self._use_weight_decay(v) for v in variables):
                super()._apply_weight_decay(variables)

        def _clip_gradients(self, grads):
            if not self.global_clipnorm or self.global_clipnorm < 0:
                return super()._clip_gradients(grads)
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            scale = self.global_clipnorm / norm.clamp(min=self.global_clipnorm)
            torch._foreach_mul_(grads, scale + (norm - norm))  # nan, as in Keras, where the norm is not finite
            return grads

    return FusedAdamW
