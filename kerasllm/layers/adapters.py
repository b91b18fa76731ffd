"""Keras's dense layer and embeddings, whose files keep the factors of LoRA.

Keras writes LoRA's product as part of the weights, and zeros for both factors, which then no gradient reaches: training
cannot go on.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.arguments import shown
from kerasllm.backend.steps import is_in_any_step

FACTORS = "lora_a", "lora_b"


class Adaptable:
    """What the three layers share; it stands before Keras's class, and names its table of weights in `adapted`."""

    adapted = "kernel"

    @property
    def adapted_shape(self):
        """(in, out) of that table, also where two of its numbers share a byte."""
        return self.input_spec.axes[-1], self.units

    @property
    def lora_factors(self):
        """LoRA's variables A and B."""
        return [getattr(self, f"lora_{self.adapted}_{factor}") for factor in "ab"]

    def enable_lora(self, rank, lora_alpha=None, **kwargs):
        """Add LoRA, as Keras does; a layer from a config that says `lora_alpha` keeps that."""
        super().enable_lora(rank, lora_alpha=self.lora_alpha if lora_alpha is None else lora_alpha, **kwargs)

    @property
    def lora_scale(self):
        """What the product of LoRA's factors is times; None without LoRA, for tracers of torch read all properties."""
        return self.lora_alpha / self.lora_rank if self.lora_enabled else None

    def disable_lora(self):
        """Take LoRA away, and what it has learned; the weights are those that it adapted, and trained again."""
        self._tracker.unlock()
        for factor, variable in zip("ab", self.lora_factors, strict=True):
            self._untrack_variable(variable)
            delattr(self, f"lora_{self.adapted}_{factor}")
        self._tracker.lock()
        if self.quantization_mode is None:
            getattr(self, f"_{self.adapted}").trainable = True
        self.lora_enabled, self.lora_rank, self.lora_alpha = False, None, None

    def quantize(self, mode=None, type_check=True, config=None):
        """Quantise the weights, as Keras does: "int8", "int4" or "float8"."""
        if mode in ("gptq", "awq"):
            raise ValueError(
                f"mode ({shown(mode)}) must be 'int8', 'int4' or 'float8': what it calibrates with are calls of single "
                "blocks, which know neither masks nor positions."
            )
        super().quantize(mode, type_check=False, config=config)

    def product(self):
        """What the layer computes as an output layer, a `kerasllm.backend.Product`, with LoRA in its matrix."""
        if self.quantization_mode is not None:
            raise ValueError(
                f"chunk_size: the output layer {self.name!r} is quantized ({self.quantization_mode}), which the loss "
                "does not multiply: `quantize` with filters leaves it as it is, or train without chunk_size."
            )
        return backend.Product(getattr(self, self.adapted), dtype=self.compute_dtype)

    def save_own_variables(self, store):
        """Write the weights as they are without LoRA, then the factors and the number their product is times."""
        if not (self.built and self.lora_enabled):
            return super().save_own_variables(store)
        self.lora_enabled = False
        try:
            super().save_own_variables(store)
        finally:
            self.lora_enabled = True
        for name, variable in zip(FACTORS, self.lora_factors, strict=True):
            store[name] = variable
        store["lora_alpha"] = ops.convert_to_tensor(float(self.lora_alpha))

    def load_own_variables(self, store):
        """Read them; a layer without LoRA takes its product as part of the weights."""
        weights = {name: store[name] for name in store.keys()}  # noqa: SIM118 - Keras's stores are no dicts
        factors = [weights.pop(name) for name in FACTORS if name in weights]
        alpha = weights.pop("lora_alpha", None)
        if not self.built or not (factors or self.lora_enabled):
            return super().load_own_variables(weights)
        if not self.lora_enabled:
            return self._load_merged(weights, factors, float(alpha[()]))
        # Without a factor A but zeros, no gradient reaches B.
        values = factors or [self.lora_factors[0] + 0, ops.zeros(self.lora_factors[1].shape)]
        super().load_own_variables(weights)
        for variable, value in zip(self.lora_factors, values, strict=True):
            variable.assign(value)

    def _load_merged(self, weights, factors, alpha):
        rank = factors[0].shape[1]
        if self.quantization_mode is None:
            product = np.matmul(*(np.asarray(factor, "float32") for factor in factors))
            weights["0"] = np.asarray(weights["0"], "float32") + alpha / rank * product
            return super().load_own_variables(weights)
        twin = type(self).from_config(self.get_config())
        twin.build_from_config(self.get_build_config())
        twin.enable_lora(rank, lora_alpha=alpha)
        super(Adaptable, twin).load_own_variables(weights)
        for variable, value in zip(twin.lora_factors, factors, strict=True):
            variable.assign(value)
        merged = {}
        super(Adaptable, twin).save_own_variables(merged)
        super().load_own_variables(merged)


