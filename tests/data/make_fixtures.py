"""Make the parity fixtures: tiny random transformers models, what they are given and what they answer.

    python tests/data/make_fixtures.py

Each folder beside this file holds a preset as transformers saves it (config.json, model.safetensors) and
`answers.npz`, inputs and outputs in float32. Made with transformers 5.23.0 and torch 2.13.0.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = Path(__file__).parent
VOCABULARY_SIZE, BATCH, LENGTH = 97, 3, 11
# No special tokens: these models have no tokenizer, and ids beyond the vocabulary draw warnings.
GPT2 = dict(vocab_size=VOCABULARY_SIZE, n_embd=16, n_layer=2, n_head=4, n_positions=24)
GPT2 |= dict(bos_token_id=None, eos_token_id=None)
BERT = dict(vocab_size=VOCABULARY_SIZE, hidden_size=16, num_hidden_layers=2, num_attention_heads=4)
BERT |= dict(intermediate_size=40, max_position_embeddings=24)

LLAMA = dict(vocab_size=VOCABULARY_SIZE, hidden_size=16, num_hidden_layers=2, num_attention_heads=4)
LLAMA |= dict(intermediate_size=40, max_position_embeddings=24, bos_token_id=None, eos_token_id=None)
# Its three frequencies lie on one side of the interpolated wavelengths, between them, and on the other.
LLAMA3 = dict(rope_type="llama3", rope_theta=50.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=40)


def main():
    save("gpt2", GPT2LMHeadModel(GPT2Config(**GPT2)))
    unusual = dict(n_inner=24, activation_function="relu", layer_norm_epsilon=1e-3, tie_word_embeddings=False)
    save("gpt2_untied", GPT2LMHeadModel(GPT2Config(**GPT2, **unusual)))
    save("bert", BertModel(BertConfig(**BERT)))
    save("bert_masked_lm", BertForMaskedLM(BertConfig(**BERT)))
    unusual = dict(hidden_act="gelu_new", layer_norm_eps=1e-5, type_vocab_size=3)
    save("bert_masked_lm_gelu_new", BertForMaskedLM(BertConfig(**BERT, **unusual)))
    save("llama", LlamaForCausalLM(LlamaConfig(**LLAMA)))
    unusual = dict(num_key_value_heads=2, head_dim=6, tie_word_embeddings=True, rope_parameters=LLAMA3)
    save("llama3_tied", LlamaForCausalLM(LlamaConfig(**LLAMA, **unusual)))
    save("mistral", MistralForCausalLM(MistralConfig(**LLAMA, num_key_value_heads=2, sliding_window=4)))
    save("qwen2", Qwen2ForCausalLM(Qwen2Config(**LLAMA, num_key_value_heads=2)))
    save("qwen3", Qwen3ForCausalLM(Qwen3Config(**LLAMA, num_key_value_heads=2, head_dim=6)))


def save(name, model):
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    # Biases start at 0 and norms at 1, which would hide a swap of the two.
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.25
        parameter.data = noise + (1.0 if parameter.ndim == 1 else 0.0)
    model.tie_weights()
    model.eval().save_pretrained(HERE / name)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)

    token_ids = torch.randint(VOCABULARY_SIZE, (BATCH, LENGTH), generator=generator)
    padding_mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [7], [1]])
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    arguments = {"input_ids": token_ids, "attention_mask": padding_mask.long()}
    if model.config.model_type == "bert":
        inputs["segment_ids"] = torch.randint(model.config.type_vocab_size, (BATCH, LENGTH), generator=generator)
        arguments["token_type_ids"] = inputs["segment_ids"]
    with torch.no_grad():
        outputs = model(**arguments)
    inputs |= {key: value for key, value in outputs.items() if isinstance(value, torch.Tensor)}
    np.savez_compressed(HERE / name / "answers.npz", **{key: value.numpy() for key, value in inputs.items()})


if __name__ == "__main__":
    main()
