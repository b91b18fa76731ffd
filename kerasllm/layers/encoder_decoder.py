"""The recurrent encoder and decoder: each one walk over embeddings and layers, for training and decoding."""

import keras
import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_boolean, check_choice, check_positive, check_rate
from kerasllm.layers.adapters import Dense, Embedding, ReversibleEmbedding
from kerasllm.layers.alignment import AdditiveAttention, DotAttention
from kerasllm.layers.base import Layer, build_once, first_given, with_token_embedding
from kerasllm.layers.collecting import collect, is_collecting
from kerasllm.layers.masks import check_padding_mask
from kerasllm.layers.recurrent import CELLS, Recurrent

ATTENTIONS = ("additive", "dot", "general", None)


@keras.saving.register_keras_serializable("kerasllm")
class RecurrentEncoder(Layer):
    """Embeddings and recurrent layers over a source, in both directions or one.

    The embeddings begin with standard deviation 1, as PyTorch's; with Keras's 0.03 a translator learns more slowly.

    Args:
        vocabulary_size: number of symbols V.
        num_layers: number of layers.
        hidden_dim: width U of a layer in each direction.
        embedding_dim: width of the embeddings. Default: `hidden_dim`.
        cell: "lstm", "gru" or "simple".
        bidirectional: whether each layer walks in both directions, outputs and states concatenated.
        dropout: rate before each layer in training.
        token_embedding: the token embeddings of another layer, to be shared. Default: its own.

    Call arguments:
        token_ids: (B, S) int.
        padding_mask: (B, S), True or 1 = real. Default: what Keras's mask of the token ids says, or all real.

    Returns:
        The memory (B, S, M), M = 2 U or U, and the last states of each layer: a list of lists of (B, M).
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        hidden_dim,
        embedding_dim=None,
        cell="lstm",
        bidirectional=True,
        dropout=0.0,
        token_embedding=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_sizes(vocabulary_size, num_layers, hidden_dim, embedding_dim, cell, dropout)
        check_token_embedding(token_embedding, vocabulary_size, embedding_dim or hidden_dim)
        check_boolean("bidirectional", bidirectional)
        self.output_dim = hidden_dim * (2 if bidirectional else 1)
        self.embedding_dim = embedding_dim or hidden_dim
        policy = {"dtype": self.dtype_policy}
        self.embedding = token_embedding or Embedding(
            vocabulary_size, self.embedding_dim, keras.initializers.RandomNormal(stddev=1.0), name="embedding", **policy
        )
        self.dropout = keras.layers.Dropout(dropout, name="dropout", **policy)
        directions = {"forward": False, "backward": True} if bidirectional else {"forward": False}
        self.layers = [
            [
                Recurrent(hidden_dim, cell, reverse, name=f"{direction}_{i}", **policy)
                for direction, reverse in directions.items()
            ]
            for i in range(num_layers)
        ]
        self.supports_masking = self.embedding.supports_masking = True

    def build(self, token_ids_shape):
        """Build embeddings and layers for token ids (B, S)."""
        build_once(self.embedding, token_ids_shape)
        width = self.embedding_dim
        for directions in self.layers:
            for layer in directions:
                layer.build((*token_ids_shape, width))
            width = self.output_dim

    def call(self, token_ids, padding_mask=None, mask=None, token_ids_mask=None, training=None):
        """Encode."""
        padding_mask = first_given(padding_mask, mask, token_ids_mask)
        x = self.embedding(token_ids)
        collect(self, "hidden_states", x)
        last_states = []
        for directions in self.layers:
            x = self.dropout(x, training=training)
            outputs, states = zip(*[layer(x, padding_mask=padding_mask) for layer in directions], strict=True)
            x = outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=-1)
            last_states.append(
                [s[0] if len(s) == 1 else ops.concatenate(s, axis=-1) for s in zip(*states, strict=True)]
            )
            collect(self, "hidden_states", x)
        collect(self, "last_states", last_states)
        return x, last_states

    def get_config(self):
        """The constructor's arguments, and while a model is saved the token embeddings."""
        return with_token_embedding(super().get_config(), self.embedding)


