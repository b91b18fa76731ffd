"""T5 (Raffel et al. 2019), T5 1.1 and Flan-T5 as Hugging Face lays them out: `T5ForConditionalGeneration`."""

from kerasllm.checkpoints.config_map import UNSAID, activation, boolean, choice, positive, rate, shared_size, size
from kerasllm.checkpoints.encoder_decoder_family import both, encoder_decoder_family
from kerasllm.checkpoints.weight_map import linear, rms_norm, same, transposed

FIELDS = [
    ("vocab_size", ("source_vocabulary_size", "target_vocabulary_size"), shared_size, 32128),
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
    (
        "feed_forward_proj",
        ("activation", "gated"),
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
    # What follows from feed_forward_proj; where a file says it too, that goes before.
    ("dense_act_fn", "activation", activation, UNSAID),
    ("is_gated_act", "gated", boolean, UNSAID),
    ("scale_decoder_outputs", "scale_head", boolean, True),
    ("tie_word_embeddings", "tie_embeddings", boolean, True),
]
SHARED = "shared.weight"
HEAD = ("lm_head.weight", "head/kernel", transposed)


def _block(side):
    prefix, path = f"{side}.block.{{i}}.layer", f"{side}/block_{{i}}"
    sublayers = {"SelfAttention": "attention"} | ({"EncDecAttention": "cross_attention"} if side == "decoder" else {})
    table = rms_norm(f"{prefix}.{len(sublayers)}.layer_norm", f"{path}/feed_forward_norm")
    for number, (theirs, ours) in enumerate(sublayers.items()):
        table += rms_norm(f"{prefix}.{number}.layer_norm", f"{path}/{ours}_norm")
        for their_name, our_name in {"q": "query", "k": "key", "v": "value", "o": "output"}.items():
            table += linear(f"{prefix}.{number}.{theirs}.{their_name}", f"{path}/{ours}/{our_name}", bias=None)
    return table


def _feed_forward(side, gated):
    prefix = f"{side}.block.{{i}}.layer.{2 if side == 'decoder' else 1}.DenseReluDense"
    names = {"wi_0": "gate", "wi_1": "input", "wo": "output"} if gated else {"wi": "input", "wo": "output"}
    path = f"{side}/block_{{i}}/feed_forward"
    return [row for theirs, ours in names.items() for row in linear(f"{prefix}.{theirs}", f"{path}/{ours}", bias=None)]


def _stack(side):
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ends = [(bias, f"{side}/position_bias/embeddings", same)]
    return [*_block(side), *ends, *rms_norm(f"{side}.final_layer_norm", f"{side}/final_norm")]


def _rows(arguments):
    feed_forwards = both(lambda side: _feed_forward(side, arguments["gated"]))
    shared = (SHARED, "encoder/embeddings/token/embeddings", same)
    return [*both(_stack), *feed_forwards, shared, *([] if arguments["tie_embeddings"] else [HEAD])]


def _tied(arguments):
    tied = {"encoder.embed_tokens.weight": SHARED, "decoder.embed_tokens.weight": SHARED}
    return tied | ({HEAD[0]: SHARED} if arguments["tie_embeddings"] else {})


def _prepare(config):
    config = dict(config)
    if config.get("num_decoder_layers") is None:
        config["num_decoder_layers"] = config.get("num_layers", 6)
    # Up to version 4 transformers said by tie_word_embeddings whether the head is scaled; now it says so.
    config.setdefault("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    return config


def _told_by_tensors(arguments, tensor_names):
    # Whether an unscaled head is tied.
    return {"tie_embeddings": arguments["scale_head"] or HEAD[0] not in tensor_names}


T5 = encoder_decoder_family(
    "t5",
    "T5ForConditionalGeneration",
    FIELDS,
    _rows,
    fixed={
        "max_sequence_length": None,
        "norm": "rms",
        "positions": "relative",
        "attention_scale": 1.0,
        "use_bias": False,
        "share_embeddings": True,
    },
    second_names={
        "head_dim": "d_kv",
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
    },
    # n_positions are the lengths trained on; nothing ends there.
    irrelevant=("classifier_dropout", "initializer_factor", "n_positions"),
    prepare=_prepare,
    told_by_tensors=_told_by_tensors,
    tied=_tied,
    # Of an older implementation, which did not use it.
    ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
)
