"""The Transformer encoder and decoder: one walk over embeddings, blocks and norm, for training and decoding."""

from types import SimpleNamespace
from typing import Unpack

import keras
from keras import ops

from kerasllm import backend
from kerasllm.arguments import check_boolean, check_positive, shown
from kerasllm.constructors import takes
from kerasllm.layers.attention import MultiHeadAttention
from kerasllm.layers.base import Layer, build_once, first_given, method_of_graph, with_token_embedding
from kerasllm.layers.block import TransformerBlock
from kerasllm.layers.collecting import collect
from kerasllm.layers.embeddings import TransformerEmbeddings, kernel_initializer
from kerasllm.layers.feedforward import FeedForward, GatedFeedForward
from kerasllm.layers.masks import (
    causal_mask,
    check_index,
    check_padding_mask,
    num_seen_keys,
    padding_attention_mask,
    same_document_mask,
    slots_from,
)
from kerasllm.layers.norms import make_norm
from kerasllm.layers.positions import ALiBi, RelativePositionBias, RotaryPositions
from kerasllm.stack import SINUSOIDAL, SegmentedStackArguments, by_block


class TransformerStack(Layer):
    """Token ids to hidden states: embeddings, blocks, final norm. The base of encoder and decoder.

    Args: as for `TransformerDecoder`.
    """

    bidirectional = True

    @takes(
        SegmentedStackArguments,
        """
        intermediate_dim max_sequence_length positions num_segments scale_embeddings norm_embeddings num_key_value_heads
        head_dim use_bias use_qkv_bias query_key_norm attention_scale sliding_window activation gated norm residual
        norm_epsilon cross_attention rope_base rope_scaling num_buckets max_distance dropout initializer_range
        token_embedding embedding_dim
        """,
    )
    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        *,
        cross_attention=False,
        token_embedding=None,
        name=None,
        dtype=None,
        trainable=True,
        autocast=True,
        **arguments: Unpack[SegmentedStackArguments],
    ):
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=autocast)
        stack = SimpleNamespace(**arguments)
        check_positive("num_layers", num_layers)
        check_positive("num_heads", num_heads)
        check_positive("hidden_dim", hidden_dim)
        check_boolean("cross_attention", cross_attention)
        if stack.head_dim is None and hidden_dim % num_heads:
            raise ValueError(f"hidden_dim ({hidden_dim}) must be divisible by num_heads ({num_heads}).")
        self.hidden_dim, self.max_sequence_length = hidden_dim, stack.max_sequence_length
        self.remat = stack.remat
        self.num_key_value_heads = num_heads if stack.num_key_value_heads is None else stack.num_key_value_heads
        self.head_dim = hidden_dim // num_heads if stack.head_dim is None else stack.head_dim
        if stack.rope_scaling is not None and stack.positions != "rotary":
            raise ValueError(
                f"rope_scaling ({shown(stack.rope_scaling)}) is for rotary positions, not {shown(stack.positions)}."
            )
        self.windows = by_block("sliding_window", stack.sliding_window, num_layers)
        if any(self.windows) and self.bidirectional:
            raise ValueError(f"sliding_window ({stack.sliding_window}) is for decoders: an encoder sees everything.")
        policy = {"dtype": self.dtype_policy}
        self.embeddings = TransformerEmbeddings(
            vocabulary_size,
            hidden_dim,
            max_sequence_length=stack.max_sequence_length,
            positions=stack.positions if stack.positions in ("learned", *SINUSOIDAL) else None,
            num_segments=stack.num_segments,
            scale=stack.scale_embeddings,
            norm=stack.norm if stack.norm_embeddings else None,
            norm_epsilon=stack.norm_epsilon,
            dropout=stack.dropout,
            initializer_range=stack.initializer_range,
            token_embedding=token_embedding,
            embedding_dim=stack.embedding_dim,
            name="embeddings",
            **policy,
        )
        self.initializer_range = stack.initializer_range
        kernels = {"kernel_initializer": kernel_initializer(stack.initializer_range), "use_bias": stack.use_bias}

        def attention(name, key_value_heads):
            return MultiHeadAttention(
                num_heads,
                stack.head_dim,
                key_value_heads,
                dropout=stack.dropout,
                use_qkv_bias=stack.use_qkv_bias,
                query_key_norm=stack.query_key_norm,
                norm_epsilon=stack.norm_epsilon,
                scale=stack.attention_scale,
                softcap=stack.attention_softcap,
                name=name,
                **kernels,
                **policy,
            )

        feed_forward = GatedFeedForward if stack.gated else FeedForward
        width = 4 * hidden_dim if stack.intermediate_dim is None else stack.intermediate_dim
        self.blocks = [
            TransformerBlock(
                attention("attention", stack.num_key_value_heads),
                feed_forward(width, stack.activation, name="feed_forward", **kernels, **policy),
                attention("cross_attention", None) if cross_attention else None,
                norm=stack.norm,
                residual=stack.residual,
                norm_epsilon=stack.norm_epsilon,
                dropout=stack.dropout,
                name=f"block_{i}",
                **policy,
            )
            for i in range(num_layers)
        ]
        self.final_norm = None
        if stack.residual != "post":
            self.final_norm = make_norm(stack.norm, stack.norm_epsilon, self.dtype_policy, "final_norm")
        self.rotary, self.rotary_of_block, self.position_bias = [], [None] * num_layers, None
        if stack.positions == "rotary":
            self._make_rotary(stack.rope_base, stack.rope_scaling, stack.rotary_fraction)
        elif stack.positions == "relative":
            self.position_bias = RelativePositionBias(
                num_heads, stack.num_buckets, stack.max_distance, self.bidirectional, name="position_bias", **policy
            )
        elif stack.positions == "alibi":
            self.position_bias = ALiBi(num_heads, name="position_bias", **policy)
        self.supports_masking = True

    def _make_rotary(self, bases, scalings, fraction):
        """One layer for all blocks that are alike, and the place of each block's."""
        bases = by_block("rope_base", bases, len(self.blocks))
        scalings = by_block("rope_scaling", scalings, len(self.blocks))
        kinds = [None if base is None else (base, scaling) for base, scaling in zip(bases, scalings, strict=True)]
        if not any(kinds):
            raise ValueError("rope_base (None) must be a number in one block at least; positions=None is without.")
        distinct = [kind for i, kind in enumerate(kinds) if kind and kind not in kinds[:i]]
        self.rotary = [RotaryPositions(*kind, fraction, name=f"rotary_{i}") for i, kind in enumerate(distinct)]
        for rotary in self.rotary:
            rotary.rotary_dim_of(self.head_dim)  # or the first call would be the one that refuses it
        self.rotary_of_block = [None if kind is None else distinct.index(kind) for kind in kinds]

    def build(self, token_ids_shape):
        """Build embeddings, blocks and norm for token ids (B, T)."""
        token_ids_shape = tuple(token_ids_shape)[:2]  # hidden states come first where `logits` is called first
        self.embeddings.build(token_ids_shape)
        x_shape = (*token_ids_shape, self.hidden_dim)
        for block in self.blocks:
            block.build(x_shape, (None, None, self.hidden_dim))
        if self.final_norm:
            self.final_norm.build(x_shape)
        for rotary in self.rotary:
            rotary.build(None)  # Keras quantises no layer with an unbuilt part
        if self.position_bias:
            self.position_bias.build(None)

    @method_of_graph
    def walk(
        self,
        x,
        positions,
        attention_mask,
        caches=None,
        index=0,
        memories=None,
        memory_mask=None,
        training=None,
        lengths=None,
    ):
        """Blocks and final norm: x (B, T, D), its positions (T,) or (B, T) -> (B, T, D), and the new caches or None.

        `attention_mask` is one for all blocks, or a list of those of each; `lengths` is that of `RotaryPositions`, by
        default that of whole sequences, padding left out.
        """
        length = ops.shape(x)[1]
        masks = attention_mask if isinstance(attention_mask, list) else [attention_mask] * len(self.blocks)
        if lengths is None and masks[0] is not None and self._follows_lengths:
            lengths = num_seen_keys(masks[0])
        tables = [rotary.tables(positions, self.head_dim, lengths) for rotary in self.rotary]
        bias = None
        if self.position_bias:  # depends on distances only, so slots do as well as positions
            slots = ops.arange(length, dtype="int32")
            bias = self.position_bias(
                slots_from(index, slots), slots if caches is None else ops.arange(ops.shape(caches[0][0])[2])
            )
        new_caches = []
        computes_again = self.remat and training and caches is None
        for i, block in enumerate(self.blocks):
            collect(self, "hidden_states", x)
            x = (backend.rematerialized(block) if computes_again else block)(
                x,
                attention_mask=masks[i],
                attention_bias=bias,
                rotary=None if self.rotary_of_block[i] is None else tables[self.rotary_of_block[i]],
                cache=None if caches is None else caches[i],
                index=index,
                memory=None if memories is None else memories[i],
                cross_attention_mask=memory_mask,
                training=training,
            )
            if caches is not None:
                x, cache = x
                new_caches.append(cache)
        x = backend.not_folded(self.final_norm(x)) if self.final_norm else x
        collect(self, "hidden_states", x)
        return x, (None if caches is None else new_caches)

    @property
    def _follows_lengths(self):
        return any(rotary.follows_beyond is not None for rotary in self.rotary)

    @method_of_graph
    def encode(self, token_ids, padding_mask=None, segment_ids=None, training=None):
        """Read whole sequences whose tokens all see each other, without a memory: (B, T) -> (B, T, D)."""
        positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")
        x = self.embeddings(token_ids, positions, segment_ids, training=training)
        if padding_mask is not None:
            check_padding_mask("padding_mask", padding_mask, token_ids)
        attention_mask = None if padding_mask is None else padding_attention_mask(padding_mask)
        return self.walk(x, positions, attention_mask, training=training)[0]

    def logits(self, hidden):
        """Scores of all symbols by the transposed token embeddings: (B, T, D) -> (B, T, V)."""
        if isinstance(hidden, keras.KerasTensor):
            return self(hidden, reverse=True)  # a node of this layer, so that the graph knows of one table only
        return self.embeddings.token(hidden, reverse=True)

    def product(self):
        """What `logits` computes, a `kerasllm.backend.Product`."""
        return self.embeddings.token.product()

    def compute_mask(self, token_ids, previous_mask=None):
        """Keras's mask of the token ids, or of the hidden states."""
        is_reverse = len(token_ids.shape) == 3
        return previous_mask if is_reverse else self.embeddings.compute_mask(token_ids, previous_mask)

    def compute_output_shape(self, token_ids_shape, *args, **kwargs):
        """(B, T, D), or (B, T, V) for hidden states."""
        is_reverse = len(token_ids_shape) == 3
        batch, length = token_ids_shape[:2]
        return (batch, length, self.embeddings.token.input_dim if is_reverse else self.hidden_dim)

    def get_config(self):
        """The constructor's arguments, and while a model is saved the token embeddings, which others may share."""
        return with_token_embedding(super().get_config(), self.embeddings.token)


