"""BART (Lewis et al. 2019) as Hugging Face lays it out: `BartForConditionalGeneration`. Marian shares its blocks."""

import numpy as np

from kerasllm.checkpoints import config_map, weight_map
from kerasllm.checkpoints.config_map import activation, boolean, positive, rate, size
from kerasllm.checkpoints.weight_map import after, row, same, transposed

MODEL_TYPE = "bart"
ARCHITECTURES = {"TransformerTranslator": "BartForConditionalGeneration"}

SIZES = [
    ("encoder_layers", "num_layers", size, 12),
    ("decoder_layers", "num_decoder_layers", size, 12),
    ("encoder_attention_heads", "num_heads", size, 16),
    ("decoder_attention_heads", "num_decoder_heads", size, 16),
    ("d_model", "hidden_dim", size, 1024),
    ("encoder_ffn_dim", "intermediate_dim", size, 4096),
    ("decoder_ffn_dim", "decoder_intermediate_dim", size, 4096),
    ("max_position_embeddings", "max_sequence_length", size, 1024),
    (("dropout", "attention_dropout", "activation_dropout"), "dropout", rate, (0.1, 0.0, 0.0)),
    ("activation_function", "activation", activation, "gelu"),
    ("scale_embedding", "scale_embeddings", boolean, False),
    ("init_std", "initializer_range", positive, 0.02),
]
FIELDS = [("vocab_size", "source_vocabulary_size", size, 50265), *SIZES]
SECOND_NAMES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
BLOCKS = {
    "norm_first": False,
    "head_dim": None,
    "attention_scale": None,
    "gated": False,
    "norm": "layer",
    "norm_epsilon": 1e-5,
    "use_bias": True,
    "use_head_bias": True,
    "scale_head": False,
}
FIXED = BLOCKS | {"positions": "learned", "norm_embeddings": True, "tie_embeddings": True, "share_embeddings": True}
SUPPORTED = {
    "is_encoder_decoder": (True,),
    "normalize_before": (False,),
    "add_final_layer_norm": (False,),
    "add_bias_logits": (False,),
}
LEARNED = {"normalize_embedding": (True,), "static_position_embeddings": (False,), "tie_word_embeddings": (True,)}
IRRELEVANT = (
    *SECOND_NAMES,
    # Of training, and of heads of other tasks.
    "classif_dropout",
    "classifier_dropout",
    "decoder_layerdrop",
    "encoder_layerdrop",
    "save_step",
    "extra_pos_embeddings",  # the rows after which BART's positions begin, which transformers reads no more
    # Of generation.
    "force_bos_token_to_be_generated",
)


def norm(prefix, path):
    """The rows of a norm."""
    return [(f"{prefix}.weight", f"{path}/gamma", same), (f"{prefix}.bias", f"{path}/beta", same)]


def dense(prefix, path):
    """The rows of a projection."""
    return [(f"{prefix}.weight", f"{path}/kernel", transposed), (f"{prefix}.bias", f"{path}/bias", same)]


def block(side):
    """The rows of an encoder's or a decoder's block."""
    prefix, path = f"model.{side}.layers.{{i}}", f"{side}/block_{{i}}"
    attentions = {"self_attn": "attention"} | ({"encoder_attn": "cross_attention"} if side == "decoder" else {})
    projections = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    table = [
        *dense(f"{prefix}.fc1", f"{path}/feed_forward/input"),
        *dense(f"{prefix}.fc2", f"{path}/feed_forward/output"),
        *norm(f"{prefix}.final_layer_norm", f"{path}/feed_forward_norm"),
    ]
    for theirs, ours in attentions.items():
        table += norm(f"{prefix}.{theirs}_layer_norm", f"{path}/{ours}_norm")
        for their_name, our_name in projections.items():
            table += dense(f"{prefix}.{theirs}.{their_name}", f"{path}/{ours}/{our_name}")
    return table


ENCODER, DECODER = block("encoder"), block("decoder")
HEAD_BIAS = ("final_logits_bias", "head/bias", row)
SHARED = ("model.shared.weight", "encoder/embeddings/token/embeddings", same)
TIED = {
    name: "model.shared.weight"
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
}
EMBEDDINGS = [
    SHARED,
    # Nothing looks up the first two positions.
    ("model.encoder.embed_positions.weight", "encoder/embeddings/position/embeddings", after(2)),
    ("model.decoder.embed_positions.weight", "decoder/embeddings/position/embeddings", after(2)),
    *norm("model.encoder.layernorm_embedding", "encoder/embeddings/norm"),
    *norm("model.decoder.layernorm_embedding", "decoder/embeddings/norm"),
]
IGNORED = ("model.encoder.version", "model.decoder.version")


def read_config(config, class_name, tensor_names):
    """The arguments of a `TransformerTranslator` from config.json."""
    config = config_map.renamed(config, SECOND_NAMES)
    arguments = config_map.read(FIELDS, config, SUPPORTED | LEARNED, IRRELEVANT)
    return arguments | {"target_vocabulary_size": arguments["source_vocabulary_size"]} | FIXED


def write_config(class_name, arguments):
    """config.json for a `TransformerTranslator`; None for one that is no BART."""
    fixed = {name: (value,) for name, value in FIXED.items()}
    fixed["target_vocabulary_size"] = (arguments["source_vocabulary_size"],)
    config = config_map.write(FIELDS, filled(arguments), fixed | no_buckets(arguments))
    return config and {**config, "is_encoder_decoder": True, "tie_word_embeddings": True}


def read_weights(class_name, arguments, tensors, shapes):
    """Values of the variables of a `TransformerTranslator`: dict path -> array."""
    tensors = with_bias(weight_map.renamed(tensors, with_prefix), arguments)
    return weight_map.read(_rows(arguments), tensors, shapes, IGNORED, TIED)


def write_weights(class_name, arguments, arrays):
    """The tensors of a BART from the values of a `TransformerTranslator`'s variables."""
    return weight_map.write(_rows(arguments), arrays)


def _rows(arguments):
    return expand_blocks(arguments, ENCODER, DECODER) + weight_map.expand([*EMBEDDINGS, HEAD_BIAS], 1)


# What Marian needs as well; the first two T5, too.


def filled(arguments):
    """The arguments with the numbers that are left to defaults."""
    width = arguments["intermediate_dim"] or 4 * arguments["hidden_dim"]
    return arguments | {
        "intermediate_dim": width,
        "num_decoder_layers": arguments["num_decoder_layers"] or arguments["num_layers"],
        "num_decoder_heads": arguments["num_decoder_heads"] or arguments["num_heads"],
        "decoder_intermediate_dim": arguments["decoder_intermediate_dim"] or width,
    }


def expand_blocks(arguments, encoder, decoder):
    """The rows of all blocks."""
    num_decoder_layers = arguments["num_decoder_layers"] or arguments["num_layers"]
    return weight_map.expand(encoder, arguments["num_layers"]) + weight_map.expand(decoder, num_decoder_layers)


def no_buckets(arguments):
    """Any value will do of what says something about relative positions only."""
    return {name: (arguments[name],) for name in ("num_buckets", "max_distance")}


def with_prefix(name):
    """The full name: files of a bare model without its head lack the prefix."""
    return name if name.startswith(("model.", "lm_head.", "final_logits_bias")) else f"model.{name}"


def with_bias(tensors, arguments):
    """The tensors with an output bias: as in transformers it is 0 where a file has none."""
    return {"final_logits_bias": np.zeros((1, arguments["target_vocabulary_size"]), "float32")} | tensors
