"""GPT-2 (Radford et al. 2019) as Hugging Face lays it out: `GPT2LMHeadModel`."""

from kerasllm.checkpoints.config_map import activation, boolean, optional_size, positive, rate, size
from kerasllm.checkpoints.decoder_family import decoder_family
from kerasllm.checkpoints.family import with_prefix
from kerasllm.checkpoints.weight_map import fused, linear, norm, same

FIELDS = [
    ("vocab_size", "vocabulary_size", size, 50257),
    ("n_positions", "max_sequence_length", size, 1024),
    ("n_embd", "hidden_dim", size, 768),
    ("n_layer", "num_layers", size, 12),
    ("n_head", "num_heads", size, 12),
    ("n_inner", "intermediate_dim", optional_size, None),
    ("activation_function", "activation", activation, "gelu_new"),
    (("resid_pdrop", "embd_pdrop", "attn_pdrop"), "dropout", rate, 0.1),
    ("layer_norm_epsilon", "norm_epsilon", positive, 1e-5),
    ("initializer_range", "initializer_range", positive, 0.02),
    ("tie_word_embeddings", "tie_embeddings", boolean, True),
]
BLOCK, OURS = "transformer.h.{i}", "decoder/block_{i}"
# GPT-2 stores kernels (in, out), as we do: `same`.
ROWS = [
    ("transformer.wpe.weight", "decoder/embeddings/position/embeddings", same),
    *norm(f"{BLOCK}.ln_1", f"{OURS}/attention_norm"),
    *linear(f"{BLOCK}.attn.c_attn", [f"{OURS}/attention/{p}" for p in ("query", "key", "value")], fused, fused),
    *linear(f"{BLOCK}.attn.c_proj", f"{OURS}/attention/output", same),
    *norm(f"{BLOCK}.ln_2", f"{OURS}/feed_forward_norm"),
    *linear(f"{BLOCK}.mlp.c_fc", f"{OURS}/feed_forward/input", same),
    *linear(f"{BLOCK}.mlp.c_proj", f"{OURS}/feed_forward/output", same),
    *norm("transformer.ln_f", "decoder/final_norm"),
]


def _without_usual_width(config):
    # As transformers writes it.
    return config | ({"n_inner": None} if config["n_inner"] == 4 * config["n_embd"] else {})


GPT2 = decoder_family(
    "gpt2",
    "GPT2LMHeadModel",
    FIELDS,
    ROWS,
    embeddings="transformer.wte.weight",
    head="lm_head.weight",
    second_names={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    supported={
        "reorder_and_upcast_attn": (False,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
    },
    irrelevant=(
        "n_ctx",  # the length trained on; n_positions is the limit
        *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
    ),
    finish=_without_usual_width,
    rename=with_prefix("transformer.", "lm_head."),  # OpenAI's release is of a bare model
    # Causal masks, which older files carry along.
    ignored=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias"),
)
