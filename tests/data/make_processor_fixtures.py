"""Make the fixture of logits processors: random logits, contexts, and what transformers' processors answer.

    python tests/data/make_processor_fixtures.py

`processors.npz` holds `logits` (4, 40); `contexts` (4, 14), tokens with -1 before the short ones, of which the last
`num_new` are a completion; `end_ids`; `options`, a JSON object case -> `GenerationConfig` arguments; and for each case
the logits it makes, (4, 40). Made with transformers 5.23.0 and torch 2.13.0.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
VOCABULARY_SIZE, NUM_NEW, END_IDS = 40, 3, [5, 39]
CONTEXTS = [
    [7, 3, 9, 4],  # shorter than some n-grams and bad words
    [1, 2, 1, 2, 1, 2, 1, 2, 1],
    [7, 3, 9, 4, 5, 2, 7, 3, 9, 4],  # the last four once more: 5 ends a 2-gram, a 3-gram and a 5-gram
    [0, 39, 0, 0, 39, 8, 0, 0, 39, 0, 0, 39, 0, 0],
]
SINGLES, MULTIPLES = [[0], [17], [38]], [[4, 11], [9, 4, 12], [1, 2, 1, 13], [0, 14], [8, 7, 3, 9, 4, 15], [2, 16]]
BIAS = {0: 2.5, 7: -4.0, 21: 1.5, 39: -0.125}
CASES = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "repetition_penalty_below_one": {"repetition_penalty": 0.6},
    "no_repeat_1_gram": {"no_repeat_ngram_size": 1},
    "no_repeat_2_gram": {"no_repeat_ngram_size": 2},
    "no_repeat_3_gram": {"no_repeat_ngram_size": 3},
    "no_repeat_5_gram": {"no_repeat_ngram_size": 5},
    "bad_tokens": {"bad_words": SINGLES},
    "bad_words": {"bad_words": MULTIPLES},
    "bad_tokens_and_words": {"bad_words": SINGLES + MULTIPLES},
    "logit_bias": {"logit_bias": BIAS},
    "min_new_tokens": {"min_new_tokens": NUM_NEW + 1},
    "min_new_tokens_reached": {"min_new_tokens": NUM_NEW},
    "exponential_decay": {"exponential_decay_length_penalty": (1, 1.4)},
    "exponential_decay_later": {"exponential_decay_length_penalty": (NUM_NEW, 1.4)},
    "suppress_tokens": {"suppress_tokens": [3, 5, 17]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [4, 39]},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 6},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.4},
    "typical_p_wide": {"typical_p": 0.9},
    "epsilon_cutoff": {"epsilon_cutoff": 0.04},
    "eta_cutoff": {"eta_cutoff": 0.3},
    "eta_cutoff_small": {"eta_cutoff": 0.002},
    "chain": {
        "logit_bias": BIAS,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words": SINGLES + MULTIPLES,
        "min_new_tokens": NUM_NEW + 1,
        "exponential_decay_length_penalty": (0, 1.2),
        "suppress_tokens": [3],
        "begin_suppress_tokens": [4],
        "temperature": 0.7,
        "top_k": 25,
        "top_p": 0.97,
        "min_p": 0.02,
        "typical_p": 0.95,
        "epsilon_cutoff": 0.01,
        "eta_cutoff": 0.05,
    },
}


def main():
    logits = 1.5 * torch.randn((len(CONTEXTS), VOCABULARY_SIZE), generator=torch.Generator().manual_seed(0))
    longest = max(map(len, CONTEXTS))
    arrays = {
        "logits": logits.numpy(),
        "contexts": np.array([[-1] * (longest - len(row)) + row for row in CONTEXTS], "int32"),
        "num_new": np.int32(NUM_NEW),
        "end_ids": np.array(END_IDS, "int32"),
        "options": json.dumps(CASES),
    }
    for name, options in CASES.items():
        # Row by row, because transformers would take padding for tokens.
        rows = zip(CONTEXTS, logits.split(1), strict=True)
        arrays[name] = torch.cat([answer(torch.tensor([row]), scores, options) for row, scores in rows]).numpy()
    np.savez_compressed(HERE / "processors.npz", **arrays)


def answer(context, scores, options):
    """What transformers makes of a row, in the order of its `_get_logits_processor`."""
    makers = {
        "logit_bias": lambda bias: transformers.SequenceBiasLogitsProcessor([[[i], x] for i, x in bias.items()]),
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": transformers.NoRepeatNGramLogitsProcessor,
        "bad_words": transformers.NoBadWordsLogitsProcessor,
        "min_new_tokens": lambda least: transformers.MinNewTokensLengthLogitsProcessor(
            context.shape[1] - NUM_NEW, least, END_IDS
        ),
        "exponential_decay_length_penalty": lambda penalty: transformers.ExponentialDecayLengthPenalty(
            penalty, END_IDS, context.shape[1] - NUM_NEW
        ),
        "suppress_tokens": transformers.SuppressTokensLogitsProcessor,
        "begin_suppress_tokens": lambda ids: transformers.SuppressTokensAtBeginLogitsProcessor(
            ids, context.shape[1] - NUM_NEW
        ),
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
        "typical_p": transformers.TypicalLogitsWarper,
        "epsilon_cutoff": transformers.EpsilonLogitsWarper,
        "eta_cutoff": transformers.EtaLogitsWarper,
    }
    for name, make in makers.items():
        if name in options:
            scores = make(options[name])(context, scores)
    return scores


if __name__ == "__main__":
    main()
