"""GPT-2 (Radford et al. 2019) as Hugging Face lays it out: `GPT2LMHeadModel`."""

from kerasllm.checkpoints import config_map, weight_map
from kerasllm.checkpoints.config_map import activation, boolean, optional_size, positive, rate, size
from kerasllm.checkpoints.weight_map import fused, same, transposed

MODEL_TYPE = "gpt2"
ARCHITECTURES = {"GPT": "GPT2LMHeadModel"}

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
SECOND_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
SUPPORTED = {
    "reorder_and_upcast_attn": (False,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
}
IRRELEVANT = (
    "n_ctx",  # the length trained on; n_positions is the limit
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
)
QUERY_KEY_VALUE = ("query", "key", "value")
# GPT-2 stores kernels (in, out), as we do: `same`.
TABLE = [
    ("transformer.wte.weight", "decoder/embeddings/token/embeddings", same),
    ("transformer.wpe.weight", "decoder/embeddings/position/embeddings", same),
    ("transformer.h.{i}.ln_1.weight", "decoder/block_{i}/attention_norm/gamma", same),
    ("transformer.h.{i}.ln_1.bias", "decoder/block_{i}/attention_norm/beta", same),
    (
        "transformer.h.{i}.attn.c_attn.weight",
        [f"decoder/block_{{i}}/attention/{p}/kernel" for p in QUERY_KEY_VALUE],
        fused,
    ),
    (
        "transformer.h.{i}.attn.c_attn.bias",
        [f"decoder/block_{{i}}/attention/{p}/bias" for p in QUERY_KEY_VALUE],
        fused,
    ),
    ("transformer.h.{i}.attn.c_proj.weight", "decoder/block_{i}/attention/output/kernel", same),
    ("transformer.h.{i}.attn.c_proj.bias", "decoder/block_{i}/attention/output/bias", same),
    ("transformer.h.{i}.ln_2.weight", "decoder/block_{i}/feed_forward_norm/gamma", same),
    ("transformer.h.{i}.ln_2.bias", "decoder/block_{i}/feed_forward_norm/beta", same),
    ("transformer.h.{i}.mlp.c_fc.weight", "decoder/block_{i}/feed_forward/input/kernel", same),
    ("transformer.h.{i}.mlp.c_fc.bias", "decoder/block_{i}/feed_forward/input/bias", same),
    ("transformer.h.{i}.mlp.c_proj.weight", "decoder/block_{i}/feed_forward/output/kernel", same),
    ("transformer.h.{i}.mlp.c_proj.bias", "decoder/block_{i}/feed_forward/output/bias", same),
    ("transformer.ln_f.weight", "decoder/final_norm/gamma", same),
    ("transformer.ln_f.bias", "decoder/final_norm/beta", same),
]
HEAD = [("lm_head.weight", "head/kernel", transposed)]
TIED = {"lm_head.weight": "transformer.wte.weight"}
# Causal masks, which older files carry along.
IGNORED = ("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias")


def read_config(config, class_name, tensor_names):
    """The arguments of a `GPT` from config.json."""
    config = config_map.renamed(config, SECOND_NAMES)
    return config_map.read(FIELDS, config, SUPPORTED, (*IRRELEVANT, *SECOND_NAMES))


def write_config(class_name, arguments):
    """config.json for a `GPT`; None for one that is no GPT-2."""
    num_heads, hidden_dim = arguments["num_heads"], arguments["hidden_dim"]
    fixed = {
        "norm": ("layer",),
        "positions": ("learned",),
        "gated": (False,),
        "use_bias": (True,),
        "use_qkv_bias": (None, True),
        "query_key_norm": (False,),
        "sliding_window": (None,),
        "num_key_value_heads": (None, num_heads),
        "head_dim": (None, hidden_dim // num_heads),
        # They say nothing about learned positions.
        "rope_base": (arguments.get("rope_base"),),
        "rope_scaling": (arguments.get("rope_scaling"),),
    }
    return config_map.write(FIELDS, arguments, fixed)


def read_weights(class_name, arguments, tensors, shapes):
    """Values of the variables of a `GPT`: dict path -> array."""
    tied = TIED if arguments["tie_embeddings"] else {}
    tensors = weight_map.renamed(tensors, _with_prefix)
    return weight_map.read(_rows(arguments), tensors, shapes, IGNORED, tied)


def write_weights(class_name, arguments, arrays):
    """The tensors of a GPT-2 from the values of a `GPT`'s variables."""
    return weight_map.write(_rows(arguments), arrays)


def _rows(arguments):
    return weight_map.expand(TABLE if arguments["tie_embeddings"] else TABLE + HEAD, arguments["num_layers"])


def _with_prefix(name):
    # Files of a bare GPT2Model, OpenAI's release among them, lack the prefix.
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
