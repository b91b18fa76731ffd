"""Gemma 2 (Gemma team 2024, arXiv:2408.00118) as Hugging Face lays it out: `Gemma2ForCausalLM`."""

import math

from kerasllm.checkpoints import llama, window_fields
from kerasllm.checkpoints.config_map import Kind, choice, optional_positive, positive
from kerasllm.checkpoints.llama import BLOCK, OURS
from kerasllm.checkpoints.weight_map import rms_norm


def _scalar(scale):
    value = scale**-2
    return round(value) if math.isclose(value, round(value)) else value


# Our factor of the scores is its root's inverse.
query_scalar = Kind(positive.accepted, positive.accepts, lambda values: values[0] ** -0.5, _scalar)


def _with_windows(config):
    config = {"num_hidden_layers": 26, "sliding_window": 4096} | config
    return window_fields.read(config, lambda block: block % 2 == 0)


GEMMA2 = llama.family(
    "gemma2",
    "Gemma2ForCausalLM",
    {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    fields=[
        (
            "hidden_activation",
            "activation",
            choice({"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}),
            "gelu_pytorch_tanh",
        ),
        ("query_pre_attn_scalar", "attention_scale", query_scalar, 256),
        ("attn_logit_softcapping", "attention_softcap", optional_positive, 50.0),
        ("final_logit_softcapping", "logit_softcap", optional_positive, 30.0),
        window_fields.FIELD,
    ],
    rows=[
        *rms_norm(f"{BLOCK}.post_attention_layernorm", f"{OURS}/attention_output_norm"),
        *rms_norm(f"{BLOCK}.pre_feedforward_layernorm", f"{OURS}/feed_forward_norm"),
        *rms_norm(f"{BLOCK}.post_feedforward_layernorm", f"{OURS}/feed_forward_output_norm"),
    ],
    fixed={"norm": "unit_offset_rms", "residual": "both", "scale_embeddings": True},
    supported={**llama.SUPPORTED, "use_bidirectional_attention": (None, False)},
    prepare=_with_windows,
    finish=window_fields.written,
)
