"""Llama (Touvron et al. 2023) and its relatives as Hugging Face lays them out: Mistral, Qwen2, Qwen3, SmolLM2."""

from kerasllm.arguments import shown
from kerasllm.checkpoints import config_map, weight_map
from kerasllm.checkpoints.config_map import Kind, activation, boolean, optional_size, positive, rate, size
from kerasllm.checkpoints.weight_map import same, transposed

ROPE_BASE = 10000.0
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# What the types that we know read. The other names that transformers knows say nothing about them.
ROPE_TYPES = {"default": ("rope_type",), "linear": ("rope_type", "factor"), "llama3": ("rope_type", *LLAMA3)}
ROPE_NAMES = frozenset(
    """
    rope_type factor original_max_position_embeddings attention_factor beta_fast beta_slow short_factor long_factor
    low_freq_factor high_freq_factor mscale mscale_all_dim truncate mrope_section
    """.split()
)


def _is_scaling(value):
    if not isinstance(value, dict) or value.get("rope_type") not in ("linear", "llama3"):
        return value is None
    return set(value) == set(ROPE_TYPES[value["rope_type"]]) and all(
        positive.accepts(number) for name, number in value.items() if name != "rope_type"
    )


rope_scaling = Kind(
    "null or an object of rope_type 'default', 'linear' with its factor, or 'llama3' with " + ", ".join(LLAMA3),
    _is_scaling,
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
    ("rope_theta", "rope_base", positive, ROPE_BASE),
    ("rope_scaling", "rope_scaling", rope_scaling, None),
    ("attention_dropout", "dropout", rate, 0.0),
    ("initializer_range", "initializer_range", positive, 0.02),
    ("tie_word_embeddings", "tie_embeddings", boolean, False),
]
WINDOWS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
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
        windows_by_block: whether its config says of each block whether it has a window.
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
        windows_by_block=False,
    ):
        defaults = defaults or {}
        self.MODEL_TYPE, self.ARCHITECTURES = model_type, {"GPT": architecture}
        self.fields = [(*row[:3], defaults.get(row[0], row[3])) for row in FIELDS] + list(fields)
        read = {row[1] for row in self.fields}
        self.fixed = {name: value for name, value in (FIXED | (fixed or {})).items() if name not in read}
        self.supported, self.irrelevant = SUPPORTED | (supported or {}), (*IRRELEVANT, *irrelevant)
        self.rows, self.windows_by_block = [*TABLE, *rows], windows_by_block

    def read_config(self, config, class_name, tensor_names):
        """The arguments of a `GPT` from config.json."""
        [length] = [row[3] for row in self.fields if row[0] == "max_position_embeddings"]
        plain = _with_plain_rope(_without_windows(config) if self.windows_by_block else config, length)
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
QWEN2 = LlamaFamily(
    "qwen2", "Qwen2ForCausalLM", QWEN_DEFAULTS, {"use_qkv_bias": True}, rows=BIASES, windows_by_block=True
)
QWEN3 = LlamaFamily(
    "qwen3",
    "Qwen3ForCausalLM",
    QWEN_DEFAULTS | {"head_dim": 128},
    {"query_key_norm": True},
    rows=NORMS,
    windows_by_block=True,
)
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3)


def _with_prefix(name):
    # Files of a bare model without its head lack the prefix.
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def _with_plain_rope(config, length):
    """The config with `rope_theta` and `rope_scaling`, whatever the age of what says them.

    As in transformers 5, `rope_scaling` replaces all of `rope_parameters`; in either of them `rope_type` goes before
    the older `type`, and `rope_theta` before that of the config. `length` is the default of max_position_embeddings.
    """
    config = dict(config)
    parameters, first_length = config.pop("rope_parameters", None), config.pop("original_max_position_embeddings", None)
    scaling = parameters if config.get("rope_scaling") in (None, {}) else config["rope_scaling"]
    scaling = None if scaling == {} else scaling
    if isinstance(scaling, dict):
        scaling = {"type": "default"} | scaling
        kind = scaling.setdefault("rope_type", scaling.pop("type"))
        config["rope_theta"] = scaling.pop("rope_theta", config.get("rope_theta", ROPE_BASE))
        if scaling.get("partial_rotary_factor") == 1:
            del scaling["partial_rotary_factor"]
        names = ROPE_TYPES.get(kind if isinstance(kind, str) else None, ROPE_NAMES)
        scaling = {name: value for name, value in scaling.items() if name in names or name not in ROPE_NAMES}
        if kind == "llama3":
            length = scaling.get("original_max_position_embeddings", config.get("max_position_embeddings", length))
            scaling["original_max_position_embeddings"] = length if first_length is None else first_length
        if scaling == {"rope_type": "default"}:
            scaling = None
    config["rope_scaling"] = scaling
    return config


def _without_windows(config):
    """The config of Qwens without what it says about windows, or a `ValueError` where a block has one."""
    config, said = dict(config), {name: config[name] for name in WINDOWS if name in config}
    for name in WINDOWS:
        config.pop(name, None)
    layers, after = config.get("num_hidden_layers", 32), said.get("max_window_layers", 28)
    types, uses = said.get("layer_types"), said.get("use_sliding_window", False)
    if not boolean.accepts(uses):
        raise ValueError(f"config.json: use_sliding_window ({shown(uses)}) must be {boolean.accepted}.")
    if types is not None:
        slides = not isinstance(types, list) or any(kind != "full_attention" for kind in types)
    else:
        slides = said.get("sliding_window", 4096) is not None and not (
            size.accepts(layers) and size.accepts(after) and after >= layers
        )
        slides = slides and uses
    if slides or type(after) not in (int, type(None)):
        fields = ", ".join(f"{name} ({shown(value)})" for name, value in said.items())
        raise ValueError(f"config.json: {fields}: a block with a sliding window is not known in this family.")
    return config
