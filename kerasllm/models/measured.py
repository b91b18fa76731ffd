"""Losses in training: computed without logits, or by chunks of rows, where they ask for it; exact means are shown."""

import dataclasses
from types import SimpleNamespace

import keras
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_positive
from kerasllm.backend.steps import is_in_step
from kerasllm.backend.trainer import trainer_class
from kerasllm.generation.programs import Programs
from kerasllm.layers.attention import SoftCap
from kerasllm.training.accumulation import Accumulation, parted
from kerasllm.training.distillation import inputs_of_loss
from kerasllm.training.embedding_losses import EmbeddingLoss
from kerasllm.training.losses import MEANS, OutputLayer


class MeasuredModel(trainer_class(), keras.Model):
    """A Keras model whose `TokenCrossentropy`, if it has one, is a mean over all tokens, and may be fed in chunks.

    A loss of vectors is likewise one over all pairs, and may have the vectors made by chunks of rows. All that concerns
    the steps of training and evaluation; a call, `model(inputs)`, gives logits, also with `training=True`.
    """

    reads_documents = False
    """Whether the model reads rows of several documents: then `packed_graph()` makes the graph that does."""

    def call(self, inputs, training=None, mask=None, **kwargs):
        is_packed = isinstance(inputs, dict) and "position_ids" in inputs
        if is_packed and not self.reads_documents:
            raise ValueError(f"position_ids: a {type(self).__name__} reads no rows of several documents, a GPT does.")
        if is_in_step(self) and self._is_chunked:
            return self._trunk(is_packed).read(inputs, training, mask)
        if is_in_step(self) and getattr(self._embedding_loss, "chunk_size", None) is not None:
            return backend.by_chunks(self._rows_graph(), inputs, self._embedding_loss.chunk_size, training=training)
        if is_packed:
            return self._graph(is_packed)(inputs, training=training, mask=mask)
        return super().call(inputs, training=training, mask=mask, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of a batch, as `keras.Model.compute_loss`; it tells the mean over tokens what the batch counts."""
        sample_weight, share = parted(sample_weight)
        if is_in_step(self) and self._is_chunked:
            loss = self._chunked_loss(x, y, y_pred, sample_weight, training)
        else:
            with inputs_of_loss(x):
                loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        share = None if share is None else ops.mean(share)
        if is_in_step(self) and self._is_mean:
            count = self._num_counted(y, sample_weight)
            self.mean_loss.update_state(ops.stop_gradient(loss) * backend.replicas(), count)
            of_replica = backend.share_of_replica(count)
            if of_replica is not None:
                share = of_replica if share is None else share * of_replica
        if share is None:
            return loss
        others = sum(map(ops.sum, self.losses)) / backend.replicas()  # regularisers, of which every batch has one
        return share * (loss - others) + others

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """The metrics, as `keras.Model.compute_metrics`; in a step without logits the loss has updated them."""
        if is_in_step(self) and self._is_chunked:
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, parted(sample_weight)[0])

    def row_log_probs(self, inputs, labels, chunk_size=256):
        """The sum of the log-probabilities of each row's labels, without logits: of an answer after its prompt, say.

        Args:
            inputs: dict input name -> array (B, T), of a model of tokens.
            labels: (B, T) int, -1 where a token does not count.
            chunk_size: tokens whose logits are made at a time.

        Returns:
            (B,) float32.

        Raises:
            ValueError: the model's last layer is no output layer of tokens.
        """
        check_positive("chunk_size", chunk_size)
        inputs = {name: ops.convert_to_tensor(value) for name, value in inputs.items()}
        arguments = inputs, ops.convert_to_tensor(labels)
        return ops.convert_to_numpy(Programs.of(self).run(_row_log_probs, *arguments, chunk_size=chunk_size))

    def accumulation(self, class_weight=None):
        """How batches share in the updates of an optimizer that accumulates gradients, an `Accumulation`, or None."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        steps = getattr(optimizer, "gradient_accumulation_steps", None)
        if _has_shares():
            steps = steps or 1  # whose share several processes part
        if not steps or not self._is_mean:
            return None
        return Accumulation(steps, self.count_of_batch, class_weight)

    def count_of_batch(self, labels, sample_weight=None):
        """What the mean of the loss of a batch of arrays is divided by, a float."""
        count = self._counting_loss.count if self._counting_loss else _num_rows
        return count(labels, sample_weight)

    def _num_counted(self, labels, sample_weight):
        """The same of tensors, a scalar."""
        if self._counting_loss is None:
            return ops.cast(ops.shape(keras.tree.flatten(labels)[0])[0], "float32")
        labels, weight = (next(iter(v.values())) if isinstance(v, dict) else v for v in (labels, sample_weight))
        return self._counting_loss.num_counted(labels, weight)

    def make_train_function(self, force=False):
        """The compiled step of training, made anew for a teacher that has changed; Keras calls this."""
        self._forget_other_teachers()
        made = self.train_function
        super().make_train_function(force)
        if self.train_function is not made and _has_shares():
            self.train_function = self._not_measuring_idle(self.train_function)

    def make_test_function(self, force=False):
        """The compiled step of evaluation, likewise."""
        self._forget_other_teachers()
        made = self.test_function
        super().make_test_function(force)
        if self.test_function is not made and _has_shares():
            self.test_function = self._not_measuring_idle(self.test_function)

    def _not_measuring_idle(self, function):
        """A step on torch whose metrics take no notice of a batch that has no share in that of all processes."""

        def run(batches):
            _, share = parted(keras.utils.unpack_x_y_sample_weight(batches[0])[2])
            if share is None or ops.any(share):
                return function(batches)
            before = [ops.copy(v.value) for v in self.metrics_variables]
            logs = function(batches)
            for variable, value in zip(self.metrics_variables, before, strict=True):
                variable.assign(value)
            return logs

        return run

    def _forget_other_teachers(self):
        losses = keras.tree.flatten(self.loss) if self.compiled else []
        if any([loss.teacher_has_changed() for loss in losses if hasattr(loss, "teacher_has_changed")]):
            self.train_function = self.test_function = None

    @property
    def metrics(self):
        """The metrics, as Keras lists them: the mean of the loss first, those of `compile`, those of layers."""
        metrics = super().metrics
        if metrics and metrics[0].name == "loss" and self._is_mean:
            return [self.mean_loss, *metrics[1:]]
        return metrics

    @property
    def _counting_loss(self):
        """The loss of the model's one output that says what its mean is divided by, or None."""
        loss = self.loss if self.compiled else None
        if isinstance(loss, dict | list | tuple) and len(loss) == 1:
            loss = next(iter(loss.values() if isinstance(loss, dict) else loss))
        return loss if hasattr(loss, "num_counted") and len(self.outputs) == 1 else None

    @property
    def _token_loss(self):
        """The loss of tokens of the model's one output, which reads hidden states too, or None."""
        return self._counting_loss if getattr(self._counting_loss, "reads_hidden_states", False) else None

    @property
    def _embedding_loss(self):
        """The `EmbeddingLoss` of the model's one output, or None."""
        return self._counting_loss if isinstance(self._counting_loss, EmbeddingLoss) else None

    @property
    def _is_mean(self):
        losses = keras.tree.flatten(self.loss) if self.compiled else []
        return bool(losses) and all(getattr(loss, "reduction", MEANS[0]) in MEANS for loss in losses)

    @property
    def _is_chunked(self):
        return self._token_loss is not None and self._token_loss.chunk_size is not None

    # Keras saves every model that it finds among the values of attributes and properties: these are hidden in objects.

    def _graph(self, is_packed):
        """The model's own graph, or that for rows of several documents."""
        if not is_packed:
            return self
        if "_packed" not in vars(self):
            vars(self)["_packed"] = SimpleNamespace(graph=self.packed_graph())
        return self._packed.graph

    def _rows_graph(self):
        """The model as a layer that computes what it is given, in a step too."""
        if "_rows" not in vars(self):
            vars(self)["_rows"] = SimpleNamespace(graph=keras.Model(self.input, self.output))
        return self._rows.graph

    def _trunk(self, is_packed=False):
        """What stands before the output layer of a graph."""
        trunks = vars(self).setdefault("_trunks", {})
        if is_packed not in trunks:
            trunks[is_packed] = Trunk(self._graph(is_packed))
        return trunks[is_packed]

    def _chunked_loss(self, x, y, hidden, sample_weight, training):
        """The loss of hidden states, by which metrics are updated as well: JAX hands on what the loss updates."""
        if self._compile_metrics is not None and not self._compile_metrics.built:
            self._compile_metrics.build(y, self.output)
        metrics = self._metrics_of_logits()
        asks_for_largest = any(metric.without_logits == "is_largest" for metric in metrics)
        with OutputLayer(self._trunk().product(), training, asks_for_largest).left_out():
            loss = super().compute_loss(x, y, hidden, sample_weight, training)
            super().compute_metrics(x, y, hidden, sample_weight)
        return loss

    def _metrics_of_logits(self):
        """The metrics of `compile`, all of which can do without logits, or a `ValueError`."""
        if self._compile_metrics is None:
            return []
        metrics = self._compile_metrics.metrics
        for metric in metrics:
            if getattr(metric, "without_logits", None) is None:
                raise ValueError(
                    f"metrics: {metric.name!r} needs logits, which a loss with chunk_size "
                    f"({self._token_loss.chunk_size}) does not make; Perplexity and TokenAccuracy do without."
                )
            if metric.ignore_class != self._token_loss.ignore_class:
                raise ValueError(
                    f"metrics: {metric.name!r} has ignore_class ({metric.ignore_class}), the loss another "
                    f"({self._token_loss.ignore_class}); with chunk_size they must agree."
                )
        return metrics


class Trunk:
    """A functional model as far as its output layer, of which it knows what that multiplies."""

    def __init__(self, model):
        self.softcap, node = None, _node_of(model.output)
        if isinstance(node.operation, SoftCap):
            self.softcap, node = node.operation.limit, _node_of(node.input_tensors[0])
        self.output_layer = node.operation
        if not hasattr(self.output_layer, "product"):
            raise ValueError(
                f"chunk_size: the model's last layer ({self.output_layer.name}) is no output layer of tokens."
            )
        self.inner = keras.Model(model.input, node.input_tensors)

    def read(self, inputs, training, mask):
        """What the output layer multiplies with its matrix: (B, T, D)."""
        tensors = keras.tree.flatten(self.inner(inputs, training=training, mask=mask))
        transform = getattr(self.output_layer, "transform", None)
        return transform(*tensors) if transform else tensors[0]

    def product(self):
        """The output layer's `Product`, with its weights of now."""
        product = self.output_layer.product()
        return product if self.softcap is None else dataclasses.replace(product, softcap=self.softcap)


def _row_log_probs(model, inputs, labels, chunk_size):
    trunk = model._trunk()
    hidden = trunk.read(inputs, False, None)
    flat, ids = ops.reshape(hidden, (-1, hidden.shape[-1])), ops.reshape(labels, (-1,))
    weights = ops.ones_like(ids, "float32")
    _, losses, _ = backend.linear_crossentropy(flat, trunk.product(), ids, weights, -1, 0.0, chunk_size, False)
    return -ops.sum(ops.reshape(losses, ops.shape(labels)), axis=1)


def _has_shares():
    """Whether several processes have a loss each, and not one together."""
    return backend.ranks().count > 1 and not backend.ranks().sees_all


def _num_rows(labels, sample_weight):
    return float(len(keras.tree.flatten(labels)[0]))


def _node_of(tensor):
    """The call of a layer that gave a symbolic tensor."""
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index]
