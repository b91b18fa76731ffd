"""BART (Lewis et al. 2019) as Hugging Face lays it out: `BartForConditionalGeneration`. Marian shares its blocks."""

import numpy as np

from kerasllm.checkpoints.config_map import activation, boolean, positive, rate, shared_size, size
from kerasllm.checkpoints.encoder_decoder_family import both, encoder_decoder_family
from kerasllm.checkpoints.family import with_prefix
from kerasllm.checkpoints.weight_map import after, linear, norm, row, same

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
FIXED = {"residual": "post", "use_head_bias": True}
SECOND_NAMES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
SUPPORTED = {"normalize_before": (False,), "add_final_layer_norm": (False,), "add_bias_logits": (False,)}
IRRELEVANT = (
    # Of training, and of heads of other tasks.
    *("classif_dropout", "classifier_dropout", "decoder_layerdrop", "encoder_layerdrop", "save_step"),
    "extra_pos_embeddings",  # the rows after which BART's positions begin, which transformers reads no more
    # Of generation.
    "force_bos_token_to_be_generated",
)


def block(side):
    """The rows of an encoder's or a decoder's block."""
    prefix, path = f"model.{side}.layers.{{i}}", f"{side}/block_{{i}}"
    attentions = {"self_attn": "attention"} | ({"encoder_attn": "cross_attention"} if side == "decoder" else {})
    projections = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    table = [
        *linear(f"{prefix}.fc1", f"{path}/feed_forward/input"),
        *linear(f"{prefix}.fc2", f"{path}/feed_forward/output"),
        *norm(f"{prefix}.final_layer_norm", f"{path}/feed_forward_norm"),
    ]
    for theirs, ours in attentions.items():
        table += norm(f"{prefix}.{theirs}_layer_norm", f"{path}/{ours}_norm")
        for their_name, our_name in projections.items():
            table += linear(f"{prefix}.{theirs}.{their_name}", f"{path}/{ours}/{our_name}")
    return table


def embeddings(side):
    """The rows of a BART's positions, of which nothing looks up the first two, and of the norm after them."""
    return [
        (f"model.{side}.embed_positions.weight", f"{side}/embeddings/position/embeddings", after(2)),
        *norm(f"model.{side}.layernorm_embedding", f"{side}/embeddings/norm"),
    ]


SHARED = ("model.shared.weight", "encoder/embeddings/token/embeddings", same)
HEAD_BIAS = ("final_logits_bias", "head/bias", row)
TIED = {
    name: SHARED[0]
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
}
with_full_names = with_prefix("model.", "lm_head.", "final_logits_bias")
IGNORED = ("model.encoder.version", "model.decoder.version")


def with_bias(tensors, arguments):
    """The tensors with an output bias: as in transformers it is 0 where a file has none."""
    return {HEAD_BIAS[0]: np.zeros((1, arguments["target_vocabulary_size"]), "float32")} | tensors


BART = encoder_decoder_family(
    "bart",
    "BartForConditionalGeneration",
    [("vocab_size", ("source_vocabulary_size", "target_vocabulary_size"), shared_size, 50265), *SIZES],
    [*both(block), SHARED, *both(embeddings), HEAD_BIAS],
    fixed=FIXED | {"norm_embeddings": True, "tie_embeddings": True, "share_embeddings": True},
    second_names=SECOND_NAMES,
    supported={
        **SUPPORTED,
        "normalize_embedding": (True,),
        "static_position_embeddings": (False,),
        "tie_word_embeddings": (True,),
    },
    irrelevant=IRRELEVANT,
    written={"tie_word_embeddings": True},
    rename=with_full_names,
    complete=with_bias,
    tied=TIED,
    ignored=IGNORED,
)