@keras.saving.register_keras_serializable("kerasllm")
class Dense(Adaptable, keras.layers.Dense):
    """`keras.layers.Dense`."""

    def call(self, inputs, training=None):
        """As Keras's, which makes a kernel of LoRA's product first, and a gradient of all of it."""
        if not self.lora_enabled:
            return super().call(inputs, training=training)
        adapted = ops.matmul(ops.matmul(inputs, self.lora_kernel_a), self.lora_kernel_b)
        x = ops.matmul(inputs, self._kernel) + self.lora_scale * adapted
        x = x if self.bias is None else x + self.bias
        return x if self.activation is None else self.activation(x)

    def product(self):
        """As `Adaptable.product`."""
        return dataclasses.replace(super().product(), bias=self.bias)


@keras.saving.register_keras_serializable("kerasllm")
class Embedding(Adaptable, keras.layers.Embedding):
    """`keras.layers.Embedding`."""

    adapted = "embeddings"
    adapted_shape = property(lambda self: (self.input_dim, self.output_dim))


@keras.saving.register_keras_serializable("kerasllm")
class ReversibleEmbedding(Adaptable, keras.layers.ReversibleEmbedding):
    """`keras.layers.ReversibleEmbedding`."""

    adapted = "embeddings"
    adapted_shape = Embedding.adapted_shape

    def call(self, inputs, reverse=False):
        """As Keras's; logits of training by the backend's best product."""
        if not (reverse and self.tie_weights and is_in_any_step()) or self.logit_soft_cap is not None:
            return super().call(inputs, reverse=reverse)
        dtype = self.reverse_dtype or self.compute_dtype
        return backend.product_with_table(ops.cast(inputs, dtype), ops.cast(self.embeddings, dtype))

    def product(self):
        """As `Adaptable.product`, of the reverse direction."""
        dtype = self.reverse_dtype or self.compute_dtype
        return dataclasses.replace(super().product(), is_transposed=True, dtype=dtype)

    def quantized_call(self, inputs, reverse=False):
        """As Keras's, whose reverse direction forgets LoRA, and has no gradient where it rounds its inputs."""
        if not (reverse and self.tie_weights):
            return super().quantized_call(inputs, reverse=reverse)
        is_rounded = self.inputs_quantizer is not None and self.logit_soft_cap is None
        outputs = self._logits_of_rounded(inputs) if is_rounded else super().quantized_call(inputs, reverse=True)
        if not self.lora_enabled:
            return outputs
        a, b = self.lora_factors
        product = ops.matmul(ops.matmul(inputs, ops.transpose(b)), ops.transpose(a))
        return outputs + ops.cast(self.lora_scale * product, outputs.dtype)

    def _logits_of_rounded(self, inputs):
        rounded = super().quantized_call

        @ops.custom_gradient
        def logits(x):
            def gradient(*args, upstream=None):
                return ops.matmul(args[0] if upstream is None else upstream, self._table(x.dtype))

            return rounded(x, reverse=True), gradient

        return logits(inputs)

    def _table(self, dtype):
        """The quantised table in floats, without LoRA: (V, D). Its rows have one scale, for inputs are rounded."""
        values = self._embeddings
        if self.quantization_mode == "int4":
            values = keras.quantizers.unpack_int4(values, self._orig_output_dim, axis=-1)
        return ops.cast(values, dtype) / ops.cast(self.embeddings_scale, dtype)[:, None]