@keras.saving.register_keras_serializable("kerasllm")
class RecurrentDecoder(Layer):
    """Embeddings, recurrent layers, and attention to a memory after the last of them (Luong et al. 2015).

        outputs = layers(embed(token_ids)),   context = attention(outputs, memory),   tanh(W [context; outputs])

    The context does not feed the recurrence, so that training walks a whole target with fused kernels; unless
    `input_feeding` says that it does, step by step (their section 3.3):

        h_t = layers([embed(token_t); a_{t-1}], h_{t-1}),   a_t = tanh(W [attention(h_t, memory); h_t])

    Args:
        vocabulary_size: number of symbols V.
        num_layers: number of layers.
        hidden_dim: width U of a layer.
        embedding_dim: width of the embeddings. Default: `hidden_dim`.
        cell: "lstm", "gru" or "simple".
        attention: "additive" (Bahdanau et al. 2015), "dot", "general" (Luong et al. 2015) or None.
        tie_embeddings: whether the embeddings, transposed, are to be the output layer as well. Then the width D of the
            result is theirs, else `hidden_dim`; and they begin with standard deviation D ** -0.5, else 1.
        dropout: rate before each layer and on the result in training; what is fed is the result.
        token_embedding: the token embeddings of another layer, to be shared. Default: its own.
        input_feeding: whether the first layer reads the result of the step before, too. It needs an attention.

    Call arguments:
        token_ids: (B, T) int.
        states: for each layer the list of its states (B, U), and with `input_feeding` perhaps one list more, of the
            result of the step before (B, D). Default: zeros.
        padding_mask: (B, T), True or 1 = real. Default: what Keras's mask of the token ids says, or all real. Padding
            on the right changes nothing at the real tokens, so that it may be left out unless the last states matter.
        memory: (B, S, M), with attention.
        memory_padding_mask: (B, S), True or 1 = real. Default: what Keras's mask of the memory says, or all real.
        keys: (B, S, U), `attention.project(memory)`, which decoding computes once.

    Returns:
        Hidden states (B, T, D), and the last states of each layer; with `input_feeding` a last list [a], (B, D).
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        hidden_dim,
        embedding_dim=None,
        cell="lstm",
        attention=None,
        tie_embeddings=False,
        dropout=0.0,
        token_embedding=None,
        input_feeding=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_sizes(vocabulary_size, num_layers, hidden_dim, embedding_dim, cell, dropout)
        check_choice("attention", attention, ATTENTIONS)
        check_boolean("tie_embeddings", tie_embeddings)
        check_boolean("input_feeding", input_feeding)
        if input_feeding and attention is None:
            raise ValueError(
                "input_feeding (True) feeds what an attention gives: attention (None) must be 'additive', 'dot' or "
                "'general'."
            )
        self.hidden_dim, self.embedding_dim = hidden_dim, embedding_dim or hidden_dim
        self.input_feeding = input_feeding
        self.output_dim = output_dim = self.embedding_dim if tie_embeddings else hidden_dim
        check_token_embedding(token_embedding, vocabulary_size, self.embedding_dim)
        policy = {"dtype": self.dtype_policy}
        stddev = output_dim**-0.5 if tie_embeddings else 1.0
        self.embedding = token_embedding or reversible_embedding(
            vocabulary_size, self.embedding_dim, stddev, self.dtype_policy
        )
        self.dropout = keras.layers.Dropout(dropout, name="dropout", **policy)
        self.layers = [Recurrent(hidden_dim, cell, name=f"layer_{i}", **policy) for i in range(num_layers)]
        self.attention = None
        if attention == "additive":
            self.attention = AdditiveAttention(hidden_dim, name="attention", **policy)
        elif attention:
            self.attention = DotAttention(attention, name="attention", **policy)
        self.combine = None
        if attention or output_dim != hidden_dim:
            self.combine = Dense(output_dim, "tanh", use_bias=False, name="combine", **policy)
        self.supports_masking = self.embedding.supports_masking = True

    def build(self, token_ids_shape, memory_shape=None):
        """Build the layers for token ids (B, T) and a memory (B, S, M)."""
        build_once(self.embedding, token_ids_shape)
        width = self.embedding_dim + (self.output_dim if self.input_feeding else 0)
        for layer in self.layers:
            layer.build((*token_ids_shape, width))
            width = self.hidden_dim
        if self.attention:
            self.attention.build((*token_ids_shape, width), memory_shape)
            width += memory_shape[-1]
        if self.combine:
            self.combine.build((*token_ids_shape, width))

    def call(
        self,
        token_ids,
        states=None,
        padding_mask=None,
        memory=None,
        memory_padding_mask=None,
        keys=None,
        mask=None,
        token_ids_mask=None,
        memory_mask=None,
        training=None,
    ):
        """Decode; the arguments are in the class docstring."""
        padding_mask = first_given(padding_mask, mask, token_ids_mask)
        memory_padding_mask = first_given(memory_padding_mask, memory_mask)
        embedded = self.embedding(token_ids)
        collect(self, "hidden_states", embedded)
        x = self.dropout(embedded, training=training)

        if self.input_feeding and keys is None:
            keys = self.attention.project(memory)

        def attend(x):
            context, weights = self.attention(
                x, memory, padding_mask=memory_padding_mask, keys=keys, return_attention_scores=True
            )
            return self.combine(ops.concatenate([context, x], axis=-1)), weights

        if self.input_feeding:
            return self._walk_fed(x, states, padding_mask, keys, attend, training)
        last_states = []
        for i, layer in enumerate(self.layers):
            x = self.dropout(x, training=training) if i else x
            x, state = layer(x, initial_state=states and states[i], padding_mask=padding_mask)
            last_states.append(state)
            collect(self, "hidden_states", x)
        if self.attention:
            x, weights = attend(x)
            collect(self, "cross_attentions", ops.expand_dims(weights, 1))  # (B, 1, T, S)
        elif self.combine:
            x = self.combine(x)
        if self.combine:
            collect(self, "hidden_states", x)
        collect(self, "last_states", last_states)
        return self.dropout(x, training=training), last_states

    def _walk_fed(self, x, states, padding_mask, keys, attend, training):
        """Step by step over embeddings x (B, T, E): what `call` returns with `input_feeding`.

        What is collected leaves the loop with its results: [result; outputs of the layers; weights] of each step.
        """
        states = self.first_states(ops.shape(x)[0], states)
        inputs = {"x": x, "dropout": self._dropout_masks(x, training), "is_real": []}
        if padding_mask is not None:
            check_padding_mask("padding_mask", padding_mask, x)
            inputs["is_real"] = [ops.expand_dims(ops.cast(padding_mask, "bool"), -1)]

        def step(carried, inputs):
            before = keras.tree.pack_sequence_as(states, list(carried))
            x, [fed] = inputs["x"], before[-1]
            x = ops.matmul(ops.concatenate([x, fed], axis=-1), kernel) if is_single else x + ops.matmul(fed, fed_kernel)
            after, weights = self._fed_step(x, before[:-1], inputs["dropout"], attend)
            outputs = [state[0] for state in after[:-1]]
            after = keras.tree.flatten(after)
            result = ops.concatenate([after[-1], *outputs, weights], axis=-1) if is_collected else after[-1]
            for is_real in inputs["is_real"]:
                result = ops.where(is_real, result, ops.zeros_like(result))
                after = [ops.where(is_real, new, old) for new, old in zip(after, carried, strict=True)]
            return tuple(after), result

        kernel, carried = self.layers[0].cell.kernel, tuple(keras.tree.flatten(states))
        is_single, is_collected, like = x.shape[1] == 1, is_collecting(), carried[-1]
        if is_single:  # A step of decoding needs no loop.
            carried, result = step(carried, keras.tree.map_structure(lambda x: ops.squeeze(x, 1), inputs))
            result = ops.expand_dims(result, 1)
        else:  # W [e; a] = W_e e + W_a a, the first product for all steps at once
            kernel, fed_kernel = ops.split(ops.convert_to_tensor(kernel), [self.embedding_dim])
            inputs["x"] = ops.matmul(x, kernel)
            if is_collected:
                shown = [like, *(state[0] for state in states[:-1]), ops.ones_like(keys[:, :, 0], like.dtype)]
                like = ops.concatenate(shown, axis=-1)
            carried, result = backend.scan(step, carried, inputs, like=like)
        if is_collected:
            widths = [self.output_dim, *[self.hidden_dim] * len(self.layers)]
            result, *outputs, weights = ops.split(result, np.cumsum(widths).tolist(), axis=-1)
            for hidden_states in (*outputs, result):
                collect(self, "hidden_states", hidden_states)
            collect(self, "cross_attentions", ops.expand_dims(weights, 1))
        return result, keras.tree.pack_sequence_as(states, list(carried))

    def _fed_step(self, x, states, dropout_masks, attend):
        """The states after a step, what is fed at the end, from x = W [e; a] (B, G) and the layers' states before.

        And the weights of its attention (B, S).
        """
        new = []
        *masks, last_mask = dropout_masks or [None] * len(states)
        for layer, state, mask in zip(self.layers, states, [None, *masks], strict=True):
            if new:
                x = ops.matmul(_masked(x, mask), layer.cell.kernel)
            x, state = layer.cell.step(x, state)
            new.append(state)
        result, weights = (ops.squeeze(part, 1) for part in attend(ops.expand_dims(x, 1)))
        return [*new, [_masked(result, last_mask)]], weights

    def _dropout_masks(self, x, training):
        """What dropout multiplies by after each layer but the last, and the result: [(B, T, U), ..., (B, T, D)], or [].

        They are drawn for all steps at once, for a loop draws no random numbers.
        """
        if not (training and self.dropout.rate):
            return []
        widths = [self.hidden_dim] * (len(self.layers) - 1) + [self.output_dim]
        return [self.dropout(ops.ones((*ops.shape(x)[:2], width), x.dtype), training=True) for width in widths]

    def first_states(self, batch_size, states=None):
        """The states that the first step reads: zeros (B, U), or those given, and what `input_feeding` feeds it."""
        if states is None:
            states = [layer.cell.get_initial_state(batch_size) for layer in self.layers]
        if self.input_feeding and len(states) == len(self.layers):
            states = [*states, [ops.zeros((batch_size, self.output_dim), self.compute_dtype)]]
        counts, num_states = [len(state) for state in states], [layer.cell.num_states for layer in self.layers]
        if counts != num_states + [1] * self.input_feeding:
            raise ValueError(f"states must be, for each layer, lists of {num_states} tensors, not of {counts}.")
        return [list(state) for state in states]

    def get_config(self):
        """The constructor's arguments, and while a model is saved the token embeddings."""
        return with_token_embedding(super().get_config(), self.embedding)


