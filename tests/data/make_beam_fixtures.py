"""Make `beams.npz`: what transformers' beam search finds with the tiny GPT-2 beside this file.

    python tests/data/make_beam_fixtures.py

Made with transformers 5.23.0 and torch 2.13.0.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel

HERE = Path(__file__).parent
PROMPTS = [[3, 14, 15], [92], [6, 53, 58, 9, 7], [2, 71, 8, 2]]
NEW_TOKENS = 12
# The model repeats 60 and 72; without them, texts differ.
BASE = {"bad_words": [[60], [72]]}
CASES = [
    {**BASE, "num_beams": k, "early_stopping": early, "length_penalty": penalty, "end": end}
    for k, early, end in [(2, False, [0]), *itertools.product([4], [False, True, "never"], ([0], [50, 10, 21]))]
    for penalty in (0.0, 1.0, 2.0, -1.0)
]
CASES += [
    {**case, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words": [[60], [72, 9], [31, 72]]}
    for case in CASES
    if case["num_beams"] == 4 and case["length_penalty"] == 1.0 and case["early_stopping"] is False
]


def main():
    model = GPT2LMHeadModel.from_pretrained(HERE / "gpt2").eval()
    answers = {}
    for number, case in enumerate(CASES):
        options = {name: value for name, value in case.items() if name not in ("end", "bad_words")}
        sequences = np.full((len(PROMPTS), case["num_beams"], NEW_TOKENS), -1, "int32")
        scores = np.zeros(sequences.shape[:2], "float32")
        for i, prompt in enumerate(PROMPTS):
            found = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=NEW_TOKENS,
                num_return_sequences=case["num_beams"],
                bad_words_ids=case["bad_words"],
                eos_token_id=case["end"],
                pad_token_id=0,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )
            for rank, row in enumerate(found.sequences[:, len(prompt) :].tolist()):
                ends = [place for place, token in enumerate(row) if token in case["end"]]
                row = row[: ends[0] + 1] if ends else row
                sequences[i, rank, : len(row)] = row
            scores[i] = found.sequences_scores.numpy()
        answers |= {f"sequences_{number}": sequences, f"scores_{number}": scores}
    np.savez_compressed(HERE / "beams.npz", prompts=json.dumps(PROMPTS), cases=json.dumps(CASES), **answers)


if __name__ == "__main__":
    main()
