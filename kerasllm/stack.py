"""What a Transformer stack is made of, said once: name, type, default, check and meaning of each argument.

`TransformerStack`, `GPT`, `BERT` and its heads, `Summarizer` and `TransformerTranslator` take their arguments from
here, and the families of checkpoints read here what is off where they do not name it. What is new is one `Argument`
here, and one use by the layer that owns it.
"""

from typing import Annotated, TypedDict

from kerasllm.arguments import (
    check_boolean,
    check_choice,
    check_fraction,
    check_from_zero,
    check_positive,
    check_positive_number,
    check_rate,
    shown,
)
from kerasllm.constructors import Argument, arguments_of

NORMS = ("layer", "rms", "unit_offset_rms")
RESIDUALS = ("pre", "post", "both", "parallel")
# Of the kinds of position that are waves, whether sines and cosines take turns.
SINUSOIDAL = {"sinusoidal": True, "split_sinusoidal": False}
POSITIONS = ("learned", *SINUSOIDAL, "rotary", "relative", "alibi", None)
ROTARY, RELATIVE = {"positions": "rotary"}, {"positions": "relative"}
# Kinds of `rope_scaling`, by its `rope_type`: the other names that it must hold, and those that it may.
ROPE_PARAMETERS = {
    "linear": (("factor",), ()),
    "dynamic": (("factor", "max_position_embeddings"), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("original_max_position_embeddings",),
        tuple(
            "factor max_position_embeddings attention_factor beta_fast beta_slow mscale mscale_all_dim truncate".split()
        ),
    ),
    "longrope": (
        ("short_factor", "long_factor", "original_max_position_embeddings"),
        ("factor", "max_position_embeddings", "attention_factor"),
    ),
}


def _by_its_layer(name, value):
    """The layer that it belongs to checks it."""


def _among(choices):
    return lambda name, value: check_choice(name, value, choices)


def _or_none(check):
    return lambda name, value: None if value is None else check(name, value)


def _by_block(check):
    """Of one value, or of each in a list."""

    def check_each(name, value):
        is_list = isinstance(value, list | tuple)
        if is_list and not value:
            raise ValueError(
                f"{name} ({value}) must be one value, or a non-empty list of values for the blocks in turn."
            )
        for place, one in enumerate(value if is_list else [value]):
            check(f"{name}[{place}]" if is_list else name, one)

    return check_each


def by_block(name, value, num_layers):
    """The value of each block, from one for all or a list that is repeated from block to block.

    Raises:
        ValueError: the list is longer than there are blocks.
    """
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) > num_layers:
        raise ValueError(f"{name} ({shown(value)}) must have at most as many values as blocks ({num_layers}).")
    return [values[i % len(values)] for i in range(num_layers)]