@keras.saving.register_keras_serializable("kerasllm")
class TransformerEncoder(TransformerStack):
    """A stack whose tokens all see each other.

    Args:
        vocabulary_size: number of symbols V.
        num_layers: number of blocks.
        num_heads: query heads N of each attention.
        hidden_dim: width D.
        **arguments: those of `kerasllm.stack.StackArguments`.
        token_embedding: the token embeddings of another stack, to be shared. Default: its own.
        name, dtype, trainable, autocast: as for every layer of Keras.

    Call arguments:
        token_ids: (B, T) int.
        padding_mask: (B, T), True or 1 = real. Default: what Keras's mask of the token ids says, or all real.
        segment_ids: (B, T) int, where the stack has segments.

    Returns:
        (B, T, D).
    """

    def call(
        self,
        token_ids,
        padding_mask=None,
        segment_ids=None,
        mask=None,
        token_ids_mask=None,
        reverse=False,
        training=None,
    ):
        """Encode."""
        if reverse:
            return self.logits(token_ids)
        if padding_mask is None:
            padding_mask = self.compute_mask(token_ids, first_given(mask, token_ids_mask))
        return self.encode(token_ids, padding_mask, segment_ids, training)


@keras.saving.register_keras_serializable("kerasllm")
class SharedEncoder(Layer):
    """A decoder's stack as an encoder: all weights but the cross-attention's are shared (Rothe et al. 2020).

    Args:
        decoder: a `TransformerDecoder`.

    Call arguments:
        token_ids: (B, T) int.
        padding_mask: (B, T), True or 1 = real. Default: what Keras's mask of the token ids says, or all real.

    Returns:
        (B, T, D).
    """

    shared_argument = "decoder"

    def __init__(self, decoder, **kwargs):
        super().__init__(**kwargs)
        self.decoder = decoder
        self.supports_masking = True

    def build(self, token_ids_shape):
        """Build the decoder."""
        build_once(self.decoder, token_ids_shape)

    def call(self, token_ids, padding_mask=None, mask=None, token_ids_mask=None, training=None):
        """Encode."""
        if padding_mask is None:
            padding_mask = self.compute_mask(token_ids, first_given(mask, token_ids_mask))
        return self.decoder.encode(token_ids, padding_mask, training=training)

    def compute_mask(self, token_ids, previous_mask=None):
        """Keras's mask of the token ids."""
        return self.decoder.compute_mask(token_ids, previous_mask)

    def compute_output_shape(self, token_ids_shape, *args, **kwargs):
        """(B, T, D)."""
        return (*token_ids_shape, self.decoder.hidden_dim)


