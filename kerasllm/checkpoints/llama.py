"""Llama (Touvron et al. 2023) and its relatives as Hugging Face lays them out: Mistral, Qwen2, Qwen3, SmolLM2."""

from kerasllm.checkpoints import config_map, weight_map
from kerasllm.checkpoints.config_map import Kind, activation, boolean, optional_size, positive, rate, size
from kerasllm.checkpoints.weight_map import same, transposed

ROPE_TYPES = ("linear", "llama3")
rope_scaling = Kind(
    f"null or an object whose rope_type is 'default' or {' or '.join(map(repr, ROPE_TYPES))}",
    lambda value: value is None or (isinstance(value, dict) and value.get("rope_type") in ROPE_TYPES),
)
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
    ("rope_theta", "rope_base", positive, 10000.0),
    ("rope_scaling", "rope_scaling", rope_scaling, None),
    ("attention_dropout", "dropout", rate, 0.0),
    ("initializer_range", "initializer_range", positive, 0.02),
    ("tie_word_embeddings", "tie_embeddings", boolean, False),
]
WINDOW = ("sliding_window", "sliding_window", optional_size, 4096)
# What a `GPT` of these families has always, but where a family says otherwise.
FIXED = {
    "norm": "rms",
    "positions": "rotary",
    "gated": True,
    "use_bias": False,
    "use_qkv_bias": False,
    "query_key_norm": False,
    "sliding_window": None,
}
SUPPORTED = {"attention_bias": (False,), "mlp_bias": (False,), "rope_interleaved": (False,)}
IRRELEVANT = (
    "is_llama_config",
    "pretraining_tp",  # how the products were parted among machines
    "transformers.js_config",
)
TABLE = [
    ("model.embed_tokens.weight", "decoder/embeddings/token/embeddings", same),
    ("model.layers.{i}.input_layernorm.weight", "decoder/block_{i}/attention_norm/scale", same),
    ("model.layers.{i}.self_attn.q_proj.weight", "decoder/block_{i}/attention/query/kernel", transposed),
    ("model.layers.{i}.self_attn.k_proj.weight", "decoder/block_{i}/attention/key/kernel", transposed),
    ("model.layers.{i}.self_attn.v_proj.weight", "decoder/block_{i}/attention/value/kernel", transposed),
    ("model.layers.{i}.self_attn.o_proj.weight", "decoder/block_{i}/attention/output/kernel", transposed),
    ("model.layers.{i}.post_attention_layernorm.weight", "decoder/block_{i}/feed_forward_norm/scale", same),
    ("model.layers.{i}.mlp.gate_proj.weight", "decoder/block_{i}/feed_forward/gate/kernel", transposed),
    ("model.layers.{i}.mlp.up_proj.weight", "decoder/block_{i}/feed_forward/input/kernel", transposed),
    ("model.layers.{i}.mlp.down_proj.weight", "decoder/block_{i}/feed_forward/output/kernel", transposed),
    ("model.norm.weight", "decoder/final_norm/scale", same),
]
BIASES = [
    ("model.layers.{i}.self_attn.q_proj.bias", "decoder/block_{i}/attention/query/bias", same),
    ("model.layers.{i}.self_attn.k_proj.bias", "decoder/block_{i}/attention/key/bias", same),
    ("model.layers.{i}.self_attn.v_proj.bias", "decoder/block_{i}/attention/value/bias", same),
]
NORMS = [
    ("model.layers.{i}.self_attn.q_norm.weight", "decoder/block_{i}/attention/query_norm/scale", same),
    ("model.layers.{i}.self_attn.k_norm.weight", "decoder/block_{i}/attention/key_norm/scale", same),
]
HEAD = [("lm_head.weight", "head/kernel", transposed)]
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
# The frequencies of the rotary positions, which older files carry along.
IGNORED = ("model.layers.*.self_attn.rotary_emb.inv_freq",)


