"""Write the adapters of tests/data/adapters with PEFT 0.21.2, transformers 5.23.0, torch 2.13.0.

python tests/data/make_adapter_fixtures.py

Each is an adapter of random numbers on one of the models here, as PEFT saves it, with what the model answers with it.
"""

from pathlib import Path

import numpy as np
import peft
import torch
import transformers

DATA = Path(__file__).parent
OUT = DATA / "adapters"
ALL = {"target_modules": "all-linear"}
# name -> (folder of the model, transformers' class, LoraConfig)
ADAPTERS = {
    "gpt2": (
        "gpt2",
        transformers.GPT2LMHeadModel,
        {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True},
    ),
    "llama": (
        "llama",
        transformers.LlamaForCausalLM,
        ALL | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 10}, "use_rslora": True},
    ),
    "gpt_neox": ("gpt_neox", transformers.GPTNeoXForCausalLM, ALL),
    "bert_classifier": (
        "bert_classifier",
        transformers.BertForSequenceClassification,
        {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"},
    ),
    "marian": ("marian", transformers.MarianMTModel, ALL | {"exclude_modules": "lm_head"}),
    "t5": ("t5", transformers.T5ForConditionalGeneration, ALL | {"exclude_modules": "lm_head"}),
}


def main():
    """Write all."""
    for name, (folder, model_class, config) in ADAPTERS.items():
        torch.manual_seed(0)
        model = model_class.from_pretrained(DATA / folder)
        model = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=6, **config))
        for variable in model.parameters():
            if variable.requires_grad:
                torch.nn.init.normal_(variable, std=0.3)
        model.peft_config["default"].base_model_name_or_path = folder
        model.eval().save_pretrained(OUT / name)
        (OUT / name / "README.md").unlink()
        ids = torch.from_numpy(np.random.default_rng(0).integers(3, 20, (2, 5)))
        inputs = {"input_ids": ids}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids.flip(1)
        with torch.no_grad():
            logits = model(**inputs).logits
        np.savez_compressed(OUT / name / "answers.npz", token_ids=ids.numpy(), logits=logits.numpy())


if __name__ == "__main__":
    main()