@keras.saving.register_keras_serializable("kerasllm")
class TransformerDecoder(TransformerStack):
    """A stack whose tokens see themselves and what stands before them, and perhaps a memory.

    `call` takes whole sequences, for training. `start` and `step` do the same with a cache, for decoding; all three
    run the same walk.

    Args:
        vocabulary_size: number of symbols V.
        num_layers: number of blocks.
        num_heads: query heads N of each attention.
        hidden_dim: width D.
        **arguments: those of `kerasllm.stack.StackArguments`.
        cross_attention: whether the blocks attend to a memory.
        token_embedding: the token embeddings of another stack, to be shared. Default: its own.
        name, dtype, trainable, autocast: as for every layer of Keras.

    Call arguments:
        token_ids: (B, T) int.
        padding_mask: (B, T), True or 1 = real. Default: what Keras's mask of the token ids says, or all real.
        memory: (B, S, D) for cross-attention.
        memory_padding_mask: (B, S), True or 1 = real. Default: what Keras's mask of the memory says, or all real.
        position_ids: (B, T) int, of rows in which several documents stand one after the other: wherever a position is
            not one more than that before, a document begins, and no token sees another document. Default: 0, 1, ...

    Returns:
        (B, T, D).
    """

    bidirectional = False

    def call(
        self,
        token_ids,
        padding_mask=None,
        memory=None,
        memory_padding_mask=None,
        position_ids=None,
        mask=None,
        token_ids_mask=None,
        memory_mask=None,
        reverse=False,
        training=None,
    ):
        """Decode whole sequences at once."""
        if reverse:
            return self.logits(token_ids)
        if padding_mask is None:
            padding_mask = self.compute_mask(token_ids, first_given(mask, token_ids_mask))
        memory_padding_mask = first_given(memory_padding_mask, memory_mask)
        if memory is None and self.blocks[0].cross_attention:
            raise ValueError("memory (None) must be given to a decoder with cross_attention.")
        length = ops.shape(token_ids)[1]
        positions = ops.arange(length, dtype="int32") if position_ids is None else position_ids
        x = self.embeddings(token_ids, positions, training=training)
        is_seen = lengths = None
        if padding_mask is not None:
            check_padding_mask("padding_mask", padding_mask, token_ids)
            is_seen = padding_attention_mask(padding_mask)
        if position_ids is not None:
            check_padding_mask("position_ids", position_ids, token_ids)
            is_same = same_document_mask(position_ids)
            is_seen = is_same if is_seen is None else ops.logical_and(is_same, is_seen)
            lengths = ops.sum(ops.cast(is_seen[:, 0], "int32"), axis=-1)  # (B, T), of each token's document
        attention_masks = self._masks(length, length, 0, is_seen)
        if memory is not None and memory_padding_mask is not None:
            check_padding_mask("memory_padding_mask", memory_padding_mask, memory)
        memories = None if memory is None else [memory] * len(self.blocks)
        memory_mask = None if memory_padding_mask is None else padding_attention_mask(memory_padding_mask)
        return self.walk(
            x,
            positions,
            attention_masks,
            memories=memories,
            memory_mask=memory_mask,
            training=training,
            lengths=lengths,
        )[0]

    @method_of_graph
    def start(self, token_ids, padding_mask, capacity, memory=None, memory_padding_mask=None):
        """The state after all but the last token of left-padded prompts.

        Args:
            token_ids: (B, P) int, P >= 1; P >= 2 where it is not known.
            padding_mask: (B, P), True or 1 = real; padding stands on the left.
            capacity: number of slots, at least P.
            memory, memory_padding_mask: as for `call`.

        Returns:
            A dict of tensors with the batch axis first: `caches`, `padding` (B,), the number of padded slots, and
            with a memory its projected `memories` and `memory_mask`.
        """
        batch_size, length = ops.shape(token_ids)[:2]
        shape = (batch_size, self.num_key_value_heads, length - 1, self.head_dim)
        state = {
            "caches": [(ops.zeros(shape, self.compute_dtype),) * 2 for _ in self.blocks],
            "padding": length - ops.sum(ops.cast(padding_mask, "int32"), axis=1),
        }
        if memory is not None:
            state["memories"] = [block.project_memory(memory) for block in self.blocks]
            state["memory_mask"] = ops.cast(memory_padding_mask, "bool")
        if token_ids.shape[1] != 1:
            _, state = self.step(token_ids[:, :-1], state, 0, num_following=1)
        return self.grow(state, capacity)

    @method_of_graph
    def step(self, token_ids, state, index, num_following=None):
        """Tokens (B, T) in the slots from `index` on -> their hidden states (B, T, D) and the new state.

        `index` is a scalar, or (B,), a slot for each row; 0 to capacity - T, as for `backend.write_slots`.

        `num_following` says how many more tokens the prompt has that these belong to; it matters to rotary positions
        that follow the length. By default tokens read from slot 0 on, a Python int, are a whole prompt, and others each
        the last of its text so far.
        """
        check_index(index, token_ids)
        length, capacity = ops.shape(token_ids)[1], ops.shape(state["caches"][0][0])[2]
        padding = ops.expand_dims(state["padding"], 1)  # (B, 1)
        slots = slots_from(index, ops.arange(length, dtype="int32"))
        positions = (slots if len(slots.shape) == 2 else ops.expand_dims(slots, 0)) - padding  # (B, T)
        # Padding stands before position 0; a finished row may walk on past the last one.
        last = capacity if self.max_sequence_length is None else self.max_sequence_length
        positions = ops.clip(positions, 0, last - 1)
        x = self.embeddings(token_ids, positions)
        key_slots = ops.expand_dims(ops.arange(capacity, dtype="int32"), 0)
        is_real = padding_attention_mask(key_slots >= padding)
        attention_masks = self._masks(length, capacity, index, is_real)
        memory_mask = padding_attention_mask(state["memory_mask"]) if "memories" in state else None
        lengths = None
        if self._follows_lengths:
            if num_following is None and isinstance(index, int) and index == 0:
                num_following = 0
            lengths = positions + 1 if num_following is None else slots[..., -1:] + 1 + num_following - padding
        x, caches = self.walk(
            x,
            positions,
            attention_masks,
            state["caches"],
            index,
            state.get("memories"),
            memory_mask,
            training=False,
            lengths=lengths,
        )
        return x, {**state, "caches": caches}

    def _masks(self, length, capacity, index, is_seen):
        """What the queries of each block see, a list of (B, 1, T, S): blocks of one window share theirs."""
        masks = {}
        for window in dict.fromkeys(self.windows):
            masks[window] = causal_mask(length, capacity, index, window)
            if is_seen is not None:
                masks[window] = ops.logical_and(masks[window], is_seen)
        return [masks[window] for window in self.windows]

    def grow(self, state, capacity):
        """The same state with room for `capacity` slots."""

        def pad(cache):
            return ops.pad(cache, ((0, 0), (0, 0), (0, capacity - ops.shape(cache)[2]), (0, 0)))

        return {**state, "caches": [tuple(map(pad, pair)) for pair in state["caches"]]}