class LlamaFamily:
    """A family that `GPT` reads; what families are, `kerasllm.checkpoints.presets` says.

    Args:
        model_type, architecture: its names in config.json.
        defaults: dict field -> what transformers takes when it is absent, where that is not what it is for Llama.
        fixed: dict argument -> what all its models have, where that is not what Llamas have.
        fields, supported, irrelevant, rows: what its config and its tensors have beyond Llama's.
    """

    def __init__(
        self,
        model_type,
        architecture,
        defaults=None,
        fixed=None,
        fields=(),
        supported=None,
        irrelevant=(),
        rows=(),
    ):
        defaults = defaults or {}
        self.MODEL_TYPE, self.ARCHITECTURES = model_type, {"GPT": architecture}
        self.fields = [(*row[:3], defaults.get(row[0], row[3])) for row in FIELDS] + list(fields)
        read = {row[1] for row in self.fields}
        self.fixed = {name: value for name, value in (FIXED | (fixed or {})).items() if name not in read}
        self.supported, self.irrelevant = SUPPORTED | (supported or {}), (*IRRELEVANT, *irrelevant)
        self.rows = [*TABLE, *rows]

    def read_config(self, config, class_name, tensor_names):
        """The arguments of a `GPT` from config.json."""
        plain = _with_plain_rope(config)
        return config_map.read(self.fields, plain, self.supported, self.irrelevant) | self.fixed

    def write_config(self, class_name, arguments):
        """config.json for a `GPT`; None for one that is not of this family."""
        filled = {
            "intermediate_dim": arguments["intermediate_dim"] or 4 * arguments["hidden_dim"],
            "num_key_value_heads": arguments["num_key_value_heads"] or arguments["num_heads"],
            "head_dim": arguments["head_dim"] or arguments["hidden_dim"] // arguments["num_heads"],
        }
        if arguments["use_qkv_bias"] is None:
            filled["use_qkv_bias"] = arguments["use_bias"]
        return config_map.write(self.fields, arguments | filled, {name: (v,) for name, v in self.fixed.items()})

    def read_weights(self, class_name, arguments, tensors, shapes):
        """Values of the variables of a `GPT`: dict path -> array."""
        tied = TIED if arguments["tie_embeddings"] else {}
        tensors = weight_map.renamed(tensors, _with_prefix)
        return weight_map.read(self._expanded(arguments), tensors, shapes, IGNORED, tied)

    def write_weights(self, class_name, arguments, arrays):
        """The tensors of this family from the values of a `GPT`'s variables."""
        return weight_map.write(self._expanded(arguments), arrays)

    def _expanded(self, arguments):
        head = [] if arguments["tie_embeddings"] else HEAD
        return weight_map.expand([*self.rows, *head], arguments["num_layers"])


LLAMA = LlamaFamily("llama", "LlamaForCausalLM")
MISTRAL = LlamaFamily(
    "mistral",
    "MistralForCausalLM",
    {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 4096 * 32},
    fields=[WINDOW],
)
QWEN_DEFAULTS = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
}
QWEN = {
    "supported": {"use_sliding_window": (False,)},
    "irrelevant": ("layer_types", "max_window_layers", "sliding_window"),  # of use where windows are used
}
QWEN2 = LlamaFamily("qwen2", "Qwen2ForCausalLM", QWEN_DEFAULTS, {"use_qkv_bias": True}, rows=BIASES, **QWEN)
QWEN3 = LlamaFamily(
    "qwen3", "Qwen3ForCausalLM", QWEN_DEFAULTS | {"head_dim": 128}, {"query_key_norm": True}, rows=NORMS, **QWEN
)
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3)


def _with_prefix(name):
    # Files of a bare model without its head lack the prefix.
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def _with_plain_rope(config):
    """The config with `rope_theta` and `rope_scaling`: transformers 5 puts both into `rope_parameters`."""
    config = dict(config)
    scaling = config.pop("rope_parameters", None) or config.get("rope_scaling")
    if isinstance(scaling, dict):
        scaling = dict(scaling)
        if "type" in scaling:  # the oldest name
            scaling.setdefault("rope_type", scaling.pop("type"))
        if "rope_theta" in scaling:
            config["rope_theta"] = scaling.pop("rope_theta")
        if scaling in ({}, {"rope_type": "default"}):
            scaling = None
    config["rope_scaling"] = scaling
    return config
