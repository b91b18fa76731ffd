"""Llama (Touvron et al. 2023) and its relatives as Hugging Face lays them out: Mistral, Qwen2, Qwen3, SmolLM2."""

from kerasllm.arguments import is_whole, shown
from kerasllm.checkpoints import rope_fields, window_fields
from kerasllm.checkpoints.config_map import activation, boolean, optional_size, positive, rate, size
from kerasllm.checkpoints.decoder_family import decoder_family
from kerasllm.checkpoints.family import replaced, with_defaults, with_prefix
from kerasllm.checkpoints.gguf_names import GGUFNames
from kerasllm.checkpoints.weight_map import linear, rms_norm, same

FIELDS = [
    ("vocab_size", "vocabulary_size", size, 32000),
    ("max_position_embeddings", "max_sequence_length", size, 2048),
    ("hidden_size", "hidden_dim", size, 4096),
    ("intermediate_size", "intermediate_dim", size, 11008),
    ("num_hidden_layers", "num_layers", size, 32),
    ("num_attention_heads", "num_heads", size, 32),
    ("num_key_value_heads", "num_key_value_heads", optional_size, None),
    ("head_dim", "head_dim", optional_size, None),
    ("hidden_act", "activation", activation, "silu"),
    ("rms_norm_eps", "norm_epsilon", positive, 1e-6),
    *rope_fields.FIELDS,
    ("attention_dropout", "dropout", rate, 0.0),
    ("initializer_range", "initializer_range", positive, 0.02),
    ("tie_word_embeddings", "tie_embeddings", boolean, False),
]
FIXED = {"norm": "rms", "positions": "rotary", "gated": True, "use_bias": False}
BLOCK, OURS = "model.layers.{i}", "decoder/block_{i}"
ROWS = [
    *rms_norm(f"{BLOCK}.input_layernorm", f"{OURS}/attention_norm"),
    *linear(f"{BLOCK}.self_attn.q_proj", f"{OURS}/attention/query", bias=None),
    *linear(f"{BLOCK}.self_attn.k_proj", f"{OURS}/attention/key", bias=None),
    *linear(f"{BLOCK}.self_attn.v_proj", f"{OURS}/attention/value", bias=None),
    *linear(f"{BLOCK}.self_attn.o_proj", f"{OURS}/attention/output", bias=None),
    *rms_norm(f"{BLOCK}.post_attention_layernorm", f"{OURS}/feed_forward_norm"),
    *linear(f"{BLOCK}.mlp.gate_proj", f"{OURS}/feed_forward/gate", bias=None),
    *linear(f"{BLOCK}.mlp.up_proj", f"{OURS}/feed_forward/input", bias=None),
    *linear(f"{BLOCK}.mlp.down_proj", f"{OURS}/feed_forward/output", bias=None),
    *rms_norm("model.norm", "decoder/final_norm"),
]
SUPPORTED = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
}
IRRELEVANT = (
    "is_llama_config",
    "pretraining_tp",  # how the products were parted among machines
    "transformers.js_config",
)


def family(model_type, architecture, defaults=None, fields=(), rows=(), fixed=None, supported=SUPPORTED, **more):
    """A family like Llama.

    Args:
        model_type, architecture, supported, **more: as for `decoder_family`.
        defaults: dict field -> what transformers takes when it is absent, where that is not what it is for Llama.
        fields, rows, fixed: what its configs, its tensors and all its models have beside Llama's, or in their place.
    """
    return decoder_family(
        model_type,
        architecture,
        with_defaults(replaced(FIELDS, fields), defaults or {}),
        replaced(ROWS, rows),
        embeddings="model.embed_tokens.weight",
        head="lm_head.weight",
        fixed=FIXED | (fixed or {}),
        supported=supported,
        irrelevant=IRRELEVANT,
        rename=with_prefix("model.", "lm_head."),
        # The frequencies of the rotary positions, which older files carry along.
        ignored=("model.layers.*.self_attn.rotary_emb.inv_freq",),
        **more,
    )


LLAMA = family(
    "llama",
    "LlamaForCausalLM",
    gguf=GGUFNames(
        "llama",
        {
            "block_count": "num_hidden_layers",
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "feed_forward_length": "intermediate_size",
            "attention.head_count": "num_attention_heads",
            "attention.head_count_kv": "num_key_value_heads",
            "attention.key_length": "head_dim",
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
            "rope.freq_base": "rope_theta",
        },
        # llama.cpp has its own values for the others: as many heads of keys as of queries, a base of 10,000.
        required=(
            "block_count",
            "context_length",
            "embedding_length",
            "feed_forward_length",
            "attention.head_count",
            "attention.layer_norm_rms_epsilon",
        ),
        tensors={
            "token_embd": "model.embed_tokens",
            "output_norm": "model.norm",
            "output": "lm_head",
            "attn_norm": "input_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        },
        block="model.layers.{i}.",
        in_pairs=("attn_q", "attn_k"),
    ),
)
MISTRAL = family(
    "mistral",
    "MistralForCausalLM",
    {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 4096 * 32},
    fields=[("sliding_window", "sliding_window", optional_size, 4096)],
)


def _with_windows(config):
    usual = {"num_hidden_layers": 32, "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}
    config = usual | config
    uses, first = config.pop("use_sliding_window"), config.pop("max_window_layers")
    if not boolean.accepts(uses):
        raise ValueError(f"config.json: use_sliding_window ({shown(uses)}) must be {boolean.accepted}.")
    if first is not None and not is_whole(first):
        raise ValueError(f"config.json: max_window_layers ({shown(first)}) must be null or a whole number.")
    config["sliding_window"] = config["sliding_window"] if uses else None
    return window_fields.read(config, lambda block: first is not None and block >= first)


def _with_windows_said(config):
    if config["sliding_window"] is None:
        return {name: value for name, value in config.items() if name != "sliding_window"}
    return window_fields.written(config) | {"use_sliding_window": True}


QWEN_DEFAULTS = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
}
QWEN2 = family(
    "qwen2",
    "Qwen2ForCausalLM",
    QWEN_DEFAULTS,
    fields=[window_fields.FIELD],
    rows=[
        (f"{BLOCK}.self_attn.{name[0]}_proj.bias", f"{OURS}/attention/{name}/bias", same)
        for name in ("query", "key", "value")
    ],
    fixed={"use_qkv_bias": True},
    prepare=_with_windows,
    finish=_with_windows_said,
)
QWEN3 = family(
    "qwen3",
    "Qwen3ForCausalLM",
    QWEN_DEFAULTS | {"head_dim": 128},
    fields=[window_fields.FIELD],
    rows=[
        *rms_norm(f"{BLOCK}.self_attn.q_norm", f"{OURS}/attention/query_norm"),
        *rms_norm(f"{BLOCK}.self_attn.k_norm", f"{OURS}/attention/key_norm"),
    ],
    fixed={"query_key_norm": True},
    prepare=_with_windows,
    finish=_with_windows_said,
)
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3)