def _masked(x, dropout_mask):
    return x if dropout_mask is None else x * dropout_mask


@keras.saving.register_keras_serializable("kerasllm")
class Bridge(Layer):
    """The decoder's first states from the encoder's last: h = tanh(W h'), c = W c', where the widths differ.

    Call arguments:
        states: for each layer the list [h, c] or [h] of (B, M).

    Returns:
        The same nest of (B, U).
    """

    def __init__(self, hidden_dim, **kwargs):
        super().__init__(**kwargs)
        check_positive("hidden_dim", hidden_dim)
        self.hidden_dim = hidden_dim

    def build(self, states_shape):
        """Create a projection for each state."""
        self.projections = []
        for i, shapes in enumerate(states_shape):
            for name, activation, shape in zip("hc", ("tanh", None), shapes, strict=False):
                if shape[-1] != self.hidden_dim:
                    layer = Dense(self.hidden_dim, activation, dtype=self.dtype_policy, name=f"{name}_{i}")
                    layer.build(shape)
                    self.projections.append(layer)

    def call(self, states):
        """Project."""
        if not self.projections:
            return states
        projections = iter(self.projections)
        return [[next(projections)(state) for state in layer] for layer in states]


def reversible_embedding(vocabulary_size, embedding_dim, stddev, dtype):
    """Embeddings (V, E) that may be the output layer as well, and begin with a standard deviation."""
    dtype = keras.dtype_policies.get(dtype)
    return ReversibleEmbedding(
        vocabulary_size,
        embedding_dim,
        embeddings_initializer=keras.initializers.RandomNormal(stddev=stddev),
        reverse_dtype=dtype.compute_dtype,  # as in `TransformerEmbeddings`
        name="embedding",
        dtype=dtype,
    )


def check_token_embedding(token_embedding, vocabulary_size, embedding_dim):
    """Raise `ValueError` unless a table to be shared has the sizes that the layer expects."""
    if not isinstance(token_embedding, keras.layers.Embedding):
        return
    symbols, width = token_embedding.input_dim, token_embedding.output_dim
    if (symbols, width) != (vocabulary_size, embedding_dim):
        raise ValueError(
            f"token_embedding has {symbols} symbols of width {width}: vocabulary_size ({vocabulary_size}) and "
            f"embedding_dim ({embedding_dim}) must be the same."
        )


def check_sizes(vocabulary_size, num_layers, hidden_dim, embedding_dim, cell, dropout):
    """Raise `ValueError` unless the arguments that recurrent stacks share are in range."""
    check_positive("vocabulary_size", vocabulary_size)
    check_positive("num_layers", num_layers)
    check_positive("hidden_dim", hidden_dim)
    if embedding_dim is not None:
        check_positive("embedding_dim", embedding_dim)
    check_choice("cell", cell, CELLS)
    check_rate("dropout", dropout)
