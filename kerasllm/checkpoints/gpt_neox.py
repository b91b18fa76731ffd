"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745) and Pythia as Hugging Face lays them out: `GPTNeoXForCausalLM`."""

import numpy as np

from kerasllm.checkpoints import rope_fields
from kerasllm.checkpoints.config_map import Kind, activation, boolean, positive, rate, size
from kerasllm.checkpoints.decoder_family import decoder_family
from kerasllm.checkpoints.family import with_prefix
from kerasllm.checkpoints.weight_map import Layout, linear, norm

parallel = Kind(
    boolean.accepted,
    boolean.accepts,
    lambda values: "parallel" if values[0] else "pre",
    {"parallel": True, "pre": False}.get,
)
FIELDS = [
    ("vocab_size", "vocabulary_size", size, 50432),
    ("max_position_embeddings", "max_sequence_length", size, 2048),
    ("hidden_size", "hidden_dim", size, 6144),
    ("intermediate_size", "intermediate_dim", size, 24576),
    ("num_hidden_layers", "num_layers", size, 44),
    ("num_attention_heads", "num_heads", size, 64),
    ("hidden_act", "activation", activation, "gelu"),
    ("layer_norm_eps", "norm_epsilon", positive, 1e-5),
    ("use_parallel_residual", "residual", parallel, True),
    ("rotary_pct", "rotary_fraction", positive, 0.25),
    ("rotary_emb_base", "rope_base", positive, 10000.0),
    rope_fields.SCALING,
    (("hidden_dropout", "attention_dropout"), "dropout", rate, 0.0),
    ("initializer_range", "initializer_range", positive, 0.02),
    ("tie_word_embeddings", "tie_embeddings", boolean, False),
]
BLOCK, OURS = "gpt_neox.layers.{i}", "decoder/block_{i}"


def by_head(num_heads):
    """The `Layout` of queries, keys and values of the first head, then those of the second, and so on."""

    def to_ours(tensor, shapes):
        parts = tensor.T.reshape(*tensor.T.shape[:-1], num_heads, 3, -1)
        return [parts[..., i, :].reshape(shape) for i, shape in enumerate(shapes)]

    def to_foreign(arrays):
        parts = [x.reshape(*x.shape[:-1], num_heads, -1) for x in arrays]
        return np.stack(parts, axis=-2).reshape(*arrays[0].shape[:-1], -1).T

    return Layout(to_ours, to_foreign, lambda shapes: (3 * shapes[0][-1], *shapes[0][:-1]))


def rows(arguments):
    """The rows of a model's tensors."""
    fused, projections = by_head(arguments["num_heads"]), [f"{OURS}/attention/{p}" for p in ("query", "key", "value")]
    return [
        *norm(f"{BLOCK}.input_layernorm", f"{OURS}/attention_norm"),
        *linear(f"{BLOCK}.attention.query_key_value", projections, fused, fused),
        *linear(f"{BLOCK}.attention.dense", f"{OURS}/attention/output"),
        *norm(f"{BLOCK}.post_attention_layernorm", f"{OURS}/feed_forward_norm"),
        *linear(f"{BLOCK}.mlp.dense_h_to_4h", f"{OURS}/feed_forward/input"),
        *linear(f"{BLOCK}.mlp.dense_4h_to_h", f"{OURS}/feed_forward/output"),
        *norm("gpt_neox.final_layer_norm", "decoder/final_norm"),
    ]


GPT_NEOX = decoder_family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    FIELDS,
    rows,
    embeddings="gpt_neox.embed_in.weight",
    head="embed_out.weight",
    fixed={"positions": "rotary"},
    second_names={"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"},
    supported={"attention_bias": (True,)},
    irrelevant=("classifier_dropout",),
    rename=with_prefix("gpt_neox.", "embed_out."),
    # Causal masks and frequencies, which older files carry along.
    ignored=tuple(f"gpt_neox.layers.*.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")),
)
