"""Make the parity fixtures: tiny random transformers models, what they are given and what they answer.

    python tests/data/make_fixtures.py

Each folder beside this file holds a preset as transformers saves it (config.json, model.safetensors) and
`answers.npz`, inputs and outputs in float32. Made with transformers 5.23.0 and torch 2.13.0.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

HERE = Path(__file__).parent
VOCABULARY_SIZE, BATCH, LENGTH = 97, 3, 11
# No special tokens: these models have no tokenizer, and ids beyond the vocabulary draw warnings.
GPT2 = dict(vocab_size=VOCABULARY_SIZE, n_embd=16, n_layer=2, n_head=4, n_positions=24)
GPT2 |= dict(bos_token_id=None, eos_token_id=None)
BERT = dict(vocab_size=VOCABULARY_SIZE, hidden_size=16, num_hidden_layers=2, num_attention_heads=4)
BERT |= dict(intermediate_size=40, max_position_embeddings=24)
# The tables of the relatives are proven once; then one layer is enough.
SMALL_BERT = BERT | dict(num_hidden_layers=1, hidden_size=8, intermediate_size=12, num_attention_heads=2)
ROBERTA = SMALL_BERT | dict(type_vocab_size=1, layer_norm_eps=1e-5, bos_token_id=None, eos_token_id=None)
DISTILBERT = dict(vocab_size=VOCABULARY_SIZE, dim=8, n_layers=1, n_heads=2, hidden_dim=12, max_position_embeddings=24)
NAMES = {0: "O", 1: "B-PER", 2: "I-PER"}
LABELS = dict(id2label=NAMES, label2id={name: i for i, name in NAMES.items()})

LLAMA = dict(vocab_size=VOCABULARY_SIZE, hidden_size=16, num_hidden_layers=2, num_attention_heads=4)
LLAMA |= dict(intermediate_size=40, max_position_embeddings=24, bos_token_id=None, eos_token_id=None)
# Its three frequencies lie on one side of the interpolated wavelengths, between them, and on the other.
LLAMA3 = dict(rope_type="llama3", rope_theta=50.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=40)

GEMMA2 = LLAMA | dict(num_hidden_layers=3, num_key_value_heads=2, head_dim=6, sliding_window=4, query_pre_attn_scalar=9)
GEMMA2 |= dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0, pad_token_id=None)  # low, to be seen

SIDES = ("encoder", "decoder")
BART = dict(vocab_size=VOCABULARY_SIZE, d_model=16, max_position_embeddings=24, encoder_layers=2, decoder_layers=1)
BART |= {f"{side}_ffn_dim": width for side, width in zip(SIDES, (24, 20), strict=True)}
BART |= {f"{side}_attention_heads": heads for side, heads in zip(SIDES, (4, 2), strict=True)}
BART |= dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.1)
MARIAN = BART | dict(pad_token_id=96, decoder_start_token_id=96, eos_token_id=0, bos_token_id=0)
MARIAN |= dict(scale_embedding=True, activation_function="silu", decoder_vocab_size=VOCABULARY_SIZE)
T5 = dict(vocab_size=VOCABULARY_SIZE, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=4)
T5 |= dict(relative_attention_num_buckets=8, relative_attention_max_distance=9, decoder_start_token_id=0)
# Without a ban they repeat one token.
PLAIN = dict(max_length=14, no_repeat_ngram_size=1)


def main():
    save("gpt2", GPT2LMHeadModel(GPT2Config(**GPT2)))
    unusual = dict(n_inner=24, activation_function="relu", layer_norm_epsilon=1e-3, tie_word_embeddings=False)
    save("gpt2_untied", GPT2LMHeadModel(GPT2Config(**GPT2, **unusual)))
    save("bert", BertModel(BertConfig(**BERT)))
    save("bert_masked_lm", BertForMaskedLM(BertConfig(**BERT)))
    unusual = dict(hidden_act="gelu_new", layer_norm_eps=1e-5, type_vocab_size=3)
    save("bert_masked_lm_gelu_new", BertForMaskedLM(BertConfig(**BERT, **unusual)))
    save("bert_classifier", BertForSequenceClassification(BertConfig(**SMALL_BERT, num_labels=3)))
    save("bert_token_classifier", BertForTokenClassification(BertConfig(**SMALL_BERT, **LABELS)))
    save("bert_question_answerer", BertForQuestionAnswering(BertConfig(**SMALL_BERT)))
    save("roberta_masked_lm", RobertaForMaskedLM(RobertaConfig(**ROBERTA)))
    types = dict(problem_type="multi_label_classification")
    save("roberta_classifier", RobertaForSequenceClassification(RobertaConfig(**ROBERTA, **types, num_labels=3)))
    save("xlm_roberta_token_classifier", XLMRobertaForTokenClassification(XLMRobertaConfig(**ROBERTA, **LABELS)))
    save("distilbert_masked_lm", DistilBertForMaskedLM(DistilBertConfig(**DISTILBERT)))
    save("distilbert_classifier", DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT)))
    save("electra_generator", ElectraForMaskedLM(ElectraConfig(**SMALL_BERT, embedding_size=6)))
    save("electra_discriminator", ElectraForPreTraining(ElectraConfig(**SMALL_BERT, embedding_size=6)), base=True)
    save("electra_classifier", ElectraForSequenceClassification(ElectraConfig(**SMALL_BERT, embedding_size=8)))
    save("llama", LlamaForCausalLM(LlamaConfig(**LLAMA)))
    unusual = dict(num_key_value_heads=2, head_dim=6, tie_word_embeddings=True, rope_parameters=LLAMA3)
    save("llama3_tied", LlamaForCausalLM(LlamaConfig(**LLAMA, **unusual)))
    save("mistral", MistralForCausalLM(MistralConfig(**LLAMA, num_key_value_heads=2, sliding_window=4)))
    save("qwen2", Qwen2ForCausalLM(Qwen2Config(**LLAMA, num_key_value_heads=2)))
    save("qwen3", Qwen3ForCausalLM(Qwen3Config(**LLAMA, num_key_value_heads=2, head_dim=6)))
    save("gpt_neox", GPTNeoXForCausalLM(GPTNeoXConfig(**LLAMA, hidden_dropout=0.1, rotary_pct=0.5)))
    unusual = dict(use_parallel_residual=False, tie_word_embeddings=True, hidden_act="gelu_new")
    save("gpt_neox_sequential", GPTNeoXForCausalLM(GPTNeoXConfig(**LLAMA, **unusual, rotary_pct=1.0)))
    save("gemma2", Gemma2ForCausalLM(Gemma2Config(**GEMMA2)))
    marian = dict(
        num_beams=3,
        no_repeat_ngram_size=2,
        bad_words_ids=[[96]],
        forced_eos_token_id=0,
        renormalize_logits=True,
        max_length=14,
    )
    save("marian", MarianMTModel(MarianConfig(**MARIAN)), marian)
    separate = dict(share_encoder_decoder_embeddings=False, decoder_vocab_size=90, forced_eos_token_id=None)
    separate |= dict(pad_token_id=0, decoder_start_token_id=0, eos_token_id=1)
    save("marian_separate", MarianMTModel(MarianConfig(**MARIAN | separate)), PLAIN)
    bart = dict(num_beams=3, forced_bos_token_id=0, forced_eos_token_id=2, min_length=6, no_repeat_ngram_size=2)
    bart |= dict(length_penalty=2.0, early_stopping=True, max_length=14)
    save("bart", BartForConditionalGeneration(BartConfig(**BART)), bart)
    save("t5", T5ForConditionalGeneration(T5Config(**T5)), PLAIN)
    flan = T5ForConditionalGeneration(T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    flan.lm_head.weight = torch.nn.Parameter(torch.empty_like(flan.lm_head.weight))
    save("flan_t5", flan, PLAIN)


def save(name, model, generation=None, base=False):
    """Write a model and its answers; with `generation` what it generates, with `base` what its encoder gives."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    # Biases start at 0 and norms at 1, which would hide a swap of the two.
    for parameter in (p for p in model.parameters() if p.requires_grad):  # not Marian's sinusoids
        noise = torch.randn(parameter.shape, generator=generator) * 0.25
        parameter.data = noise + (1.0 if parameter.ndim == 1 else 0.0)
    for module in model.modules():
        if isinstance(module, RobertaEmbeddings | XLMRobertaEmbeddings):
            module.position_embeddings.weight.data[:2] = 0.0  # which nothing looks up, and we don't keep
    if generation is None:
        model.tie_weights()
    else:
        for bias in (b for key, b in model.named_buffers() if key == "final_logits_bias"):
            bias.data = torch.randn(bias.shape, generator=generator) * 0.25
            if name == "bart":  # or no text would end before its least length
                bias.data[:, model.config.eos_token_id] += 6
        model.generation_config.update(**generation)
    model.eval().save_pretrained(HERE / name)
    if generation is None:
        (HERE / name / "generation_config.json").unlink(missing_ok=True)

    # RoBERTa counts no position for its padding token, 1.
    first = 2 if model.config.pad_token_id == 1 and generation is None else 0
    token_ids = torch.randint(first, VOCABULARY_SIZE, (BATCH, LENGTH), generator=generator)
    padding_mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [7], [1]])
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    arguments = {"input_ids": token_ids, "attention_mask": padding_mask.long()}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["segment_ids"] = torch.randint(model.config.type_vocab_size, (BATCH, LENGTH), generator=generator)
        arguments["token_type_ids"] = inputs["segment_ids"]
    if generation is not None:
        target_size = getattr(model.config, "decoder_vocab_size", VOCABULARY_SIZE)
        inputs["target_token_ids"] = torch.randint(target_size, (BATCH, LENGTH - 2), generator=generator)
        inputs["target_padding_mask"] = torch.arange(LENGTH - 2) < torch.tensor([[4], [LENGTH - 2], [2]])
        for key, num_beams in {"greedy": 1, "beams": 3}.items():
            found = model.generate(**arguments, num_beams=num_beams)
            inputs[key] = torch.nn.functional.pad(found, (0, 14 - found.shape[1]), value=-1)
        arguments["decoder_input_ids"] = inputs["target_token_ids"]
        arguments["decoder_attention_mask"] = inputs["target_padding_mask"].long()
    with torch.no_grad():
        outputs = (model.base_model if base else model)(**arguments)
    kept = ("logits",) if generation is not None else outputs
    inputs |= {key: outputs[key] for key in kept if isinstance(outputs[key], torch.Tensor)}
    np.savez_compressed(HERE / name / "answers.npz", **{key: value.numpy() for key, value in inputs.items()})


if __name__ == "__main__":
    main()
