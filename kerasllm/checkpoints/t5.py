"""T5 (Raffel et al. 2019), T5 1.1 and Flan-T5 as Hugging Face lays them out: `T5ForConditionalGeneration`."""

from kerasllm.checkpoints import bart, config_map, weight_map
from kerasllm.checkpoints.config_map import activation, boolean, choice, positive, rate, size
from kerasllm.checkpoints.weight_map import same, transposed

MODEL_TYPE = "t5"
ARCHITECTURES = {"TransformerTranslator": "T5ForConditionalGeneration"}

FIELDS = [
    ("vocab_size", "source_vocabulary_size", size, 32128),
    ("num_layers", "num_layers", size, 6),
    ("num_decoder_layers", "num_decoder_layers", size, 6),
    ("num_heads", "num_heads", size, 8),
    ("d_model", "hidden_dim", size, 512),
    ("d_kv", "head_dim", size, 64),
    ("d_ff", "intermediate_dim", size, 2048),
    ("dropout_rate", "dropout", rate, 0.1),
    ("layer_norm_epsilon", "norm_epsilon", positive, 1e-6),
    ("relative_attention_num_buckets", "num_buckets", size, 32),
    ("relative_attention_max_distance", "max_distance", size, 128),
    # Our activation, and whether it is that of a gate.
    (
        "feed_forward_proj",
        "feed_forward",
        choice(
            {
                "relu": ("relu", False),
                "gelu": ("gelu", False),
                "gated-relu": ("relu", True),
                "gated-gelu": ("gelu_tanh", True),
                "gated-silu": ("silu", True),
            }
        ),
        "relu",
    ),
]
SECOND_NAMES = {
    "head_dim": "d_kv",
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
}
# What follows from feed_forward_proj; where a file says it too, that goes before.
ACTIVATION = [("dense_act_fn", "activation", activation, None), ("is_gated_act", "gated", boolean, None)]
FIXED = {
    "max_sequence_length": None,
    "norm_first": True,
    "norm": "rms",
    "positions": "relative",
    "attention_scale": 1.0,
    "use_bias": False,
    "use_head_bias": False,
    "scale_embeddings": False,
    "norm_embeddings": False,
    "share_embeddings": True,
    "initializer_range": None,
}
SUPPORTED = {
    "is_encoder_decoder": (True,),
    "scale_decoder_outputs": (True, False),
    "tie_word_embeddings": (True, False),
}
IRRELEVANT = (
    *SECOND_NAMES,
    "classifier_dropout",
    "initializer_factor",
    # The lengths trained on; nothing ends there.
    "n_positions",
)


def _block(side):
    prefix, path = f"{side}.block.{{i}}.layer", f"{side}/block_{{i}}"
    sublayers = {"SelfAttention": "attention"} | ({"EncDecAttention": "cross_attention"} if side == "decoder" else {})
    table = []
    for number, (theirs, ours) in enumerate(sublayers.items()):
        table.append((f"{prefix}.{number}.layer_norm.weight", f"{path}/{ours}_norm/scale", same))
        for their_name, our_name in {"q": "query", "k": "key", "v": "value", "o": "output"}.items():
            name = f"{prefix}.{number}.{theirs}.{their_name}.weight"
            table.append((name, f"{path}/{ours}/{our_name}/kernel", transposed))
    table.append((f"{prefix}.{len(sublayers)}.layer_norm.weight", f"{path}/feed_forward_norm/scale", same))
    return table


def _feed_forward(side, gated):
    prefix = f"{side}.block.{{i}}.layer.{2 if side == 'decoder' else 1}.DenseReluDense"
    names = {"wi_0": "gate", "wi_1": "input", "wo": "output"} if gated else {"wi": "input", "wo": "output"}
    return [
        (f"{prefix}.{theirs}.weight", f"{side}/block_{{i}}/feed_forward/{ours}/kernel", transposed)
        for theirs, ours in names.items()
    ]


SHARED = "shared.weight"
HEAD = ("lm_head.weight", "head/kernel", transposed)
OTHERS = [(SHARED, "encoder/embeddings/token/embeddings", same)]
for _side in ("encoder", "decoder"):
    _bias = f"{_side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    OTHERS += [
        (_bias, f"{_side}/position_bias/embeddings", same),
        (f"{_side}.final_layer_norm.weight", f"{_side}/final_norm/scale", same),
    ]
TIED = {"encoder.embed_tokens.weight": SHARED, "decoder.embed_tokens.weight": SHARED}
# Of an older implementation, which did not use it.
IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def read_config(config, class_name, tensor_names):
    """The arguments of a `TransformerTranslator`; the tensors tell whether an unscaled head is tied."""
    config = {"num_decoder_layers": None} | config
    if config["num_decoder_layers"] is None:
        config["num_decoder_layers"] = config.get("num_layers", 6)
    config = config_map.renamed(config, SECOND_NAMES)
    said = [row for row in ACTIVATION if row[0] in config]
    arguments = config_map.read([*FIELDS, *said], config, SUPPORTED, IRRELEVANT)
    word, gated = arguments.pop("feed_forward")
    # Up to version 4 transformers said by tie_word_embeddings whether the head is scaled; now it says so.
    scale_head = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    return (
        {"activation": word, "gated": gated}
        | arguments
        | FIXED
        | {
            "target_vocabulary_size": arguments["source_vocabulary_size"],
            "scale_head": scale_head,
            "tie_embeddings": scale_head or HEAD[0] not in tensor_names,
        }
    )


def write_config(class_name, arguments):
    """config.json for a `TransformerTranslator`; None for one that is no T5."""
    plain = bart.filled(arguments)
    plain["head_dim"] = arguments["head_dim"] or arguments["hidden_dim"] // arguments["num_heads"]
    plain["feed_forward"] = (plain.pop("activation"), plain.pop("gated"))
    fixed = {name: (value,) for name, value in FIXED.items()} | {
        "target_vocabulary_size": (plain["source_vocabulary_size"],),
        "num_decoder_heads": (plain["num_heads"],),
        "decoder_intermediate_dim": (plain["intermediate_dim"],),
        "scale_head": (True, False),
        "tie_embeddings": (True, False),
    }
    config = config_map.write(FIELDS, plain, fixed)
    return config and {
        **config,
        "is_encoder_decoder": True,
        "scale_decoder_outputs": arguments["scale_head"],
        "tie_word_embeddings": arguments["tie_embeddings"],
    }


def read_weights(class_name, arguments, tensors, shapes):
    """Values of the variables of a `TransformerTranslator`: dict path -> array."""
    tied = TIED | ({HEAD[0]: SHARED} if arguments["tie_embeddings"] else {})
    return weight_map.read(_rows(arguments), tensors, shapes, IGNORED, tied)


def write_weights(class_name, arguments, arrays):
    """The tensors of a T5 from the values of a `TransformerTranslator`'s variables."""
    return weight_map.write(_rows(arguments), arrays)


def _rows(arguments):
    encoder, decoder = ([*_block(side), *_feed_forward(side, arguments["gated"])] for side in ("encoder", "decoder"))
    others = OTHERS if arguments["tie_embeddings"] else [*OTHERS, HEAD]
    return bart.expand_blocks(arguments, encoder, decoder) + weight_map.expand(others, 1)