class StackArguments(TypedDict, total=False):
    """The arguments of a stack beside its sizes: symbols V, layers, heads N, width D."""

    intermediate_dim: Annotated[
        int | None,
        Argument(
            None,
            _or_none(check_positive),
            "width F of the feed-forward. Default: 4 D.",
            stands_for=lambda a: 4 * a["hidden_dim"],
        ),
    ]
    max_sequence_length: Annotated[
        int | None,
        Argument(
            512,
            _or_none(check_positive),
            "the longest sequence, and the positions of the learned table; other kinds of position have no limit of "
            "their own, and take None.",
        ),
    ]
    dropout: Annotated[
        float,
        Argument(
            0.0, check_rate, "rate in training, after the embeddings and each sublayer, and on attention weights."
        ),
    ]
    remat: Annotated[
        bool,
        Argument(
            False,
            check_boolean,
            "whether training keeps the inputs of blocks alone and computes each block again for its gradient: less "
            "memory, a third to a half more time, the same results (Chen et al. 2016, arXiv:1604.06174).",
        ),
    ]
    activation: Annotated[
        str, Argument("gelu", _by_its_layer, 'of the feed-forward: "gelu_tanh", or the name of one of Keras.')
    ]
    gated: Annotated[
        bool, Argument(False, check_boolean, "whether the feed-forward has a gate (`GatedFeedForward`; Llama, T5 1.1).")
    ]
    norm: Annotated[
        str, Argument("layer", _among(NORMS), '"layer", "rms", or "unit_offset_rms", whose scale is 1 + w (Gemma).')
    ]
    norm_epsilon: Annotated[float, Argument(1e-5, check_positive_number, "added to the variance in norms.")]
    residual: Annotated[
        str,
        Argument(
            "pre",
            _among(RESIDUALS),
            'how a sublayer joins the stream: "pre", x + sublayer(norm(x)) (GPT-2, Llama, T5); "post", '
            'norm(x + sublayer(x)) (BERT, BART, Marian); "both", x + norm(sublayer(norm(x))) (Gemma 2); "parallel", '
            'x + attention(norm(x)) + feed_forward(norm(x)) (GPT-NeoX). Without "post" a final norm closes the stack.',
        ),
    ]
    positions: Annotated[
        str | None,
        Argument(
            "learned",
            _among(POSITIONS),
            '"learned", "sinusoidal", "split_sinusoidal" (all sines before all cosines: Marian), "rotary", "relative" '
            '(T5), "alibi" or None.',
        ),
    ]
    rope_base: Annotated[
        float | list[float | None],
        Argument(
            10000.0,
            _by_block(_or_none(check_positive_number)),
            "`base` of `RotaryPositions`; or a list of those of the blocks in turn, repeated, None for a block without "
            "positions (SmolLM3).",
            only_with=ROTARY,
        ),
    ]
    rope_scaling: Annotated[
        dict | list[dict | None] | None,
        Argument(
            None,
            _by_block(_by_its_layer),
            "how rotary positions are stretched: `scaling` of `RotaryPositions`; or a list, as of `rope_base`.",
            only_with=ROTARY,
        ),
    ]
    rotary_fraction: Annotated[
        float,
        Argument(
            1.0,
            check_fraction,
            "part of a head's channels that is rotated: `fraction` of `RotaryPositions`.",
            only_with=ROTARY,
        ),
    ]
    num_buckets: Annotated[
        int,
        Argument(
            32,
            check_positive,
            "buckets of relative positions, as for `RelativePositionBias`.",
            only_with=RELATIVE,
        ),
    ]
    max_distance: Annotated[
        int,
        Argument(
            128,
            check_positive,
            "from where on distances share the last bucket of relative positions.",
            only_with=RELATIVE,
        ),
    ]
    scale_embeddings: Annotated[
        bool, Argument(False, check_boolean, "whether token embeddings are multiplied by sqrt(D) (Vaswani et al.).")
    ]
    norm_embeddings: Annotated[
        bool, Argument(False, check_boolean, "whether a norm follows the embeddings (BERT, BART).")
    ]
    embedding_dim: Annotated[
        int | None,
        Argument(
            None,
            _or_none(check_positive),
            "width of the embeddings, which a dense layer widens to D (ELECTRA). Default: D.",
            stands_for=lambda a: a["hidden_dim"],
        ),
    ]
    num_key_value_heads: Annotated[
        int | None,
        Argument(
            None,
            _or_none(check_positive),
            "heads of keys and values, a divisor of N: fewer are grouped-query attention. Default: N.",
            stands_for=lambda a: a["num_heads"],
        ),
    ]
    head_dim: Annotated[
        int | None,
        Argument(
            None,
            _or_none(check_positive),
            "width H of a head. Default: D / N.",
            stands_for=lambda a: a["hidden_dim"] // a["num_heads"],
        ),
    ]
    use_bias: Annotated[
        bool, Argument(True, check_boolean, "whether the projections of attention and feed-forward have a bias.")
    ]
    use_qkv_bias: Annotated[
        bool | None,
        Argument(
            None,
            _or_none(check_boolean),
            "whether those to queries, keys and values have one. Default: `use_bias`.",
            stands_for=lambda a: a["use_bias"],
        ),
    ]
    query_key_norm: Annotated[
        bool, Argument(False, check_boolean, "whether an RMS norm over H follows queries and keys (Qwen3).")
    ]
    attention_scale: Annotated[
        float | None,
        Argument(
            None,
            _or_none(check_positive_number),
            "factor of the attention scores. Default: 1 / sqrt(H); T5 takes 1.",
            stands_for=lambda a: None if a["head_dim"] is None else a["head_dim"] ** -0.5,
        ),
    ]
    attention_softcap: Annotated[
        float | None,
        Argument(
            None,
            _or_none(check_positive_number),
            "attention scores s become c tanh(s / c) with this c (Gemma 2: 50). Default: they do not.",
        ),
    ]
    sliding_window: Annotated[
        int | list[int | None] | None,
        Argument(
            None,
            _by_block(_or_none(check_positive)),
            "a decoder's tokens see themselves and the `sliding_window` - 1 before them (Beltagy et al. 2020, "
            "arXiv:2004.05150; Mistral); or a list of those of the blocks in turn, repeated: [4096, None] is Gemma 2. "
            "None: all before them.",
        ),
    ]
    initializer_range: Annotated[
        float | None,
        Argument(
            None,
            _or_none(check_positive_number),
            "standard deviation of the initial kernels and embeddings. None: Glorot-uniform kernels and embeddings of "
            "deviation 1 / sqrt(D).",
        ),
    ]


class SegmentedStackArguments(StackArguments, total=False):
    """Those of a stack whose tokens may belong to segments."""

    num_segments: Annotated[
        int, Argument(0, check_from_zero, "number of segment (token type) embeddings; 0 for no table.")
    ]


_ALL = arguments_of(SegmentedStackArguments)
OFF = {name: argument.default for name, argument in arguments_of(StackArguments).items()}
"""What a stack is where nobody says anything."""
STANDS_FOR = {name: argument.stands_for for name, argument in _ALL.items() if argument.stands_for}
"""What None stands for: dict argument -> function of all arguments; each reads those before it only."""


def spelled_out(arguments, stands_for=STANDS_FOR):
    """What two equal models share: their arguments with what None stands for, and with those that say nothing off.

    Of what differs from block to block there is a value for each.

    Args:
        arguments: dict, those of a model.
        stands_for: as `STANDS_FOR`.
    """
    said = {name: _one_for_all(name, value, arguments["num_layers"]) for name, value in arguments.items()}
    for name, argument in _ALL.items():
        if name in said and any(said[other] != value for other, value in (argument.only_with or {}).items()):
            said[name] = argument.default
    for name, value_of in stands_for.items():
        if name in said and said[name] is None:
            said[name] = value_of(said)
    return said


def _one_for_all(name, value, num_layers):
    """A list of the blocks' values, as long as there are blocks; or the one that all have."""
    if name not in _ALL or not isinstance(value, list | tuple) or not 0 < len(value) <= num_layers:
        return value
    values = by_block(name, value, num_layers)
    return values[0] if all(other == values[0] for other in values) else values
