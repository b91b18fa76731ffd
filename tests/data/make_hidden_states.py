"""Make hidden_states.npz: the hidden states and attention weights of fixtures, as transformers gives them.

    python tests/data/make_hidden_states.py

The models and their inputs are those of make_fixtures.py. Keys are "FIXTURE/hidden_states/0" and so on, by the names of
transformers; float32. Made with transformers 5.23.0 and torch 2.13.0.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
ENCODERS = ("bert", "bert_question_answerer", "distilbert_classifier", "electra_classifier", "roberta_masked_lm")
DECODERS = ("gpt2", "llama3_tied", "mistral", "qwen3", "gpt_neox", "gpt_neox_sequential", "gemma2")
TRANSLATORS = ("marian", "bart", "t5", "flan_t5")
KINDS = "hidden_states attentions encoder_hidden_states encoder_attentions decoder_hidden_states decoder_attentions"
GIVEN = {"token_ids": "input_ids", "padding_mask": "attention_mask", "segment_ids": "token_type_ids"}
GIVEN |= {"target_token_ids": "decoder_input_ids", "target_padding_mask": "decoder_attention_mask"}


def main():
    arrays = {}
    for name in (*ENCODERS, *DECODERS, *TRANSLATORS):
        answers = np.load(HERE / name / "answers.npz")
        architecture = json.loads((HERE / name / "config.json").read_text())["architectures"][0]
        model = getattr(transformers, architecture).from_pretrained(HERE / name, attn_implementation="eager").eval()
        inputs = {GIVEN[key]: torch.tensor(answers[key].astype("int64")) for key in GIVEN if key in answers}
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        for kind in (*KINDS.split(), "cross_attentions"):
            for i, x in enumerate(getattr(outputs, kind, None) or ()):
                arrays[f"{name}/{kind}/{i}"] = x.numpy()
    np.savez_compressed(HERE / "hidden_states.npz", **arrays)


if __name__ == "__main__":
    main()
